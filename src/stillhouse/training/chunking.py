"""The loss of a batch without its [tokens, vocabulary] logits ever existing at once (contract C4).

The head and every objective run on one chunk of trained tokens at a time, and the gradients are taken there and then,
inside the forward pass. What stays is the gradient of the hidden states and of the head: peak memory follows the chunk,
not the batch, for any objective. Shapes: B sequences, T tokens, D width, N tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stillhouse.data.batching import TokenBatch
from stillhouse.models import CausalLM
from stillhouse.objectives.base import Objective
from stillhouse.signals.kinds import Signal

_LOGITS_BYTES = 2**26


class BatchLoss(NamedTuple):
    """Sums over the trained tokens of a batch, in nats: the weighted total, which has a gradient, and each objective
    alone."""

    total: Tensor
    parts: Tensor


def choose_chunk(vocabulary: int) -> tuple[int, str]:
    """How many tokens' logits may exist at once, and why."""
    chunk = max(64, _LOGITS_BYTES // (4 * vocabulary))
    return chunk, f"{chunk} x {vocabulary} float32 logits are about {chunk * vocabulary * 4 / 2**20:.0f} MiB"


def batch_loss(
    lm: CausalLM,
    hidden_BTD: Tensor,
    batch: TokenBatch,
    signal: Signal | None,
    objectives: Sequence[Objective],
    chunk: int,
) -> BatchLoss:
    """The objectives summed over all trained tokens of a batch.

    Args:
        lm: the student, for its head and true vocabulary.
        hidden_BTD: its last hidden states, with a graph.
        batch: which tokens follow, and which of them count.
        signal: what the teacher says, rows being the flattened positions of the batch.
        objectives: the weighted sum.
        chunk: tokens whose logits may exist at once.
    """
    rows_N = batch.trained_rows()
    work = _Work(lm, batch, signal, objectives)
    if not torch.is_grad_enabled():
        parts = sum(
            (work.parts(hidden_BTD.flatten(0, 1)[rows], rows) for rows in rows_N.split(chunk)), start=work.zeros()
        )
        return BatchLoss((parts * work.weights()).sum(), parts)
    total, parts = _ChunkedLoss.apply(work, rows_N, chunk, hidden_BTD, *lm.head_parameters())
    return BatchLoss(total, parts)


class _Work(NamedTuple):
    lm: CausalLM
    batch: TokenBatch
    signal: Signal | None
    objectives: Sequence[Objective]

    def parts(self, hidden_ND: Tensor, rows_N: Tensor) -> Tensor:
        """Each objective's sum over one chunk."""
        logits_NV = self.lm.head(hidden_ND)[:, : self.lm.vocabulary]
        signal = None if self.signal is None else self.signal.select(rows_N)
        tokens = self.batch.select(rows_N)
        return torch.stack([objective.loss(logits_NV, signal, tokens).sum() for objective in self.objectives]).float()

    def weights(self) -> Tensor:
        return torch.tensor([objective.weight for objective in self.objectives], device=self.batch.tokens_BT.device)

    def zeros(self) -> Tensor:
        return torch.zeros(len(self.objectives), device=self.batch.tokens_BT.device)


class _ChunkedLoss(torch.autograd.Function):
    """Forward computes the gradients; backward hands them out, scaled."""

    @staticmethod
    def forward(
        ctx: Any, work: _Work, rows_N: Tensor, chunk: int, hidden_BTD: Tensor, *head: Tensor
    ) -> tuple[Tensor, Tensor]:
        hidden_MD = hidden_BTD.detach().flatten(0, 1)
        grad_hidden = torch.zeros_like(hidden_MD)
        grad_head = [torch.zeros_like(p) for p in head]
        totals, weights = work.zeros(), work.weights()
        for rows in rows_N.split(chunk):
            leaf_ND = hidden_MD[rows].requires_grad_()
            with torch.enable_grad():
                parts = work.parts(leaf_ND, rows)
                grads = torch.autograd.grad((parts * weights).sum(), [leaf_ND, *head])
            grad_hidden[rows] = grads[0]
            for kept, new in zip(grad_head, grads[1:], strict=True):
                kept += new
            totals += parts.detach()
        ctx.save_for_backward(grad_hidden.view_as(hidden_BTD), *grad_head)
        ctx.mark_non_differentiable(totals)
        return (totals * weights).sum(), totals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return (None, None, None, *(grads[0] * saved for saved in ctx.saved_tensors))
