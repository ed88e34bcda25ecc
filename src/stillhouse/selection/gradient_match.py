"""Gradient matching: few rows with weights whose weighted sum is the mean gradient of all.

Shapes: N examples, D the width of a vector, S rows chosen so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainValidator

from stillhouse.features.base import Features, Matrix, as_features
from stillhouse.features.gradients import Gradients
from stillhouse.selection._distances import mean_row, squared_norms
from stillhouse.selection.base import Picked, VectorSelector

_GRADIENTS = Gradients()
_NOTHING = 1e-6
"""Of the largest product of a row and the target: what is less brings the sum no nearer."""


@dataclass(frozen=True, kw_only=True)
class GradientMatch(VectorSelector):
    """GradMatch (Killamsetty et al. 2021, arXiv 2103.00123): orthogonal matching pursuit with weights above zero.

    Rows and weights make |Σ wᵢ gᵢ - mean g|² + λ |w|² small: the row most along what is missing is added, then the
    weights of all chosen rows are solved for again, and rows whose weight falls to zero are given up (Lawson and Hanson
    1974). Where no further row brings the sum nearer, a new round matches the mean once more with the rows that are
    left, and rounds count by their rows; where no row points along the mean, the first ones fill the budget with a
    weight of 1. Weights are scaled to sum to N. A row's score is its product with what was missing when it was added.
    Nothing is drawn.

    Attributes:
        features: gradients of cross-entropy where nothing is said; those of a divergence choose what the teacher has to
            add: `{gradients: {objective: forward_kl}}`.
        regularise: λ, as a share of the mean squared length of the vectors. Zero is allowed; more evens the weights.

    >>> ways = np.array([[1, 0], [0, 1], [-1, 0], [2, 0]], np.float32)
    >>> picked = GradientMatch(budget=2).pick(ways, 2, np.random.default_rng(0))
    >>> picked.rows.tolist(), picked.weights.round(2).tolist()
    ([3, 1], [2.0, 2.0])
    """

    features: Annotated[Features, PlainValidator(as_features)] = _GRADIENTS
    regularise: float = 0.0

    reason: ClassVar[str] = "its gradient, weighted, adds up with the others to the mean of all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.regularise >= 0:
            raise ValueError(f"regularise is {self.regularise}; it must be zero or more")

    def pick(self, vectors_ND: Matrix, count: int, rng: np.random.Generator) -> Picked:
        """Rows round after round, each in the order in which they were added."""
        target_D = mean_row(vectors_ND)
        ridge = self.regularise * float(squared_norms(vectors_ND).mean(dtype=np.float64))
        open_N = np.ones(len(vectors_ND), bool)
        rows: list[int] = []
        weights: list[float] = []
        scores: list[float] = []
        while len(rows) < count:
            pursuit = Pursuit(vectors_ND, target_D, ridge, open_N)
            while len(rows) + len(pursuit.rows) < count and pursuit.add():
                pass
            if not pursuit.rows:
                break
            scale = len(pursuit.rows) / pursuit.weights_S.sum()
            rows += pursuit.rows
            weights += (pursuit.weights_S * scale).tolist()
            scores += pursuit.scores
            open_N[pursuit.rows] = False
        rest = np.flatnonzero(open_N)[: count - len(rows)].tolist()
        shares = np.array(weights + [1.0] * len(rest))
        return Picked(
            np.array(rows + rest), shares * (len(vectors_ND) / shares.sum()), np.array(scores + [0.0] * len(rest))
        )


class Pursuit:
    """One round: rows and weights found so far, and the residual |target - Σ wᵢ gᵢ| that they leave."""

    def __init__(self, vectors_ND: Matrix, target_D: NDArray[np.float64], ridge: float, open_N: NDArray[np.bool]):
        self._vectors_ND, self._target_D, self._ridge = vectors_ND, target_D, ridge
        self._open_N = open_N.copy()
        self._chosen_SD = np.empty((0, len(target_D)))
        self._least = _NOTHING * float(np.abs(vectors_ND @ target_D.astype(np.float32)).max())
        self.rows: list[int] = []
        self.scores: list[float] = []
        self.weights_S = np.empty(0)

    @property
    def missing_D(self) -> NDArray[np.float64]:
        """The target less the weighted sum."""
        return self._target_D - self.weights_S @ self._chosen_SD

    def add(self) -> bool:
        """Add the row most along what is missing and solve for all weights; False where no row is along it."""
        along_N = self._vectors_ND @ self.missing_D.astype(np.float32)
        along_N[~self._open_N] = -np.inf
        along_N[self.rows] = -np.inf
        row = int(along_N.argmax())
        if along_N[row] <= self._least:
            return False
        self.rows.append(row)
        self.scores.append(float(along_N[row]))
        self._chosen_SD = np.vstack([self._chosen_SD, self._vectors_ND[row].astype(np.float64)])
        self.weights_S = np.append(self.weights_S, 0.0)
        self._solve()
        if row not in self.rows:  # rounding alone made it look useful
            self._open_N[row] = False
        return True

    def _solve(self) -> None:
        """Least squares on the chosen rows; a row whose weight would fall below zero is dropped."""
        while len(self.rows):
            products_SS = self._chosen_SD @ self._chosen_SD.T
            products_SS[np.diag_indices_from(products_SS)] += self._ridge
            best_S = np.linalg.lstsq(products_SS, self._chosen_SD @ self._target_D, rcond=None)[0]
            if (best_S > 0).all():
                self.weights_S = best_S
                return
            falling_S = best_S <= 0
            now_S = self.weights_S[falling_S]
            steps_S = now_S / np.where(now_S > 0, now_S - best_S[falling_S], 1)
            self.weights_S = self.weights_S + steps_S.min() * (best_S - self.weights_S)
            first = np.flatnonzero(falling_S)[steps_S.argmin()]
            self.weights_S[first] = 0
            kept_S = self.weights_S > 0
            self.rows = [row for row, kept in zip(self.rows, kept_S, strict=True) if kept]
            self.scores = [score for score, kept in zip(self.scores, kept_S, strict=True) if kept]
            self._chosen_SD, self.weights_S = self._chosen_SD[kept_S], self.weights_S[kept_S]
