"""Choosing among several answers of a teacher."""

from __future__ import annotations

from typing import Any

import pytest
from building import Scripted

from stillhouse.errors import DataError
from stillhouse.records import Example
from stillhouse.synthesis.base import Workbench
from stillhouse.synthesis.best_of_n import BestOfN
from stillhouse.teachers.base import Answer

ASKED = [Example(id="a", prompt="How many?", meta={"n": 1}), Example(id="b", prompt="And now?")]


def best(
    method: BestOfN, answers: list[str | Answer], grades: list[str] | None = None
) -> tuple[list[Example], Workbench]:
    def says(e: Example) -> str | Answer:
        place = e.id.partition("~")[2]
        return grades[int(place.removeprefix("grade"))] if grades and "grade" in place else answers[int(place)]

    bench = Workbench(Scripted(says))
    return list(method.synthesize(ASKED, bench)), bench


def test_agreement_takes_the_shortest_of_the_most_frequent() -> None:
    made, _ = best(BestOfN(samples=4), ["it is 7", "so 5 in the end 5", "hm 5", "none"])
    assert [e.completion for e in made] == ["hm 5", "hm 5"]
    assert made[0].meta["n"] == 1
    assert made[0].meta["made_by"]["synthesizer"] == "best_of_n"
    assert made[0].meta["made_by"]["candidates"] == 4


def test_medoid_takes_what_is_most_like_the_others() -> None:
    texts: list[str | Answer] = ["the cat sat there", "a dog", "the cat sat", "the cat slept"]
    made, _ = best(BestOfN(samples=4, by="medoid"), texts)
    assert made[0].completion == "the cat sat"


def test_a_judge_sees_question_and_answer_and_its_grades_decide() -> None:
    made, bench = best(BestOfN(samples=3, by="judge"), ["poor", "good", "fine"], ["2", "9 of 10", "none"])
    assert made[0].completion == "good"
    assert made[0].meta["made_by"]["score"] == 9
    graded = [e.prompt for e in bench.teacher.asked if "grade" in e.id]  # ty: ignore[unresolved-attribute]
    assert "How many?" in graded[0]
    assert "poor" in graded[0]
    assert bench.notes["answers that the judge gave no grade"] == 2


def test_what_did_not_end_is_chosen_only_where_nothing_did() -> None:
    cut = Answer("it is 5, or", False, 4)
    made, _ = best(BestOfN(samples=3), [cut, cut, "6"])
    assert made[0].completion == "6"
    made, _ = best(BestOfN(samples=2), [cut, cut])
    assert made[0].meta["unfinished"]


def test_empty_answers_are_counted() -> None:
    made, bench = best(BestOfN(samples=2), [" ", ""])
    assert made == []
    assert bench.notes == {"prompts without an answer left out": 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"samples": 1}, "best of one"), ({"temperature": 0.0}, "above 0"), ({"grading": "Grade it"}, "{answer}")],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BestOfN(**settings)


def test_running_text_is_no_prompt() -> None:
    with pytest.raises(DataError, match="is text"):
        list(BestOfN().synthesize([Example(id="t", text="once")], Workbench(Scripted(lambda e: ""))))
    assert BestOfN(samples=3, by="judge").request(ASKED, 10).count == 60
