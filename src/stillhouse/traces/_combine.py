"""Several signals made one: a logistic regression, cross-fitted by question, with labels or without any.

Shapes: E traces, C columns of signals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import DataError
from stillhouse.statistics import FloatArray

RIDGE = 20.0
"""The penalty `RIDGE / 2 * |w|^2` beside the summed log-loss, on columns of unit variance."""
_FAR = 5.0
"""Standard deviations beyond which a column's value says no more."""
_NEWTON = 50
_SURE = 1e-3
"""A belief is held to be this far from certainty at least."""


def cross_fitted(
    columns_EC: FloatArray, target_E: FloatArray, group_E: Sequence[str], *, folds: int, seed: int
) -> FloatArray:
    """Log-odds of each trace under a logistic regression that was fitted to the targets of other questions alone.

    The questions are dealt into folds; what a trace scores depends on no target of its own fold, and so on none of its
    own question.

    Args:
        columns_EC: the signals.
        target_E: 1 for right, 0 for wrong, a probability in between for a belief; NaN where nothing is known, which is
            not fitted to but scored.
        group_E: the question of each trace.
        folds: how many; fewer questions make fewer folds.
        seed: of the deal.

    Raises:
        DataError: there is one question alone, or a fold leaves nothing known to fit to.
    """
    odds_E = np.zeros(len(target_E))
    known_E = ~np.isnan(target_E)
    for held_E in _folds(group_E, folds, seed):
        fitted_E = known_E & ~held_E
        if not fitted_E.any():
            raise DataError(
                "A combination is cross-validated by question, and without one part of the questions no trace is left "
                "whose correctness is known. Give labelled traces of more questions."
            )
        odds_E[held_E] = _fit(columns_EC[fitted_E], target_E[fitted_E]).odds(columns_EC[held_E])
    return odds_E


def two_views(belief_E: FloatArray, odds_E: FloatArray) -> FloatArray:
    """Two independent views of a trace as one, by Bayes: `logit(belief) + odds - logit(mean belief)`.

    The one view is what the answers to a question say of each other, the other what a trace says alone; the second is
    fitted to the first on other questions, as in co-training (Blum and Mitchell 1998), so that no label is used.
    """
    return _logit(belief_E) + odds_E - _logit(belief_E.mean(keepdims=True))


def _logit(share: FloatArray) -> FloatArray:
    held = np.clip(share, _SURE, 1 - _SURE)
    return np.log(held / (1 - held))


def _folds(group_E: Sequence[str], folds: int, seed: int) -> Iterator[NDArray[np.bool_]]:
    """Which traces are held out, fold by fold; all traces of a question together, whatever their order."""
    questions = sorted(set(group_E))
    if len(questions) < 2:
        raise DataError(
            f"A combination is cross-validated by question, and there is {len(questions)}; give two or more."
        )
    dealt = np.random.default_rng(seed).permutation(len(questions))
    fold = dict(zip(questions, (dealt % min(folds, len(questions))).tolist(), strict=True))
    fold_E = np.array([fold[question] for question in group_E])
    for number in range(min(folds, len(questions))):
        yield fold_E == number


class _Logistic:
    """A fitted regression: what its columns were scaled by, and a weight for each and for the constant."""

    def __init__(self, mean_C: FloatArray, scale_C: FloatArray, weights: FloatArray) -> None:
        self.mean_C, self.scale_C, self.weights = mean_C, scale_C, weights

    def odds(self, columns_EC: FloatArray) -> FloatArray:
        return _design(columns_EC, self.mean_C, self.scale_C) @ self.weights


def _fit(columns_EC: FloatArray, target_E: FloatArray) -> _Logistic:
    """Penalised maximum likelihood by Newton's method, halving a step that does not descend."""
    mean_C, scale_C = columns_EC.mean(axis=0), columns_EC.std(axis=0)
    scale_C = np.where(scale_C > 0, scale_C, 1.0)
    design = _design(columns_EC, mean_C, scale_C)
    penalty = np.append(np.full(columns_EC.shape[1], RIDGE), 1e-6)
    weights = np.zeros(design.shape[1])
    loss = _loss(design, target_E, weights, penalty)
    for _ in range(_NEWTON):
        p_E = 1 / (1 + np.exp(-design @ weights))
        slope = design.T @ (p_E - target_E) + penalty * weights
        curve = design.T @ (design * (p_E * (1 - p_E))[:, None]) + np.diag(penalty)
        step = np.linalg.solve(curve, slope)
        while (new := _loss(design, target_E, weights - step, penalty)) > loss and np.abs(step).max() > 1e-9:
            step /= 2
        weights, loss = weights - step, min(new, loss)
        if np.abs(step).max() < 1e-9:
            break
    return _Logistic(mean_C, scale_C, weights)


def _design(columns_EC: FloatArray, mean_C: FloatArray, scale_C: FloatArray) -> FloatArray:
    scaled_EC = np.clip((columns_EC - mean_C) / scale_C, -_FAR, _FAR)
    return np.column_stack([scaled_EC, np.ones(len(columns_EC))])


def _loss(design: FloatArray, target_E: FloatArray, weights: FloatArray, penalty: FloatArray) -> float:
    odds_E = design @ weights
    return float((np.logaddexp(0, odds_E) - target_E * odds_E).sum() + (penalty * weights**2).sum() / 2)
