"""Muon: an orthogonal step for matrices, Adam for the rest, and a state that a checkpoint can hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from stillhouse.training.muon import Muon, orthogonalize
from stillhouse.training.optim import Optim


def test_the_step_of_a_matrix_has_singular_values_near_one_whatever_its_gradient() -> None:
    torch.manual_seed(0)
    for shape in ((8, 20), (20, 8), (8, 8)):
        matrix = nn.Parameter(torch.zeros(shape))
        matrix.grad = torch.randn(shape) * 1e-3
        Muon([matrix], [], lr=1.0).step()
        values = torch.linalg.svdvals(matrix.detach()) / (0.2 * max(shape) ** 0.5)
        assert values.min() > 0.3
        assert values.max() < 1.4


def test_the_orthogonalized_matrix_keeps_the_directions_of_the_gradient() -> None:
    torch.manual_seed(1)
    gradient = torch.randn(6, 9, dtype=torch.float64)
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    made = u.mT @ orthogonalize(gradient[None])[0] @ v.mT
    assert (made - torch.diag(made.diag())).abs().max() < 1e-6


def test_everything_else_gets_adam() -> None:
    torch.manual_seed(2)
    ours, theirs = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    muon = Muon([], [ours], lr=0.1, betas=(0.9, 0.98))
    adam = torch.optim.Adam([theirs], lr=0.1, betas=(0.9, 0.98))
    for _ in range(4):
        ours.grad = torch.randn(5)
        theirs.grad = ours.grad.clone()
        muon.step()
        adam.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_embeddings_and_heads_are_not_orthogonalized(make_student: Any) -> None:
    for tied in (True, False):
        model = make_student(tied=tied).lm.model
        optimizer = Optim(optimizer="muon").build(model)
        orthogonal = {id(p) for g in optimizer.param_groups if g["orthogonal"] for p in g["params"]}
        every = {id(p) for g in optimizer.param_groups for p in g["params"]}
        assert id(model.get_input_embeddings().weight) not in orthogonal
        assert id(model.get_output_embeddings().weight) not in orthogonal
        assert every == {id(p) for p in model.parameters()}


def test_its_state_survives_a_checkpoint(make_student: Any, tmp_path: Any, examples: Any, render: Any) -> None:
    from stillhouse.data.batching import Batches
    from stillhouse.objectives.cross_entropy import CrossEntropy
    from stillhouse.training.checkpoint import load_checkpoint, save_checkpoint
    from stillhouse.training.loop import Compute, TrainState, begin, train

    optim = Optim(lr=1e-2, schedule="constant", optimizer="muon")

    def fresh() -> TrainState:
        student = make_student(seed=3)
        return begin(student, Batches(render(examples), tokens_per_batch=128), optim, Compute())

    def advance(state: TrainState, steps: int) -> None:
        list(train(state.student, state.batches, None, [CrossEntropy()], steps=steps, optim=optim, state=state))

    whole, first, second = fresh(), fresh(), fresh()
    advance(whole, 4)
    advance(first, 2)
    load_checkpoint(save_checkpoint(tmp_path, first), second)
    advance(second, 4)
    for one, other in zip(whole.student.lm.model.parameters(), second.student.lm.model.parameters(), strict=True):
        assert torch.equal(one, other)
