"""Herding: rows whose running mean stays nearest to the mean of all.

Shapes: N examples, D the width of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stillhouse.features.base import Matrix
from stillhouse.selection._distances import mean_row, squared_norms
from stillhouse.selection.base import Picked, VectorSelector


@dataclass(frozen=True, kw_only=True)
class Herding(VectorSelector):
    """Herding (Welling 2009), each row taken once, as iCaRL chooses its exemplars (Rebuffi et al. 2017, arXiv
    1611.07725).

    The k-th row is the one that brings the mean of the k rows nearest to the mean of all; of equals, the first. Its
    score is minus the distance that is left. Nothing is drawn. A row chosen costs one walk over the table.

    >>> square = np.array([[0, 0], [4, 4], [0, 4], [4, 0], [2, 1]], np.float32)
    >>> Herding(budget=2).pick(square, 2, np.random.default_rng(0)).rows.tolist()
    [4, 1]
    """

    reason: ClassVar[str] = "keeps the mean of the chosen near the mean of all"

    def pick(self, vectors_ND: Matrix, count: int, rng: np.random.Generator) -> Picked:
        """Rows in the order in which they are chosen; a prefix is the choice of a smaller budget."""
        mean_D = mean_row(vectors_ND)
        norms_N = squared_norms(vectors_ND)
        rows, scores = np.zeros(count, np.int64), np.zeros(count)
        sum_D = np.zeros_like(mean_D)
        for k in range(1, count + 1):
            missing_D = k * mean_D - sum_D
            # |missing - x|² without |missing|², which is the same for all.
            away_N = norms_N - 2 * (vectors_ND @ missing_D.astype(np.float32))
            away_N[rows[: k - 1]] = np.inf
            rows[k - 1] = away_N.argmin()
            sum_D += vectors_ND[rows[k - 1]]
            scores[k - 1] = -np.linalg.norm(mean_D - sum_D / k)
        return Picked(rows, scores=scores)
