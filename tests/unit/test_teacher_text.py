"""Text that the teacher writes, and how examples say that they came from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import DataError
from stillhouse.models import Sampling
from stillhouse.records import Example
from stillhouse.synthesis.base import Workbench
from stillhouse.synthesis.teacher_text import TeacherText
from stillhouse.teachers.hf import HFSession


@pytest.fixture
def bench(make_student: Any) -> Workbench:
    return Workbench(HFSession(make_student(seed=3).lm))


ASKED = [Example(id=f"q{i}", prompt=f"What is {i}?", meta={"n": i}) for i in range(5)]


def test_answers_keep_their_order_and_say_how_they_came_to_be(bench: Workbench) -> None:
    made = list(TeacherText(max_new_tokens=6, temperature=0).synthesize(ASKED, bench))
    assert [e.id for e in made] == [e.id for e in ASKED]
    assert [e.prompt for e in made] == [e.prompt for e in ASKED]
    assert [e.completion for e in made] == [a.text for a in bench.teacher.answer(ASKED, Sampling(max_new_tokens=6))]
    assert made[1].meta["n"] == 1
    assert made[0].meta["made_by"]["synthesizer"] == "teacher_text"
    assert made[0].meta["made_by"]["teacher"] == "student"
    assert "batch_size" not in made[0].meta["made_by"]
    assert all(e.meta.get("unfinished") for e in made)  # random weights do not end within six tokens


def test_the_same_settings_write_the_same_and_another_seed_something_else(bench: Workbench) -> None:
    def write(seed: int) -> list[str | None]:
        return [e.completion for e in TeacherText(max_new_tokens=6, seed=seed).synthesize(ASKED, bench)]

    assert write(0) == write(0) != write(1)


def test_one_prompt_under_two_ids_gives_two_draws(bench: Workbench) -> None:
    twice = [Example(id=name, prompt="What is it?") for name in "ab"]
    one, other = TeacherText(max_new_tokens=12).synthesize(twice, bench)
    assert one.completion != other.completion


def test_running_text_is_no_prompt(bench: Workbench) -> None:
    with pytest.raises(DataError, match="is text"):
        list(TeacherText().synthesize([Example(id="a", text="once")], bench))


def test_nothing_to_answer_needs_a_count_and_a_first_token(bench: Workbench) -> None:
    with pytest.raises(DataError, match="set count"):
        list(TeacherText().synthesize([], bench))
    with pytest.raises(DataError, match="no beginning-of-sequence token"):
        list(TeacherText(count=2).synthesize([], bench))


def test_texts_from_nothing_differ(make_student: Any, bos_tokenizer: Any) -> None:
    lm = dataclasses.replace(make_student(seed=3).lm, tokenizer=bos_tokenizer)
    bench = Workbench(HFSession(lm))
    made = list(TeacherText(count=4, max_new_tokens=12).synthesize([], bench))
    assert len({e.text for e in made}) == 4
    assert len({e.id for e in made}) == 4


def test_a_journal_answers_in_the_place_of_the_model(make_student: Any, tmp_path: Path) -> None:
    sampling = Sampling(max_new_tokens=6, temperature=1.0)
    first = HFSession(make_student(seed=3).lm)
    first.journal(tmp_path / "answers")
    said = first.answer(ASKED, sampling)
    other = HFSession(make_student(seed=4).lm)  # another model would say something else
    assert other.answer(ASKED, sampling) != said
    other.journal(tmp_path / "answers")
    assert other.answer(ASKED, sampling) == said
    assert (first.tokens_read, first.tokens_written) == (other.tokens_read / 2, sum(a.tokens for a in said))
    assert other.answer(ASKED[:4], sampling) != said[:4]  # asked together with others, sampled text is another draw
