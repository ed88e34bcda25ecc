"""Fitting classifiers to labels that may be soft and rows that may weigh: softmax regression, or any module by descent.

Shapes: N or R rows, T places of a row, D width of a vector, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import softmax
from torch import Tensor, nn
from torch.nn import functional as F

from stillhouse.classifiers.architectures import Linear, VectorClassifier

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

_BATCH = 256
"""Rows of an update; smaller sets are taken whole."""
_LR = 0.1


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


def train(
    module: VectorClassifier,
    inputs_RTD: Tensor,
    mask_RT: Tensor,
    targets_RC: Tensor,
    weights_R: Tensor | None = None,
    *,
    steps: int,
    seed: int,
) -> VectorClassifier:
    """Train a classifier in place in the way that suits it; answers it.

    `Linear` goes to the optimum of softmax regression, with a penalty of one on vectors of unit length (which its
    features are but for a factor). Everything else takes `steps` updates of `fit`.

    Raises:
        ValueError: shapes that do not fit, or no rows.
    """
    if not isinstance(module, Linear):
        fit(module, inputs_RTD, mask_RT, targets_RC, weights_R, steps=steps, lr=_LR, seed=seed)
        return module
    with torch.no_grad():
        features_RD = module.features(inputs_RTD, mask_RT)
        found = softmax_regression(features_RD, targets_RC, weights_R, penalty=float(features_RD.shape[1]))
        module.head.weight.copy_(torch.from_numpy(found.weights_DC.T))
        module.head.bias.copy_(torch.from_numpy(found.bias_C))
    return module


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
