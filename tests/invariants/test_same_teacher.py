"""The same teacher asked in this process and through a server makes the same data set, byte for byte, greedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse.data.sources import read_source
from stillhouse.recipe_data import Source
from stillhouse.records import write_examples
from stillhouse.synthesis.base import Synthesizer, Workbench
from stillhouse.synthesis.rationales import Rationales
from stillhouse.synthesis.teacher_text import TeacherText
from stillhouse.teachers.base import Teacher
from stillhouse.teachers.hf import HFTeacher
from stillhouse.teachers.server import ServerTeacher
from stillhouse.testing.server import serve

NAME = "stillhouse:arithmetic"
PROBLEMS = Source.model_validate({"arithmetic": {"count": 12, "steps": [1, 2], "distractors": 0.5, "seed": 11}})


def written(teacher: Teacher, method: Synthesizer, place: Path) -> bytes:
    with teacher.open() as session:
        bench = Workbench(session)
        assert write_examples(place, method.synthesize(read_source(PROBLEMS), bench)) >= 8
    return place.read_bytes()


@pytest.mark.parametrize("method", [TeacherText(temperature=0, max_new_tokens=64), Rationales(max_new_tokens=64)])
def test_in_process_and_through_a_server(method: Synthesizer, tmp_path: Path) -> None:
    here = written(HFTeacher(model=NAME), method, tmp_path / "here.jsonl")
    with serve(NAME, name=NAME) as server:
        for api in ("chat", "completions"):
            there = ServerTeacher(
                url=server.url,
                model=NAME,
                api=api,  # ty: ignore[invalid-argument-type]
                tokenizer=NAME if api == "completions" else None,
                store=str(tmp_path / f"{api}.sqlite"),
            )
            assert written(there, method, tmp_path / f"{api}.jsonl") == here
