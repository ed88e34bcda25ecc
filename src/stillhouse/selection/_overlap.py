"""How much of an evaluation item a row holds: the share of its words that lie in runs of words they have in common.

Shapes: I items, W words of all of them, R places of runs, U different runs, H runs that rows have in common with items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillhouse.features.base import text_of
from stillhouse.records import Example
from stillhouse.selection._text import Hashes, Rows, digests, runs_of_words, words

Floats = NDArray[np.float64]

_OF_ITEMS, _OF_ROWS, _FEW = 0.02, 0.01, 10
"""A run of words in more than this share of the items (and in two of them), or in more than this share of the rows (and
in more than a few), belongs to how things are asked or set, not to one item."""


class Overlap(NamedTuple):
    """The item that a row holds most of."""

    share: float
    item: str


class Items:
    """Evaluation items, searched for in rows by hashed runs of words, and then word by word."""

    def __init__(self, items: Sequence[Example], length: int) -> None:
        """Items with the same text are one; those with less than `length` words of their own are only found whole."""
        self._length = length
        different = {tuple(digest): item for digest, item in zip(digests(items).tolist(), items, strict=True)}
        self._whole = {digest: item.id for digest, item in different.items()}
        self._ids = [item.id for item in different.values()]
        self._words = [words(text_of(item)) for item in different.values()]
        sizes = [len(found) for found in self._words]
        self._begins = np.cumsum([0, *sizes])[:-1]
        self._item_W = np.repeat(np.arange(len(sizes)), sizes)
        self._own_W = np.ones(len(self._item_W), bool)
        hashes_R, self._item_R, self._start_R = self._runs()
        order_R = np.argsort(hashes_R, kind="stable")
        self._item_R, self._start_R = self._item_R[order_R], self._start_R[order_R]
        self._runs_U, self._begin_U = np.unique(hashes_R[order_R], return_index=True)
        self._end_U = np.append(self._begin_U, len(hashes_R))[1:]
        spread_U = np.array([len(np.unique(self._item_R[a:b])) for a, b in self._spans()], np.int64)
        self._counts_U = spread_U <= max(1.0, _OF_ITEMS * len(self._ids))

    def same(self, digest: Sequence[int]) -> str | None:
        """The item whose text has this digest."""
        return self._whole.get(tuple(digest))

    def overlaps(self, examples: Sequence[Example], sure_from: float) -> dict[int, Overlap]:
        """Of every example that has a run in common with an item the item that it holds most of; where the share is
        at least `sure_from`, the runs were compared word by word."""
        row_H, run_H = self._meet(examples)
        often_U = np.bincount(run_H, minlength=len(self._runs_U))
        counts_U = self._counts_U & (often_U <= max(_FEW, _OF_ROWS * len(examples)))
        self._own_W[self._covered(np.flatnonzero(~counts_U))] = False
        own_I = np.bincount(self._item_W[self._own_W], minlength=len(self._ids))
        least_I = np.where(own_I >= self._length, own_I, np.inf)  # of too few words no share is large
        counted = counts_U[run_H]
        rows, begins = np.unique(row_H[counted], return_index=True)
        met = zip(rows.tolist(), np.split(run_H[counted], begins[1:]), strict=False)
        return {row: self._most(examples[row], runs, least_I, sure_from) for row, runs in met}

    def _runs(self) -> tuple[Hashes, Rows, Rows]:
        """The hash of every run, its item and its first word."""
        blocks = list(runs_of_words((" ".join(found) for found in self._words), self._length))
        hashes_R = np.concatenate([block.hashes_S for block in blocks])
        sizes = np.concatenate([np.diff(block.ends, prepend=0) for block in blocks])
        item_R = np.repeat(np.arange(len(sizes)), sizes)
        start_R = np.arange(len(item_R)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        long = np.array([len(found) >= self._length for found in self._words])[item_R]
        return hashes_R[long], item_R[long], start_R[long]

    def _meet(self, examples: Sequence[Example]) -> tuple[Rows, Rows]:
        """Rows and the runs that they have in common with items, each pair once, by rows; those of a template left out
        as far as the items tell."""
        pairs, row = [np.zeros((0, 2), np.int64)], 0
        for block in runs_of_words((whole_text(example) for example in examples), self._length):
            if len(self._runs_U):
                run_S = np.minimum(np.searchsorted(self._runs_U, block.hashes_S), len(self._runs_U) - 1)
                met = np.flatnonzero((self._runs_U[run_S] == block.hashes_S) & self._counts_U[run_S])
                rows = row + np.searchsorted(block.ends, met, side="right")
                pairs.append(np.unique(np.stack([rows, run_S[met]], axis=1), axis=0))
            row += len(block.ends)
        found = np.concatenate(pairs)
        return found[:, 0], found[:, 1]

    def _most(self, example: Example, runs: Rows, own_I: Floats, sure_from: float) -> Overlap:
        best = self._best(runs, own_I)
        if best.share < sure_from:
            return best
        held = words(whole_text(example))
        true = {tuple(held[start : start + self._length]) for start in range(len(held) - self._length + 1)}
        return self._best(np.array([run for run in runs.tolist() if self._run(run) in true], np.int64), own_I)

    def _best(self, runs: Rows, own_I: Floats) -> Overlap:
        covered = self._covered(runs)
        items, held = np.unique(self._item_W[covered[self._own_W[covered]]], return_counts=True)
        if not len(items):
            return Overlap(0.0, "")
        shares = held / own_I[items]
        best = int(shares.argmax())
        return Overlap(float(shares[best]), self._ids[items[best]])

    def _covered(self, runs: Rows) -> Rows:
        """The places, among the words of all items, that runs cover wherever they occur."""
        begins, counts = self._begin_U[runs], self._end_U[runs] - self._begin_U[runs]
        places = np.repeat(begins - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        first = self._begins[self._item_R[places]] + self._start_R[places]
        return np.unique(first[:, None] + np.arange(self._length))

    def _run(self, run: int) -> tuple[str, ...]:
        place = self._begin_U[run]
        start = self._start_R[place]
        return tuple(self._words[self._item_R[place]][start : start + self._length])

    def _spans(self) -> Iterator[tuple[int, int]]:
        return zip(self._begin_U.tolist(), self._end_U.tolist(), strict=True)


def whole_text(example: Example) -> str:
    """All a row says, question and answer."""
    if example.messages is not None:
        return "\n".join(m["content"] for m in example.messages)
    parts = (example.prompt, example.rationale, example.completion, example.text)
    return "\n".join(part for part in parts if part)
