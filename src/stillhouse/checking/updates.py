"""A few updates by the training loop itself, on the run's own batches: what one takes, in seconds and in bytes."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

import torch

from stillhouse import world
from stillhouse.checking.metering import LiveBytes, Trial, Trials, seconds_of, tensor_bytes
from stillhouse.computing import choose_compute
from stillhouse.objectives.base import Objective
from stillhouse.recipe import TrainSection
from stillhouse.records import bytes_under
from stillhouse.runs import StageRecord
from stillhouse.teachers.base import TeacherSession
from stillhouse.training.checkpoint import save_checkpoint
from stillhouse.training.loop import Compute, TrainState, begin, train
from stillhouse.training.optim import Optim
from stillhouse.workshop import Workshop

_UPDATES = 8
_SECONDS = 1.0
"""So many updates are timed after two that warm up, or as many as take so long. Their batches differ in size, so the
one in the middle counts, not the quickest."""


def cut_update(settings: TrainSection) -> tuple[int, int]:
    """How many micro-batches of an update each process has, and how many tokens one of them."""
    processes = world.expected()
    accumulate = settings.accumulate or processes
    return -(-accumulate // processes), settings.tokens_per_step // accumulate


def rehearse_updates(
    shop: Workshop, role: str, teacher: TeacherSession | None, objectives: Sequence[Objective]
) -> Trials:
    """What training takes, scaled from the workshop's batches, which may be smaller than those of the plan's recipe:
    `ROLE update`, beside the `ROLE state` of weights and moments; `ROLE trainable`, the weights that move; `ROLE
    compute`, the choice of how to compute; and `ROLE checkpoint`, whose bytes are those on disk.
    """
    settings, unrecorded = shop.recipe.train, StageRecord("", "")
    batches_each, micro = cut_update(shop.plan.recipe.train)
    shrink = micro / settings.tokens_per_step
    chosen: list[Compute] = []
    choosing = seconds_of(lambda: chosen.append(choose_compute(shop, unrecorded)))
    compute = dataclasses.replace(chosen[0], chunk=max(1, int((chosen[0].chunk or micro) / shrink)))
    student, batches = shop.trainee(unrecorded), shop.batches(shop.rendered("train", unrecorded), 1)
    optim = Optim(lr=1e-9, **settings.model_dump(include={"clip", "weight_decay", "beta2", "optimizer"}))
    state = begin(student, batches, optim, compute)
    steps = train(student, batches, teacher, objectives, steps=2 + _UPDATES, optim=optim, compute=compute, state=state)
    next(steps)
    with LiveBytes() as live:
        next(steps)
    times: list[float] = []
    for step in steps:
        times.append(step.seconds)
        if sum(times) >= _SECONDS:
            break
    alone = _optimizer_seconds(state)
    weights = list(student.lm.model.parameters())
    trainable = tensor_bytes(p for p in weights if p.requires_grad)
    in_batches = max(0.0, statistics.median(times) - alone) * shrink * batches_each
    saved = shop.path / "checkpoints" / role
    saving = seconds_of(lambda: save_checkpoint(saved, state))
    return {
        f"{role} update": Trial(in_batches + alone, trainable + shrink * max(0, live.peak - trainable)),
        f"{role} state": Trial(0, tensor_bytes(weights) + tensor_bytes(_moments(state))),
        f"{role} trainable": Trial(0, trainable),
        f"{role} compute": Trial(choosing * shrink, 0),
        f"{role} checkpoint": Trial(saving, bytes_under(saved)),
    }


def _optimizer_seconds(state: TrainState) -> float:
    """What the optimiser takes of an update, whatever its batch was."""
    for parameter in state.student.lm.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    took = min(seconds_of(state.optimizer.step) for _ in range(3))
    state.optimizer.zero_grad(set_to_none=True)
    return took


def _moments(state: TrainState) -> list[torch.Tensor]:
    return [value for kept in state.optimizer.state.values() for value in kept.values() if torch.is_tensor(value)]
