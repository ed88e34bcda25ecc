"""Numbers with their noise: estimates, paired comparisons, and what a test of this size could have seen at all.

Every metric is a function of sums over examples, so one bootstrap serves them all: resample examples, sum, apply the
function (Efron and Tibshirani 1993, chapter 13). Examples are the unit, not tokens: tokens of one text are not
independent of one another. Comparisons are paired, because two models meet the same examples and most of the noise is
the examples' (Miller 2024, arXiv 2411.00640). Shapes: E examples, M sums, R resamples, C models compared at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stillhouse.errors import DataError

Kind = Literal["ratio", "ece"]
FloatArray = NDArray[np.float64]

_POWER = 2.80
"""Standard errors between no difference and one that a two-sided 5 % test finds with 80 % power: 1.96 + 0.84."""
FEWEST = 6
"""Examples that must differ before a difference can be resolved: with fewer, even if all of them point one way, a
test of the signs does not reach 5 % (2 / 2**5 = 6 %), and a bootstrap of so few is too sure of itself."""
RESAMPLES = 2000
_WEIGHTS = 2**22
"""Bootstrap weights that exist at once: 32 MiB."""


@dataclass(frozen=True)
class Metric:
    """What a number means: a title for people, a unit, and which direction is better."""

    title: str
    unit: str
    better: Literal["higher", "lower", "none"] = "none"


@dataclass(frozen=True)
class Measurement:
    """What each example contributed to one metric of one model.

    Attributes:
        ids: the examples, in the order of the rows.
        sums_EM: contributions; `ratio` is column 0 over column 1, `ece` is the summed absolute gaps of all columns
            but the last over the last.
        kind: which function of the summed columns is the value.
    """

    ids: tuple[str, ...]
    sums_EM: FloatArray
    kind: Kind = "ratio"


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error in the value's unit (None for exact counts and single examples), and the number of
    examples."""

    value: float
    stderr: float | None
    n: int


@dataclass(frozen=True)
class Comparison:
    """One model minus another on the same examples.

    Attributes:
        difference: in the metric's unit.
        low: lower end of the confidence interval of the difference, None where one example alone was measured.
        high: its upper end.
        stderr: of the paired difference.
        mde: the minimal detectable effect, the smallest true difference that a test of this size finds with 80 %
            power at a two-sided 5 %.
        resolved: the interval excludes 0, the difference is no smaller than `mde`, and at least six examples differ.
        n: examples.
    """

    difference: float
    low: float | None
    high: float | None
    stderr: float | None
    mde: float | None
    resolved: bool
    n: int


@dataclass(frozen=True)
class Share:
    """A ratio of scores, or of differences of scores, with its 95 % interval; not confined to 0 to 1."""

    value: float
    low: float
    high: float


def estimate(measurement: Measurement) -> Estimate:
    """The value of a measurement and its standard error over examples.

    A ratio of sums has the delta method's error, robust to tokens of one example resembling each other; everything
    else is bootstrapped with a fixed seed.

    Raises:
        DataError: there is nothing to divide by, such as no trained token or no byte of text.

    >>> estimate(Measurement(("a", "b"), np.array([[1.0, 1.0], [0.0, 1.0]])))
    Estimate(value=0.5, stderr=0.5, n=2)
    """
    value, n = value_of(measurement), len(measurement.ids)
    if n < 2:
        return Estimate(value, None, n)
    if measurement.kind == "ratio":
        above_E, below_E = measurement.sums_EM.T
        residual_E = (above_E - value * below_E) / below_E.sum()
        return Estimate(value, float(np.sqrt(n / (n - 1) * (residual_E**2).sum())), n)
    values_R = bootstrap([measurement], RESAMPLES, seed=0)[:, 0]
    return Estimate(value, _spread(values_R, n), n)


