"""Generalised Jensen-Shannon divergence: forward KL at one end, reverse KL at the other, continuously."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stillhouse.objectives.base import Divergence
from stillhouse.signals.support import Aligned


@dataclass(frozen=True, kw_only=True)
class GeneralizedJSD(Divergence):
    """`JSD_b = b KL(p | m) + (1 - b) KL(q | m)` with the mixture `m = b p + (1 - b) q` of teacher p and student q.

    The divergence of GKD (Agarwal et al. 2023, arXiv 2306.13649). As written there it vanishes at both ends, and so
    does its
    gradient: JSD_b / b tends to the forward KL for b to 0. `normalized` divides by b (1 - b), which makes the ends
        exactly
    forward KL (b = 0) and reverse KL (b = 1); without it b must lie strictly between them, because a formula that
    switches to something a thousand times larger at its end point is a trap.

    Attributes:
        beta: b, the teacher's share of the mixture, 0.5 is the symmetric case.
        normalized: divide by b (1 - b).
    """

    beta: float = 0.5
    normalized: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta is {self.beta}; it must lie between 0 and 1")
        if self.beta in (0, 1) and not self.normalized:
            name = "forward_kl" if self.beta == 0 else "reverse_kl"
            raise ValueError(
                f"beta is {self.beta}, where the divergence is zero for any student; use {name}, or normalized: true"
            )

    def divergence(self, aligned: Aligned) -> Tensor:
        """Nats per token, at least zero."""
        student, teacher = aligned
        if self.beta == 0:
            return (teacher.exp() * (teacher - student)).sum(-1)
        if self.beta == 1:
            return (student.exp() * (student - teacher)).sum(-1)
        # log(m / p) and log(m / q) from the log-ratio alone: exactly zero where both agree. Beyond e^80 the other
        # side's weight is below what float32 can hold, so the clamp changes no value and keeps expm1 finite.
        log_ratio = (student - teacher).clamp(-80, 80)
        from_teacher = -(teacher.exp() * torch.log1p((1 - self.beta) * torch.expm1(log_ratio))).sum(-1)
        from_student = -(student.exp() * torch.log1p(self.beta * torch.expm1(-log_ratio))).sum(-1)
        divergence = self.beta * from_teacher + (1 - self.beta) * from_student
        return divergence / (self.beta * (1 - self.beta)) if self.normalized else divergence
