"""Fidelity: how close a model's next-token distribution is to its teacher's, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stillhouse.errors import RecipeError
from stillhouse.evaluation._logits import Chunk, measurement, rendered_for, sum_by_example
from stillhouse.evaluation.base import Evaluator, Heldout, Result
from stillhouse.models import CausalLM
from stillhouse.objectives.forward_kl import ForwardKL
from stillhouse.objectives.reverse_kl import ReverseKL
from stillhouse.signals import Dense, align
from stillhouse.signals.vocabulary import require_same_vocabulary
from stillhouse.statistics import Metric


@dataclass(frozen=True, kw_only=True)
class Fidelity(Evaluator):
    """Divergences from the teacher and agreement with it on the trained tokens of held-out data.

    Closeness to the teacher is not quality: a student can score as well and disagree about much (Stanton et al. 2021,
    arXiv 2106.05945), so both are measured.

    Attributes:
        k: of `top5_overlap`, the share of the k tokens likeliest to the teacher that are also among the model's k.
    """

    k: int = 5

    needs: ClassVar[frozenset[str]] = frozenset({"distribution"})

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k is {self.k}; it must be at least 1, such as 5")

    def metrics(self) -> Mapping[str, Metric]:
        """`kl`, `reverse_kl`, `top1_agreement`, and `top5_overlap` (or another k)."""
        return {
            "kl": Metric("KL(teacher, model)", "nats/token", "lower"),
            "reverse_kl": Metric("KL(model, teacher)", "nats/token", "lower"),
            "top1_agreement": Metric("Top-1 agreement", "share", "higher"),
            f"top{self.k}_overlap": Metric(f"Top-{self.k} overlap", "share", "higher"),
        }

    def evaluate(self, model: CausalLM, data: Heldout, teacher: CausalLM | None) -> Result:
        """All from one pass over the data by both models; nothing where there is no teacher. The teacher itself is
        measured too: its exact zero is the far end of the gap that a student closes.

        Raises:
            NeedsError: the two models' tokens mean different things.
            RecipeError: k exceeds the vocabulary.
            DataError: no example has tokens to measure on.
        """
        if teacher is None:
            return Result()
        require_same_vocabulary(model.tokenizer, teacher.tokenizer)
        if self.k > model.vocabulary:
            raise RecipeError(f"fidelity.k is {self.k}, the vocabulary has {model.vocabulary} tokens. Set a smaller k.")
        rendered = rendered_for(model, data)
        *sums, tokens_E = sum_by_example(model, rendered, self._closeness, teacher).T
        return Result({name: measurement(rendered, s, tokens_E) for name, s in zip(self.metrics(), sums, strict=True)})

    def _closeness(self, chunk: Chunk) -> Sequence[Tensor]:
        aligned = align(chunk.logits_NV, Dense(chunk.teacher_NV))
        top_NK, teachers_NK = aligned.student_NK.topk(self.k).indices, aligned.teacher_NK.topk(self.k).indices
        shared_N = (top_NK[:, :, None] == teachers_NK[:, None, :]).sum((1, 2))
        same_N = aligned.student_NK.argmax(-1) == aligned.teacher_NK.argmax(-1)
        kl_N = ForwardKL().divergence(aligned)
        return kl_N, ReverseKL().divergence(aligned), same_N, shared_N / self.k, torch.ones_like(kl_N)
