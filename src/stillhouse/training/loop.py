"""The loop. It knows batches, signals, a loss per token and an update; of KL or JSD it knows nothing.

It is a generator that yields after every update: the caller's `for` is the hook.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch

from stillhouse.data.batching import TokenBatch
from stillhouse.errors import NeedsError, TrainingDivergedError
from stillhouse.objectives.base import Objective
from stillhouse.registry import name_of
from stillhouse.student import Student
from stillhouse.teachers.base import Teacher, TeacherSession
from stillhouse.training.chunking import batch_loss, choose_chunk
from stillhouse.training.optim import Optim


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
    """Everything that one update changes; what a checkpoint holds."""

    student: Student
    optimizer: torch.optim.Optimizer
    batches: BatchStream
    step: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Step:
    """One update, as it was.

    Attributes:
        number: counted from 1.
        loss: weighted objectives per trained token, in nats.
        parts: each objective per trained token, unweighted.
        lr: learning rate used.
        grad_norm: norm of the gradient before clipping.
        tokens: trained tokens so far.
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
        accumulate: micro-batches per update.
        chunk: tokens whose logits exist at once; None chooses.
        autocast: dtype of the matrix products, None for float32.
    """

    accumulate: int = 1
    chunk: int | None = None
    autocast: torch.dtype | None = None


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
        batches: endless; `accumulate` of them make one update.
        teacher: asked about every batch; None where no objective needs one.
        objectives: their weighted sum is the loss.
        steps: the number of the last update.
        optim: learning rate, schedule, clipping.
        compute: accumulation, chunk, precision.
        state: to continue from, as `training.checkpoint` loads it.

    Raises:
        NeedsError: an objective needs more than the teacher provides.
        TrainingDivergedError: the loss is not finite, or ran away.
    """
    optim, compute = optim or Optim(), compute or Compute()
    session = teacher.open(str(student.lm.device)) if isinstance(teacher, Teacher) else teacher
    if session is None and (needy := [name_of(o) for o in objectives if o.needs]):
        raise NeedsError(f"{', '.join(needy)} needs a teacher, and none was given. Give one, or use cross_entropy.")
    state = state or TrainState(student, optim.build(student.lm.model), batches)
    watch = _Watch()
    while state.step < steps:
        started = time.perf_counter()
        lr = optim.lr_at(state.step, steps)
        group = [batch.to(student.lm.device) for batch in islice(batches, compute.accumulate)]
        loss, parts, grad_norm = _update(state, group, session, objectives, lr, optim.clip, compute)
        state.step += 1
        state.tokens += sum(batch.trained_count() for batch in group)
        named = dict(zip(part_names(objectives), parts, strict=True))
        step = Step(state.step, loss, named, lr, grad_norm, state.tokens, time.perf_counter() - started, state)
        watch.check(step, group)
        yield step


def _update(
    state: TrainState,
    group: Sequence[TokenBatch],
    teacher: TeacherSession | None,
    objectives: Sequence[Objective],
    lr: float,
    clip: float | None,
    compute: Compute,
) -> tuple[float, list[float], float]:
    """One update from a group of micro-batches: the loss, its parts, the gradient's norm.

    The sum over tokens is divided once, by the trained tokens of the whole group, so that how the group is cut changes
    nothing.
    """
    lm = state.student.lm
    lm.model.train()
    count = max(1, sum(batch.trained_count() for batch in group))
    chunk = compute.chunk or choose_chunk(lm.vocabulary)[0]
    total, parts = 0.0, torch.zeros(len(objectives))
    for batch in group:
        with torch.autocast(lm.device.type, dtype=compute.autocast, enabled=compute.autocast is not None):
            signal = teacher.score(batch) if teacher is not None and any(o.needs for o in objectives) else None
            hidden_BTD = lm.hidden(batch.tokens_BT, batch.positions_BT)
            summed = batch_loss(lm, hidden_BTD, batch, signal, objectives, chunk)
        (summed.total / count).backward()
        total += summed.total.item() / count
        parts += summed.parts.cpu() / count
    trainable = [p for p in lm.model.parameters() if p.grad is not None]
    grad_norm = torch.nn.utils.clip_grad_norm_(trainable, clip or math.inf).item()
    if math.isfinite(total) and math.isfinite(
        grad_norm
    ):  # a broken gradient must not reach the weights: `_Watch` stops the run
        for settings in state.optimizer.param_groups:
            settings["lr"] = lr
        state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    return total, parts.tolist(), grad_norm


def part_names(objectives: Sequence[Objective]) -> list[str]:
    """One name per objective; a second of the same kind gets a number."""
    names = [name_of(o) for o in objectives]
    return [n if names.count(n) == 1 else f"{n}_{names[: i + 1].count(n)}" for i, n in enumerate(names)]


class _Watch:
    """Stops a run whose loss is no number or has run away."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.above = 0

    def check(self, step: Step, group: Sequence[TokenBatch]) -> None:
        seen = (
            f"step {step.number}: loss {step.loss:g} ({step.parts}), gradient norm {step.grad_norm:g}, learning rate "
            f"{step.lr:g}"
        )
        if not (math.isfinite(step.loss) and math.isfinite(step.grad_norm)):
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