def compare(
    a: Measurement, b: Measurement, *, resamples: int = RESAMPLES, seed: int = 0, confidence: float = 0.95
) -> Comparison:
    """How much larger `a` is than `b`, paired example by example.

    Args:
        a: one model's measurement.
        b: the other's, on the same examples in any order.
        resamples: of the bootstrap over examples.
        seed: of its draws; the same inputs give the same interval.
        confidence: of the percentile interval.

    Raises:
        DataError: the two were measured on different examples, or are different kinds of measurement.

    >>> ids = tuple("abcdefgh")
    >>> right, wrong = (Measurement(ids, np.array([[score, 1.0]] * 8)) for score in (1.0, 0.0))
    >>> compare(right, wrong).difference, compare(right, wrong).resolved, compare(right, right).resolved
    (1.0, True, False)
    """
    a, b = pair(a, b)
    n, difference = len(a.ids), value_of(a) - value_of(b)
    if n < 2:
        return Comparison(difference, None, None, None, None, resolved=False, n=n)
    values_RC = bootstrap([a, b], resamples, seed)
    differences_R = values_RC[:, 0] - values_RC[:, 1]
    low, high = _interval(differences_R, confidence)
    stderr = _spread(differences_R, n)
    mde = _POWER * stderr
    seen = not low <= 0 <= high and abs(difference) >= mde and differing(a, b) >= FEWEST
    return Comparison(difference, low, high, stderr, mde, resolved=seen, n=n)


def recovery(student: Measurement, teacher: Measurement) -> Share | None:
    """The student's score over the teacher's, for metrics of which more is better.

    None where the teacher's own score cannot be told from zero, so that no share of it means anything.

    Raises:
        DataError: measured on different examples.
    """
    return _share([student, teacher], lambda score_C: score_C[0], lambda score_C: score_C[1])


def gap_closed(student: Measurement, control: Measurement, teacher: Measurement) -> Share | None:
    """The share of the way from control to teacher that the student has gone, `(student - control) / (teacher -
    control)`.

    None where the gap itself is unresolved: a share of noise is noise.

    Raises:
        DataError: measured on different examples.
    """
    if not compare(teacher, control).resolved:
        return None
    return _share([student, control, teacher], lambda at: at[0] - at[1], lambda at: at[2] - at[1])


def changes(
    home: Sequence[Measurement], away: Sequence[Measurement], contrasts_KC: ArrayLike, *, seed: int = 0
) -> list[Comparison]:
    """How much the values of C models change from one data set to another, and how much more one's than another's.

    The two sets hold different examples, so their resamples are drawn apart and nothing is paired across them; all
    models meet the same examples of each, so within a set they are.

    Args:
        home: the models' measurements on the first set.
        away: theirs on the second, the models in the same order.
        contrasts_KC: rows of weights over the models: `[1, 0]` asks how much the first one changes, away minus home,
            and `[1, -1]` how much more than the second.
        seed: of the draws; the same inputs give the same intervals.

    Returns:
        One comparison for each row, its `n` that of the smaller set.

    Raises:
        DataError: models were measured on different examples of a set.

    >>> easy, hard = (Measurement(tuple("abcdefgh"), np.array([[loss, 1.0]] * 8)) for loss in (1.0, 3.0))
    >>> [found.difference for found in changes([easy, easy], [hard, easy], [[1, 0], [0, 1], [1, -1]])]
    [2.0, 0.0, 2.0]
    """
    homes, aways = pair(*home), pair(*away)
    n = min(len(homes[0].ids), len(aways[0].ids))
    moved_C = np.array([value_of(there) - value_of(here) for here, there in zip(homes, aways, strict=True)])
    contrasts = np.asarray(contrasts_KC, dtype=np.float64)
    if n < 2:
        return [Comparison(float(w_C @ moved_C), None, None, None, None, resolved=False, n=n) for w_C in contrasts]
    home_RC, away_RC = bootstrap(homes, RESAMPLES, seed), bootstrap(aways, RESAMPLES, seed + 1)
    found = []
    for w_C in contrasts:
        used = np.flatnonzero(w_C)
        home_R, away_R = home_RC[:, used] @ w_C[used], away_RC[:, used] @ w_C[used]
        low, high = _interval(away_R - home_R, 0.95)
        stderr = float(np.hypot(_spread(home_R, len(homes[0].ids)), _spread(away_R, len(aways[0].ids))))
        difference, mde = float(w_C[used] @ moved_C[used]), _POWER * stderr
        speaking = n
        if len(used) > 1:
            speaking = sum(differing(m[used[0]], m[used[1]]) for m in (homes, aways))
        seen = not low <= 0 <= high and abs(difference) >= mde and speaking >= FEWEST
        found.append(Comparison(difference, low, high, stderr, mde, resolved=seen, n=n))
    return found


