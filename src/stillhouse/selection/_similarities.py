"""Who may represent whom: the pairs of rows that facility location adds up, kept in lists that shrink.

Shapes: N examples, D the width of a vector, S rows of a block, M points, E pairs, C rows that a choice comes nearer to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from stillhouse.features.base import Matrix
from stillhouse.selection._distances import blocks, squared_distances, squared_norms, unit_rows
from stillhouse.selection.base import Floats, Rows


class Similarity:
    """How similar rows are, never below zero: their cosine, or the largest distance there may be minus theirs."""

    def __init__(self, vectors_ND: Matrix, *, cosine: bool) -> None:
        self.rows = len(vectors_ND)
        self._vectors_ND = unit_rows(vectors_ND) if cosine else vectors_ND
        self._norms_N = squared_norms(self._vectors_ND)
        self._most = None if cosine else 2 * np.sqrt(self._norms_N.max())

    def block(self, part: slice, others: Rows | slice = slice(None)) -> Matrix:
        """Of some rows to others, [S, M]."""
        here_SD, others_MD = self._vectors_ND[part], self._vectors_ND[others]
        if self._most is None:
            found_SM = here_SD @ others_MD.T
            return np.maximum(found_SM, 0, out=found_SM)
        away_SM = squared_distances(here_SD, others_MD, self._norms_N[part], self._norms_N[others])
        np.subtract(self._most, np.sqrt(away_SM, out=away_SM), out=away_SM)
        return np.maximum(away_SM, 0, out=away_SM)

    def matrix(self) -> Matrix:
        """Of all rows to all rows, [N, N], the half below the diagonal copied from the half above it."""
        similar_NN = np.empty((self.rows, self.rows), np.float32)
        for part in blocks(self.rows, 16 * self.rows):
            similar_NN[part, part.start :] = self.block(part, slice(part.start, None))
            similar_NN[part.stop :, part] = similar_NN[part, part.stop :].T
        return similar_NN


@dataclass
class Pairs:
    """Of each row those that represent it better than it is represented now, and what each row would gain by.

    Attributes:
        near_NN: similarity of a row (first) to one that may represent it (second), where it is above `best_N`.
        best_N: similarity of each row to the chosen row most like it.
        gains_N: what choosing a row would add to the sum of `best_N`; kept exact.
    """

    near_NN: csr_array
    best_N: Matrix

    def __post_init__(self) -> None:
        above_E = self.near_NN.data - np.repeat(self.best_N, np.diff(self.near_NN.indptr)).astype(np.float64)
        self.gains_N: Floats = np.zeros(len(self.best_N))
        np.add.at(self.gains_N, self.near_NN.indices, above_E)
        self._by_choice = self.near_NN.tocsc()

    def choose(self, row: int) -> None:
        """Let a row represent all that it represents better, and take from all gains what they thereby lose."""
        column = slice(*self._by_choice.indptr[row : row + 2])
        closer_C, new_C = self._by_choice.indices[column], self._by_choice.data[column]
        better = new_C > self.best_N[closer_C]
        closer_C, new_C = closer_C[better], new_C[better]
        begins_C = self.near_NN.indptr[closer_C]
        counts_C = self.near_NN.indptr[closer_C + 1] - begins_C
        pairs_E = np.repeat(begins_C - (np.cumsum(counts_C) - counts_C), counts_C) + np.arange(counts_C.sum())
        # max(s - old, 0) - max(s - new, 0), of each pair.
        lost_E = np.minimum(self.near_NN.data[pairs_E], np.repeat(new_C, counts_C)).astype(np.float64)
        lost_E -= np.repeat(self.best_N[closer_C], counts_C)
        np.subtract.at(self.gains_N, self.near_NN.indices[pairs_E], np.maximum(lost_E, 0))
        self.best_N[closer_C] = new_C

    def shrink(self) -> None:
        """Drop the pairs that can add nothing any more."""
        near_NN = self.near_NN
        kept_E = near_NN.data > np.repeat(self.best_N, np.diff(near_NN.indptr))
        begins_N = np.concatenate([[0], np.cumsum(kept_E)])[near_NN.indptr]
        self.near_NN = csr_array((near_NN.data[kept_E], near_NN.indices[kept_E], begins_N), shape=near_NN.shape)
        self._by_choice = self.near_NN.tocsc()


def lists_above(similar_NN: Matrix, best_N: Matrix) -> csr_array:
    """The pairs of a symmetric table that are more similar than a row is to its representative."""
    counts, columns, kept = [], [], []
    for part in blocks(len(best_N), 16 * len(best_N)):
        above_SN = similar_NN[part] > best_N[part, None]
        counts.append(above_SN.sum(axis=1))
        columns.append((np.flatnonzero(above_SN) % len(best_N)).astype(np.int32))
        kept.append(similar_NN[part][above_SN])
    return _listed(np.concatenate(counts), np.concatenate(columns), np.concatenate(kept))


def graph(alike: Similarity, neighbours: int) -> Pairs:
    """Each row may be represented by itself and its nearest neighbours; nothing is chosen yet."""
    width = min(neighbours + 1, alike.rows)
    columns_NK = np.empty((alike.rows, width), np.int32)
    similar_NK = np.empty((alike.rows, width), np.float32)
    for part in blocks(alike.rows, 16 * alike.rows):
        similar_SN = alike.block(part)
        own = np.arange(part.start, part.stop)
        ranks_SN = similar_SN.copy()
        ranks_SN[own - part.start, own] = np.inf
        columns_NK[part] = np.argpartition(ranks_SN, -width, axis=1)[:, -width:]
        similar_NK[part] = np.take_along_axis(similar_SN, columns_NK[part], axis=1)
    counts_N = np.full(alike.rows, width)
    return Pairs(_listed(counts_N, columns_NK.ravel(), similar_NK.ravel()), np.zeros(alike.rows, np.float32))


def _listed(counts_N: Rows, columns_E: NDArray[np.int32], similarities_E: Matrix) -> csr_array:
    """Lists of pairs, row after row."""
    begins_N = np.concatenate([[0], np.cumsum(counts_N)])
    return csr_array((similarities_E, columns_E, begins_N), shape=(len(counts_N), len(counts_N)))
