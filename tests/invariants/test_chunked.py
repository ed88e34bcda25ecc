"""Chunks change memory and nothing else: values and gradients agree, and the logits never exist all at once.

Shapes: B sequences, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stillhouse import registry
from stillhouse.data.batching import TokenBatch
from stillhouse.objectives.base import Objective
from stillhouse.student import Student
from stillhouse.teachers.hf import HFSession
from stillhouse.training.chunking import BatchLoss, batch_loss, choose_chunk

ALL = 10**6


@pytest.fixture(scope="module")
def batch(render: Any, examples: Any) -> TokenBatch:
    return TokenBatch.of(render(examples))


@pytest.fixture(scope="module")
def teacher(make_student: Any) -> HFSession:
    return HFSession(make_student(seed=9, double=True).lm)


def compute(
    student: Student, teacher: HFSession, batch: TokenBatch, objectives: list[Objective], chunk: int
) -> BatchLoss:
    hidden = student.lm.hidden(batch.tokens_BT, batch.positions_BT)
    return batch_loss(student.lm, hidden, batch, teacher.score(batch), objectives, chunk)


def gradients(student: Student, loss: BatchLoss) -> dict[str, Tensor]:
    student.lm.model.zero_grad()
    loss.total.backward()
    return {name: p.grad.clone() for name, p in student.lm.model.named_parameters() if p.grad is not None}


def plain(student: Student, teacher: HFSession, batch: TokenBatch, objectives: list[Objective]) -> Tensor:
    """The oracle: all logits at once, ordinary autograd, no chunking code."""
    rows = batch.trained_rows()
    hidden = student.lm.hidden(batch.tokens_BT, batch.positions_BT).flatten(0, 1)[rows]
    logits = student.lm.head(hidden)[:, : student.lm.vocabulary]
    signal, tokens = teacher.score(batch).select(rows), batch.select(rows)
    return torch.stack([o.weight * o.loss(logits, signal, tokens).sum() for o in objectives]).sum()


@pytest.mark.parametrize("name", registry.names("objective"))
@pytest.mark.parametrize("tied", [False, True])
def test_chunked_is_unchunked(name: str, tied: bool, make_student: Any, teacher: HFSession, batch: TokenBatch) -> None:
    objectives = [registry.build("objective", name, {"weight": 0.5})]
    student = make_student(seed=1, tied=tied, double=True)
    total = plain(student, teacher, batch, objectives)
    expected = gradients(student, BatchLoss(total, total))
    assert len(expected) == len(list(student.lm.model.parameters()))
    for chunk in (1, 7, ALL):
        loss = compute(student, teacher, batch, objectives, chunk)
        assert loss.total.item() == pytest.approx(total.item(), rel=1e-6)
        assert loss.parts.item() == pytest.approx(2 * total.item(), rel=1e-6)
        for key, gradient in gradients(student, loss).items():
            torch.testing.assert_close(gradient, expected[key], rtol=1e-7, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")


def test_weighted_sum_and_its_parts(make_student: Any, teacher: HFSession, batch: TokenBatch) -> None:
    objectives = [
        registry.build("objective", name, {"weight": 0.5 + n}) for n, name in enumerate(registry.names("objective"))
    ]
    student = make_student(seed=1, double=True)
    total = plain(student, teacher, batch, objectives)
    loss = compute(student, teacher, batch, objectives, 7)
    assert loss.total.item() == pytest.approx(total.item(), rel=1e-6)
    weighted = sum(o.weight * part for o, part in zip(objectives, loss.parts.tolist(), strict=True))
    assert weighted == pytest.approx(total.item(), rel=1e-6)
    assert not loss.parts.requires_grad


def test_without_gradients_the_values_are_the_same(make_student: Any, teacher: HFSession, batch: TokenBatch) -> None:
    objectives = [registry.build("objective", name, {}) for name in registry.names("objective")]
    student = make_student(seed=1, double=True)
    with_gradient = compute(student, teacher, batch, objectives, 7)
    with torch.no_grad():
        without = compute(student, teacher, batch, objectives, 5)
    torch.testing.assert_close(without.parts, with_gradient.parts, rtol=1e-6, atol=1e-6)
    assert without.total.item() == pytest.approx(with_gradient.total.item(), rel=1e-6)
    assert not without.total.requires_grad


def test_frozen_head_leaves_the_gradient_of_the_body(make_student: Any, teacher: HFSession, batch: TokenBatch) -> None:
    objectives = [registry.build("objective", "forward_kl", {})]
    student = make_student(seed=1, double=True)
    everything = gradients(student, compute(student, teacher, batch, objectives, 7))
    student.lm.model.get_output_embeddings().requires_grad_(False)
    body = gradients(student, compute(student, teacher, batch, objectives, 7))
    assert set(everything) - set(body) == {"lm_head.weight"}
    for key, gradient in body.items():
        torch.testing.assert_close(gradient, everything[key], rtol=1e-9, atol=1e-12)


def test_scaled_loss_scales_the_gradient(make_student: Any, teacher: HFSession, batch: TokenBatch) -> None:
    objectives = [registry.build("objective", "reverse_kl", {})]
    student = make_student(seed=1, double=True)
    once = gradients(student, compute(student, teacher, batch, objectives, 7))
    loss = compute(student, teacher, batch, objectives, 7)
    scaled = gradients(student, BatchLoss(loss.total * 0.25, loss.parts))
    for key, gradient in scaled.items():
        torch.testing.assert_close(gradient, 0.25 * once[key], rtol=1e-6, atol=1e-12)


def test_bfloat16_autocast_gives_nearly_the_same_gradient(make_student: Any, batch: TokenBatch) -> None:
    objectives = [registry.build("objective", "forward_kl", {})]
    session, student = HFSession(make_student(seed=9).lm), make_student(seed=1, tied=True)
    exact = gradients(student, compute(student, session, batch, objectives, 7))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = compute(student, session, batch, objectives, 7)
    for key, gradient in gradients(student, loss).items():
        assert gradient.dtype == torch.float32
        cosine = torch.cosine_similarity(gradient.flatten(), exact[key].flatten(), dim=0).item()
        assert cosine > 0.98, key


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else [made]:
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.numel())
        return made


def largest(work: Callable[[], Any]) -> int:
    with Largest() as watch:
        work()
    return watch.numel


@pytest.mark.parametrize("name", registry.names("objective"))
@pytest.mark.parametrize("grad", [True, False])
def test_no_tensor_grows_with_batch_times_vocabulary(
    name: str, grad: bool, make_student: Any, batch: TokenBatch
) -> None:
    """Contract C4: peak memory follows the chunk. The teacher's logits are made by the chunk as well."""
    chunk = 8
    session, student = HFSession(make_student(seed=9).lm), make_student(seed=1)
    objectives = [registry.build("objective", name, {})]
    vocabulary, width = student.lm.vocabulary, student.lm.model.config.hidden_size
    hidden = student.lm.hidden(batch.tokens_BT, batch.positions_BT).detach().requires_grad_()  # the body is not watched
    signal = session.score(batch)
    allowed = max(chunk * vocabulary, width * vocabulary, hidden.numel())
    assert batch.trained_count() * vocabulary > 3 * allowed  # or the test could not fail

    def work(chunk: int) -> None:
        with torch.set_grad_enabled(grad):
            loss = batch_loss(student.lm, hidden, batch, signal, objectives, chunk)
        if grad:
            loss.total.backward()

    assert largest(lambda: work(chunk)) <= allowed
    assert largest(lambda: work(ALL)) >= batch.trained_count() * vocabulary


@pytest.mark.parametrize("vocabulary", [300, 32_000, 151_936])
def test_chunk_is_chosen_by_the_memory_of_its_logits_and_says_so(vocabulary: int) -> None:
    chunk, reason = choose_chunk(vocabulary)
    assert chunk >= 64
    assert chunk * vocabulary * 4 <= 2**26 or chunk == 64
    assert str(chunk) in reason
    assert str(vocabulary) in reason
    assert "MiB" in reason
