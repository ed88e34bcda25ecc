"""Training a small classifier on few rows or many: logistic regression to its optimum, all else by Adam.

Shapes: R rows, T places, D width, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stillhouse.classifiers.architectures import Linear, VectorClassifier

_BATCH = 256
_DECAY = 0.01
_RATE = 3e-3


def fit(
    module: nn.Module,
    inputs_RTD: Tensor,
    mask_RT: Tensor,
    targets_RC: Tensor,
    weights_R: Tensor | None = None,
    *,
    steps: int,
    lr: float,
    seed: int,
) -> nn.Module:
    """Train a module in place on soft targets: Adam with a cosine to zero, and all rows at once where they are few.

    Args:
        module: of `(inputs_BTD, mask_BT) -> logits_BC`.
        inputs_RTD: vectors.
        mask_RT: which places count.
        targets_RC: a distribution a row.
        weights_R: how much each row counts; none counts them alike.
        steps: updates.
        lr: at the start.
        seed: of the batches.
    """
    draw = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    weights_R = torch.ones(len(inputs_RTD), dtype=targets_RC.dtype) if weights_R is None else weights_R
    everything = torch.arange(len(inputs_RTD))
    for _ in range(steps):
        rows = everything if len(everything) <= _BATCH else torch.as_tensor(draw.choice(len(everything), _BATCH))
        loss_B = soft_cross_entropy(module(inputs_RTD[rows], mask_RT[rows]), targets_RC[rows])
        loss = (loss_B * weights_R[rows]).sum() / weights_R[rows].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return module


def soft_cross_entropy(logits_BC: Tensor, targets_BC: Tensor) -> Tensor:
    """Of each row, [B]."""
    return -(targets_BC * functional.log_softmax(logits_BC, -1)).sum(-1)


def fit_head(module: VectorClassifier, inputs_RTD: Tensor, mask_RT: Tensor, targets_RC: Tensor, *, l2: float) -> None:
    """Logistic regression on a module's features, its head in place: L-BFGS in float64 to the optimum of the summed
    cross-entropy plus `l2 / 2` times the squared weights."""
    with torch.no_grad():
        features_RF = module.features(inputs_RTD, mask_RT).double()
    targets_RC = targets_RC.double()
    weight_CF = torch.zeros(module.head.weight.shape, dtype=torch.float64, requires_grad=True)
    bias_C = torch.zeros(module.head.out_features, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight_CF, bias_C], max_iter=200, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = soft_cross_entropy(features_RF @ weight_CF.T + bias_C, targets_RC).sum() + l2 / 2 * (weight_CF**2).sum()
        loss.backward()
        return loss

    solver.step(closure)
    with torch.no_grad():
        module.head.weight.copy_(weight_CF)
        module.head.bias.copy_(bias_C)


def train(
    module: VectorClassifier, inputs_RTD: Tensor, mask_RT: Tensor, targets_RC: Tensor, *, steps: int, seed: int
) -> VectorClassifier:
    """Train a classifier in the way that suits it; answers it.

    `Linear` goes to the optimum of a ridge of one on vectors of unit length, everything else takes `steps` updates.
    """
    if isinstance(module, Linear):
        fit_head(module, inputs_RTD, mask_RT, targets_RC, l2=float(inputs_RTD.shape[2]))
    else:
        fit(module, inputs_RTD, mask_RT, targets_RC, steps=steps, lr=_RATE, seed=seed)
    return module
