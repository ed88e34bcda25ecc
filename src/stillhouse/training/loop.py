"""The loop. It knows batches, signals, a loss per token and an update; of KL or JSD it knows nothing.

It is a generator that yields after every update: the caller's `for` is the hook.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from stillhouse import world
from stillhouse.data.batching import TokenBatch
from stillhouse.errors import NeedsError, RecipeError, TrainingDivergedError
from stillhouse.objectives.base import Objective
from stillhouse.registry import name_of
from stillhouse.student import Student
from stillhouse.teachers.base import Teacher, TeacherSession, find_nan
from stillhouse.training.chunking import choose_chunk
from stillhouse.training.optim import Optim
from stillhouse.training.parallel import Parallel


class BatchStream(Protocol):
    """An endless iterator of batches that can say where it stands; `data.batching.Batches` is one."""

    def __iter__(self) -> Iterator[TokenBatch]:
        """Itself."""
        ...

    def __next__(self) -> TokenBatch:
        """The next batch; it never ends."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, as plain data."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        ...


@dataclass
class TrainState:
    """Everything that one update changes; what a checkpoint holds. `begin` makes one."""

    parallel: Parallel
    optimizer: torch.optim.Optimizer
    batches: BatchStream
    step: int = 0
    tokens: int = 0

    @property
    def student(self) -> Student:
        """The student; where its weights are sharded, `parallel.readable()` is the way to use it."""
        return self.parallel.student


@dataclass(frozen=True)
class Step:
    """One update, as it was.

    Attributes:
        number: counted from 1.
        loss: weighted objectives per trained token, in nats.
        parts: each objective per trained token, unweighted.
        lr: learning rate used.
        grad_norm: norm of the gradient before clipping.
        tokens: trained tokens so far, of all processes.
        seconds: wall time of this update.
        state: to checkpoint from.
    """

    number: int
    loss: float
    parts: dict[str, float]
    lr: float
    grad_norm: float
    tokens: int
    seconds: float
    state: TrainState


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How an update is computed; none of it changes what is computed beyond rounding.

    Attributes:
        accumulate: micro-batches per update, all processes together; None takes one in each.
        chunk: tokens whose logits exist at once; None chooses.
        dtype: of the matrix products, None for float32.
        shard: spread weights, gradients and optimiser over the processes (FSDP2) instead of copying them (DDP).
    """

    accumulate: int | None = None
    chunk: int | None = None
    dtype: torch.dtype | None = None
    shard: bool = False

    def micro_batches(self) -> int:
        """Of each process in one update.

        Raises:
            RecipeError: they do not divide evenly.
        """
        total, processes = self.accumulate or world.size(), world.size()
        if total % processes:
            raise RecipeError(
                f"An update has {total} micro-batches (train.accumulate), and {processes} processes cannot share them "
                f"evenly. Set train.accumulate to a multiple of {processes}, or start another number of processes."
            )
        return total // processes


def begin(student: Student, batches: BatchStream, optim: Optim, compute: Compute) -> TrainState:
    """A student before its first update, wrapped for the processes that train it."""
    parallel = Parallel(student, shard=compute.shard, dtype=compute.dtype)
    return TrainState(parallel, optim.build(student.lm.model), batches)


def train(
    student: Student,
    batches: BatchStream,
    teacher: Teacher | TeacherSession | None,
    objectives: Sequence[Objective],
    *,
    steps: int,
    optim: Optim | None = None,
    compute: Compute | None = None,
    state: TrainState | None = None,
) -> Iterator[Step]:
    """Train a student, yielding after every update.

    Args:
        student: changed in place.
        batches: endless; `accumulate` of them make one update. Processes each bring their own, by turns of one stream.
        teacher: asked about every batch; None where no objective needs one.
        objectives: their weighted sum is the loss.
        steps: the number of the last update.
        optim: learning rate, schedule, clipping.
        compute: accumulation, chunk, precision, sharding.
        state: to continue from, made by `begin` and filled by `training.checkpoint`.

    Raises:
        NeedsError: an objective needs more than the teacher provides.
        RecipeError: the processes cannot share the micro-batches.
        TrainingDivergedError: the loss is not finite, or ran away.
    """
    optim, compute = optim or Optim(), compute or Compute()
    session = teacher.open(str(student.lm.device)) if isinstance(teacher, Teacher) else teacher
    if session is None and (needy := [name_of(o) for o in objectives if o.needs]):
        raise NeedsError(f"{', '.join(needy)} needs a teacher, and none was given. Give one, or use cross_entropy.")
    own = compute.micro_batches()
    state = state or begin(student, batches, optim, compute)
    chunk = compute.chunk or choose_chunk(student.lm.vocabulary, student.lm.device.type)[0]
    watch = _Watch()
    while state.step < steps:
        started = time.perf_counter()
        lr = optim.lr_at(state.step, steps)
        group = [batch.to(student.lm.device) for batch in islice(batches, own)]
        figures = _gradient(state.parallel, group, session, objectives, chunk)
        grad_norm = state.parallel.clip(optim.clip or math.inf)
        if math.isfinite(figures.loss) and math.isfinite(grad_norm):  # else `_Watch` stops the run, its weights sound
            for settings in state.optimizer.param_groups:
                settings["lr"] = lr
            state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.tokens += figures.tokens
        named = dict(zip(part_names(objectives), figures.parts, strict=True))
        step = Step(state.step, figures.loss, named, lr, grad_norm, state.tokens, time.perf_counter() - started, state)
        watch.check(step, group, session)
        yield step


class _Figures(NamedTuple):
    """Of one update, over all processes: loss and its parts per trained token, and how many of those."""

    loss: float
    parts: list[float]
    tokens: int


def _gradient(
    parallel: Parallel,
    group: Sequence[TokenBatch],
    teacher: TeacherSession | None,
    objectives: Sequence[Objective],
    chunk: int,
) -> _Figures:
    """The gradient of one update from this process's micro-batches.

    The sum over tokens is divided once, by the trained tokens of all micro-batches of all processes, so that how they
    are cut and shared changes nothing. Processes average their gradients; times their number that is the sum.
    """
    lm = parallel.student.lm
    lm.model.train()
    counts_R = world.add(torch.stack([batch.trained_by_role() for batch in group]).sum(0))
    tokens = int(counts_R.sum())
    group = [_balanced(batch, counts_R) for batch in group]
    sums = torch.zeros(1 + len(objectives), device=lm.device)
    for number, batch in enumerate(group, start=1):
        with parallel.synchronized(last=number == len(group)):
            with parallel.autocast():
                signal = teacher.score(batch) if teacher is not None and any(o.needs for o in objectives) else None
                summed = parallel.forward(batch, signal, objectives, chunk)
            (summed.total * (world.size() / max(1, tokens))).backward()
        sums += torch.cat([summed.total.detach()[None], summed.parts])
    loss, *parts = (world.add(sums) / max(1, tokens)).tolist()
    return _Figures(loss, parts, tokens)


def _balanced(batch: TokenBatch, counts_R: Tensor) -> TokenBatch:
    """A batch whose roles count as its stream says, each by the mean over its own tokens in the whole update: such a
    mean times its weight is what remains when all tokens' sum is divided by their number."""
    if batch.role_weights_R is None:
        return batch
    each_R = batch.role_weights_R * counts_R.sum() / counts_R.clamp(min=1)
    return dataclasses.replace(batch, role_weights_R=each_R.float())