def _share(
    measurements: Sequence[Measurement],
    above: Callable[[FloatArray], FloatArray],
    below: Callable[[FloatArray], FloatArray],
) -> Share | None:
    """`above / below`, both functions of the models' values; None where the interval of `below` touches zero."""
    paired = pair(*measurements)
    if len(paired[0].ids) < 2:
        return None
    values_C = np.array([value_of(m) for m in paired])
    values_CR = bootstrap(paired, RESAMPLES, seed=0).T
    lowest, highest = _interval(below(values_CR), 0.95)
    if lowest <= 0 <= highest:
        return None
    share_R = np.divide(above(values_CR), below(values_CR), where=below(values_CR) != 0, out=np.full(RESAMPLES, np.nan))
    return Share(float(above(values_C) / below(values_C)), *_interval(share_R, 0.95))


def pair(*measurements: Measurement) -> list[Measurement]:
    """The same examples in the same order, which is that of their ids, so that no result depends on the order of
    rows.

    Raises:
        DataError: measured on different examples, or different kinds of measurement.
    """
    sets = [set(m.ids) for m in measurements]
    shared = set.intersection(*sets)
    if any(len(m.ids) != len(shared) for m in measurements):
        counts = " and ".join(f"{len(m.ids):,}" for m in measurements)
        raise DataError(
            f"The runs were measured on different held-out data: {counts} examples, {len(shared):,} of them shared, so "
            "they cannot be compared example by example. Evaluate them on the same data.heldout (source, shuffle, "
            "limit) and data.max_length."
        )
    if len({(m.kind, m.sums_EM.shape[1] if m.kind == "ratio" else 0) for m in measurements}) > 1:
        kinds = " and ".join(m.kind for m in measurements)
        raise DataError(
            f"Measurements of different kinds ({kinds}) cannot be compared; compare one metric with itself."
        )
    return [_in_order(m) for m in measurements]


def _in_order(measurement: Measurement) -> Measurement:
    order = sorted(range(len(measurement.ids)), key=measurement.ids.__getitem__)
    return Measurement(tuple(measurement.ids[i] for i in order), measurement.sums_EM[order], measurement.kind)


def differing(a: Measurement, b: Measurement) -> int:
    """Examples on which the two contributed different amounts."""
    if a.sums_EM.shape != b.sums_EM.shape:
        return len(a.ids)
    return int((a.sums_EM != b.sums_EM).any(axis=1).sum())


def value_of(measurement: Measurement) -> float:
    """The value alone.

    Raises:
        DataError: there is nothing to divide by.
    """
    value = float(_apply(measurement.kind, measurement.sums_EM.sum(axis=0, keepdims=True))[0])
    if not np.isfinite(value):
        sums = measurement.sums_EM.sum(axis=0).tolist()
        raise DataError(
            f"A measurement over {len(measurement.ids)} examples has no value: its sums are {sums}, and the last must "
            "be a positive count (tokens, bytes or examples). Measure on data that has some."
        )
    return value


def _apply(kind: Kind, sums_RM: FloatArray) -> FloatArray:
    """The value of each row of summed contributions; NaN where there is nothing to divide by."""
    above_R = sums_RM[:, 0] if kind == "ratio" else np.abs(sums_RM[:, :-1]).sum(axis=1)
    below_R = sums_RM[:, -1]
    return np.divide(above_R, below_R, where=below_R != 0, out=np.full(len(sums_RM), np.nan))


def bootstrap(measurements: Sequence[Measurement], resamples: int, seed: int) -> FloatArray:
    """Values [R, C] of all measurements under the same R draws of their E examples; they must be in the same order."""
    count = len(measurements[0].ids)
    draw = np.random.default_rng(seed)
    parts = []
    step = max(1, _WEIGHTS // count)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = draw.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        # How often each example was drawn, which makes all sums of all resamples one matrix product.
        weights_RE = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)
        parts.append(np.stack([_apply(m.kind, weights_RE @ m.sums_EM) for m in measurements], axis=1))
    return np.concatenate(parts)


def _interval(values_R: FloatArray, confidence: float) -> tuple[float, float]:
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(values_R, [tail, 100 - tail])
    return float(low), float(high)


def _spread(values_R: FloatArray, n: int) -> float:
    """The bootstrap's standard error; the bootstrap divides by n where an unbiased variance divides by n - 1."""
    return float(np.nanstd(values_R) * np.sqrt(n / (n - 1)))
