"""What condensers share: gradients of a learner as a function of the data, and how far two of them are apart.

Shapes: N real rows, R condensed rows, T places, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from stillhouse.condensation.base import Real

Distance = Literal["cosine", "l2"]
Weights = Mapping[str, Tensor]
"""A learner's parameters by name."""


class Rows(NamedTuple):
    """Rows that a loss is taken of."""

    inputs_RTD: Tensor
    mask_RT: Tensor
    labels_RC: Tensor


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, as they are, as leaves of their own."""
    return {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters() if p.requires_grad}


def learner_loss(module: nn.Module, weights: Weights, rows: Rows) -> Tensor:
    """Cross-entropy with the rows' distributions, the mean over rows."""
    logits_RC = functional_call(module, dict(weights), (rows.inputs_RTD, rows.mask_RT))
    return -(rows.labels_RC * functional.log_softmax(logits_RC, -1)).sum(-1).mean()


def gradients(module: nn.Module, weights: Weights, rows: Rows, *, graph: bool) -> dict[str, Tensor]:
    """Of the loss by the weights; with a graph they can be differentiated by the rows."""
    loss = learner_loss(module, weights, rows)
    found = torch.autograd.grad(loss, list(weights.values()), create_graph=graph)
    return dict(zip(weights, found, strict=True))


def descend(module: nn.Module, weights: Weights, rows: Rows, lr: float, steps: int) -> dict[str, Tensor]:
    """Weights after plain gradient steps; no graph."""
    for _ in range(steps):
        moved = gradients(module, weights, rows, graph=False)
        weights = {name: (w.detach() - lr * moved[name]).requires_grad_() for name, w in weights.items()}
    return dict(weights)


def apart(ours: Weights, theirs: Weights, distance: Distance, *, vectors: bool) -> Tensor:
    """How far two gradients are apart, summed over parameters.

    `cosine` sums one minus the cosine over the rows of each matrix, a row being all that leads to one output (Zhao
    2020, section 3.3); `l2` is the squared distance.

    Args:
        ours: gradients by parameter.
        theirs: the same parameters' gradients.
        distance: which.
        vectors: whether parameters of one dimension (biases, norms) count, each as one row. The code of the paper
            leaves them out.
    """
    total = torch.zeros((), dtype=next(iter(ours.values())).dtype)
    for name, one in ours.items():
        if one.dim() < 2 and not vectors:
            continue
        other = theirs[name]
        if distance == "l2":
            total = total + ((one - other) ** 2).sum()
        else:
            flat = (one[None] if one.dim() < 2 else one.flatten(1), other[None] if one.dim() < 2 else other.flatten(1))
            total = total + (1 - functional.cosine_similarity(*flat, dim=1, eps=1e-12)).sum()
    return total


def class_batches(real: Real, rows: Sequence[NDArray[np.int64]], size: int, draw: np.random.Generator) -> list[Rows]:
    """Of each class some rows, drawn with replacement where it has more than `size`, else all."""
    found = []
    for of_class in rows:
        picked = torch.as_tensor(draw.choice(of_class, size) if len(of_class) > size else of_class)
        found.append(Rows(real.inputs_NTD[picked], real.mask_NT[picked], real.labels_NC[picked]))
    return found


def matching_loss(
    module: nn.Module,
    weights: Weights,
    synthetic: Sequence[Rows],
    batches: Sequence[Rows],
    compare: Callable[[Weights, Weights], Tensor],
) -> Tensor:
    """The distance of class-wise gradients, summed over classes, as a function of the synthetic rows.

    Where the weights themselves were made from the synthetic rows, the real gradient is a function of those as well.
    """
    made = not all(w.is_leaf for w in weights.values())
    parts = []
    for ours, theirs in zip(synthetic, batches, strict=True):
        target = gradients(module, weights, theirs, graph=made)
        parts.append(compare(gradients(module, weights, ours, graph=True), target))
    return torch.stack(parts).sum()
