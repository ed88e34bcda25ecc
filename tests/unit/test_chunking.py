"""The chunk: how large, and what `batch_loss` returns. That chunks change nothing stands in tests/invariants.

Shapes: N trained tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse import registry
from stillhouse.data.batching import Span, TokenBatch, TokenSlice
from stillhouse.data.rendering import Rendered, Role
from stillhouse.objectives.base import Objective
from stillhouse.objectives.cross_entropy import CrossEntropy
from stillhouse.signals import Dense, Headed, Signal, TopK
from stillhouse.training import chunking
from stillhouse.training.chunking import batch_loss, choose_chunk, choose_compiled


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


# What the head may be. Values and gradients of every objective against plain autograd stand in tests/invariants.


class Head(torch.nn.Module):
    """Any head: weights of several kinds, and what `batch_loss` asks of a model."""

    vocabulary = 30

    def __init__(self, kind: str, width: int = 6, padded: int = 33) -> None:
        super().__init__()
        self.kind = kind
        self.linear = torch.nn.Linear(width, padded, bias=kind == "biased")
        if kind == "adapted":
            self.linear.requires_grad_(False)
            self.down, self.up = torch.nn.Linear(width, 2, bias=False), torch.nn.Linear(2, padded, bias=False)
        if kind == "scaled":
            self.scale = torch.nn.Parameter(torch.ones(padded))
        if kind == "transposed":  # no linear map by its weight, so ordinary autograd has to sum it
            self.matrix = torch.nn.Parameter(torch.randn(width, padded))

    def head(self, hidden_ND: Tensor) -> Tensor:
        if self.kind == "transposed":
            return hidden_ND @ self.matrix + self.linear(hidden_ND)
        logits = self.linear(hidden_ND)
        if self.kind == "adapted":
            return logits + 3 * self.up(self.down(hidden_ND))
        if self.kind == "twice":
            return logits + self.linear(hidden_ND.flip(-1))
        return logits * self.scale if self.kind == "scaled" else logits

    def head_parameters(self) -> list[torch.nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]


def made_up(tokens: int = 40, width: int = 6) -> tuple[TokenBatch, Tensor]:
    torch.manual_seed(0)
    row = torch.arange(tokens)[None]
    spans = (Span(0, 0, tokens),)
    batch = TokenBatch(("a",), spans, row, row % Head.vocabulary, row % 3 != 1, row.byte(), row, (tokens,))
    return batch, torch.randn(1, tokens, width)


@pytest.mark.parametrize("kind", ["plain", "biased", "adapted", "scaled", "transposed", "twice"])
@pytest.mark.parametrize("rows", [1, 10**6])
def test_any_head_has_the_gradient_of_autograd(kind: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "_block", lambda logits_NW: rows)
    batch, hidden = made_up()
    head: Any = Head(kind).double()
    hidden = hidden.double().requires_grad_()
    batch_loss(head, hidden, batch, None, [CrossEntropy(weight=0.5)], 7).total.backward()
    found = [hidden.grad, *(p.grad for p in head.head_parameters())]
    chosen = batch.trained_rows()
    logits = head.head(hidden.flatten(0, 1)[chosen])[:, : head.vocabulary]
    loss = torch.nn.functional.cross_entropy(logits, batch.targets_BT.flatten()[chosen], reduction="sum")
    expected = torch.autograd.grad(0.5 * loss, [hidden, *head.head_parameters()])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)  # the loss itself is summed in float32


def test_many_chunks_of_a_bfloat16_head_are_summed_in_float32() -> None:
    """Each sum of bfloat16 numbers loses what is below a 256th of it; one rounding at the end loses it once."""
    batch, hidden = made_up(tokens=800)
    head: Any = Head("plain").bfloat16()
    hidden = hidden.bfloat16().requires_grad_()
    batch_loss(head, hidden, batch, None, [CrossEntropy()], 2).total.backward()
    found = head.linear.weight.grad
    assert found.dtype == torch.bfloat16
    exact: Any = Head("plain").double()
    exact.load_state_dict(head.state_dict())
    batch_loss(exact, hidden.detach().double(), batch, None, [CrossEntropy()], 10**6).total.backward()
    wanted = exact.linear.weight.grad
    assert ((found.double() - wanted).norm() / wanted.norm()).item() < 4e-3


def test_autocast_leaves_the_gradient_of_the_head_in_float32() -> None:
    batch, hidden = made_up()
    head: Any = Head("plain")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch_loss(head, hidden.requires_grad_(), batch, None, [CrossEntropy()], 3).total.backward()
    found = head.linear.weight.grad.clone()
    head.zero_grad()
    batch_loss(head, hidden, batch, None, [CrossEntropy()], 3).total.backward()
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found.flatten(), head.linear.weight.grad.flatten(), dim=0).item() > 0.999


def test_the_gradient_is_handed_out_once_and_the_second_asking_says_so() -> None:
    batch, hidden = made_up()
    head: Any = Head("plain")
    loss = batch_loss(head, hidden.requires_grad_(), batch, None, [CrossEntropy()], 7).total
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"asked for a second time.*Compute the loss again"):
        loss.backward()


def test_a_processor_computes_eagerly_and_an_accelerator_without_triton_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunking, "has_triton", lambda: True)
    assert choose_compiled("cpu")[0] is False
    assert choose_compiled("cuda")[0] is True
    monkeypatch.setattr(chunking, "has_triton", lambda: False)
    compiled, reason = choose_compiled("cuda")
    assert not compiled
    assert "triton" in reason


def test_an_accelerator_gets_larger_chunks() -> None:
    assert choose_chunk(128_256, "cuda")[0] > 4 * choose_chunk(128_256)[0]


@pytest.mark.parametrize("name", registry.names("objective"))
@pytest.mark.parametrize("k", [None, 4])
def test_every_objective_is_one_graph_for_the_compiler(name: str, k: int | None) -> None:
    """A break would write both sides' log-probabilities out in float32 between two kernels."""
    objective, (student, signal, tokens) = registry.build("objective", name, {}), pair(k)
    compiled = torch.compile(objective.loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(student, signal, tokens), objective.loss(student, signal, tokens))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own, in what it imports
@pytest.mark.parametrize("name", registry.names("objective"))
def test_compiled_is_eager(name: str) -> None:
    batch, hidden = made_up()
    head: Any = Head("biased")
    found = []
    for compiled in (False, True):
        leaf = hidden.clone().requires_grad_()
        signal = Headed(hidden.flip(-1), head.linear, Head.vocabulary)
        loss = batch_loss(head, leaf, batch, signal, [registry.build("objective", name, {})], 13, compiled=compiled)
        loss.total.backward()
        found.append([loss.total.detach(), leaf.grad, head.linear.weight.grad.clone()])
        head.zero_grad()
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def pair(k: int | None) -> tuple[Tensor, Signal, TokenSlice]:
    torch.manual_seed(0)
    teacher = Dense(torch.randn(5, 33), Head.vocabulary)
    tokens = TokenSlice(torch.arange(5), torch.zeros(5, dtype=torch.uint8))
    return torch.randn(5, Head.vocabulary), teacher if k is None else TopK.of(teacher, k), tokens
