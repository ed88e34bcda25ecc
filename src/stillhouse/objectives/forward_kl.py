"""Forward KL divergence, KL(teacher, student): the student must cover all the teacher holds possible."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stillhouse.objectives.base import Divergence
from stillhouse.signals.support import Aligned


@dataclass(frozen=True, kw_only=True)
class ForwardKL(Divergence):
    """`KL(p | q) = sum_v p_v (log p_v - log q_v)` with teacher p and student q.

    The soft-label loss of Hinton et al. 2015 (arXiv 1503.02531); covers the teacher's modes and averages between them
    when the student is too small to hold them all.

    >>> import torch
    >>> from stillhouse.signals import Dense, align
    >>> teacher, student = torch.tensor([0.0, 0.0]), torch.tensor([0.0, 1.0]).log_softmax(-1)
    >>> round(ForwardKL().divergence(align(student, Dense(teacher))).item(), 4)
    0.1201
    """

    def divergence(self, aligned: Aligned) -> Tensor:
        """Nats per token, at least zero."""
        student, teacher = aligned
        return (teacher.exp() * (teacher - student)).sum(-1)
