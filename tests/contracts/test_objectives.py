"""Every objective and teacher that the registry finds, held to the public contract, and broken ones it must catch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse import registry
from stillhouse.data.batching import TokenBatch, TokenSlice
from stillhouse.errors import NeedsError
from stillhouse.objectives.base import Divergence, Objective
from stillhouse.signals import Aligned, Dense, Signal, TopK
from stillhouse.teachers.hf import HFSession, HFTeacher
from stillhouse.testing import check_objective, check_teacher


def variants() -> list[Any]:
    """Each objective as it comes, and with each numeric setting moved off its default."""
    found = []
    for name in registry.names("objective"):
        plain = registry.build("objective", name, {})
        found.append(pytest.param(plain, id=name))
        changes: dict[str, list[Any]] = {"temperature": [0.5, 3.0], "beta": [0.05, 0.9], "normalized": [True]}
        for field, values in changes.items():
            if field in {f.name for f in dataclasses.fields(plain)}:
                for value in values:
                    found.append(
                        pytest.param(registry.build("objective", name, {field: value}), id=f"{name}-{field}-{value}")
                    )
    return found


@pytest.mark.parametrize("objective", variants())
def test_objective_keeps_its_contract(objective: Objective) -> None:
    check_objective(objective)


@pytest.mark.parametrize("name", registry.names("objective"))
def test_needs_are_known_words_and_every_objective_has_a_summary(name: str) -> None:
    cls = registry.component("objective", name)
    assert cls.needs <= {"text", "token_logprobs", "distribution", "hidden_states", "attentions"}
    assert registry.summary("objective", name).endswith(".")
    assert registry.name_of(cls()) == name


@pytest.mark.parametrize("name", registry.names("objective"))
def test_divergence_without_a_signal_says_what_it_needs(name: str) -> None:
    objective = registry.build("objective", name, {})
    tokens = TokenSlice(torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.uint8))
    if "distribution" in objective.needs:
        with pytest.raises(NeedsError, match="needs a teacher's distribution"):
            objective.loss(torch.zeros(2, 4), None, tokens)
    else:
        assert objective.loss(torch.zeros(2, 4), None, tokens).shape == (2,)


# The contract itself: each broken objective must be caught, or passing it means nothing.


@dataclass(frozen=True, kw_only=True)
class _Mean(Objective):
    def loss(self, student_logits_NV: Tensor, signal: Signal | None, tokens: TokenSlice) -> Tensor:
        loss_N = -student_logits_NV.log_softmax(-1).gather(-1, tokens.targets_N[:, None]).squeeze(1)
        return loss_N.mean().expand(len(loss_N))


@dataclass(frozen=True, kw_only=True)
class _Weighted(Objective):
    def loss(self, student_logits_NV: Tensor, signal: Signal | None, tokens: TokenSlice) -> Tensor:
        return -self.weight * student_logits_NV.log_softmax(-1).gather(-1, tokens.targets_N[:, None]).squeeze(1)


@dataclass(frozen=True, kw_only=True)
class _Unnormalised(Objective):
    def loss(self, student_logits_NV: Tensor, signal: Signal | None, tokens: TokenSlice) -> Tensor:
        return -student_logits_NV.gather(-1, tokens.targets_N[:, None]).squeeze(1)


@dataclass(frozen=True, kw_only=True)
class _Detached(Objective):
    def loss(self, student_logits_NV: Tensor, signal: Signal | None, tokens: TokenSlice) -> Tensor:
        logprobs_NV = student_logits_NV.log_softmax(-1)
        return -(logprobs_NV.detach().exp() * logprobs_NV).sum(-1)


@dataclass(frozen=True, kw_only=True)
class _InPlace(Objective):
    def loss(self, student_logits_NV: Tensor, signal: Signal | None, tokens: TokenSlice) -> Tensor:
        assert isinstance(signal, Dense)
        signal.logits_NV[..., 0] = 0.0
        return student_logits_NV.log_softmax(-1)[:, 0]


@dataclass(frozen=True, kw_only=True)
class _WrongSign(Divergence):
    def divergence(self, aligned: Aligned) -> Tensor:
        return (aligned.teacher_NK.exp() * (aligned.student_NK - aligned.teacher_NK)).sum(-1)


@dataclass(frozen=True, kw_only=True)
class _CrossTerm(Divergence):
    def divergence(self, aligned: Aligned) -> Tensor:
        return -(aligned.teacher_NK.exp() * aligned.student_NK).sum(-1)  # no entropy: never zero


@dataclass(frozen=True, kw_only=True)
class _PaddedHead(Divergence):
    """Softmax over the padding columns too, as more than one public implementation does."""

    def divergence(self, aligned: Aligned) -> Tensor:
        raise NotImplementedError

    def loss(self, student_logits_NV: Tensor, signal: Signal | None, tokens: TokenSlice) -> Tensor:
        assert isinstance(signal, Dense)
        teacher_NV = signal.logits_NV.log_softmax(-1)
        student_NV = student_logits_NV.log_softmax(-1)
        missing = teacher_NV.shape[-1] - student_NV.shape[-1]
        student_NV = torch.nn.functional.pad(student_NV, (0, missing), value=-30.0)
        return (teacher_NV.exp() * (teacher_NV - student_NV)).sum(-1)


@dataclass(frozen=True, kw_only=True)
class _LogOfProbability(Divergence):
    def divergence(self, aligned: Aligned) -> Tensor:
        student_NK, teacher_NK = aligned.student_NK.exp(), aligned.teacher_NK.exp()
        return (teacher_NK * (teacher_NK.log() - student_NK.log())).sum(-1)  # log(0)


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (_Mean(), "depends on which other tokens"),
        (_Weighted(), "weight changes what loss"),
        (_Unnormalised(), "constant added to the logits"),
        (_Detached(), "gradient"),
        (_InPlace(), "changed the logits"),
        (_WrongSign(), "at least zero"),
        (_CrossTerm(), "agree, yet the divergence"),
        (_PaddedHead(), "padded head"),
        (_LogOfProbability(), "not finite"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Objective) else "",
)
def test_contract_catches(broken: Objective, clause: str) -> None:
    with pytest.raises(AssertionError, match=clause):
        check_objective(broken)


# Teachers.


@pytest.fixture(scope="module")
def batch(render: Any, examples: Any) -> TokenBatch:
    return TokenBatch.of(render(examples[:5]))


def test_hf_teacher_keeps_its_contract(make_student: Any, batch: TokenBatch) -> None:
    check_teacher(HFSession(make_student(seed=3).lm), batch, HFTeacher.provides)


def test_hf_teacher_with_a_padded_head_keeps_its_contract(make_student: Any, batch: TokenBatch, pad_head: Any) -> None:
    lm = make_student(seed=3).lm
    pad_head(lm, 64)
    check_teacher(HFSession(lm), batch, HFTeacher.provides)


def test_trained_teacher_keeps_its_contract(stories: str, render: Any, examples: Any) -> None:
    session = HFTeacher(stories).open()
    check_teacher(session, TokenBatch.of(render(examples[:4], session.tokenizer)), HFTeacher.provides)


class _Shifted(HFSession):
    """Says about token t what it should say about token t + 1."""

    def score(self, batch: TokenBatch) -> Any:
        signal = super().score(batch)
        return dataclasses.replace(signal, hidden_ND=signal.hidden_ND.roll(-1, dims=1))


class _Forgetful(HFSession):
    def score(self, batch: TokenBatch) -> Any:
        signal = super().score(batch)
        return dataclasses.replace(signal, hidden_ND=signal.hidden_ND + torch.randn(signal.hidden_ND.shape))


class _Trainable(HFSession):
    def __init__(self, lm: Any) -> None:
        super().__init__(lm)
        lm.model.requires_grad_(True)


class _Scrambled(HFSession):
    def answer(self, asked: Any, sampling: Any) -> Any:
        return sorted(super().answer(asked, sampling), key=lambda answer: answer.text)


@pytest.mark.parametrize(
    ("kind", "clause"),
    [
        (_Shifted, "later tokens"),
        (_Forgetful, "differ|different"),
        (_Trainable, "not frozen"),
        (_Scrambled, "order of the prompts"),
    ],
)
def test_teacher_contract_catches(kind: Any, clause: str, make_student: Any, batch: TokenBatch) -> None:
    with pytest.raises(AssertionError, match=clause):
        check_teacher(kind(make_student(seed=3).lm), batch)


def test_teacher_that_promises_more_than_its_signal_holds_is_caught(make_student: Any, batch: TokenBatch) -> None:
    with pytest.raises(AssertionError, match="declares \\['hidden_states'\\]"):
        check_teacher(HFSession(make_student(seed=3).lm), batch, {"distribution", "hidden_states"})


class _TopKSession(HFSession):
    def score(self, batch: TokenBatch) -> Any:
        signal = super().score(batch)
        return TopK.of(Dense(signal.head(signal.hidden_ND), signal.vocabulary), 8)


def test_top_k_teacher_keeps_its_contract(make_student: Any, batch: TokenBatch) -> None:
    check_teacher(_TopKSession(make_student(seed=3).lm), batch, HFTeacher.provides)
