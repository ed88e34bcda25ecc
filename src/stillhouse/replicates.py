"""Statistics of runs that differ in their seed: means over seeds, and differences paired by seed and by example.

Few seeds are the rule, so intervals are Student's: with three seeds a percentile bootstrap over them covers far less
than it promises. Two things vary, the seed and the held-out examples, and every seed meets the same examples: a
crossed random-effects model. The variance between seeds is taken from the seeds' differences, the variance between
examples from the bootstrap that `statistics` draws, what both contain is counted once, and the degrees of freedom are
Satterthwaite's (1946). Shapes: S seeds, R resamples, C measurements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Literal

import numpy as np

from stillhouse.errors import DataError
from stillhouse.statistics import FEWEST, RESAMPLES, Measurement, bootstrap, compare, differing, pair, value_of

Basis = Literal["seeds and examples", "seeds", "examples"]

_NORMAL = 1000
"""Degrees of freedom from which on Student's distribution is the normal one, to three digits."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its 95 % interval, which one seed alone does not give."""

    value: float
    stderr: float | None
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True)
class Difference:
    """One setting minus another, the mean over the seeds that both ran with.

    Attributes:
        difference: in the metric's unit.
        low: lower end of the 95 % interval, None where one seed or example alone was measured.
        high: its upper end.
        stderr: of the difference.
        mde: the minimal detectable effect, as of `statistics.Comparison`, with Student's quantiles.
        resolved: the interval excludes 0, the difference is no smaller than `mde`, and, where examples were paired, at
            least six of them differ.
        seeds: how many were paired.
        examples: how many were paired; 0 where the metric is one number a run, or the held-out data differ.
        basis: whose noise the interval covers.
    """

    difference: float
    low: float | None
    high: float | None
    stderr: float | None
    mde: float | None
    resolved: bool
    seeds: int
    examples: int
    basis: Basis


def student_quantile(central: float, df: int) -> float:
    """The bound that holds the given central share of Student's distribution within plus and minus itself.

    >>> round(student_quantile(0.95, 2), 3), round(student_quantile(0.95, 1000), 2)
    (4.303, 1.96)
    """
    low, high = 0.0, 1.0
    while _central_share(high, df) < central:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_share(middle, df) < central else (low, middle)
    return high


def _central_share(bound: float, df: int) -> float:
    """P(|T| <= bound) for whole degrees of freedom (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(bound / math.sqrt(df))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = df % 2
    if df == 1:
        return 2 * angle / math.pi
    term = total = cosine if odd else 1.0
    for k in range(2 + odd, df - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def mean_over_seeds(values_S: Sequence[float]) -> Mean:
    """The mean and its 95 % interval by Student's distribution, the seeds being the sample.

    >>> mean_over_seeds([1.0, 2.0, 3.0]).value, mean_over_seeds([1.0]).low
    (2.0, None)
    """
    seeds, value = len(values_S), fmean(values_S)
    if seeds < 2:
        return Mean(value, None, None, None, seeds)
    stderr = math.sqrt(variance(values_S) / seeds)
    half = student_quantile(0.95, seeds - 1) * stderr
    return Mean(value, stderr, value - half, value + half, seeds)


def difference_of_values(ones_S: Sequence[float], others_S: Sequence[float]) -> Difference:
    """How much larger the first values are, paired by seed alone."""
    seeds = len(ones_S)
    differences_S = [one - other for one, other in zip(ones_S, others_S, strict=True)]
    if seeds < 2:
        return Difference(differences_S[0], None, None, None, None, False, seeds, 0, "seeds")
    return _judged(fmean(differences_S), variance(differences_S) / seeds, seeds - 1, (seeds, 0), "seeds")


def difference(ones_S: Sequence[Measurement], others_S: Sequence[Measurement]) -> Difference:
    """How much larger the first measurements are, seed by seed and example by example; by seed alone where the held-out
    examples differ."""
    try:
        paired = pair(*ones_S, *others_S)
    except DataError:
        return difference_of_values([value_of(m) for m in ones_S], [value_of(m) for m in others_S])
    seeds, examples = len(ones_S), len(paired[0].ids)
    if seeds == 1 or examples < 2:
        if seeds > 1:
            return difference_of_values([value_of(m) for m in ones_S], [value_of(m) for m in others_S])
        c = compare(ones_S[0], others_S[0])
        return Difference(c.difference, c.low, c.high, c.stderr, c.mde, c.resolved, 1, c.n, "examples")
    differences_S = np.array([value_of(one) - value_of(other) for one, other in zip(ones_S, others_S, strict=True)])
    values_RC = bootstrap(paired, RESAMPLES, seed=0)
    differences_RS = values_RC[:, :seeds] - values_RC[:, seeds:]
    unbiased = examples / (examples - 1)
    within = float(np.nanvar(differences_RS, axis=0).mean()) * unbiased  # of one seed's difference, over examples
    shared = float(np.nanvar(differences_RS.mean(axis=1))) * unbiased  # of the mean of all seeds, over examples
    between = float(differences_S.var(ddof=1)) / seeds
    # What is an example's own with one seed alone varies over seeds and over examples, and is in both: once is enough.
    both = max(0.0, within - shared) / (seeds - 1)
    alone = max(0.0, shared - both)
    total = between + alone
    df = total**2 / (between**2 / (seeds - 1) + alone**2 / (examples - 1)) if total else seeds - 1
    enough = max(differing(one, other) for one, other in zip(paired[:seeds], paired[seeds:], strict=True)) >= FEWEST
    return _judged(float(differences_S.mean()), total, int(df), (seeds, examples), "seeds and examples", enough=enough)


def _judged(
    value: float, variance_: float, df: int, counts: tuple[int, int], basis: Basis, *, enough: bool = True
) -> Difference:
    stderr, df = math.sqrt(variance_), min(max(1, df), _NORMAL)
    half = student_quantile(0.95, df) * stderr
    mde = half + student_quantile(0.6, df) * stderr  # 80 % power: the quantile of 0.8 on one side
    resolved = enough and abs(value) > half and abs(value) >= mde
    return Difference(value, value - half, value + half, stderr, mde, resolved, *counts, basis)
