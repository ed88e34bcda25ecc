"""New prompts in the manner of seeds: what is asked, and what is dropped."""

from __future__ import annotations

from typing import Any

import pytest
from building import Scripted

from stillhouse.errors import DataError
from stillhouse.records import Example
from stillhouse.synthesis.base import Workbench
from stillhouse.synthesis.self_instruct import SelfInstruct
from stillhouse.teachers.base import Answer

SEEDS = [
    Example(id=f"s{i}", prompt=text, completion="yes")
    for i, text in enumerate(
        ["Name three rivers of Europe.", "Write a poem about the moon.", "Explain how a bicycle stays upright."]
    )
]
HELDOUT = [Example(id="h", prompt="List the planets in order of their size.")]


def make(says: Any, **settings: Any) -> tuple[list[Example], Workbench]:
    bench = Workbench(Scripted(says), HELDOUT)
    return list(SelfInstruct(**{"count": 3, **settings}).synthesize(SEEDS, bench)), bench


def test_new_prompts_follow_the_seeds_and_say_where_they_come_from() -> None:
    made, bench = make(
        lambda e: " Count the letters of a word.\nTask 5: Draw a map of your street.\nTask 6: Sing a song aloud."
    )
    assert [e.id for e in made[:3]] == ["s0", "s1", "s2"]
    assert [e.prompt for e in made[3:]] == [
        "Count the letters of a word.",
        "Draw a map of your street.",
        "Sing a song aloud.",
    ]
    assert made[3].completion is None
    assert made[3].meta["made_by"]["parent"] == "self_instruct-0-request-0"
    (asked, *_) = bench.teacher.asked  # ty: ignore[unresolved-attribute]
    assert asked.prompt.startswith("Come up with a series of different tasks:\nTask 1: ")
    assert asked.prompt.endswith("\nTask 4:")


def test_what_resembles_a_seed_an_evaluation_set_or_itself_is_dropped() -> None:
    said = "\n".join(
        [
            " Name three rivers of europe",
            "5. List all the planets in order of their size.",
            "6. Describe the taste of an apple.",
            "7. Describe the taste of an orange apple.",
            "8. Hum.",
        ]
    )
    made, bench = make(lambda e: said)
    assert [e.prompt for e in made[3:]] == ["Describe the taste of an apple."]
    assert bench.notes["prompts too like a seed, an evaluation set or an earlier one left out"] == 3 + 4 + 4
    assert bench.notes["prompts shorter than 3 or longer than 150 words left out"] == 3
    assert bench.notes["prompts fewer than data.steps.self_instruct.count asks for"] == 2


def test_a_list_that_was_cut_off_loses_its_last_prompt() -> None:
    made, _ = make(lambda e: Answer(" Paint a red door.\nTask 5: Then pai", False, 9), requests=1)
    assert [e.prompt for e in made[3:]] == ["Paint a red door."]


def test_its_own_prompts_are_shown_later_and_draws_repeat() -> None:
    def says(e: Example) -> str:
        number = int(e.id.rpartition("-")[2])
        return f" Tell me fact {'abcdefghijklmnopqrstuvwxyz'[number % 26] * (number + 1)} today."

    made, bench = make(says, count=20, likeness=1.0)
    assert len(made) == 23
    later = [e.prompt for e in bench.teacher.asked[16:]]  # ty: ignore[unresolved-attribute]
    assert any("Tell me fact" in prompt for prompt in later)
    assert make(says, count=20, likeness=1.0)[0] == made


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "count is 0"),
        ({"likeness": 0.0}, "likeness"),
        ({"temperature": 0.0}, "temperature"),
        ({"requests": 0}, "requests"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelfInstruct(**settings)


def test_it_needs_seeds() -> None:
    with pytest.raises(DataError, match="seeds that are prompts"):
        list(SelfInstruct().synthesize([], Workbench(Scripted(lambda e: ""))))
    assert SelfInstruct(count=7).request(SEEDS, 3).makes == 10
