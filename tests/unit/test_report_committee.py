"""The report's section on a committee: there where `disagreements.json` is, escaped, and absent without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_run import SCRIPT, write_run

from stillhouse.consensus._disagreements import Disagreements, write_disagreements
from stillhouse.consensus._file import FILE, FORMAT
from stillhouse.consensus.majority import Majority
from stillhouse.errors import RunError
from stillhouse.report import committee
from stillhouse.report.page import write_report

TEXTS = {
    "ann": "2 + 3 = 5. 5 * 2 = 10 #### 10",
    "bob": "2 + 3 = 5. 5 * 3 = 15 #### 15",
    SCRIPT: "2 + 3 = 5. 2 * 5 = 10 #### 10",
}


@pytest.fixture
def summary() -> dict[str, Any]:
    """Two prompts, one disputed; one teacher bears a hostile name."""
    record = Disagreements(tuple(TEXTS), Majority())
    votes, texts = [[10, 15, 10], [7, 7, 7]], [list(TEXTS.values())] * 2
    record.add([("q1", f"How many? {SCRIPT}"), ("q2", "And now?")], votes, texts, Majority().decide(votes))
    return record.summary()


def test_the_report_and_the_record_speak_of_one_file() -> None:
    assert (committee.FILE, committee.FORMAT) == (FILE, FORMAT)


def test_disagreements_are_shown_where_there_was_a_committee(tmp_path: Path, summary: dict[str, Any]) -> None:
    run = write_run(tmp_path / "run")
    write_disagreements(run, summary)
    html, text = (page.read_text(encoding="utf-8") for page in write_report(run))
    section = text.partition("### The teachers")[2].partition("### Cost")[0]
    for page in (html, section):
        assert "disagreed on 1 of 2 prompts" in page
        assert "How many?" in page
        assert SCRIPT not in page
    assert 'href="#committee"' in html
    assert "5 * 3 = 15" in html
    assert "ann, step 2" in html
    assert "| bob | 50 % |" in section.replace("\u00a0", " ")
    assert "ann and bob | 1 of 2" in section
    assert "step 2: ann writes “5 \\* 2 = 10”, bob writes “5 \\* 3 = 15”; passed on: 10" in section


def test_a_run_with_one_teacher_says_nothing_of_committees(tmp_path: Path) -> None:
    html, text = (page.read_text(encoding="utf-8") for page in write_report(write_run(tmp_path / "run")))
    assert "committee" not in html
    assert "### The teachers" not in text


def test_abstaining_and_texts_without_steps_are_said(tmp_path: Path, summary: dict[str, Any]) -> None:
    summary["examples"][0] |= {"chosen": None, "first_difference": None}
    summary["undecided"] = 1
    run = write_run(tmp_path / "run")
    write_disagreements(run, summary)
    html, _ = (page.read_text(encoding="utf-8") for page in write_report(run))
    assert "On 1 no answer was passed on." in html
    assert "none: the rule abstained" in html
    assert "step 2" not in html


def test_a_record_of_another_format_is_refused(tmp_path: Path, summary: dict[str, Any]) -> None:
    run = write_run(tmp_path / "run")
    (run / FILE).write_text(json.dumps(summary | {"format": 2}))
    with pytest.raises(RunError, match="has format 2"):
        write_report(run)
