"""Adam's direction: what its next step would be for a gradient, given the moments that some training left behind.

Shapes: E examples, N consecutive coordinates of a parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Moments:
    """What Adam knows after `steps` updates (Kingma and Ba 2014, arXiv 1412.6980).

    Attributes:
        first: the mean of each parameter's gradients, not corrected, flat.
        second: that of their squares.
        steps: updates so far.
        betas: decay of the two.
        eps: added to the root of the second.
    """

    first: Mapping[str, Tensor]
    second: Mapping[str, Tensor]
    steps: int
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def direction(self, name: str, start: int, gradients_EN: Tensor) -> Tensor:
        """What `torch.optim.Adam` would step along for each gradient, in units of the learning rate, bias corrected.

        Without the correction, or with eps under the root, it would be another direction, the more so the smaller the
        gradients are.

        Args:
            name: of the parameter.
            start: the first of its coordinates.
            gradients_EN: that part of each example's gradient.
        """
        here = slice(start, start + gradients_EN.shape[1])
        (beta1, beta2), step = self.betas, self.steps + 1
        first_EN = (1 - beta1) * gradients_EN + beta1 * self.first[name][here]
        second_EN = (1 - beta2) * gradients_EN.square() + beta2 * self.second[name][here]
        root_EN = second_EN.div_(1 - beta2**step).sqrt_().add_(self.eps)
        return first_EN.div_(1 - beta1**step).div_(root_EN)


def warm_up(parameters: Mapping[str, nn.Parameter], updates: Iterable[Iterable[Tensor]], lr: float) -> Moments:
    """Train some parameters by Adam and keep what it then knows.

    Args:
        parameters: moved in place.
        updates: of each the losses whose sum it follows, each computed, with a graph, when it is asked for.
        lr: learning rate.
    """
    optimizer = torch.optim.Adam(parameters.values(), lr=lr)
    steps = 0
    for losses in updates:
        for loss in losses:
            loss.backward(inputs=list(parameters.values()))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps += 1
    state = {name: optimizer.state[parameter] for name, parameter in parameters.items()}
    return Moments(
        {name: moments["exp_avg"].flatten() for name, moments in state.items()},
        {name: moments["exp_avg_sq"].flatten() for name, moments in state.items()},
        steps,
    )
