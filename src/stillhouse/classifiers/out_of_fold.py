"""A teacher for rows that are only labelled: what a classifier says of each, fitted to the others.

Shapes: N rows, D width of a vector, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from stillhouse.classifiers.fitting import Floats, Labels, one_hot, softmax_regression
from stillhouse.errors import DataError

_COLDEST, _HOTTEST = 0.05, 20.0
"""Between which temperatures are looked for."""


class OutOfFold(NamedTuple):
    """What a teacher says of rows that it has not seen.

    Attributes:
        probabilities_NC: of every row, by the teacher fitted to the other folds.
        temperature: by which its logits were divided.
    """

    probabilities_NC: Floats
    temperature: float


def out_of_fold(
    inputs_ND: ArrayLike,
    labels_N: Labels,
    folds: int = 5,
    seed: int = 0,
    *,
    temperature: float | None = 1.0,
    penalty: float = 1.0,
) -> OutOfFold:
    """Softmax regression's distribution over the classes for each row, fitted to the rows of the other folds.

    A teacher that has seen a row repeats its label; one that has not says what the row looks like.

    Args:
        inputs_ND: vectors.
        labels_N: classes, counted from 0.
        folds: parts, each with its share of every class.
        seed: of who goes into which.
        temperature: above 1 softens; none takes the one under which the labels are likeliest (Guo et al. 2017, arXiv
            1706.04599), a single number fitted to all rows.
        penalty: of the regression.

    Raises:
        DataError: one class alone, or a class of one row, of which no teacher could know.
        ValueError: fewer than two folds.
    """
    if folds < 2:
        raise ValueError(f"folds is {folds}; it must be at least 2")
    x_ND = np.asarray(inputs_ND, dtype=np.float64)
    counts_C = np.bincount(labels_N)
    if len(counts_C) < 2 or counts_C.min() < 2:
        raise DataError(
            f"A teacher needs two classes or more with at least two rows each, and the classes have "
            f"{', '.join(map(str, counts_C))} rows. Add rows, or remove the class."
        )
    fold_N = _stratified(labels_N, folds, seed)
    targets_NC = one_hot(labels_N, len(counts_C))
    logits_NC = np.empty_like(targets_NC)
    for fold in np.unique(fold_N):
        apart_N = fold_N == fold
        teacher = softmax_regression(x_ND[~apart_N], targets_NC[~apart_N], penalty=penalty)
        logits_NC[apart_N] = teacher.logits(x_ND[apart_N])
    chosen = likeliest_temperature(logits_NC, labels_N) if temperature is None else temperature
    return OutOfFold(softmax(logits_NC / chosen, axis=1), chosen)


def _stratified(labels_N: Labels, folds: int, seed: int) -> Labels:
    """The fold of every row; each class is dealt out in turn, so that all but the smallest are in every fold."""
    rng = np.random.default_rng(seed)
    order_N = rng.permutation(len(labels_N))
    order_N = order_N[np.argsort(labels_N[order_N], kind="stable")]
    counts_C = np.bincount(labels_N)
    fold_N = np.empty(len(labels_N), dtype=np.int64)
    fold_N[order_N] = np.concatenate([np.arange(count) % folds for count in counts_C])
    return fold_N


def likeliest_temperature(logits_NC: Floats, labels_N: Labels) -> float:
    """The temperature under which the labels are likeliest, to four digits, between 0.05 and 20."""

    def loss(log_temperature: float) -> float:
        spoken_NC = log_softmax(logits_NC / np.exp(log_temperature), axis=1)
        return float(-spoken_NC[np.arange(len(labels_N)), labels_N].mean())

    bounds = (np.log(_COLDEST), np.log(_HOTTEST))
    return round(float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x)), 4)
