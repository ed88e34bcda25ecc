"""Kernel herding: rows spread as all rows are, near those of whose label the teacher is sure.

Shapes: N examples, D the width of a vector, L rows looked at, S rows of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stillhouse.errors import DataError
from stillhouse.features._store import tabulate
from stillhouse.features.base import Matrix
from stillhouse.records import Example
from stillhouse.registry import name_of
from stillhouse.selection._distances import blocks, mean_row, squared_distances, squared_norms
from stillhouse.selection.base import Floats, Picked, Selection, SelectionBench, VectorSelector, join, split_by

_LOOKED_AT = 16_384
_TRUSTED = 0.5


@dataclass(frozen=True, kw_only=True)
class KernelHerding(VectorSelector):
    """Herding in the space of a Gaussian kernel (Chen, Welling and Smola 2010, arXiv 1203.3472), each row taken once.

    The k-th row brings the mean of the k rows nearest to the mean of all in that space, where the mean tells the whole
    distribution. With `trust`, a row counts in that mean by the square of what the teacher gives its label, and rows
    whose label it gives less than a half are not chosen; this part is ours. A row's score is minus what is left of the
    discrepancy. Of more than 16 384 rows the mean is that of a sample; otherwise nothing is drawn.

    Attributes:
        sharpness: of the kernel exp(-sharpness |x - y|² / mean |x - y|²); a small one is plain herding.
        trust: a column of `meta` with the probability that the teacher gives the row's label; none trusts all alike.

    >>> line = np.array([[0.0], [1], [2], [9], [10]], np.float32)
    >>> KernelHerding(budget=2).pick(line, 2, np.random.default_rng(0)).rows.tolist()
    [1, 3]
    """

    sharpness: float = 2.0
    trust: str | None = None

    reason: ClassVar[str] = "keeps the chosen spread as all rows are"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sharpness > 0:
            raise ValueError(f"sharpness is {self.sharpness}; it must be above zero")

    def pick(self, vectors_ND: Matrix, count: int, rng: np.random.Generator) -> Picked:
        """Rows in the order in which they are chosen, all trusted alike; a prefix is the choice of a smaller budget."""
        return self._herd(vectors_ND, np.ones(len(vectors_ND)), count, rng)

    def choose(self, examples: Sequence[Example], bench: SelectionBench) -> Selection:
        """Rows of all groups, one group after another.

        Raises:
            DataError: fewer examples than the budget, in all or in a group, those not trusted left out; no trust, or
                one that is no probability.
        """
        if self.trust is None:
            return super().choose(examples, bench)
        trust_N = np.array([self._trust_of(example, self.trust) for example in examples])
        groups = split_by(examples, self.by, self.budget, name_of(self))
        vectors_ND = tabulate(self.features, examples, bench.features, bench.store)
        parts = []
        for number, (rows, count) in enumerate(groups):
            if (trusted := int((trust_N[rows] >= _TRUSTED).sum())) < count:
                raise DataError(
                    f"{name_of(self)} should choose {count} rows of a group, and the number whose label the teacher "
                    f"trusts {_TRUSTED} or more is {trusted}. Lower its budget, or leave trust out."
                )
            drawn = np.random.default_rng([self.seed, number])
            parts.append((rows, self._herd(vectors_ND[rows], trust_N[rows], count, drawn)))
        return join(parts, self.reason)

    def _trust_of(self, example: Example, column: str) -> float:
        value = example.meta.get(column)
        if value is None:
            raise DataError(f"Example {example.id!r} has no {column!r}, by which {name_of(self)} should trust it.")
        if not 0 <= float(value) <= 1:
            raise DataError(f"Example {example.id!r} has a {column!r} of {value}; it must be a probability, 0 to 1.")
        return float(value)

    def _herd(self, vectors_ND: Matrix, trust_N: Floats, count: int, rng: np.random.Generator) -> Picked:
        norms_N = squared_norms(vectors_ND)
        # The mean of |x - y|² over all pairs.
        spread = 2 * (float(norms_N.mean(dtype=np.float64)) - float(np.square(mean_row(vectors_ND)).sum()))
        scale = -self.sharpness / spread if spread > 0 else 0.0
        few = len(vectors_ND) <= _LOOKED_AT
        looked = np.arange(len(vectors_ND)) if few else np.sort(rng.choice(len(vectors_ND), _LOOKED_AT, replace=False))
        shares_L = np.square(trust_N[looked]) / np.square(trust_N[looked]).sum()
        mean_N = np.empty(len(vectors_ND))
        for part in blocks(len(vectors_ND), 8 * len(looked)):
            mean_N[part] = self._kernel(vectors_ND, norms_N, part, looked, scale) @ shares_L
        level = float(mean_N[looked] @ shares_L)

        rows, scores = np.zeros(count, np.int64), np.zeros(count)
        sum_N, inside = np.zeros(len(vectors_ND)), 0.0
        for k in range(1, count + 1):
            # |mean of k - mean of all|² is (inside + 2 sum + 1) / k² - 2 (means) / k + level; k(x, x) is 1.
            away_N = sum_N - k * mean_N
            away_N[rows[: k - 1]] = np.inf
            away_N[trust_N < _TRUSTED] = np.inf
            rows[k - 1] = row = int(away_N.argmin())
            inside += 2 * sum_N[row] + 1
            sum_N += self._kernel(vectors_ND, norms_N, slice(None), rows[k - 1 : k], scale)[:, 0]
            scores[k - 1] = -max(0.0, inside / k**2 - 2 * mean_N[rows[:k]].mean() + level)
        return Picked(rows, scores=scores)

    @staticmethod
    def _kernel(vectors_ND: Matrix, norms_N: Matrix, part: slice, points: np.ndarray, scale: float) -> Floats:
        away_SL = squared_distances(vectors_ND[part], vectors_ND[points], norms_N[part], norms_N[points])
        return np.exp(scale * away_SL.astype(np.float64))
