"""The loss of a batch without its [tokens, vocabulary] logits ever existing at once (contract C4).

The head runs on one chunk of trained tokens at a time, and the gradients are taken there and then, inside the forward
pass. What stays is the gradient of the hidden states and of the head: peak memory follows the chunk, not the batch, for
any objective. Three more things keep it lean:

- Objectives run on a few rows of the chunk at a time, so that their temporaries stay in the processor's cache, and the
  gradient of the logits takes the place of the logits.
- The gradient of the head's weights is added to one float32 sum by the matrix product itself: no second [V, D] tensor.
- Going backward scales those gradients where they lie and hands them over.

Shapes: B sequences, T tokens, D width, M all positions of a batch, N tokens of a chunk, R rows of a block, V
vocabulary, W width of the head (which may be padded beyond the vocabulary).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._triton import has_triton

from stillhouse.data.batching import TokenBatch, TokenSlice
from stillhouse.objectives.base import Objective
from stillhouse.signals.kinds import Signal

if TYPE_CHECKING:
    from stillhouse.models import CausalLM

_LOGITS_BYTES = {"cpu": 2**26, "cuda": 2**30}
"""Of a chunk's logits in float32. A processor's memory is the scarcer thing; an accelerator wants products that are
worth their launch. Either way a chunk reads and writes the whole sum of the head's gradients, so it may not be tiny."""

_BLOCK_BYTES = 2**20
"""Of a block's logits in float32 for each thread: what a second-level cache holds. Whole chunks took
longer (docs/log.md)."""


class BatchLoss(NamedTuple):
    """Sums over the trained tokens of a batch, in nats: the weighted total, which has a gradient, and each objective
    alone."""

    total: Tensor
    parts: Tensor


