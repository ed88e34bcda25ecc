"""Text as selectors compare it: normalised, in words, as hashed runs of words; and which of two rows is the better one.

Shapes: N examples, S runs of words in a block of them.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import DataError
from stillhouse.features.base import text_of
from stillhouse.records import Example

Rows = NDArray[np.int64]
Hashes = NDArray[np.uint64]

_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Kana and ideographs, written without spaces: each is a word."""
_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+|[^\w\s]")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_CHARACTERS, _ROWS, _KNOWN = 2**22, 2**13, 2**20
"""Of a block of texts: about how many characters, at most how many rows; and how many words' hashes are kept."""


def normal(text: str) -> str:
    """Text as it is compared: canonical Unicode, without case, each white space one blank.

    Symbols and punctuation stay, and compatible characters are not merged: `2 + 2` is not `2 - 2`, nor `3²` `32`.

    >>> normal("  Two\\n WORDS ")
    'two words'
    """
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def words(text: str) -> list[str]:
    """The words and the single symbols of a text, normalised; an ideograph is a word.

    >>> words("Is 2+2 = 4?")
    ['is', '2', '+', '2', '=', '4', '?']
    """
    return _WORD.findall(normal(text))


def digests(examples: Sequence[Example]) -> Hashes:
    """128 bits of the normalised text of each example, [N, 2]: equal where, and only where, the texts are equal."""
    found = np.empty((len(examples), 2), np.uint64)
    for row, example in enumerate(examples):
        found[row] = np.frombuffer(_digest(normal(text_of(example)), 16), "<u8")
    return found


def best_first(examples: Sequence[Example], who: str) -> tuple[NDArray[np.float64], Rows]:
    """The words of each row's answer, and all rows from the best to the worst: the longest answer, then the smallest
    id, so that the order in which they were given decides nothing.

    Raises:
        DataError: two examples with one id.
    """
    lengths_N = np.fromiter((len(words(_answer_of(example))) for example in examples), np.float64, len(examples))
    names = [example.id for example in examples]
    order_N = np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)
    twice = [names[a] for a, b in pairwise(order_N.tolist()) if names[a] == names[b]]
    if twice:
        shown = ", ".join(repr(name) for name in list(Counter(twice))[:3])
        raise DataError(
            f"{who} tells rows apart by their id where they are equally good, and {len(set(twice))} ids occur more "
            f"than once: {shown}. Give every example an id of its own."
        )
    return lengths_N, order_N[np.argsort(-lengths_N[order_N], kind="stable")]


def _answer_of(example: Example) -> str:
    """What the student would learn to write; the text, or the prompt, where there is no answer."""
    if example.messages is not None:
        said = [m["content"] for m in example.messages if m["role"] == "assistant"]
        return "\n".join(said) or text_of(example)
    answer = "\n".join(part for part in (example.rationale, example.completion) if part)
    return answer or text_of(example)


class Block(NamedTuple):
    """Hashed runs of words of consecutive texts; those of text `r` are `hashes_S[ends[r - 1] : ends[r]]`."""

    hashes_S: Hashes
    ends: Rows


def runs_of_words(texts: Iterable[str], length: int) -> Iterator[Block]:
    """Every run of `length` words of each text, in the order of the text, as 64-bit hashes; a shorter text is one run.

    There are at most as many runs as words, so that a text of ten megabytes is some millions of numbers; texts are
    hashed in blocks of a few megabytes.
    """
    known = _Known()
    for block in _blocks(texts):
        found = [words(text) for text in block]
        sizes = np.fromiter(map(len, found), np.int64, len(found))
        hashed = np.fromiter(map(known.__getitem__, chain.from_iterable(found)), np.uint64, int(sizes.sum()))
        yield _runs(hashed, sizes, length)
        if len(known) > _KNOWN:
            known.clear()


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    block, size = list[str](), 0
    for text in texts:
        block.append(text)
        size += len(text)
        if size > _CHARACTERS or len(block) == _ROWS:
            yield block
            block, size = [], 0
    if block:
        yield block


def _runs(hashed: Hashes, sizes: Rows, length: int) -> Block:
    ends = np.cumsum(sizes)
    starts = ends - sizes
    counts = np.maximum(sizes - length + 1, np.minimum(sizes, 1))
    run_ends = np.cumsum(counts)
    first = np.repeat(starts - (run_ends - counts), counts) + np.arange(counts.sum())
    widths = np.repeat(np.minimum(sizes, length), counts)
    found = np.zeros(len(first), np.uint64)
    for place in range(length):
        there = widths > place
        found[there] = found[there] * _FACTOR + hashed[first[there] + place]
    found ^= found >> np.uint64(29)  # the low bits of a sum of products know little of the high ones
    return Block(found * _FACTOR, run_ends)


class _Known(dict[str, int]):
    """The hash of every word met."""

    def __missing__(self, word: str) -> int:
        value = self[word] = int.from_bytes(_digest(word, 8), "little")
        return value


def _digest(text: str, size: int) -> bytes:
    # Text read from JSON may hold half a surrogate pair, which plain UTF-8 refuses.
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()
