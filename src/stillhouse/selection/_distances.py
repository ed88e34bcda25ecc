"""Squared distances and similarities of many vectors to few, block by block, so that a million rows are never copied.

Shapes: N examples, D the width of a vector, M points, S rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stillhouse.features.base import Matrix

_BLOCK_BYTES = 2**26


def blocks(rows: int, bytes_a_row: int) -> Iterator[slice]:
    """Consecutive slices of so many rows that a block stays within 64 MiB.

    >>> [(s.start, s.stop) for s in blocks(5, 2**25)]
    [(0, 2), (2, 4), (4, 5)]
    """
    step = max(1, _BLOCK_BYTES // max(1, bytes_a_row))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def squared_norms(vectors_ND: Matrix) -> Matrix:
    """Of each row, [N]; none of the table is copied."""
    return np.einsum("nd,nd->n", vectors_ND, vectors_ND)


def squared_distances(vectors_SD: Matrix, points_MD: Matrix, norms_S: Matrix, norms_M: Matrix) -> Matrix:
    """Of each row to each point, [S, M], by one matrix product: |x|² - 2 x·p + |p|², never below zero."""
    found_SM = vectors_SD @ points_MD.T
    found_SM *= -2
    found_SM += norms_S[:, None]
    found_SM += norms_M
    return np.maximum(found_SM, 0, out=found_SM)


def mean_row(vectors_ND: Matrix) -> NDArray[np.float64]:
    """The mean of all rows, [D], summed in double precision."""
    return vectors_ND.mean(axis=0, dtype=np.float64)


def unit_rows(vectors_SD: Matrix) -> Matrix:
    """Rows of length one; rows of zeros stay."""
    lengths_S = np.sqrt(squared_norms(vectors_SD))
    return vectors_SD / np.where(lengths_S > 0, lengths_S, 1)[:, None]
