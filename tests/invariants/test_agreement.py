"""Teacher and student that agree, in the whole loop; and the same teacher said in two ways."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from stillhouse import registry
from stillhouse.data.batching import Batches, TokenBatch
from stillhouse.objectives.base import Divergence, Objective
from stillhouse.objectives.cross_entropy import CrossEntropy
from stillhouse.objectives.forward_kl import ForwardKL
from stillhouse.objectives.generalized_jsd import GeneralizedJSD
from stillhouse.objectives.reverse_kl import ReverseKL
from stillhouse.signals import Dense, TopK
from stillhouse.student import Student
from stillhouse.teachers.base import TeacherSession
from stillhouse.teachers.hf import HFSession
from stillhouse.training.loop import Compute, train
from stillhouse.training.optim import Optim


def divergences() -> list[Objective]:
    found = [registry.build("objective", name, {}) for name in registry.names("objective")]
    return [o for o in found if isinstance(o, Divergence)]


class StoredTopK(HFSession):
    """A teacher that answers with its k likeliest tokens, as a signal store or a server does."""

    def __init__(self, lm: Any, k: int, temperature: float = 1.0) -> None:
        super().__init__(lm)
        self.k, self.temperature = k, temperature

    def score(self, batch: TokenBatch) -> Any:
        signal = super().score(batch)
        return TopK.of(Dense(signal.head(signal.hidden_ND), signal.vocabulary), self.k, self.temperature)


@pytest.fixture
def batches(render: Any, examples: Any) -> Batches:
    return Batches(render(examples), tokens_per_batch=300, seed=3)


def trajectory(
    student: Student, batches: Batches, teacher: TeacherSession | None, objectives: list[Objective], steps: int = 4
) -> list[float]:
    optim = Optim(lr=3e-3, warmup=2)
    found = train(
        student, batches, teacher, objectives, steps=steps, optim=optim, compute=Compute(accumulate=2, chunk=32)
    )
    return [step.loss for step in found]


@pytest.mark.parametrize("objective", divergences(), ids=registry.name_of)
@pytest.mark.parametrize("tied", [False, True])
def test_student_that_equals_its_teacher_has_nothing_to_learn(
    objective: Objective, tied: bool, make_student: Any, batches: Batches
) -> None:
    student = make_student(seed=1, tied=tied)
    teacher = HFSession(copy.deepcopy(student.lm))
    step = next(train(student, batches, teacher, [objective], steps=1, optim=Optim(lr=0.1, clip=None)))
    assert step.loss == 0.0
    assert step.grad_norm < 1e-5


@pytest.mark.parametrize("objective", divergences(), ids=repr)
@pytest.mark.parametrize("padded", ["teacher", "student", "both"])
@pytest.mark.parametrize("tied", [False, True])
def test_heads_padded_to_different_widths_agree(
    objective: Objective, padded: str, tied: bool, make_student: Any, batches: Batches, pad_head: Any
) -> None:
    """Trap 8: Qwen's small models have 151,936 rows and its large ones 152,064 for the same 151,669 tokens."""
    student = make_student(seed=1, tied=tied)
    teacher = HFSession(copy.deepcopy(student.lm))
    if padded in ("teacher", "both"):
        pad_head(teacher.lm, 64)
    if padded in ("student", "both"):
        pad_head(student.lm, 128)
    step = next(train(student, batches, teacher, [objective], steps=1))
    assert step.loss == pytest.approx(0.0, abs=1e-9)  # another width may take another matrix kernel, hence not exactly
    assert step.grad_norm < 1e-4


def test_padded_head_gets_no_gradient_beyond_the_vocabulary(make_student: Any, batches: Batches, pad_head: Any) -> None:
    student, teacher = make_student(seed=1), HFSession(make_student(seed=2).lm)
    pad_head(student.lm, 64)
    before = student.lm.model.get_output_embeddings().weight.detach().clone()
    trajectory(student, batches, teacher, [ForwardKL(), CrossEntropy()])
    after = student.lm.model.get_output_embeddings().weight
    vocabulary = student.lm.vocabulary
    assert torch.equal(before[vocabulary:], after[vocabulary:])
    assert not torch.allclose(before[:vocabulary], after[:vocabulary])


@pytest.mark.parametrize(
    "objective",
    [ForwardKL(), ReverseKL(temperature=2.0), GeneralizedJSD(beta=0.3, normalized=True)],
    ids=registry.name_of,
)
def test_dense_is_full_top_k_in_the_whole_loop(
    objective: Objective, make_student: Any, render: Any, examples: Any
) -> None:
    rendered, temperature = render(examples), getattr(objective, "temperature", 1.0)
    lm = make_student(seed=2).lm
    dense, kept = make_student(seed=1), make_student(seed=1)
    one = trajectory(dense, Batches(rendered, tokens_per_batch=300), HFSession(lm), [objective])
    two = trajectory(
        kept, Batches(rendered, tokens_per_batch=300), StoredTopK(lm, lm.vocabulary, temperature), [objective]
    )
    assert two == pytest.approx(one, rel=1e-5)
    assert one[0] > 0.1
    for a, b in zip(dense.lm.model.parameters(), kept.lm.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4)


def test_few_entries_and_a_tail_train_towards_the_same_teacher(make_student: Any, render: Any, examples: Any) -> None:
    lm = make_student(seed=2).lm
    losses = trajectory(
        make_student(seed=1),
        Batches(render(examples), tokens_per_batch=300),
        StoredTopK(lm, 8),
        [ForwardKL()],
        steps=12,
    )
    assert losses[-1] < 0.8 * losses[0]


def test_training_brings_the_student_to_its_teacher(make_student: Any, render: Any, examples: Any) -> None:
    """The whole point: divergence from the teacher falls, also on the metric that was not trained."""
    teacher, student = HFSession(make_student(seed=2).lm), make_student(seed=1)
    found = list(
        train(
            student,
            Batches(render(examples), tokens_per_batch=300),
            teacher,
            [ForwardKL(), 1e-6 * ReverseKL()],
            steps=30,
            optim=Optim(lr=1e-2),
        )
    )
    assert found[-1].parts["forward_kl"] < 0.5 * found[0].parts["forward_kl"]
    assert found[-1].parts["reverse_kl"] < 0.5 * found[0].parts["reverse_kl"]


def test_teacher_does_not_move(make_student: Any, batches: Batches) -> None:
    teacher = HFSession(make_student(seed=2).lm)
    before = [p.clone() for p in teacher.lm.model.parameters()]
    trajectory(make_student(seed=1), batches, teacher, [ForwardKL()])
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.lm.model.parameters(), strict=True))
    assert all(p.grad is None for p in teacher.lm.model.parameters())


def test_cross_entropy_alone_never_asks_the_teacher(make_student: Any, batches: Batches) -> None:
    teacher = HFSession(make_student(seed=2).lm)
    with_teacher, without = make_student(seed=1), make_student(seed=1)
    one = trajectory(with_teacher, batches, teacher, [CrossEntropy()])
    assert teacher.tokens_read == 0
    batches.load_state_dict({"epoch": 0, "position": 0})
    assert trajectory(without, batches, None, [CrossEntropy()]) == one
