"""The area under the ROC curve, and its interval over questions. Shapes: E scores, R resamples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import DataError
from stillhouse.statistics import FloatArray

_WEIGHTS = 2**22
"""Bootstrap weights that exist at once."""


@dataclass(frozen=True)
class Area:
    """An AUROC.

    Attributes:
        value: the share of pairs of a right and a wrong trace in which the right one scores higher, ties half.
        low: lower end of the 95 % interval over questions.
        high: its upper end.
        within: the same share over pairs of one question alone, which no knowledge of hard questions helps with; None
            where no question has a right and a wrong trace.
        values_R: of the resamples, for paired differences.
    """

    value: float
    low: float
    high: float
    within: float | None
    values_R: FloatArray


def auroc(score_E: FloatArray, right_E: FloatArray) -> float | None:
    """How often a right one scores higher than a wrong one, ties half; None where one kind is missing.

    >>> auroc(np.array([0.9, 0.4, 0.4, 0.1]), np.array([1.0, 1.0, 0.0, 0.0]))
    0.875
    """
    if not 0 < right_E.sum() < len(right_E):
        return None
    level_E = np.unique(score_E, return_inverse=True)[1]
    return float(_weighted(level_E, right_E, np.ones((1, len(score_E))))[0])


def area(score_E: FloatArray, right_E: FloatArray, group_E: Sequence[str], *, resamples: int, seed: int) -> Area:
    """The AUROC of a score, and its percentile interval by a bootstrap that draws questions (Efron and Tibshirani 1993,
    chapter 13), for the traces of one question are not independent. The same seed draws the same questions.

    Raises:
        DataError: all traces are right, or all are wrong.

    >>> area(np.array([3.0, 1.0, 2.0, 2.0]), np.array([1.0, 0.0, 1.0, 0.0]), list("aabb"), resamples=10, seed=0).value
    0.875
    """
    value = auroc(score_E, right_E)
    if value is None:
        raise DataError(
            f"AUROC compares right traces with wrong ones, and {int(right_E.sum())} of {len(right_E)} are right. Give "
            "traces of both kinds, or leave the column of correctness out, and the run describes them without it."
        )
    level_E = np.unique(score_E, return_inverse=True)[1]
    draws = _draws(group_E, resamples, seed)
    values_R = np.concatenate([_weighted(level_E, right_E, weights_RE) for weights_RE in draws])
    low, high = np.nanpercentile(values_R, [2.5, 97.5])
    return Area(value, float(low), float(high), _within(score_E, right_E, group_E), values_R)


def difference(a: Area, b: Area) -> tuple[float, float, float]:
    """How much larger one area is than another on the same traces, with its paired 95 % interval."""
    low, high = np.nanpercentile(a.values_R - b.values_R, [2.5, 97.5])
    return a.value - b.value, float(low), float(high)


def _draws(group_E: Sequence[str], resamples: int, seed: int) -> Iterator[FloatArray]:
    """How often each trace counts [R, E], a few resamples at a time."""
    questions, question_E = np.unique(np.array(group_E), return_inverse=True)
    count, draw = len(questions), np.random.default_rng(seed)
    step = max(1, _WEIGHTS // len(group_E))
    for start in range(0, resamples, step):
        drawn = draw.integers(count, size=(min(step, resamples - start), count))
        yield np.stack([np.bincount(chosen, minlength=count) for chosen in drawn])[:, question_E].astype(np.float64)


def _weighted(level_E: NDArray[np.intp], right_E: FloatArray, weights_RE: FloatArray) -> FloatArray:
    """AUROC of each row of weights; NaN where a draw has traces of one kind alone."""
    levels = int(level_E.max()) + 1
    values = []
    for weights_E in weights_RE:
        good = np.bincount(level_E, weights_E * right_E, minlength=levels)
        bad = np.bincount(level_E, weights_E * (1 - right_E), minlength=levels)
        won = (good * (np.cumsum(bad) - bad / 2)).sum()
        pairs = good.sum() * bad.sum()
        values.append(won / pairs if pairs else np.nan)
    return np.array(values)


def _within(score_E: FloatArray, right_E: FloatArray, group_E: Sequence[str]) -> float | None:
    places: dict[str, list[int]] = {}
    for place, question in enumerate(group_E):
        places.setdefault(question, []).append(place)
    won = pairs = 0.0
    for chosen in places.values():
        good, bad = score_E[chosen][right_E[chosen] == 1], score_E[chosen][right_E[chosen] == 0]
        gap = good[:, None] - bad[None, :]
        won += float((gap > 0).sum() + (gap == 0).sum() / 2)
        pairs += gap.size
    return won / pairs if pairs else None
