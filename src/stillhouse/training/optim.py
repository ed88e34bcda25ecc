"""The optimiser and its schedule: AdamW or Muon, warm-up, cosine or constant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel

from stillhouse.training.muon import Muon


@dataclass(frozen=True, kw_only=True)
class Optim:
    """How weights move.

    Attributes:
        lr: peak learning rate.
        warmup: updates over which it rises linearly from zero.
        schedule: `cosine` falls to zero at the last update, `constant` stays.
        clip: largest norm of the gradient, None for no limit.
        weight_decay: decoupled, on matrices alone (Loshchilov and Hutter 2019, arXiv 1711.05101).
        beta2: decay of Adam's second moment.
        optimizer: `adamw`, or `muon` for a student from scratch that has little time.
    """

    lr: float = 2e-5
    warmup: int = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    clip: float | None = 1.0
    weight_decay: float = 0.0
    beta2: float = 0.999
    optimizer: Literal["adamw", "muon"] = "adamw"

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

    def build(self, model: PreTrainedModel) -> torch.optim.Optimizer:
        """The optimiser over a model's trainable parameters; norms, biases and embeddings are not decayed by Muon,
        norms and biases not by AdamW."""
        trainable = [p for p in model.parameters() if p.requires_grad]
        if self.optimizer == "muon":
            tables = {
                id(p)
                for part in (model.get_input_embeddings(), model.get_output_embeddings())
                for p in part.parameters()
            }
            matrices = [p for p in trainable if p.ndim == 2 and id(p) not in tables]
            others = [p for p in trainable if p.ndim != 2 or id(p) in tables]
            return Muon(matrices, others, lr=self.lr, betas=(0.9, self.beta2), weight_decay=self.weight_decay)
        groups = [
            {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
        ]
        filled = [g for g in groups if g["params"]]
        return torch.optim.AdamW(filled, lr=self.lr, betas=(0.9, self.beta2), fused=True)  # one pass over each weight