def part_names(objectives: Sequence[Objective]) -> list[str]:
    """One name per objective; a second of the same kind gets a number."""
    names = [name_of(o) for o in objectives]
    return [n if names.count(n) == 1 else f"{n}_{names[: i + 1].count(n)}" for i, n in enumerate(names)]


class _Watch:
    """Stops a run whose loss is no number or has run away."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.above = 0

    def check(self, step: Step, group: Sequence[TokenBatch], teacher: TeacherSession | None) -> None:
        seen = (
            f"step {step.number}: loss {step.loss:g} ({step.parts}), gradient norm {step.grad_norm:g}, learning rate "
            f"{step.lr:g}"
        )
        if not (math.isfinite(step.loss) and math.isfinite(step.grad_norm)):
            if teacher is not None and (place := find_nan(teacher, group)):
                raise TrainingDivergedError(
                    f"The teacher says NaN about {place} (step {step.number}). The update was not applied. Open the "
                    "teacher in float32 (teacher.hf.dtype), or look at that example."
                )
            raise TrainingDivergedError(
                f"The loss or its gradient is not a finite number at {seen}; examples "
                f"{[i for b in group for i in b.ids][:8]}. The update was not applied. Lower train.lr, lengthen "
                "train.warmup, or look at those examples."
            )
        if len(self.first) < 10:
            self.first.append(step.loss)
            return
        start = sum(self.first) / len(self.first)
        self.above = self.above + 1 if step.loss > 3 * start + 2 else 0
        if self.above >= 20:
            raise TrainingDivergedError(
                f"The loss ran away: {seen}, against {start:g} over the first ten steps, for 20 steps on end. Lower "
                "train.lr or lengthen train.warmup."
            )
