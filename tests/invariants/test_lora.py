"""LoRA changes what is trained and nothing else: any objective, the same loss, the same gradients by the chunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse import registry
from stillhouse.data.batching import Batches, TokenBatch
from stillhouse.objectives.base import Divergence
from stillhouse.recipe import LoRA
from stillhouse.student import Student
from stillhouse.teachers.hf import HFSession
from stillhouse.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from stillhouse.training.chunking import batch_loss
from stillhouse.training.loop import Compute, TrainState, begin, train
from stillhouse.training.optim import Optim
from stillhouse.training.precision import choose_precision

OPTIM = Optim(lr=2e-2, schedule="constant")
HEADS = {
    "head": LoRA(r=4, target_modules=["lm_head", "q_proj"]),
    "whole head": LoRA(r=4, modules_to_save=["lm_head"]),
    "embeddings": LoRA(r=4, target_modules=["embed_tokens", "lm_head"]),
    "body": LoRA(r=4),
}


@pytest.fixture(scope="module")
def teacher(make_student: Any) -> HFSession:
    return HFSession(make_student(seed=9).lm)


def adapted(make_student: Any, lora: LoRA | None = None, **settings: Any) -> Student:
    student = make_student(seed=1, **settings)
    student.adapt(lora or LoRA(r=4), seed=2)
    return student


@pytest.mark.parametrize("name", registry.names("objective"))
def test_every_objective_trains_adapters_and_nothing_else(
    name: str, make_student: Any, teacher: HFSession, render: Any, examples: Any
) -> None:
    student = adapted(make_student)
    before = {key: p.detach().clone() for key, p in student.lm.model.named_parameters()}
    objective = registry.build("objective", name, {})
    batches = Batches(render(examples), tokens_per_batch=10**4, seed=0)  # all examples in every update
    steps = list(train(student, batches, teacher, [objective], steps=12, optim=OPTIM))
    assert steps[-1].loss < 0.9 * steps[0].loss
    for key, parameter in student.lm.model.named_parameters():
        assert torch.equal(parameter, before[key]) is not parameter.requires_grad, key


@pytest.mark.parametrize("name", registry.names("objective"))
def test_fresh_adapters_leave_the_loss_as_it_was(
    name: str, make_student: Any, teacher: HFSession, render: Any, examples: Any
) -> None:
    batch, objective = TokenBatch.of(render(examples)), registry.build("objective", name, {})

    def loss(student: Student, session: HFSession) -> float:
        hidden = student.lm.hidden(batch.tokens_BT, batch.positions_BT)
        return batch_loss(student.lm, hidden, batch, session.score(batch), [objective], 64).total.item()

    assert loss(adapted(make_student), teacher) == loss(make_student(seed=1), teacher)
    if isinstance(objective, Divergence):
        same = loss(adapted(make_student), HFSession(make_student(seed=1).lm))
        assert same == pytest.approx(0, abs=1e-4 * batch.trained_count())


@pytest.mark.parametrize("name", registry.names("objective"))
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("lora", HEADS.values(), ids=HEADS)
def test_chunked_is_unchunked(name: str, tied: bool, lora: LoRA, make_student: Any, render: Any, examples: Any) -> None:
    objectives = [registry.build("objective", name, {"weight": 0.5})]
    session, batch = HFSession(make_student(seed=9, double=True).lm), TokenBatch.of(render(examples))
    lm = adapted(make_student, lora, tied=tied, double=True).lm
    trained = {key: p for key, p in lm.model.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # with B = 0 the gradient of A is zero, and a wrong one would not be seen
        for parameter in trained.values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    rows = batch.trained_rows()
    logits = lm.head(lm.hidden(batch.tokens_BT, batch.positions_BT).flatten(0, 1)[rows])[:, : lm.vocabulary]
    signal, tokens = session.score(batch).select(rows), batch.select(rows)
    plain = torch.stack([o.weight * o.loss(logits, signal, tokens).sum() for o in objectives]).sum()
    expected = torch.autograd.grad(plain, list(trained.values()))
    for chunk in (7, 10**6):
        lm.model.zero_grad()
        hidden = lm.hidden(batch.tokens_BT, batch.positions_BT)
        loss = batch_loss(lm, hidden, batch, session.score(batch), objectives, chunk)
        loss.total.backward()
        assert loss.total.item() == pytest.approx(plain.item(), rel=1e-6)
        for (key, parameter), gradient in zip(trained.items(), expected, strict=True):
            assert parameter.dtype == torch.float64
            assert parameter.grad is not None, key
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-7, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")
        assert all(p.grad is None for p in lm.model.parameters() if not p.requires_grad)


def test_checkpoint_continues_adapters_as_if_it_had_never_stopped(
    make_student: Any, teacher: HFSession, render: Any, examples: Any, tmp_path: Path
) -> None:
    objectives = [registry.build("objective", "forward_kl", {})]

    def state(dropout: float = 0.1) -> TrainState:
        student = adapted(make_student, LoRA(r=4, dropout=dropout))
        student.checkpoint_activations()
        return begin(student, Batches(render(examples), tokens_per_batch=200), OPTIM, Compute())

    def run(start: TrainState, steps: int) -> list[float]:
        asked = train(start.student, start.batches, teacher, objectives, steps=steps, optim=OPTIM, state=start)
        return [step.loss for step in asked]

    torch.manual_seed(0)
    whole, broken = state(), state()
    expected = run(whole, 6)
    torch.manual_seed(0)
    first = run(broken, 3)
    save_checkpoint(tmp_path, broken)
    resumed = state()
    load_checkpoint(checkpoints(tmp_path)[-1], resumed)
    torch.testing.assert_close(first + run(resumed, 6), expected, rtol=0, atol=0)
    for a, b in zip(whole.student.lm.model.parameters(), resumed.student.lm.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_precision_is_measured_where_the_head_alone_is_trained(make_student: Any, render: Any, examples: Any) -> None:
    student = adapted(make_student, LoRA(target_modules=["lm_head"]))
    _, reason = choose_precision("auto", student, TokenBatch.of(render(examples)))
    assert "measured on a batch" in reason
