"""Greedy k-center: each row the one farthest from all chosen before.

Shapes: N examples, D the width of a vector, C candidates, M new centres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stillhouse.features.base import Matrix
from stillhouse.selection._distances import blocks, mean_row, squared_distances, squared_norms
from stillhouse.selection.base import Picked, Rows, VectorSelector

_CANDIDATES = 1024
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class KCenter(VectorSelector):
    """Farthest-first traversal (Gonzalez 1985), the coreset of Sener and Savarese (2018, arXiv 1708.00489).

    The largest distance of a row to its nearest centre is at most twice the best possible. The first centre is the row
    nearest the mean, so that nothing is drawn; of equals, the first. A row's score is its distance to the centres
    before it; the first has none. k-means with the nearest real row, which some papers call k-centers, is
    `k_means_medoids`.

    >>> line = np.array([[0.0], [1], [5], [9]], np.float32)
    >>> KCenter(budget=3).pick(line, 3, np.random.default_rng(0)).rows.tolist()
    [2, 0, 3]
    """

    reason: ClassVar[str] = "farthest from all that were chosen before it"

    def pick(self, vectors_ND: Matrix, count: int, rng: np.random.Generator) -> Picked:
        """Rows in the order in which they are chosen; a prefix is the choice of a smaller budget.

        The table is walked over once a batch of centres, not once a centre. Distances to the nearest centre only
        shrink; so the farthest of a few candidates is the farthest of all for as long as it is farther than every other
        row was when the candidates were taken.
        """
        norms_N = squared_norms(vectors_ND)
        first = _nearest_to_mean(vectors_ND, norms_N)
        rows, scores = [first], [np.nan]
        nearest_N = np.full(len(vectors_ND), np.inf, np.float32)
        known = 0
        while len(rows) < count:
            _approach(nearest_N, vectors_ND, norms_N, np.array(rows[known:]))
            nearest_N[rows] = -1
            known = len(rows)
            for row, away in _farthest(nearest_N, vectors_ND, norms_N, min(_BATCH, count - known)):
                rows.append(row)
                scores.append(away)
        return Picked(np.array(rows), scores=np.array(scores))


def _nearest_to_mean(vectors_ND: Matrix, norms_N: Matrix) -> int:
    mean_D = mean_row(vectors_ND).astype(np.float32)
    return int((norms_N - 2 * (vectors_ND @ mean_D)).argmin())


def _approach(nearest_N: Matrix, vectors_ND: Matrix, norms_N: Matrix, new_M: Rows) -> None:
    """Lower the squared distances to the nearest centre by new centres."""
    points_MD, norms_M = vectors_ND[new_M], norms_N[new_M]
    for part in blocks(len(vectors_ND), 4 * len(new_M)):
        away_SM = squared_distances(vectors_ND[part], points_MD, norms_N[part], norms_M)
        np.minimum(nearest_N[part], away_SM.min(axis=1), out=nearest_N[part])


def _farthest(nearest_N: Matrix, vectors_ND: Matrix, norms_N: Matrix, most: int) -> list[tuple[int, float]]:
    """The next centres with their distances, at least one: as many as candidates alone can tell."""
    if len(nearest_N) > _CANDIDATES:
        bound = np.partition(nearest_N, -_CANDIDATES - 1)[-_CANDIDATES - 1]
        taken_C = np.flatnonzero(nearest_N > bound)
        if not len(taken_C):  # more equals than candidates
            taken_C = np.array([nearest_N.argmax()])
    else:
        bound, taken_C = np.float32(-1), np.flatnonzero(nearest_N >= 0)
    candidates_CD, norms_C, nearest_C = vectors_ND[taken_C], norms_N[taken_C], nearest_N[taken_C]
    found: list[tuple[int, float]] = []
    while len(found) < most:
        best = int(nearest_C.argmax())
        if found and nearest_C[best] <= bound:
            break
        found.append((int(taken_C[best]), float(np.sqrt(nearest_C[best]))))
        here = slice(best, best + 1)
        away_C = squared_distances(candidates_CD, candidates_CD[here], norms_C, norms_C[here])[:, 0]
        np.minimum(nearest_C, away_C, out=nearest_C)
        nearest_C[[int(np.searchsorted(taken_C, row)) for row, _ in found]] = -1
    return found
