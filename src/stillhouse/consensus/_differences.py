"""Where worked solutions part: their steps in a form in which the same step is equal, and the first that is not."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from itertools import combinations, zip_longest
from typing import NamedTuple

from stillhouse.answers import normalized, number
from stillhouse.consensus.base import Vote

_ANNOTATION = re.compile(r"<<[^<>]*>>")
"""What GSM8K writes between an equation and its result for a calculator."""
_TERM = r"\(*\s*-?\s*[$€£¥]?\s?(?:\d[\d,]*(?:\.\d+)?|\.\d+)\s?%?\s*\)*"
_SIGN = r"[-+*/x×÷−·]"
EQUATION = re.compile(rf"(?P<left>{_TERM}(?:\s*{_SIGN}\s*{_TERM})+)\s*=\s*(?P<right>-?\s?[$€£¥]?\s?[\d.,]*\d)")
_SIGNS = str.maketrans({"x": "*", "×": "*", "·": "*", "÷": "/", "−": "-", "$": "", "€": "", "£": "", "¥": "", " ": ""})


class Step(NamedTuple):
    """A step of a solution: the form in which equal steps are equal, and its text."""

    form: Hashable
    text: str


class Difference(NamedTuple):
    """The first step at which two solutions differ.

    Attributes:
        step: its number, from 1.
        one: the first solution's step as it is written; empty where that solution has ended.
        other: the second's.
    """

    step: int
    one: str
    other: str


def steps(solution: str) -> list[Step]:
    """The steps of a worked solution: its equations, or where there are none its lines; then the final number.

    Equations are equal whatever the spaces, currency signs, separators of thousands, and the order of a sum's or a
    product's terms.

    >>> [step.text for step in steps("She has 2 + 3 = <<2+3=5>>5 eggs, so 5 x $2 = $10.\\nA: 10")]
    ['2 + 3 = 5', '5 x $2 = $10', 'the answer 10']
    """
    text = without_annotations(solution)
    found = [
        Step(_form(match["left"], match["right"]), " ".join(match[0].split())) for match in EQUATION.finditer(text)
    ]
    if not found:
        lines = [line for line in text.splitlines() if line.strip()]
        return [Step(normalized(line), " ".join(line.split())) for line in lines]
    final = number(solution)
    return [*found, Step(("answer", final), f"the answer {final}")]


def without_annotations(solution: str) -> str:
    """A solution without what is written in it for a calculator.

    >>> without_annotations("2 + 3 = <<2+3=5>>5")
    '2 + 3 = 5'
    """
    return _ANNOTATION.sub("", solution)


def plain(expression: str) -> str:
    """An expression in digits, parentheses and `+ - * / %` alone.

    >>> plain("$1,000 × 2 ÷ (3 − 1)")
    '1000*2/(3-1)'
    """
    return expression.translate(_SIGNS).replace(",", "")


def _form(left: str, right: str) -> Hashable:
    signs = plain(left)
    for sign in "+*":
        terms = signs.split(sign)
        if all(re.fullmatch(r"[\d.]+%?", term) for term in terms):
            return sign, tuple(sorted((number(term), "%" in term) for term in terms)), number(right)
    return re.sub(r"[\d.]+", lambda found: str(number(found[0])), signs), number(right)


def first_difference(one: str, other: str) -> Difference | None:
    """The first step at which two solutions differ, compared in order; None where none does.

    >>> first_difference("2 + 3 = 5. 5 * 2 = 10. A: 10", "3+2=5. 5*3=15. A: 15")
    Difference(step=2, one='5 * 2 = 10', other='5*3=15')
    """
    pairs = zip_longest(steps(one), steps(other), fillvalue=Step(None, ""))
    for place, (a, b) in enumerate(pairs, start=1):
        if a.form != b.form:
            return Difference(place, a.text, b.text)
    return None


class Pair(NamedTuple):
    """Two teachers, by their places: the questions that both answered, and those on which they differ."""

    one: int
    other: int
    both: int
    differ: int


def pairs(votes: Sequence[Sequence[Vote]]) -> list[Pair]:
    """How often each two teachers differ.

    >>> pairs([["7", "7"], ["1", "2"], ["1", None]])
    [Pair(one=0, other=1, both=2, differ=1)]
    """
    found = []
    for one, other in combinations(range(len(votes[0]) if votes else 0), 2):
        both = [(row[one], row[other]) for row in votes if row[one] is not None and row[other] is not None]
        found.append(Pair(one, other, len(both), sum(a != b for a, b in both)))
    return found
