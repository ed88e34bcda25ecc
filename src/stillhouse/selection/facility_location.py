"""Facility location: rows that represent all others best, each weighted by how many it represents.

Shapes: N examples, D the width of a vector, B rows chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from stillhouse.features.base import Matrix
from stillhouse.records import Example
from stillhouse.registry import name_of
from stillhouse.selection._distances import blocks
from stillhouse.selection._similarities import Pairs, Similarity, graph, lists_above
from stillhouse.selection.base import Picked, Rows, Selection, SelectionBench, VectorSelector, split_by

_OPENING = 48
_TOGETHER = 32


@dataclass(frozen=True, kw_only=True)
class FacilityLocation(VectorSelector):
    """Greedy choice of rows such that the similarity of each row to the chosen row most like it, summed, is largest.

    The sum is at least 1 - 1/e of the best there is (Nemhauser et al. 1978). On gradients with `distance` it is CRAIG
    (Mirzasoleiman et al. 2020, arXiv 1906.01827). Nothing is drawn; of equals, the first. A row's score is what it
    adds to the sum, its weight the number of rows it represents.

    A gain changes only by the rows that a choice comes nearer to, so that all gains are kept exact, at less cost than
    lazy evaluation (Minoux 1978): for the opening rows on all N² similarities (400 MB for 10 000 rows), then on lists
    of the few pairs that can still add something. A group of more than `dense_rows` is looked at as a graph instead, in
    which a row may be represented by itself and its nearest neighbours alone: memory N times `neighbours`, time still
    N². For millions of rows choose by groups, or with `k_means_medoids`.

    Attributes:
        similarity: `cosine`, where below zero counts as zero, or `distance`: the largest there may be, minus theirs.
        neighbours: of a row in the graph.
        dense_rows: the largest group in which all pairs are looked at.

    >>> towns = np.array([[1, 0], [1, 0.1], [1, 0.2], [0, 1], [0.1, 1]], np.float32)
    >>> picked = FacilityLocation(budget=2).pick(towns, 2, np.random.default_rng(0))
    >>> picked.rows.tolist(), picked.weights.tolist()
    ([2, 3], [3.0, 2.0])
    """

    similarity: Literal["cosine", "distance"] = "cosine"
    neighbours: int = 128
    dense_rows: int = 16_384

    reason: ClassVar[str] = "represents the rows like it"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours < 1:
            raise ValueError(f"neighbours is {self.neighbours}; it must be at least 1")
        if self.dense_rows < 1:
            raise ValueError(f"dense_rows is {self.dense_rows}; it must be at least 1 row")

    def choose(self, examples: Sequence[Example], bench: SelectionBench) -> Selection:
        """As every selector of vectors; a note says where a group was looked at as a graph."""
        large = sum(len(rows) > self.dense_rows for rows, _ in split_by(examples, self.by, self.budget, name_of(self)))
        if large:
            bench.notes[
                f"{name_of(self)}: groups of more than {self.dense_rows} rows, where rows are represented by one of "
                f"their {self.neighbours} nearest neighbours"
            ] += large
        return super().choose(examples, bench)

    def pick(self, vectors_ND: Matrix, count: int, rng: np.random.Generator) -> Picked:
        """Rows in the order in which they are chosen; a prefix is the choice of a smaller budget."""
        alike = Similarity(vectors_ND, cosine=self.similarity == "cosine")
        rows: list[int] = []
        scores: list[float] = []
        if len(vectors_ND) <= self.dense_rows:
            pairs = _open(alike, rows, scores, min(_OPENING, count))
        else:
            pairs = graph(alike, self.neighbours)
        shrink_at = 2 * max(1, len(rows))
        while len(rows) < count:
            pairs.gains_N[rows] = -np.inf
            rows.append(int(pairs.gains_N.argmax()))
            scores.append(max(0.0, float(pairs.gains_N[rows[-1]])))
            pairs.choose(rows[-1])
            if len(rows) >= shrink_at:
                pairs.shrink()
                shrink_at *= 2
        return Picked(np.array(rows), _represented(alike, np.array(rows)), np.array(scores))


def _open(alike: Similarity, rows: list[int], scores: list[float], count: int) -> Pairs:
    """The first rows, added to `rows` and `scores`, while most pairs can still add something: gains are kept exact on
    the table of all pairs. Then the pairs that are left."""
    similar_NN = alike.matrix()
    best_N = np.zeros(len(similar_NN), np.float32)
    gains_N = similar_NN.sum(axis=1, dtype=np.float64)
    table_CN = np.empty((_TOGETHER, len(similar_NN)), np.float32)
    while len(rows) < count:
        row = int(gains_N.argmax())
        rows.append(row)
        scores.append(float(gains_N[row]))
        closer = np.flatnonzero(similar_NN[row] > best_N)
        for start in range(0, len(closer), _TOGETHER):
            part = closer[start : start + _TOGETHER]
            old_C, new_C = best_N[part, None], similar_NN[row, part, None]
            # max(s - old, 0) - max(s - new, 0) is s, between old and new, less old.
            lost_CN = np.take(similar_NN, part, axis=0, out=table_CN[: len(part)], mode="clip")
            np.maximum(np.minimum(lost_CN, new_C, out=lost_CN), old_C, out=lost_CN)
            lost_CN -= old_C
            gains_N -= lost_CN.sum(axis=0)
        np.maximum(best_N, similar_NN[row], out=best_N)
        gains_N[rows] = -np.inf
    return Pairs(lists_above(similar_NN, best_N), best_N)


def _represented(alike: Similarity, rows: Rows) -> NDArray[np.float64]:
    """How many rows each chosen row represents; a row that several represent equally well goes to the first of them."""
    counts_B = np.zeros(len(rows))
    for part in blocks(alike.rows, 4 * len(rows)):
        counts_B += np.bincount(alike.block(part, rows).argmax(axis=1), minlength=len(rows))
    return counts_B
