"""Alike in meaning: near-duplicates by the exact cosine of their vectors, block by block.

Shapes: M rows, best first; D the width of a vector; B rows of a block, K leaders before it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stillhouse.features.base import Matrix
from stillhouse.selection._leaders import Found, Rows

_BLOCK, _TILE = 1024, 8192
_ROUNDING = 1e-6
"""By how much the cosine of a vector with itself may fall short of 1."""


class Semantic:
    """Vectors, alike by their cosine (Abbas et al. 2023, arXiv 2303.09540; here every pair is looked at, not only those
    of one cluster). A zero vector is like nothing."""

    lowest = -1.0

    def __init__(self, vectors_MD: Matrix) -> None:
        """Of rows that come best first; finite, of any length."""
        lengths = np.linalg.norm(vectors_MD, axis=1, keepdims=True)
        self._units_MD = np.divide(vectors_MD, lengths, out=np.zeros_like(vectors_MD), where=lengths > 0)

    def __len__(self) -> int:
        return len(self._units_MD)

    def at(self, threshold: float) -> Found:
        """Leaders and followers: rows with this cosine are alike."""
        bar = threshold - _ROUNDING
        leading_KD, rows_K = np.empty_like(self._units_MD), np.empty(len(self), np.int64)
        leaders_M, count = np.arange(len(self)), 0
        for start in range(0, len(self), _BLOCK):
            block_BD = self._units_MD[start : start + _BLOCK]
            cosine_B, leader_B = _most_alike(block_BD, leading_KD[:count], bar)
            within_BB = np.tril(block_BD @ block_BD.T, -1)  # of a row with those before it
            within_BB[np.triu_indices(len(block_BD))] = -np.inf
            leads_B = _lead(within_BB >= bar, cosine_B < bar)
            within_BB[:, ~leads_B] = -np.inf
            best_B = within_BB.argmax(axis=1)
            nearer_B = within_BB[np.arange(len(best_B)), best_B] > cosine_B
            followed_B = np.where(nearer_B, start + best_B, rows_K[leader_B])
            leaders_M[start : start + len(block_BD)][~leads_B] = followed_B[~leads_B]
            new = np.flatnonzero(leads_B)
            leading_KD[count : count + len(new)] = block_BD[new]
            rows_K[count : count + len(new)] = start + new
            count += len(new)
        return Found(leaders_M)


def _most_alike(block_BD: Matrix, leading_KD: Matrix, bar: float) -> tuple[Matrix, Rows]:
    """Of each row the largest cosine with a leader, and which one that is where it reaches the bar."""
    cosine_B, leader_B = np.full(len(block_BD), -np.inf, np.float32), np.zeros(len(block_BD), np.int64)
    for start in range(0, len(leading_KD), _TILE):
        cosines_BK = block_BD @ leading_KD[start : start + _TILE].T
        largest_B = cosines_BK.max(axis=1)
        better = np.flatnonzero((largest_B > cosine_B) & (largest_B >= bar))
        leader_B[better] = start + cosines_BK[better].argmax(axis=1)
        cosine_B = np.maximum(cosine_B, largest_B)
    return cosine_B, leader_B


def _lead(alike_BB: NDArray[np.bool_], free_B: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Who leads of a block: who is like no leader before it, in the block or, as `free_B` says, before the block."""
    leads_B = free_B.copy()
    for row in np.flatnonzero(alike_BB.any(axis=1) & free_B):
        leads_B[row] = not (alike_BB[row] & leads_B).any()
    return leads_B
