"""How processes share a student: alone, replicated (DDP), or its weights spread over all of them (FSDP2).

What is wrapped is one micro-batch down to its summed loss, hidden states and head together. A loss computed outside of
the wrapped module would bypass its synchronisation, and the copies would drift apart without a word.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from stillhouse import world
from stillhouse.data.batching import TokenBatch
from stillhouse.models import CausalLM
from stillhouse.objectives.base import Objective
from stillhouse.signals.kinds import Signal
from stillhouse.student import Student
from stillhouse.training.chunking import BatchLoss, batch_loss
from stillhouse.training.muon import unsharded

BYTES_PER_WEIGHT = 16
"""Of training in float32: the weight, its gradient, and AdamW's two moments."""


class MicroBatch(nn.Module):
    """The forward pass of one micro-batch: from tokens to the objectives' sums over its trained tokens."""

    def __init__(self, lm: CausalLM) -> None:
        super().__init__()
        self.model = lm.model
        self._lm = lm

    def forward(
        self, batch: TokenBatch, signal: Signal | None, objectives: Sequence[Objective], chunk: int
    ) -> BatchLoss:
        """Sums, not means: how many tokens the whole update has is known to the loop alone."""
        hidden_BTD = self._lm.hidden(batch.tokens_BT, batch.positions_BT)
        return batch_loss(self._lm, hidden_BTD, batch, signal, objectives, chunk)


class Parallel:
    """A student as its processes train it. Wrap before the optimiser is built: sharding replaces the parameters.

    Args:
        student: changed in place.
        shard: spread the weights instead of copying them; without effect in one process.
        dtype: of the matrix products, None for float32. Sharded weights are gathered in it, and gradients summed in
            float32; elsewhere autocast does it.
    """

    def __init__(self, student: Student, *, shard: bool = False, dtype: torch.dtype | None = None) -> None:
        self.student, self.dtype = student, dtype
        self.module: nn.Module = MicroBatch(student.lm)
        self.sharded = shard and world.size() > 1
        if self.sharded:
            reduce = torch.float32 if dtype else None
            for layer in student.lm.layers():
                fully_shard(layer, mp_policy=MixedPrecisionPolicy(dtype, reduce))
            # Among the inputs of the whole is what the teacher says, which has a precision of its own.
            fully_shard(self.module, mp_policy=MixedPrecisionPolicy(dtype, reduce, cast_forward_inputs=False))
        elif world.size() > 1:
            self.module = DistributedDataParallel(self.module)

    def autocast(self) -> torch.autocast:
        """For the teacher and the student alike; off where sharding casts the weights itself."""
        wanted = self.dtype is not None and not self.sharded
        return torch.autocast(self.student.lm.device.type, dtype=self.dtype, enabled=wanted)

    def forward(
        self, batch: TokenBatch, signal: Signal | None, objectives: Sequence[Objective], chunk: int
    ) -> BatchLoss:
        """The objectives' sums over this process's micro-batch."""
        return self.module(batch, signal, objectives, chunk)

    def synchronized(self, last: bool) -> Any:
        """Around forward and backward: copies are brought into step at the last micro-batch of an update alone."""
        if isinstance(self.module, DistributedDataParallel) and not last:
            return self.module.no_sync()
        return nullcontext()

    def clip(self, largest: float) -> float:
        """Scale the gradient to at most this norm; its norm before, over all processes."""
        trained = [p for p in self.student.lm.model.parameters() if p.grad is not None]
        return float(unsharded(torch.nn.utils.clip_grad_norm_(trained, largest)))

    @contextmanager
    def readable(self) -> Generator[CausalLM, None, None]:
        """The student for evaluation and generation, in all processes at once."""
        if isinstance(self.module, FSDPModule):
            self.module.unshard()  # embeddings, last norm and head; layers gather themselves
        try:
            yield self.student.lm
        finally:
            if isinstance(self.module, FSDPModule):
                self.module.reshard()

    def whole_state(self) -> dict[str, Tensor]:
        """All weights in the first process's main memory, nothing in the others; every process must ask."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: Any = get_model_state_dict(self.student.lm.model, options=options)
        return state
