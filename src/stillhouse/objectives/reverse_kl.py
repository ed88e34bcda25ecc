"""Reverse KL divergence, KL(student, teacher): the student may not say what the teacher would not."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stillhouse.objectives.base import Divergence
from stillhouse.signals.support import Aligned


@dataclass(frozen=True, kw_only=True)
class ReverseKL(Divergence):
    """`KL(q | p) = sum_v q_v (log q_v - log p_v)` with student q and teacher p.

    The divergence of MiniLLM (Gu et al. 2023, arXiv 2306.08543), here per token on given text; a small student settles
    on some of the teacher's modes instead of averaging between them.

    >>> import torch
    >>> from stillhouse.signals import Dense, align
    >>> teacher, student = torch.tensor([0.0, 0.0]), torch.tensor([0.0, 1.0]).log_softmax(-1)
    >>> round(ReverseKL().divergence(align(student, Dense(teacher))).item(), 4)
    0.1109
    """

    def divergence(self, aligned: Aligned) -> Tensor:
        """Nats per token, at least zero."""
        student, teacher = aligned
        return (student.exp() * (student - teacher)).sum(-1)
