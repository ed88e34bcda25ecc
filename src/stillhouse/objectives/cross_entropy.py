"""Cross-entropy with the tokens themselves; on a teacher's text this is sequence-level distillation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from stillhouse.data.batching import TokenSlice
from stillhouse.objectives.base import Objective
from stillhouse.signals.kinds import Signal


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Objective):
    """The negative log-likelihood of the next token, `-log q(y_t | y_<t)`.

    On human text it is plain training; on text that the teacher wrote it is sequence-level knowledge distillation
    (Kim and Rush 2016, arXiv 1606.07947). It asks nothing of a teacher beyond that text.
    """

    def loss(self, student_logits_NV: Tensor, signal: Signal | None, tokens: TokenSlice) -> Tensor:
        """Nats per token."""
        wide = student_logits_NV if student_logits_NV.dtype.itemsize >= 4 else student_logits_NV.float()
        return functional.cross_entropy(wide, tokens.targets_N, reduction="none")
