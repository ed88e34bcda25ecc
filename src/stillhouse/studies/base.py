"""What a study is: a recipe whose run answers one question, in a file of numbers and a page that shows them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from stillhouse.recipe_parts import Name, Section
from stillhouse.report.findings import Findings, write_findings
from stillhouse.runs import RunFolder, environment
from stillhouse.workshop import Progress, silent


class Study(Section, ABC):
    """The settings of a study, which are its recipe: `study: NAME` and what that study asks for.

    `stillhouse run` writes into the run folder the recipe, `result`, `report.html` and `report.md`, and the manifest
    last. Work that takes long is done in `folder.stage(...)`, so that a run that was stopped does it once.
    """

    family: ClassVar[str] = "study"
    result: ClassVar[str]
    """The file of numbers, such as `traces.json`."""

    study: str
    name: Name = "study"
    seed: int = 0

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default written out."""
        return self.model_dump(mode="json")

    @abstractmethod
    def find(self, folder: RunFolder, progress: Progress) -> dict[str, Any]:
        """The answer as plain data, which becomes `result`.

        Raises:
            StillhouseError: bad input, before anything expensive.
        """

    @abstractmethod
    def show(self, found: Mapping[str, Any]) -> Findings:
        """The same answer for people."""


def conduct(study: Study, out: Path, progress: Progress = silent) -> dict[str, Any]:
    """Run a study in a folder of its own; what was found."""
    with RunFolder.claim(out, study) as folder:
        folder.write_json("environment.json", {**environment(), "seed": study.seed})
        found = study.find(folder, progress)
        folder.write_json(study.result, found)
        write_findings(out, study.name, study.show(found))
        folder.finish(study)
    return found
