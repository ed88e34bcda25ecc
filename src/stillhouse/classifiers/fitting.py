"""Fitting classifiers to labels that may be soft and rows that may weigh: softmax regression, any module, a teacher.

Shapes: N or R rows, T places of a row, D width of a vector, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax
from torch import Tensor, nn
from torch.nn import functional as F

from stillhouse.errors import DataError

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

_BATCH = 256
"""Rows of an update; smaller sets are taken whole."""
_COLDEST, _HOTTEST = 0.05, 20.0
"""Between which temperatures are looked for."""


@dataclass(frozen=True)
class Softmax:
    """A fitted softmax regression: `inputs_RD @ weights_DC + bias_C` are the logits."""

    weights_DC: Floats
    bias_C: Floats

    def logits(self, inputs_RD: ArrayLike) -> Floats:
        """Of every row, [R, C]."""
        return np.asarray(inputs_RD, dtype=np.float64) @ self.weights_DC + self.bias_C

    def probabilities(self, inputs_RD: ArrayLike) -> Floats:
        """Of every row, [R, C]."""
        return softmax(self.logits(inputs_RD), axis=1)


def softmax_regression(
    inputs_RD: ArrayLike,
    targets_RC: ArrayLike,
    weights_R: ArrayLike | None = None,
    *,
    penalty: float = 1.0,
    iterations: int = 1000,
) -> Softmax:
    """Multinomial logistic regression on soft targets by L-BFGS (Liu and Nocedal 1989); convex, so no seed.

    It minimises the weighted sum of the rows' cross-entropies plus `penalty / 2` times the squared weights, the bias
    left out: with `penalty` 1 what scikit-learn's `LogisticRegression(C=1)` does for three classes or more. Of two
    classes scikit-learn keeps one weight vector in place of two opposite ones, and its `C` is `2 / penalty`.

    Args:
        inputs_RD: vectors.
        targets_RC: the distribution of each row; one-hot where labels are hard.
        weights_R: what each row counts; none counts every row once.
        penalty: above 0, or weights of separable rows grow without end.
        iterations: at most; few give a learner that has hardly begun.

    Raises:
        ValueError: shapes that do not fit, no rows, a penalty that is not above 0.

    >>> found = softmax_regression([[0.0], [1.0]], [[0.9, 0.1], [0.1, 0.9]], penalty=1e-6)
    >>> found.probabilities([[1.0]]).round(2).tolist()
    [[0.1, 0.9]]
    """
    x_RD, y_RC = np.asarray(inputs_RD, dtype=np.float64), np.asarray(targets_RC, dtype=np.float64)
    _check(x_RD.shape, y_RC.shape)
    if not penalty > 0:
        raise ValueError(f"penalty is {penalty}; it must be above 0")
    share_R = np.ones(len(x_RD)) if weights_R is None else np.asarray(weights_R, dtype=np.float64)
    # The mean in place of the sum, so that one tolerance fits sets of all sizes.
    share_R, shrink = share_R / share_R.sum(), penalty / share_R.sum()
    y_RC = y_RC * share_R[:, None]
    mass_R = y_RC.sum(axis=1)
    width, classes = x_RD.shape[1], y_RC.shape[1]

    def loss(flat: Floats) -> tuple[float, Floats]:
        both = flat.reshape(width + 1, classes)
        logits_RC = x_RD @ both[:-1] + both[-1]
        norm_R = _logsumexp(logits_RC)
        value = mass_R @ norm_R - (y_RC * logits_RC).sum() + shrink / 2 * (both[:-1] ** 2).sum()
        slope_RC = np.exp(logits_RC - norm_R[:, None]) * mass_R[:, None] - y_RC
        slope = np.empty_like(both)
        slope[:-1] = x_RD.T @ slope_RC + shrink * both[:-1]
        slope[-1] = slope_RC.sum(axis=0)
        return float(value), slope.ravel()

    done = minimize(
        loss,
        np.zeros((width + 1) * classes),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations, "gtol": 1e-4, "ftol": 1e-10},
    )
    both = done.x.reshape(width + 1, classes)
    return Softmax(both[:-1], both[-1])


def _logsumexp(logits_RC: Floats) -> Floats:
    """Of each row; SciPy's own is written for any axes, and slower on few rows."""
    top_R = logits_RC.max(axis=1)
    return top_R + np.log(np.exp(logits_RC - top_R[:, None]).sum(axis=1))


def fit(
    module: nn.Module,
    inputs: Tensor,
    mask: Tensor,
    targets_RC: Tensor,
    weights_R: Tensor | None = None,
    *,
    steps: int,
    lr: float,
    seed: int,
) -> list[float]:
    """Train a classifier in place by descent with Nesterov's momentum, the rate falling by a cosine.

    Plain descent on purpose: on few rows Adam gives every input the same say, the noisy ones too, and generalises far
    worse (Wilson et al. 2017, arXiv 1705.08292).

    Args:
        module: of `(inputs, mask) -> logits_RC`.
        inputs: a row an entry of the first axis: [R, T, D], or whatever the module takes.
        mask: which places of a row count, [R, T].
        targets_RC: the distribution of each row; one-hot where labels are hard.
        weights_R: what each row counts; none counts every row once.
        steps: updates; each takes 256 rows, all of them once before any comes again.
        lr: the rate of the first update.
        seed: of the order of rows and of the module's own dice, such as dropout. The module's weights are its own.

    Returns:
        The loss of every update.

    Raises:
        ValueError: shapes that do not fit, or no rows.
    """
    _check(tuple(inputs.shape), tuple(targets_RC.shape))
    rows = len(inputs)
    weights_R = torch.ones(rows) if weights_R is None else weights_R
    optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=1e-3)
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module.train()
        order = torch.empty(0, dtype=torch.int64)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
            if len(order) < min(_BATCH, rows):
                order = torch.cat([order, torch.randperm(rows)])
            rows_B, order = order[:_BATCH], order[_BATCH:]
            if rows <= _BATCH:
                rows_B, order = torch.arange(rows), order[rows:]
            logits_BC = module(inputs[rows_B], mask[rows_B])
            loss_B = F.cross_entropy(logits_BC, targets_RC[rows_B], reduction="none")
            share_B = weights_R[rows_B]
            loss = (share_B * loss_B).sum() / share_B.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    module.eval()
    return losses


def _check(inputs: tuple[int, ...], targets: tuple[int, ...]) -> None:
    if not inputs[0]:
        raise ValueError("There are no rows to fit to.")
    if len(targets) != 2 or inputs[0] != targets[0]:
        raise ValueError(
            f"inputs are {list(inputs)} and targets {list(targets)}; targets must be [R, C], of as many rows"
        )


def one_hot(labels_N: Labels, classes: int) -> Floats:
    """Hard labels as distributions, [N, C].

    >>> one_hot(np.array([1, 0]), 2).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    return np.eye(classes)[labels_N]


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
