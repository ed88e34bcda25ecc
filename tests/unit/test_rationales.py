"""Worked answers of a teacher: what is asked, what is kept and why."""

from __future__ import annotations

from typing import Any

import pytest
from building import Scripted

from stillhouse.data.sources import read_source
from stillhouse.errors import DataError
from stillhouse.recipe_data import Source
from stillhouse.records import Example
from stillhouse.synthesis.base import Workbench
from stillhouse.synthesis.rationales import Rationales
from stillhouse.teachers.base import Answer
from stillhouse.teachers.hf import HFTeacher

SUMS = [Example(id=f"q{i}", prompt=f"{i} + 1?", completion=f"#### {i + 1}", meta={"level": "easy"}) for i in range(4)]


def run(method: Rationales, says: Any, examples: list[Example] = SUMS) -> tuple[list[Example], Workbench]:
    bench = Workbench(Scripted(says))
    return list(method.synthesize(examples, bench)), bench


def test_a_right_trace_becomes_a_rationale_and_an_answer() -> None:
    made, bench = run(Rationales(), lambda e: "Count on.\n#### 2")
    (kept,) = made
    assert (kept.id, kept.prompt, kept.rationale, kept.completion) == ("q1", "1 + 1?", "Count on.\n", "#### 2")
    assert kept.meta["level"] == "easy"
    made_by = kept.meta["made_by"]
    said = {"synthesizer": "rationales", "teacher": "scripted", "parent": "q1", "verified": "numeric"}
    assert made_by | said == made_by
    assert made_by["agreement"] == "1 of 1"
    assert dict(bench.notes) == {"traces with a wrong answer left out": 3}


@pytest.mark.parametrize(
    ("said", "note"),
    [
        ("Two.", "traces without '####' left out"),
        ("#### 2", "traces without steps left out"),
        ("Think.\n#### two", "traces whose answer is no numeric answer left out"),
        (Answer("Think.\n#### 2", False, 9), "traces that did not end within max_new_tokens left out"),
        ("", "traces without '####' left out"),
    ],
)
def test_what_is_no_trace_is_counted_with_its_reason(said: Any, note: str) -> None:
    made, bench = run(Rationales(keep="all"), lambda e: said)
    assert made == []
    assert dict(bench.notes) == {note: 4}


def test_a_majority_needs_no_gold() -> None:
    def says(e: Example) -> str:
        name, sample = e.id.split("~")
        return f"Steps {sample}.\n#### {'7' if name == 'q0' and sample != '2' else sample}"

    method = Rationales(samples=4, temperature=0.7, keep="majority")
    unanswered = [Example(id=e.id, prompt=e.prompt) for e in SUMS]
    made, bench = run(method, says, unanswered)
    assert [e.id for e in made] == ["q0~0", "q0~1", "q0~3"]
    assert made[0].meta["made_by"]["agreement"] == "3 of 4"
    assert bench.notes["traces outside a majority left out"] == 1 + 3 * 4


def test_repeated_traces_are_kept_once() -> None:
    made, bench = run(Rationales(samples=3, temperature=1.0, keep="all"), lambda e: "Same.\n#### 1")
    assert len(made) == 4
    assert bench.notes["traces that repeat another one left out"] == 8


def test_choices_are_read_from_the_answer() -> None:
    asked = [
        Example(id="a", prompt="Is it?", meta={"answer": "no"}),
        Example(id="b", prompt="Is it?", meta={"answer": "yes"}),
    ]
    method = Rationales(verify="choice", choices=("yes", "no", "maybe"), until="The answer is")
    made, _ = run(method, lambda e: "One may say yes. The answer is no.", asked)
    assert [(e.id, e.rationale, e.completion) for e in made] == [("a", "One may say yes. ", "no")]  # as it is evaluated


def test_the_template_asks_and_the_bare_prompt_stays() -> None:
    made, bench = run(Rationales(template="Q: {prompt} ({level})\nA: "), lambda e: "Count.\n#### 1")
    assert next(e.prompt for e in bench.teacher.asked) == "Q: 0 + 1? (easy)\nA: "  # ty: ignore[unresolved-attribute]
    assert made[0].prompt == "0 + 1?"


def test_shots_show_other_examples_with_their_steps() -> None:
    worked = [Example(id=e.id, prompt=e.prompt, rationale="Count. ", completion=e.completion) for e in SUMS]
    method = Rationales(shots=2, template="Q: {prompt}\nA: ")
    _, bench = run(method, lambda e: "no", worked)
    asked = {e.id: e.prompt for e in bench.teacher.asked}  # ty: ignore[unresolved-attribute]
    for e in worked:
        prompt = asked[e.id] or ""
        assert prompt.count("Count. ####") == 2
        assert prompt.endswith(f"\n\nQ: {e.prompt}\nA: ")
        assert f"{e.prompt}\nA: Count." not in prompt
    with pytest.raises(DataError, match="shots is 4, and 4 examples"):
        run(Rationales(shots=4), lambda e: "no", worked)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 2}, "temperature 0"),
        ({"samples": 2, "temperature": 1.0, "keep": "majority"}, "at least 3"),
        ({"verify": "choice"}, "choices belong"),
        ({"choices": ("a", "b")}, "choices belong"),
        ({"template": "Think!"}, "same for every row"),
        ({"until": ""}, "until is empty"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rationales(**settings)


def test_bad_examples_are_named_before_the_teacher_is_asked() -> None:
    with pytest.raises(DataError, match="'a' is text"):
        run(Rationales(keep="all"), lambda e: "", [Example(id="a", text="once")])
    with pytest.raises(DataError, match=r"holds no answer.*rationales\.answer"):
        run(Rationales(), lambda e: "", [Example(id="a", prompt="1 + 1?")])
    with pytest.raises(DataError, match="verify: numeric finds none"):
        run(Rationales(), lambda e: "", [Example(id="a", prompt="1 + 1?", completion="two")])


def test_the_request_counts_every_sample() -> None:
    request = Rationales(samples=3, temperature=1.0, max_new_tokens=9).request(SUMS, 100)
    assert (request.count, request.makes, len(request.asked)) == (300, 300, 4)


def test_the_built_in_teacher_works_problems_out() -> None:
    source = Source.model_validate({"arithmetic": {"count": 6, "steps": [1, 2], "distractors": 0}})
    bench = Workbench(HFTeacher(model="stillhouse:arithmetic").open())
    made = list(Rationales(max_new_tokens=64).synthesize(read_source(source), bench))
    assert len(made) >= 4
    assert all(e.rationale and e.rationale.endswith(" ") and e.completion == f"#### {e.meta['answer']}" for e in made)
