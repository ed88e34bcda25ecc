"""What a study is: a recipe whose run answers one question, in a file of numbers and a page that shows them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from stillhouse.checking.metering import Trial, resident_bytes
from stillhouse.recipe_parts import Name, Section
from stillhouse.report.findings import Findings, write_findings
from stillhouse.runs import RunFolder, environment
from stillhouse.workshop import Progress, silent


@dataclass(frozen=True)
class Foresight:
    """What `check` knows of a study before it runs.

    Attributes:
        facts: what there is to work on, in words.
        stages: seconds of each stage and the most bytes of tensors that it holds; none where a study cannot tell.
        culprits: of a stage the piece that holds them, and the settings that make it smaller.
    """

    facts: Mapping[str, str]
    stages: Mapping[str, Trial] = field(default_factory=dict)
    culprits: Mapping[str, str] = field(default_factory=dict)


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
    def foresee(self) -> Foresight:
        """Look at all that `find` will be given, and tell what it will take, without doing it.

        Raises:
            StillhouseError: what a run would stumble over.
        """

    @abstractmethod
    def find(self, folder: RunFolder, progress: Progress) -> dict[str, Any]:
        """The answer as plain data, which becomes `result`.

        Raises:
            StillhouseError: bad input, before anything expensive.
        """

    @abstractmethod
    def show(self, found: Mapping[str, Any]) -> Findings:
        """The same answer for people."""


def foretell(study: Study) -> dict[str, Any]:
    """What a study would work on, what it takes, and warnings where this machine has less.

    Raises:
        StillhouseError: what a run would stumble over.
    """
    seen, resident = study.foresee(), resident_bytes()
    stages = {
        name: {"seconds": round(stage.seconds, 1), "memory_bytes": int(resident + stage.bytes)}
        for name, stage in seen.stages.items()
    }
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    warnings = [
        f"{name} needs about {stage['memory_bytes'] / 2**30:.1f} GiB of memory, and this machine has "
        f"{there / 2**30:.1f}: it would be killed. The most is held by {seen.culprits[name]}; lower one of these"
        for name, stage in stages.items()
        if stage["memory_bytes"] > there
    ]
    return {
        "recipe": study.resolved(),
        "facts": dict(seen.facts),
        "stages": stages,
        "seconds": round(sum(stage["seconds"] for stage in stages.values()), 1) if stages else None,
        "peak_memory_bytes": max((stage["memory_bytes"] for stage in stages.values()), default=None),
        "warnings": warnings,
    }


def conduct(study: Study, out: Path, progress: Progress = silent) -> dict[str, Any]:
    """Run a study in a folder of its own; what was found."""
    with RunFolder.claim(out, study) as folder:
        folder.write_json("environment.json", {**environment(), "seed": study.seed})
        found = study.find(folder, progress)
        folder.write_json(study.result, found)
        write_findings(out, study.name, study.show(found))
        folder.finish(study)
    return found
