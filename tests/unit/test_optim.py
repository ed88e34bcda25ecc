"""The schedule, and which weights decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stillhouse.training.optim import Optim


def lrs(optim: Optim, steps: int) -> list[float]:
    return [optim.lr_at(step, steps) for step in range(steps)]


def test_constant_schedule_stays() -> None:
    assert lrs(Optim(lr=0.5, schedule="constant"), 4) == [0.5] * 4


def test_warmup_rises_linearly_to_the_peak() -> None:
    assert lrs(Optim(lr=1.0, warmup=4, schedule="constant"), 6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_cosine_starts_at_the_peak_halves_in_the_middle_and_falls_all_the_way(warmup: int) -> None:
    found = lrs(Optim(lr=2.0, warmup=warmup), warmup + 100)[warmup:]
    assert found[0] == 2.0
    assert found[50] == pytest.approx(1.0)
    assert found == sorted(found, reverse=True)
    assert 0 < found[-1] < 0.001


def test_warmup_longer_than_the_run_never_reaches_the_peak_and_never_divides_by_zero() -> None:
    assert lrs(Optim(lr=1.0, warmup=10), 5) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert Optim(lr=1.0, warmup=3).lr_at(3, 3) == 1.0


def test_matrices_decay_and_norms_do_not(make_student: Any) -> None:
    model = make_student(tied=True).lm.model
    optimizer = Optim(lr=0.1, weight_decay=0.25, beta2=0.95).build(model)
    matrices, vectors = optimizer.param_groups
    assert {p.ndim for p in matrices["params"]} == {2}
    assert {p.ndim for p in vectors["params"]} == {1}
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.25, 0.0)
    assert matrices["betas"] == (0.9, 0.95)
    chosen = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(chosen) == len({id(p) for p in chosen}) == len(list(model.parameters()))  # tied weights once


def test_frozen_weights_are_left_out(make_student: Any) -> None:
    model = make_student().lm.model
    model.get_input_embeddings().requires_grad_(False)
    optimizer = Optim().build(model)
    chosen = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert id(model.get_input_embeddings().weight) not in chosen
    assert len(chosen) == len(list(model.parameters())) - 1


def test_decay_is_decoupled_from_the_gradient() -> None:
    linear = torch.nn.Linear(2, 2)
    optimizer = Optim(lr=0.1, weight_decay=0.5).build(linear)
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    for p in linear.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(linear.weight.detach(), weight * (1 - 0.1 * 0.5))
    assert torch.equal(linear.bias.detach(), bias)
