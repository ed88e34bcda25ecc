"""Roles weighted against each other: each counts by the mean over its own tokens, however an update is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from stillhouse.data.batching import Batches, TokenBatch
from stillhouse.data.rendering import Renderer, Role
from stillhouse.objectives.cross_entropy import CrossEntropy
from stillhouse.records import Example
from stillhouse.training.loop import Compute, train
from stillhouse.training.optim import Optim

WEIGHTS = {Role.RATIONALE: 0.7, Role.ANSWER: 0.3}
WORKED = [
    Example(id=f"e{i}", prompt=f"{i} + 1 =", rationale="and so on " * (i + 1), completion=f"{i}") for i in range(6)
]


def mean_of(lm: Any, batch: TokenBatch, role: Role) -> float:
    with torch.no_grad():
        logits = lm.head(lm.hidden(batch.tokens_BT))[..., : lm.vocabulary].double()
    losses_BT = functional.cross_entropy(logits.transpose(1, 2), batch.targets_BT, reduction="none")
    return float(losses_BT[batch.trained_BT & (batch.role_BT == int(role))].mean())


@pytest.mark.parametrize(("accumulate", "packing"), [(1, False), (3, False), (3, True)])
def test_the_loss_is_the_weighted_sum_of_the_roles_means(
    make_student: Any, tokenizer: Any, accumulate: int, packing: bool
) -> None:
    rendered = Renderer(tokenizer, 120).render(WORKED)
    lm = make_student(seed=1).lm
    whole = TokenBatch.of(rendered)
    wanted = sum(weight * mean_of(lm, whole, role) for role, weight in WEIGHTS.items())
    norms = []
    for pieces in (1, accumulate):
        student = make_student(seed=1)
        per_batch = 10_000 if pieces == 1 else 120
        stream = Batches(rendered, tokens_per_batch=per_batch, packing=packing and pieces > 1, role_weights=WEIGHTS)
        count = stream.batches_per_epoch()
        step = next(
            train(
                student, stream, None, [CrossEntropy()], steps=9, optim=Optim(lr=0.1), compute=Compute(accumulate=count)
            )
        )
        assert step.loss == pytest.approx(wanted, rel=1e-5)
        norms.append(step.grad_norm)
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_a_role_that_is_not_named_counts_nothing(make_student: Any, tokenizer: Any) -> None:
    rendered = Renderer(tokenizer, 120).render(WORKED)
    student = make_student(seed=1)
    wanted = mean_of(student.lm, TokenBatch.of(rendered), Role.ANSWER)
    stream = Batches(rendered, tokens_per_batch=10_000, role_weights={Role.ANSWER: 1.0})
    assert next(train(student, stream, None, [CrossEntropy()], steps=1)).loss == pytest.approx(wanted, rel=1e-5)
