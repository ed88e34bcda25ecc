"""How much of an evaluation item a row holds: the share of its words that lie in runs of words they have in common."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from stillhouse.features.base import text_of
from stillhouse.records import Example
from stillhouse.selection._text import Block, digests, runs_of_words, words

_TEMPLATE = 0.02
"""A run of words in more than this share of the items, and in two at least, belongs to how they are asked."""


class Overlap(NamedTuple):
    """The item that a row holds most of."""

    share: float
    item: str


class Items:
    """Evaluation items, searched for in rows by hashed runs of words, and then word by word."""

    def __init__(self, items: Sequence[Example], length: int) -> None:
        """Items with the same text are one; those with less than `length` words of their own are only found whole."""
        self.length = length
        different = {tuple(digest): item for digest, item in zip(digests(items).tolist(), items, strict=True)}
        self._whole = {digest: item.id for digest, item in different.items()}
        chosen = [(item.id, found) for item in different.values() if len(found := words(text_of(item))) >= length]
        self._ids = [name for name, _ in chosen]
        self._words = [found for _, found in chosen]
        self._own = [set(range(len(found))) for found in self._words]
        self._places = self._index(max(1.0, _TEMPLATE * len(different)))
        self._hashes = np.array(sorted(self._places), np.uint64)

    def _index(self, allowed: float) -> dict[int, list[tuple[int, int]]]:
        """Where each run occurs, as item and first word, those of a template left out; its words are no item's own."""
        found: dict[int, list[tuple[int, int]]] = defaultdict(list)
        texts = (" ".join(item) for item in self._words)
        each = (runs for block in runs_of_words(texts, self.length) for runs in _split(block))
        for number, runs in enumerate(each):
            for start, run in enumerate(runs.tolist()):
                found[run].append((number, start))
        for run, places in list(found.items()):
            if len({item for item, _ in places}) > allowed:
                del found[run]
                for item, start in places:
                    self._own[item].difference_update(range(start, start + self.length))
        return found

    def same(self, digest: Sequence[int]) -> str | None:
        """The item whose text has this digest."""
        return self._whole.get(tuple(digest))

    def overlaps(self, examples: Sequence[Example]) -> Iterator[Overlap]:
        """Of every example, in turn, the item that it holds most of; a share of 0 where it has no run in common."""
        row = 0
        for block in runs_of_words((whole_text(example) for example in examples), self.length):
            places = np.searchsorted(self._hashes, block.hashes_S)
            places[places == len(self._hashes)] = 0
            known = self._hashes[places] == block.hashes_S if len(self._hashes) else np.zeros(len(places), bool)
            for runs, hits in zip(_split(block), _split(Block(known, block.ends)), strict=True):
                yield self._most(examples[row], set(runs[hits].tolist())) if hits.any() else Overlap(0.0, "")
                row += 1

    def _most(self, example: Example, runs: set[int]) -> Overlap:
        held = words(whole_text(example))
        true = {tuple(held[start : start + self.length]) for start in range(len(held) - self.length + 1)}
        covered: dict[int, set[int]] = defaultdict(set)
        for run in runs:
            for item, start in self._places[run]:
                if tuple(self._words[item][start : start + self.length]) in true:
                    covered[item].update(range(start, start + self.length))
        shares = [
            (len(places & self._own[item]) / len(self._own[item]), -item)
            for item, places in covered.items()
            if len(self._own[item]) >= self.length
        ]
        share, item = max(shares, default=(0.0, 0))
        return Overlap(share, self._ids[-item] if share else "")


def whole_text(example: Example) -> str:
    """All a row says, question and answer."""
    if example.messages is not None:
        return "\n".join(m["content"] for m in example.messages)
    parts = (example.prompt, example.rationale, example.completion, example.text)
    return "\n".join(part for part in parts if part)


def _split(block: Block) -> Iterator[np.ndarray]:
    start = 0
    for end in block.ends.tolist():
        yield block.hashes_S[start:end]
        start = end
