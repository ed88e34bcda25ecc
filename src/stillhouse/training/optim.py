"""The optimiser and its schedule: AdamW, warm-up, cosine or constant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Optim:
    """How weights move.

    Attributes:
        lr: peak learning rate.
        warmup: updates over which it rises linearly from zero.
        schedule: `cosine` falls to zero at the last update, `constant` stays.
        clip: largest norm of the gradient, None for no limit.
        weight_decay: decoupled, on matrices alone (Loshchilov and Hutter 2019, arXiv 1711.05101).
        beta2: AdamW's second moment decay.
    """

    lr: float = 2e-5
    warmup: int = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    clip: float | None = 1.0
    weight_decay: float = 0.0
    beta2: float = 0.999

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of update `step`, counted from 0, of `steps` in all.

        >>> [round(Optim(lr=1.0, warmup=2).lr_at(i, 4), 2) for i in range(4)]
        [0.5, 1.0, 1.0, 0.5]
        """
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        done = (step - self.warmup) / max(1, steps - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))

    def build(self, model: nn.Module) -> torch.optim.AdamW:
        """AdamW over a model's trainable parameters; norms and biases are not decayed."""
        trainable = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=self.lr, betas=(0.9, self.beta2))
