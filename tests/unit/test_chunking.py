"""The chunk: how large, and what `batch_loss` returns. That chunks change nothing stands in tests/invariants.

Shapes: N trained tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.data.batching import TokenBatch, TokenSlice
from stillhouse.data.rendering import Rendered, Role
from stillhouse.objectives.base import Objective
from stillhouse.objectives.cross_entropy import CrossEntropy
from stillhouse.signals import Signal
from stillhouse.training.chunking import batch_loss, choose_chunk


@dataclass(frozen=True, kw_only=True)
class Recording(Objective):
    """Counts tokens, and remembers which."""

    def loss(self, student_logits_NV: Tensor, signal: Signal | None, tokens: TokenSlice) -> Tensor:
        SEEN.append((tuple(student_logits_NV.shape), tokens.targets_N.tolist(), tokens.role_N.tolist()))
        return student_logits_NV.sum(-1) * 0 + 1


SEEN: list[Any] = []


@pytest.fixture
def batch(render: Any, examples: Any) -> TokenBatch:
    return TokenBatch.of(render(examples[:3]))


@pytest.mark.parametrize("vocabulary", [300, 32_000, 151_936])
def test_chunk_is_chosen_by_the_memory_of_its_logits_and_says_so(vocabulary: int) -> None:
    chunk, reason = choose_chunk(vocabulary)
    assert chunk >= 64
    assert chunk * vocabulary * 4 <= 2**26
    assert str(chunk) in reason
    assert str(vocabulary) in reason
    assert "MiB" in reason


def test_a_huge_vocabulary_still_gets_a_chunk_worth_the_launch() -> None:
    assert choose_chunk(10**6)[0] == 64


def test_objectives_see_trained_tokens_alone_in_chunks_with_their_targets_and_roles(
    make_student: Any, batch: TokenBatch, pad_head: Any
) -> None:
    SEEN.clear()
    student = make_student()
    pad_head(student.lm, 20)
    hidden = student.lm.hidden(batch.tokens_BT, batch.positions_BT)
    loss = batch_loss(student.lm, hidden, batch, None, [Recording(weight=0.5)], 4)
    count = batch.trained_count()
    assert [shape[0] for shape, _, _ in SEEN] == [4] * (count // 4) + ([count % 4] if count % 4 else [])
    assert {shape[1] for shape, _, _ in SEEN} == {student.lm.vocabulary}  # the padding of the head is no token
    expected = batch.targets_BT[batch.trained_BT].tolist()
    assert [t for _, targets, _ in SEEN for t in targets] == expected
    assert {r for _, _, roles in SEEN for r in roles} == {Role.ANSWER}
    assert loss.parts.tolist() == [count]
    assert loss.total.item() == 0.5 * count


@pytest.mark.parametrize("grad", [True, False])
def test_no_trained_token_gives_zero(make_student: Any, grad: bool) -> None:
    student = make_student()
    batch = TokenBatch.of([Rendered("a", [5, 6], [6, 7], [False, False], [1, 1], 0)])
    with torch.set_grad_enabled(grad):
        hidden = student.lm.hidden(batch.tokens_BT, batch.positions_BT)
        loss = batch_loss(student.lm, hidden, batch, None, [CrossEntropy(), CrossEntropy()], 4)
    assert loss.parts.tolist() == [0.0, 0.0]
    assert loss.total.item() == 0.0
    if grad:
        loss.total.backward()
        assert not student.lm.model.get_output_embeddings().weight.grad.any()


def test_head_scaling_and_capping_are_part_of_the_chunk(make_student: Any, batch: TokenBatch) -> None:
    """Gemma caps its logits: the loss must be that of the capped ones."""
    student = make_student()
    hidden = student.lm.hidden(batch.tokens_BT, batch.positions_BT).detach()
    student.lm.model.config.final_logit_softcapping = 0.5
    with torch.no_grad():
        loss = batch_loss(student.lm, hidden, batch, None, [CrossEntropy()], 4)
        logits = student.lm.model.get_output_embeddings()(hidden.flatten(0, 1)[batch.trained_rows()])
        capped = 0.5 * torch.tanh(logits / 0.5)
        expected = torch.nn.functional.cross_entropy(capped, batch.targets_BT[batch.trained_BT], reduction="sum")
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
