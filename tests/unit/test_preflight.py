"""Needs against provides, before anything heavy loads (contract C5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from stillhouse.errors import NeedsError
from stillhouse.features.gradients import Gradients
from stillhouse.features.hidden_states import HiddenStates
from stillhouse.objectives.cross_entropy import CrossEntropy
from stillhouse.objectives.forward_kl import ForwardKL
from stillhouse.preflight import _require_a_student, match_needs
from stillhouse.recipe import StudentSection
from stillhouse.recipe_parts import Component
from stillhouse.selection.confident_labels import ConfidentLabels
from stillhouse.selection.deduplicate import Deduplicate
from stillhouse.synthesis.teacher_text import TeacherText
from stillhouse.teachers.base import Teacher, TeacherSession


@dataclass(frozen=True)
class TextOnly(Teacher):
    """What a closed server is."""

    provides: ClassVar[frozenset[str]] = frozenset({"text"})

    def open(self, device: str = "cpu") -> TeacherSession:
        raise AssertionError("a check must not open the teacher")

    def load_tokenizer(self) -> Any:
        raise AssertionError("not needed here")

    def fingerprint(self) -> None:
        return None

    def load_config(self) -> None:
        return None


def test_a_divergence_is_refused_where_there_is_only_text() -> None:
    with pytest.raises(NeedsError, match=r"forward_kl needs the teacher's distribution") as caught:
        match_needs(TextOnly(), [ForwardKL()])
    assert "provides text" in str(caught.value)
    assert "cross_entropy" in str(caught.value)  # the way out


def test_text_is_enough_for_what_needs_text_alone() -> None:
    match_needs(TextOnly(), [CrossEntropy(), TeacherText(count=1)])


@pytest.mark.parametrize(
    "step",
    [
        {"k_center": {"budget": 4, "features": "gradients"}},
        {"deduplicate": {"how": "semantic", "features": "hidden_states"}},
        {"confident_labels": {"features": "hidden_states"}},
    ],
    ids=str,
)
def test_a_student_cut_out_of_its_teacher_is_not_there_yet_when_rows_are_chosen(step: dict[str, Any]) -> None:
    student = StudentSection.model_validate({"from_teacher": {"layers": 1}})
    component = Component.model_validate(step)
    with pytest.raises(NeedsError, match=rf"{component.name} looks at .* is made after the data"):
        _require_a_student(student, [component.build("selector")])
    its_own = HiddenStates(model="stillhouse:arithmetic")
    _require_a_student(
        student, [Deduplicate(), Deduplicate(how="semantic"), Deduplicate(how="semantic", features=its_own)]
    )
    _require_a_student(StudentSection(model="any"), [component.build("selector")])


def test_what_a_selector_looks_at_decides_what_it_needs_of_the_teacher() -> None:
    gradients = Gradients(objective=(ForwardKL(),))
    assert Deduplicate(features=gradients).needs == frozenset()
    for selector in (Deduplicate(how="semantic", features=gradients), ConfidentLabels(features=gradients)):
        with pytest.raises(NeedsError, match="needs the teacher's distribution"):
            match_needs(TextOnly(), [selector])


def test_two_evaluators_may_not_give_one_metric() -> None:
    from stillhouse.errors import RecipeError
    from stillhouse.evaluation.tasks import Tasks
    from stillhouse.preflight import _refuse_twins

    _refuse_twins([Tasks(), Tasks(name="other")])
    with pytest.raises(RecipeError, match=r"tasks\.accuracy twice"):
        _refuse_twins([Tasks(), Tasks()])


def test_activations_are_computed_again_only_where_the_architecture_can() -> None:
    from transformers import AutoConfig

    from stillhouse.preflight import _check_training
    from stillhouse.recipe import Recipe

    recipe = Recipe.model_validate(
        {
            "teacher": "some/teacher",
            "student": {"model": "some/student"},
            "data": {"train": "train.jsonl", "heldout": "test.jsonl"},
            "objective": "cross_entropy",
            "train": {"activation_checkpointing": True},
        }
    )
    _check_training(recipe, AutoConfig.for_model("llama", hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(NeedsError, match="OpenAIGPTLMHeadModel cannot compute activations again"):
        _check_training(recipe, AutoConfig.for_model("openai-gpt", n_embd=16, n_layer=1, n_head=2))
