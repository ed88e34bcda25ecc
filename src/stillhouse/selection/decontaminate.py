"""Decontaminate: rows that hold an item of an evaluation set go, so that no model is tested on what it was taught."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from stillhouse.errors import DataError
from stillhouse.records import Example
from stillhouse.registry import name_of
from stillhouse.selection._overlap import Items, Overlap
from stillhouse.selection._text import digests
from stillhouse.selection.base import Selection, SelectionBench, Selector

_NAMED = 3
"""Evaluation items that a note names."""


@dataclass(frozen=True, kw_only=True)
class Decontaminate(Selector):
    """A row goes when it asks the same as an item of an evaluation set (without case and white space), or when at least
    `threshold` of the item's words lie in runs of `ngram` words that the row, its answer included, has too: the rule of
    Tulu 3 (Lambert et al. 2024, arXiv 2411.15124). Runs are found by their hashes and then compared word by word.

    Runs that two items and more than one in fifty share, or more than ten rows and one in a hundred, belong to the
    template of a prompt or to the way a source sets its texts; their words do not count. An item with fewer than
    `ngram` words of its own is found only as a whole.

    Attributes:
        ngram: words of a run.
        threshold: the share of an item's words from which on a row goes.

    >>> bench = SelectionBench(heldout=[Example(id="q", prompt="What is the capital of France?")])
    >>> rows = [Example(id="a", prompt="what is the capital of  France?"), Example(id="b", prompt="And of Spain?")]
    >>> [row.id for row in Decontaminate().select(rows, bench)]
    ['b']
    """

    ngram: int = 8
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.ngram < 1:
            raise ValueError(f"ngram is {self.ngram}; it must be at least 1 word")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; it must be above 0 and at most 1")

    def choose(self, examples: Sequence[Example], bench: SelectionBench) -> Selection:
        """The rows that stay, in their order; their scores are the share of every evaluation item that they lack.

        Raises:
            DataError: there is no evaluation set, or no row would be left.
        """
        if not len(bench.heldout):
            raise DataError(
                f"{name_of(self)} was given no evaluation set to compare with. Pass SelectionBench(heldout=...), or "
                "leave it out where nothing is evaluated."
            )
        items = Items(bench.heldout, self.ngram)
        shares = np.zeros(len(examples))
        overlaps = items.overlaps(examples, self.threshold)
        whole, nearly = list[str](), list[str]()
        for row, digest in enumerate(digests(examples)):
            share, item = overlaps.get(row, Overlap(0.0, ""))
            shares[row] = share
            if (same := items.same(digest.tolist())) is not None:
                whole.append(same)
                shares[row] = 1
            elif share >= self.threshold:
                nearly.append(item)
        for what, gone in {"ask the same as": whole, "hold most of": nearly}.items():
            if gone:
                bench.notes[f"rows that {what} an evaluation item left out ({_names(gone)})"] += len(gone)
        rows = np.flatnonzero(shares < self.threshold)
        if not len(rows):
            raise DataError(self._nothing_left(len(examples), whole, nearly))
        return Selection(rows, np.ones(len(rows)), 1 - shares[rows], [self._reason(s) for s in shares[rows].tolist()])

    def _reason(self, share: float) -> str:
        if not share:
            return f"shares no {self.ngram} words in a row with an evaluation item"
        return f"shares {share:.0%} of an evaluation item, less than {self.threshold:.0%}"

    def _nothing_left(self, count: int, whole: Sequence[str], nearly: Sequence[str]) -> str:
        if not nearly:
            return (
                f"The training data and the evaluation set are the same rows: each of {count} asks what an evaluation "
                f"item asks ({_names(whole)}). Train on other data, or evaluate on other data."
            )
        return (
            f"All {count} training rows overlap with the evaluation set ({_names([*whole, *nearly])}), so that none is "
            "left. Train on other data; or raise threshold, if they share a template rather than questions."
        )


def _names(gone: Iterable[str]) -> str:
    names = list(dict.fromkeys(gone))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
