"""Needs against provides, before anything heavy loads (contract C5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from stillhouse.errors import NeedsError
from stillhouse.objectives.cross_entropy import CrossEntropy
from stillhouse.objectives.forward_kl import ForwardKL
from stillhouse.preflight import match_needs
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
