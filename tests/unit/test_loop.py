"""The loop: what a step says, and when training stops itself. What an update must not depend on: tests/invariants."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from stillhouse.data.batching import Batches, TokenBatch, TokenSlice
from stillhouse.errors import NeedsError, TrainingDivergedError
from stillhouse.objectives.base import Objective
from stillhouse.objectives.cross_entropy import CrossEntropy
from stillhouse.objectives.forward_kl import ForwardKL
from stillhouse.objectives.reverse_kl import ReverseKL
from stillhouse.signals import Headed, Signal
from stillhouse.student import Student
from stillhouse.teachers.hf import HFSession, HFTeacher
from stillhouse.training.loop import Compute, Step, TrainState, part_names, train
from stillhouse.training.optim import Optim


@pytest.fixture
def batches(render: Any, examples: Any) -> Batches:
    return Batches(render(examples), tokens_per_batch=200, seed=0)


def weights(student: Student) -> list[Tensor]:
    return [p.detach().clone() for p in student.lm.model.parameters()]


def unchanged(before: list[Tensor], student: Student) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, student.lm.model.parameters(), strict=True))


def test_step_says_what_happened(make_student: Any, batches: Batches) -> None:
    student, teacher = make_student(seed=1), HFSession(make_student(seed=2).lm)
    objectives = [0.75 * ForwardKL(temperature=2.0), 0.25 * CrossEntropy()]
    optim = Optim(lr=1e-3, warmup=2, schedule="constant")
    steps = list(train(student, batches, teacher, objectives, steps=4, optim=optim, compute=Compute(accumulate=2)))
    assert [s.number for s in steps] == [1, 2, 3, 4]
    assert [s.lr for s in steps] == [5e-4, 1e-3, 1e-3, 1e-3]
    for step in steps:
        assert set(step.parts) == {"forward_kl", "cross_entropy"}
        assert step.loss == pytest.approx(
            0.75 * step.parts["forward_kl"] + 0.25 * step.parts["cross_entropy"], rel=1e-5
        )
        assert math.isfinite(step.grad_norm)
        assert step.grad_norm > 0
        assert step.seconds > 0
        assert isinstance(step.state, TrainState)
    batches.load_state_dict({"epoch": 0, "position": 0})
    counts = [sum(next(batches).trained_count() for _ in range(2)) for _ in range(4)]
    assert [s.tokens for s in steps] == [sum(counts[: n + 1]) for n in range(4)]
    assert steps[-1].state.step == 4


def test_loop_is_lazy_and_stops_where_the_caller_stops(make_student: Any, batches: Batches) -> None:
    student = make_student(seed=1)
    before = weights(student)
    stream = train(student, batches, None, [CrossEntropy()], steps=10**9)
    assert unchanged(before, student)
    assert next(stream).number == 1
    assert not unchanged(before, student)
    assert batches.state_dict()["position"] == 1


def test_state_at_its_last_step_has_nothing_left_to_do(make_student: Any, batches: Batches) -> None:
    student = make_student(seed=1)
    last = list(train(student, batches, None, [CrossEntropy()], steps=2))[-1]
    assert list(train(student, batches, None, [CrossEntropy()], steps=2, state=last.state)) == []


def test_parts_are_named_and_twins_are_numbered() -> None:
    assert part_names([ForwardKL(), CrossEntropy()]) == ["forward_kl", "cross_entropy"]
    assert part_names([ForwardKL(), ReverseKL(), ForwardKL(temperature=2)]) == [
        "forward_kl_1",
        "reverse_kl",
        "forward_kl_2",
    ]


def test_two_of_a_kind_are_two_parts(make_student: Any, batches: Batches) -> None:
    teacher = HFSession(make_student(seed=2).lm)
    objectives = [ForwardKL(), ForwardKL(temperature=4.0)]
    step = next(train(make_student(seed=1), batches, teacher, objectives, steps=1))
    assert list(step.parts) == ["forward_kl_1", "forward_kl_2"]
    assert step.parts["forward_kl_1"] != step.parts["forward_kl_2"]


# Needs.


def test_divergence_without_a_teacher_is_refused_before_anything_happens(make_student: Any, batches: Batches) -> None:
    student = make_student(seed=1)
    before = weights(student)
    with pytest.raises(NeedsError, match=r"forward_kl, reverse_kl needs a teacher, and none was given.*cross_entropy"):
        next(train(student, batches, None, [ForwardKL(), CrossEntropy(), ReverseKL()], steps=1))
    assert unchanged(before, student)
    assert batches.state_dict()["position"] == 0


def test_teacher_settings_are_opened_on_the_students_device(make_student: Any, batches: Batches, tmp_path: Any) -> None:
    make_student(seed=2).save(tmp_path / "teacher")
    objectives = [ForwardKL()]
    opened = next(train(make_student(seed=1), batches, HFTeacher(str(tmp_path / "teacher")), objectives, steps=1))
    batches.load_state_dict({"epoch": 0, "position": 0})
    session = HFSession(make_student(seed=2).lm)
    assert next(train(make_student(seed=1), batches, session, objectives, steps=1)).loss == opened.loss


class _Silent(HFSession):
    """Has text to offer and no distribution."""

    def score(self, batch: TokenBatch) -> Any:
        return _Text()


class _Text(Signal):
    provides: ClassVar[frozenset[str]] = frozenset({"text"})

    def select(self, rows_N: Tensor) -> _Text:
        return self


def test_teacher_that_says_too_little_never_turns_one_objective_into_another(
    make_student: Any, batches: Batches
) -> None:
    student = make_student(seed=1)
    before = weights(student)
    with pytest.raises(NeedsError, match="needs the teacher's distribution; _Text provides text"):
        next(train(student, batches, _Silent(make_student(seed=2).lm), [ForwardKL()], steps=1))
    assert unchanged(before, student)


def test_an_update_is_made_in_training_mode_whatever_came_before(make_student: Any, batches: Batches) -> None:
    """Evaluation between two updates leaves the model in evaluation mode; dropout must be on again."""
    student = make_student(seed=1, attention_dropout=0.5)
    losses = []
    for _ in range(2):
        student.lm.model.eval()
        batches.load_state_dict({"epoch": 0, "position": 0})
        losses.append(next(train(student, batches, None, [CrossEntropy()], steps=1, optim=Optim(lr=1e-12))).loss)
        assert student.lm.model.training
    assert losses[0] != losses[1]


# When it goes wrong.


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_broken_loss_stops_before_the_weights_move_and_names_the_examples(
    make_student: Any, batches: Batches, poison: float
) -> None:
    student = make_student(seed=1)
    stream = train(student, batches, None, [CrossEntropy()], steps=10)
    list(zip(range(3), stream, strict=False))
    with torch.no_grad():
        student.lm.model.get_output_embeddings().weight[0, 0] = poison
    before = weights(student)
    with pytest.raises(
        TrainingDivergedError, match=r"not a finite number at step 4: .*cross_entropy.*sum-\d+.*not applied"
    ):
        next(stream)
    after = [p.detach() for p in student.lm.model.parameters()]
    assert all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in student.lm.model.parameters())


class _SaysNaN(HFSession):
    """About the second trained token of one example, as a model in float16 might."""

    def score(self, batch: TokenBatch) -> Headed:
        signal = super().score(batch)
        if "sum-4" in batch.ids:
            row = batch.trained_rows_of(batch.ids.index("sum-4"))[1]
            signal.hidden_ND.flatten(0, 1)[row] = torch.nan
        return signal


def test_a_teacher_that_says_nan_is_named_with_the_example_and_the_place(make_student: Any, batches: Batches) -> None:
    student = make_student(seed=1)
    stream = train(student, batches, _SaysNaN(make_student(seed=2).lm), [ForwardKL()], steps=20)
    with pytest.raises(TrainingDivergedError, match=r"teacher says NaN about example 'sum-4' at its trained token 1 "):
        list(stream)
    assert all(p.isfinite().all() for p in student.lm.model.parameters())


@dataclass(frozen=True, kw_only=True)
class _BrokenGradient(Objective):
    """Finite in value, not in gradient, as a square root at zero is."""

    def loss(self, student_logits_NV: Tensor, signal: Signal | None, tokens: TokenSlice) -> Tensor:
        return (student_logits_NV[:, 0] * 0).sqrt()


def test_broken_gradient_of_a_finite_loss_stops_as_well(make_student: Any, batches: Batches) -> None:
    student = make_student(seed=1)
    before = weights(student)
    with pytest.raises(TrainingDivergedError, match="loss or its gradient is not a finite number at step 1"):
        next(train(student, batches, None, [_BrokenGradient()], steps=1))
    assert unchanged(before, student)


@dataclass(frozen=True, kw_only=True)
class _Scripted(Objective):
    """A loss that follows a script, one entry an update, whatever the student says."""

    script: ClassVar[list[float]] = []

    def loss(self, student_logits_NV: Tensor, signal: Signal | None, tokens: TokenSlice) -> Tensor:
        return student_logits_NV.sum(-1) * 0 + self.script.pop(0)


def scripted(make_student: Any, batches: Batches, script: list[float]) -> Iterator[Step]:
    _Scripted.script[:] = script
    return train(make_student(seed=1), batches, None, [_Scripted()], steps=len(script))


def test_loss_that_runs_away_and_stays_away_stops_the_run(make_student: Any, batches: Batches) -> None:
    steps = scripted(make_student, batches, [2.0] * 10 + [9.0] * 40)
    assert [next(steps).number for _ in range(29)][-1] == 29
    with pytest.raises(
        TrainingDivergedError, match=r"ran away: step 30: .*against 2 over the first ten.*Lower train\.lr"
    ):
        next(steps)


def test_spikes_that_come_back_and_losses_that_are_merely_high_do_not(make_student: Any, batches: Batches) -> None:
    spikes = [2.0] * 10 + [9.0] * 19 + [2.0] + [9.0] * 5
    assert len(list(scripted(make_student, batches, spikes))) == len(spikes)
    high = [2.0] * 10 + [7.9] * 22
    assert len(list(scripted(make_student, batches, high))) == len(high)


def test_real_divergence_is_noticed(make_student: Any, batches: Batches) -> None:
    with pytest.raises(TrainingDivergedError, match=r"ran away|not a finite number"):
        list(train(make_student(seed=1), batches, None, [CrossEntropy()], steps=200, optim=Optim(lr=30.0, clip=None)))


# Clipping and precision.


def test_clip_limits_the_update_and_reports_the_norm_before(make_student: Any, batches: Batches) -> None:
    """Seen in AdamW's first moment, which after one step is a tenth of the gradient used."""

    def first_moment(clip: float | None) -> tuple[float, float]:
        batches.load_state_dict({"epoch": 0, "position": 0})
        step = next(train(make_student(seed=1), batches, None, [CrossEntropy()], steps=1, optim=Optim(clip=clip)))
        moments = [s["exp_avg"].flatten() for s in step.state.optimizer.state.values()]
        return step.grad_norm, 10 * torch.cat(moments).norm().item()

    norm, used = first_moment(None)
    assert used == pytest.approx(norm, rel=1e-4)
    assert norm > 0.1
    clipped_norm, clipped = first_moment(0.1)
    assert clipped_norm == pytest.approx(norm, rel=1e-6)
    assert clipped == pytest.approx(0.1, rel=1e-3)
    assert first_moment(norm * 2)[1] == pytest.approx(norm, rel=1e-4)


def test_learning_rate_is_the_schedules_and_not_the_optimizers(make_student: Any, batches: Batches) -> None:
    student = make_student(seed=1)
    before = weights(student)
    list(train(student, batches, None, [CrossEntropy()], steps=1, optim=Optim(lr=1e-3, warmup=10)))
    moved = max((a - b).abs().max().item() for a, b in zip(before, weights(student), strict=True))
    assert moved == pytest.approx(1e-4, rel=0.01)  # AdamW's first step is lr long


def test_bfloat16_autocast_keeps_float32_weights_and_nearly_the_same_loss(make_student: Any, batches: Batches) -> None:
    teacher = HFSession(make_student(seed=2).lm)

    def loss(dtype: torch.dtype | None) -> float:
        batches.load_state_dict({"epoch": 0, "position": 0})
        student = make_student(seed=1, tied=True)
        compute = Compute(dtype=dtype, chunk=32)
        steps = list(train(student, batches, teacher, [ForwardKL()], steps=5, optim=Optim(lr=1e-3), compute=compute))
        assert {p.dtype for p in student.lm.model.parameters()} == {torch.float32}
        return steps[-1].loss

    assert loss(torch.bfloat16) == pytest.approx(loss(None), rel=0.05)
