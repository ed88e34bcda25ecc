"""The base of studies and the page they write, on a study that lives in this file alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from stillhouse.checking.metering import Trial
from stillhouse.errors import RunError
from stillhouse.report.findings import Findings, Table
from stillhouse.runs import RunFolder
from stillhouse.studies.base import Foresight, Study, conduct, foretell
from stillhouse.terminal import study_check_text
from stillhouse.workshop import Progress


class Doubling(Study):
    result: ClassVar[str] = "doubled.json"
    value: int = 2

    def foresee(self) -> Foresight:
        stages = {"small": Trial(2.0, 1000.0), "large": Trial(3.0, 1e15)}
        return Foresight({"value": str(self.value)}, stages, {"large": "doubling (value 2)"})

    def find(self, folder: RunFolder, progress: Progress) -> dict[str, Any]:
        with folder.stage("double", {"value": self.value}) as (record, done):
            if not done:
                record.out = {"doubled": 2 * self.value}
        return record.out

    def show(self, found: Mapping[str, Any]) -> Findings:
        rows = [["<doubled>", str(found["doubled"])]]
        return Findings("It doubles", "n = 1", [Table("Doubles | of it", ["what", "value"], rows, "a note")])


def test_a_study_leaves_numbers_a_page_and_a_manifest(tmp_path: Path) -> None:
    found = conduct(Doubling(study="doubling", name="mine"), tmp_path / "a")
    assert found == {"doubled": 4} == json.loads((tmp_path / "a" / "doubled.json").read_text())
    html, text = ((tmp_path / "a" / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "&lt;doubled&gt;" in html
    assert "<doubled>" not in html
    assert "It doubles" in html
    assert "| &lt;doubled&gt; | 4 |" in text
    assert "### Doubles \\| of it" in text
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["name"] == "mine"


def test_what_it_will_take_is_told_and_what_would_be_killed() -> None:
    told = foretell(Doubling(study="doubling"))
    assert told["seconds"] == 5
    assert told["stages"]["small"]["memory_bytes"] > 1000  # the process itself counts
    assert told["peak_memory_bytes"] == told["stages"]["large"]["memory_bytes"] > 1e15
    (warning,) = told["warnings"]
    assert "large needs about 931" in warning
    assert "held by doubling (value 2); lower one of these" in warning
    text = study_check_text(told)
    assert "about 5 s" in text
    assert "it would be killed" in text


def test_its_folder_belongs_to_it(tmp_path: Path) -> None:
    conduct(Doubling(study="doubling"), tmp_path / "a")
    with pytest.raises(RunError, match="value"):
        conduct(Doubling(study="doubling", value=3), tmp_path / "a")
    with pytest.raises(RunError, match="holds a study"):
        RunFolder(tmp_path / "a").recipe()