def choose_chunk(vocabulary: int, device: str = "cpu") -> tuple[int, str]:
    """How many tokens' logits may exist at once, and why."""
    chunk = max(64, _LOGITS_BYTES["cpu" if device == "cpu" else "cuda"] // (4 * vocabulary))
    chunk -= 0 if device == "cpu" else chunk % 64  # whole tiles of a matrix product
    size = f"{chunk} x {vocabulary} float32 logits are about {chunk * vocabulary * 4 / 2**20:.0f} MiB"
    why = "small beside the head and its gradient" if device == "cpu" else "enough to make matrix products efficient"
    return chunk, f"{size}, {why}"


def choose_compiled(device: str) -> tuple[bool, str]:
    """Whether objectives are compiled into kernels of their own, and why."""
    if device == "cpu":
        return False, "on a processor blocks of rows stay in its cache, and compiling costs more than it saves"
    if not has_triton():
        return False, f"triton, which torch.compile needs on {device}, is not there"
    return True, f"on {device} one kernel reads the logits instead of one for every operation of the formula"


def batch_loss(
    lm: CausalLM,
    hidden_BTD: Tensor,
    batch: TokenBatch,
    signal: Signal | None,
    objectives: Sequence[Objective],
    chunk: int,
    *,
    compiled: bool | None = None,
) -> BatchLoss:
    """The objectives summed over all trained tokens of a batch, each counted by its role where the batch says so.

    Args:
        lm: the student, for its head and true vocabulary.
        hidden_BTD: its last hidden states, with a graph.
        batch: which tokens follow, and which of them count.
        signal: what the teacher says, rows being the flattened positions of the batch.
        objectives: the weighted sum.
        chunk: tokens whose logits may exist at once.
        compiled: whether objectives are compiled; `choose_compiled` decides where nothing is said.
    """
    rows_N = batch.trained_rows()
    compiled = choose_compiled(hidden_BTD.device.type)[0] if compiled is None else compiled
    work = _Work(lm, batch, signal, objectives, compiled)
    if not torch.is_grad_enabled():
        hidden_MD, parts = hidden_BTD.flatten(0, 1), work.zeros()
        for rows in rows_N.split(chunk):
            parts += work.parts(lm.head(hidden_MD[rows]), rows)
        return BatchLoss((parts * work.weights()).sum(), parts)
    total, parts = _ChunkedLoss.apply(work, rows_N, chunk, hidden_BTD, *lm.head_parameters())
    return BatchLoss(total, parts)


class _Work(NamedTuple):
    lm: CausalLM
    batch: TokenBatch
    signal: Signal | None
    objectives: Sequence[Objective]
    compiled: bool

    def parts(self, logits_NW: Tensor, rows_N: Tensor) -> Tensor:
        """Each objective's sum over one chunk."""
        parts = self.zeros()
        for logits_RW, signal, tokens in self.blocks(logits_NW, rows_N):
            parts += self.block_parts(logits_RW, signal, tokens)
        return parts

    def parts_and_gradient(self, logits_NW: Tensor, rows_N: Tensor) -> tuple[Tensor, Tensor]:
        """Each objective's sum over one chunk, and the gradient of their weighted sum, written over the logits.

        A head that keeps its logits for its own gradient is refused by autograd, which counts what is written where.
        """
        parts, weights = self.zeros(), self.weights()
        for logits_RW, signal, tokens in self.blocks(logits_NW, rows_N):
            leaf_RW = logits_RW.detach().requires_grad_()
            with torch.enable_grad():
                block_parts = self.block_parts(leaf_RW, signal, tokens)
                (gradient_RW,) = torch.autograd.grad((block_parts * weights).sum(), leaf_RW)
            parts += block_parts.detach()
            if len(logits_RW) == len(logits_NW):
                return parts, gradient_RW
            logits_RW.copy_(gradient_RW)
        return parts, logits_NW

    def blocks(self, logits_NW: Tensor, rows_N: Tensor) -> Iterator[tuple[Tensor, Signal | None, TokenSlice]]:
        """A chunk cut into rows whose temporaries are small."""
        signal = None if self.signal is None else self.signal.select(rows_N)
        tokens = self.batch.select(rows_N)
        places = torch.arange(len(rows_N), device=rows_N.device)
        for block in places.split(_block(logits_NW)):
            here = slice(int(block[0]), int(block[-1]) + 1) if len(block) < len(rows_N) else slice(None)
            few = signal if signal is None or len(block) == len(rows_N) else signal.select(block)
            yield logits_NW[here], few, tokens.cut(here)

    def block_parts(self, logits_RW: Tensor, signal: Signal | None, tokens: TokenSlice) -> Tensor:
        losses = [_loss_of(objective, self.lm.vocabulary, self.compiled) for objective in self.objectives]
        counts_R = self._counts(tokens)
        if counts_R is None:
            return torch.stack([loss(logits_RW, signal, tokens).sum() for loss in losses]).float()
        return torch.stack([(loss(logits_RW, signal, tokens) * counts_R).sum() for loss in losses]).float()

    def _counts(self, tokens: TokenSlice) -> Tensor | None:
        """What each token counts, by its role and its example; None where all count 1."""
        by_role = self.batch.role_weights_R
        if by_role is None:
            return tokens.weight_N
        of_role_R = by_role[tokens.role_N.long()]
        return of_role_R if tokens.weight_N is None else of_role_R * tokens.weight_N

    def weights(self) -> Tensor:
        return torch.tensor([objective.weight for objective in self.objectives], device=self.batch.tokens_BT.device)

    def zeros(self) -> Tensor:
        return torch.zeros(len(self.objectives), device=self.batch.tokens_BT.device)


def _block(logits_NW: Tensor) -> int:
    """Rows an objective sees at once: all of a chunk on an accelerator, whose launches cost more than its memory."""
    if logits_NW.device.type != "cpu":
        return max(1, len(logits_NW))
    return torch.get_num_threads() * max(1, _BLOCK_BYTES // (4 * logits_NW.shape[-1]))


@lru_cache(maxsize=64)
def _loss_of(objective: Objective, vocabulary: int, compiled: bool) -> Callable[..., Tensor]:
    """An objective's loss from the head's logits, padding and all."""

    def loss(logits_RW: Tensor, signal: Signal | None, tokens: TokenSlice) -> Tensor:
        return objective.loss(logits_RW[:, :vocabulary], signal, tokens)

    return torch.compile(loss) if compiled else loss


class _ChunkedLoss(torch.autograd.Function):
    """Forward computes the gradients; backward hands them out, scaled, once."""

    @staticmethod
    def forward(
        ctx: Any, work: _Work, rows_N: Tensor, chunk: int, hidden_BTD: Tensor, *head: Tensor
    ) -> tuple[Tensor, Tensor]:
        hidden_MD = hidden_BTD.detach().flatten(0, 1)
        grad_hidden = torch.zeros_like(hidden_MD)
        sums = _HeadSums(head)
        totals = work.zeros()
        for rows in rows_N.split(chunk):
            leaf_ND = hidden_MD[rows].requires_grad_()
            with torch.enable_grad(), sums:
                logits_NW = work.lm.head(leaf_ND)
            parts, gradient_NW = work.parts_and_gradient(logits_NW.detach(), rows)
            grad_hidden[rows] = sums.backward(logits_NW, gradient_NW, leaf_ND)
            totals += parts
            del logits_NW, gradient_NW  # or two chunks would be alive at once
        ctx.gradients = [grad_hidden.view_as(hidden_BTD), *sums.take()]
        ctx.mark_non_differentiable(totals)
        return (totals * work.weights()).sum(), totals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "The gradient of a chunked loss was asked for a second time; it is scaled where it lies and handed out "
                "once. Compute the loss again."
            )
        gradients, ctx.gradients = ctx.gradients, None
        return (None, None, None, *(gradient.mul_(grads[0]) for gradient in gradients))


class _HeadSums(TorchFunctionMode):
    """The gradients of a head's parameters, summed over chunks in float32 at least.

    While it is entered, a linear map by one of the parameters adds its part of the gradient to the sum directly. What
    the head does with its parameters besides (biases, scales, norms) goes through ordinary autograd.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self.parameters = parameters
        self.sums = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
        self._narrow: dict[Tensor, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not functional.linear:
            return func(*args, **(kwargs or {}))
        return self._linear(*args, **(kwargs or {}))

    def _linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        total = next((s for p, s in zip(self.parameters, self.sums, strict=True) if p is weight), None)
        if total is None:
            return functional.linear(inputs, weight, bias)
        outputs = functional.linear(inputs, self._constant(weight), bias)
        inputs = inputs.detach()
        outputs.register_hook(lambda gradient: _add_product(total, gradient.flatten(0, -2), inputs.flatten(0, -2)))
        return outputs

    def _constant(self, weight: Tensor) -> Tensor:
        """The weight without its gradient, in autocast's precision, converted once for all chunks."""
        device = weight.device.type
        if not torch.is_autocast_enabled(device) or weight.dtype == torch.float64:
            return weight.detach()
        if weight not in self._narrow:
            self._narrow[weight] = weight.detach().to(torch.get_autocast_dtype(device))
        return self._narrow[weight]

    def backward(self, logits_NW: Tensor, gradient_NW: Tensor, leaf_ND: Tensor) -> Tensor:
        """The gradient of a chunk's hidden states; that of the parameters is added to the sums."""
        found = torch.autograd.grad(logits_NW, [leaf_ND, *self.parameters], gradient_NW, allow_unused=True)
        for total, rest in zip(self.sums, found[1:], strict=True):
            if rest is not None:
                total += rest
        return found[0]

    def take(self) -> Iterator[Tensor]:
        """The sums in the parameters' own precision, each given up as it is converted."""
        for parameter in self.parameters:
            yield self.sums.pop(0).to(parameter.dtype)


def _add_product(total_VD: Tensor, gradient_NV: Tensor, inputs_ND: Tensor) -> None:
    """`total += gradient^T inputs`, summed in the total's precision."""
    inputs_ND = inputs_ND.to(gradient_NV.dtype)
    if total_VD.dtype == gradient_NV.dtype:
        total_VD.addmm_(gradient_NV.T, inputs_ND)
    elif total_VD.device.type == "cuda":
        torch.addmm(total_VD, gradient_NV.T, inputs_ND, out_dtype=total_VD.dtype, out=total_VD)
    else:
        for some_VD, part_NV in zip(total_VD.split(4096), gradient_NV.split(4096, dim=1), strict=True):
            some_VD += part_NV.T @ inputs_ND
