"""Words, categories of sentences and number combinations of the worded-arithmetic generator."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from stillhouse.data.arithmetic_shapes import BLOCKS, read_block


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _listed(
    "Mia Leo Ava Noah Zoe Omar Lina Hugo Nora Ivan Ella Yuki Sara Theo Maya Liam Ruth Amir Cleo Jonas Dina Felix "
    "Greta Hana Iris Jamal Kira Luca Mona Nils Olga Pablo Rosa Sven Tara Umar Vera Wanda Xenia Yara Zain Anton Bea "
    "Carl Dora Emil Fatima Goran Helga Ines Jan Karim Lola Marco Nadia Otto Paula Rafi Sofia Tomas"
)
PLACES = _listed("kitchen garden market school library park office station hall farm museum harbour")
_FOODS = "apple pear plum cookie muffin lemon carrot pancake grape banana nut egg melon olive waffle"
_THINGS = (
    "marble sticker pencil book stamp button shell card ribbon bead ball pen candle brick spoon flower poster badge "
    "rope kite"
)

# kind of unit -> (singular, plural)
UNITS: dict[str, tuple[tuple[str, str], ...]] = {
    "food": tuple((word, word + "s") for word in _listed(_FOODS)),
    "thing": tuple((word, word + "s") for word in _listed(_THINGS)),
    "box": tuple(
        (word, "boxes" if word == "box" else word + "s")
        for word in _listed("box bag basket crate jar tray packet carton")
    ),
    "money": tuple((word, word + "s") for word in _listed("coin dollar token euro peso")),
}

Op = Literal["+", "-", "*", "/"]
Split = Literal["train", "heldout"]

LARGEST = 100
PARTS = {2: "half", 3: "one third", 4: "one quarter", 5: "one fifth"}
_FACTORS = range(2, 6)
_TABLE = 10  # the times table up to here is known by heart, so never held out
_HELDOUT_COMBINATIONS = 8  # one combination in this many is held out


@dataclass(frozen=True)
class Step:
    """One exact operation: ``left op right == result``, all non-negative integers."""

    left: int
    op: Op
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left} {self.op} {self.right} = {self.result}"


@dataclass(frozen=True)
class Category:
    """What a sentence of one category does to the story."""

    op: Op
    kinds: str = "food thing box money"  # the units it can be said of
    weight: float = 1.0
    becomes: str = ""  # kind of the unit afterwards, when it changes


_GOODS = "food thing box"
STORY: dict[str, Category] = {
    "gain": Category("+", _GOODS, weight=2.5),
    "loss": Category("-", _GOODS, weight=2.0),
    "eat": Category("-", "food", weight=1.5),
    "earn": Category("+", "money", weight=2.5),
    "spend": Category("-", "money", weight=3.0),
    "scale": Category("*"),
    "split": Category("/", weight=1.5),
    "pack": Category("/", "food thing", becomes="box", weight=2.0),
    "contain": Category("*", "box", becomes="food thing", weight=3.0),
    "price": Category("*", _GOODS, becomes="money"),
}

SENTENCES: dict[Op, tuple[str, ...]] = {
    "+": ("That makes {eq} {items}.", "In total there are {eq} {items}.", "Adding gives {eq}.", "The total is {eq}."),
    "-": (
        "That leaves {eq} {items}.",
        "There remain {eq} {items}.",
        "Subtracting gives {eq}.",
        "The difference is {eq}.",
    ),
    "*": ("That makes {eq} {items}.", "This comes to {eq} {items}.", "Multiplying gives {eq}.", "The product is {eq}."),
    "/": ("That makes {eq} {items}.", "Each part is {eq} {items}.", "Dividing gives {eq}.", "One share is {eq}."),
}
OWNED = (
    "{who} has {eq} {items}.",
    "Now {who} has {eq} {items}.",
    "So {who} has {eq}.",
    "{who}: {eq} {items}.",
    "{eq}.",
)


@cache
def shapes_of(category: str, split: Split) -> tuple[tuple[str, str], ...]:
    """The ``(id, text)`` pairs of one category and split."""
    return tuple((name, text) for name, text, belongs in read_block(category) if belongs == split)


@cache
def combination_split(left: int, op: Op, right: int) -> Split:
    """Split of a number combination, by a hash that is the same in every process (about 1 in 8 is ``"heldout"``).

    A pair of numbers is held out from all operations at once: were 61 + 38 held out and 61 - 38 not, a model could
    learn that 61 and 38 are for subtracting. The times table up to 10, with its divisions, is always ``"train"``:
    larger products are worked out from it, it from nothing.

    Example: ``combination_split(12, "+", 7)``.
    """
    low, high = sorted((left, right))
    if high <= _TABLE or (low and high % low == 0 and high // low <= _TABLE):
        return "train"
    mixed = (high * 1009 + low + 1) * 0x9E3779B97F4A7C15 % 2**64
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
    return "heldout" if (mixed >> 40) % _HELDOUT_COMBINATIONS == 0 else "train"


def shape_ids(split: Split) -> frozenset[str]:
    """Ids of every sentence shape of one split, such as ``"gain-07-2"``."""
    return frozenset(shape_id for category in BLOCKS for shape_id, _ in shapes_of(category, split))


@cache
def factors(value: int, op: Op, split: Split) -> tuple[int, ...]:
    """The small right operands that keep ``value op k`` exact, in range and in the split."""
    fits = (k for k in _FACTORS if (value * k <= LARGEST if op == "*" else value % k == 0))
    return tuple(k for k in fits if combination_split(value, op, k) == split)


@cache
def products(split: Split) -> tuple[tuple[int, int], ...]:
    """Pairs (size of a group, number of groups) of the split, within the largest value."""
    pairs = ((n, k) for k in _FACTORS for n in range(2, LARGEST // k + 1))
    return tuple(pair for pair in pairs if combination_split(pair[0], "*", pair[1]) == split)
