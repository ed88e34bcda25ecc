"""Deduplicate: of rows that say the same, word for word or nearly or in other words, the best one stays.

Shapes: N examples, M of them with different texts, best first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import PlainValidator

from stillhouse.features._store import tabulate
from stillhouse.features.base import Features, as_features
from stillhouse.features.tfidf import Tfidf
from stillhouse.records import Example
from stillhouse.registry import name_of
from stillhouse.selection._leaders import Found, Likeness, Rows, down_to
from stillhouse.selection._minhash import MinHash
from stillhouse.selection._semantic import Semantic
from stillhouse.selection._text import best_first, digests
from stillhouse.selection.base import Selection, SelectionBench, Selector

_THRESHOLDS = {"minhash": 0.7, "semantic": 0.9}
_TFIDF = Tfidf()
_NAMED = 3
"""Rows that a reason names."""


@dataclass(frozen=True, kw_only=True)
class Deduplicate(Selector):
    """Compares what rows ask, not what they answer, and keeps of those that are alike the one with the longest answer,
    of equally long ones the one with the smallest id. The order of the rows decides nothing, no text is changed.

    Rows with the same text (without case and white space) go first. Then those that are alike in words: they share a
    large part of their runs of `ngram` words; or in meaning: their features have a large cosine. No two rows that stay
    are alike, and every row that goes is like the one that stays for it, which leads its cluster.

    Problems made of one template differ in few words. Look at what goes before you trust `minhash` or `semantic` on
    such data, and raise the threshold.

    Attributes:
        how: `exact`, the same text alone; `minhash`, near in words too; `semantic`, near in meaning too.
        threshold: from which similarity on rows are alike: of `minhash` a Jaccard similarity (0.7 where neither it nor
            a budget is given), of `semantic` a cosine (0.9).
        budget: rows that shall be left; the threshold that leaves so many is looked for.
        ngram: words of a run, for `minhash`.
        features: what vectors, for `semantic`; the TF-IDF of the text where nothing is said.

    >>> rows = [Example(id=text, text=text) for text in ["A cat sat.", "a cat  sat.", "A dog sat."]]
    >>> [row.id for row in Deduplicate().select(rows)]
    ['A cat sat.', 'A dog sat.']
    """

    how: Literal["exact", "minhash", "semantic"] = "exact"
    threshold: float | None = None
    budget: int | None = None
    ngram: int = 3
    features: Annotated[Features, PlainValidator(as_features)] = _TFIDF

    def __post_init__(self) -> None:
        if self.how != "exact" and self.how not in _THRESHOLDS:
            raise ValueError(f"how is {self.how!r}; it must be exact, minhash or semantic")
        given = [name for name in ("threshold", "budget") if getattr(self, name) is not None]
        if len(given) == 2:
            raise ValueError(f"threshold is {self.threshold} and budget is {self.budget}; it must be one of the two")
        if given and self.how == "exact":
            raise ValueError(f"{given[0]} is {getattr(self, given[0])}; it must be left out where how is exact")
        lowest = {"minhash": MinHash.lowest, "semantic": 0.0}.get(self.how, 0.0)
        if self.threshold is not None and not lowest <= self.threshold <= 1:
            raise ValueError(
                f"threshold is {self.threshold}; it must be between {lowest} and 1 where how is {self.how}"
            )
        if self.budget is not None and self.budget < 1:
            raise ValueError(f"budget is {self.budget}; it must be at least 1 row")
        if self.ngram < 1:
            raise ValueError(f"ngram is {self.ngram}; it must be at least 1 word")

    def looks_at(self) -> Features | None:
        """Its features, where rows are compared by their meaning."""
        return self.features if self.how == "semantic" else None

    def choose(self, examples: Sequence[Example], bench: SelectionBench) -> Selection:
        """The rows that stay, best first, with the words of their answers as scores.

        Raises:
            DataError: two examples with one id, or a budget that cannot be met.
            MissingExtraError: `how` is `minhash`, and rensa is not installed.
        """
        lengths_N, order_N = best_first(examples, name_of(self))
        _, first, inverse = np.unique(digests(examples)[order_N], axis=0, return_index=True, return_inverse=True)
        same_N = first[inverse.reshape(-1)]  # places in order_N, where the best of equal texts comes first
        _note(bench, "rows with the text of another left out", len(order_N) - len(first))
        leading_N = same_N
        if self.how != "exact":
            different = np.sort(first)
            near_M = self._near(examples, order_N[different], bench)
            leading_N = different[near_M][np.searchsorted(different, same_N)]
        clusters_N = np.empty_like(order_N)
        clusters_N[order_N] = order_N[leading_N]
        rows = order_N[np.unique(leading_N)]
        reasons = _reasons(examples, rows, clusters_N)
        numbers = np.empty_like(order_N)
        numbers[rows] = np.arange(len(rows))
        return Selection(rows, np.ones(len(rows)), lengths_N[rows], reasons, numbers[clusters_N])

    def _near(self, examples: Sequence[Example], rows_M: Rows, bench: SelectionBench) -> Rows:
        """Of the rows, which are best first, the place of each one's leader."""
        likeness: Likeness
        if self.how == "minhash":
            likeness = MinHash(examples, rows_M, self.ngram)
        else:
            likeness = Semantic(np.asarray(tabulate(self.features, examples, bench.features, bench.store)[rows_M]))
        found = self._found(likeness, bench)
        bench.notes.update(found.notes)
        return found.leaders_M

    def _found(self, likeness: Likeness, bench: SelectionBench) -> Found:
        if self.budget is None:
            threshold = _THRESHOLDS[self.how] if self.threshold is None else self.threshold
            found = likeness.at(threshold)
        else:
            found, threshold = down_to(self.budget, likeness, name_of(self))
        kind = "words" if self.how == "minhash" else "meaning"
        note = f"rows like another in {kind}, at a threshold of {threshold:.4g}, left out"
        _note(bench, note, len(likeness) - found.count)
        return found


def _note(bench: SelectionBench, what: str, count: int) -> None:
    if count:
        bench.notes[what] += count


def _reasons(examples: Sequence[Example], rows: Rows, clusters_N: Rows) -> list[str]:
    """Why each row stays: it is the only one, or the best of which."""
    by_leader_N = np.argsort(clusters_N, kind="stable")
    begins = np.searchsorted(clusters_N[by_leader_N], rows)
    sizes = np.searchsorted(clusters_N[by_leader_N], rows, side="right") - begins
    reasons = []
    for row, begin, size in zip(rows.tolist(), begins.tolist(), sizes.tolist(), strict=True):
        if size == 1:
            reasons.append("no other is like it")
            continue
        gone = sorted(examples[other].id for other in by_leader_N[begin : begin + size].tolist() if other != row)
        more = f" and {len(gone) - _NAMED} more" if len(gone) > _NAMED else ""
        reasons.append(f"kept of a cluster of {size}: {', '.join(gone[:_NAMED])}{more}")
    return reasons
