"""What the runs of a sweep share: one precision, and for every seed what does not depend on the objective.

The control, the teacher and the student before training are the same in two runs that differ in their objective alone.
Their files are copied with the records of their stages; the run then finds the stages' fingerprints unchanged and goes
on from there, or finds them changed and does the work itself.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from stillhouse.runs import RunFolder
from stillhouse.sweep_file import SweepRun
from stillhouse.workshop import choose_device

_OWN = frozenset({"name", "objective"})
"""Keys in which two recipes may differ and still have what is lent in common."""
_PARTS = {
    "data": "data",
    "compute": None,
    "train-control": "control",
    "evaluate-teacher": "evaluation/teacher.*",
    "evaluate-student_before": "evaluation/student_before.*",
    "evaluate-control": "evaluation/control.*",
}
"""Stages that are lent, and what each left in the run folder."""


def settle_precision(runs: Sequence[SweepRun]) -> tuple[list[SweepRun], str]:
    """The runs with one precision in place of `auto`, and the reason.

    A run alone measures which precision is faster; two runs of a sweep could measure differently, and would then differ
    in more than their setting.
    """
    settled, chosen = [], set[str]()
    for run in runs:
        recipe = run.recipe
        if recipe.train.precision == "auto":
            device, _ = choose_device(recipe.device)
            precision = "float32" if device == "cpu" else "bfloat16"
            chosen.add(precision)
            recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": precision})})
        settled.append(dataclasses.replace(run, recipe=recipe))
    if not chosen:
        return settled, "asked for by the recipe"
    return settled, f"{' and '.join(sorted(chosen))} in place of auto, which every run would measure for itself"


def lender_of(run: SweepRun, finished: Sequence[SweepRun]) -> SweepRun | None:
    """A finished run of the same seed whose recipe differs in its objective alone."""
    mine = _lent_by(run)
    return next((other for other in finished if _lent_by(other) == mine), None)


def shared_seconds(runs: Sequence[SweepRun], stages: Mapping[str, float]) -> float:
    """What is saved by lending, given the seconds of one run's stages."""
    lent = sum(seconds for stage, seconds in stages.items() if stage in _PARTS)
    return lent * sum(lender_of(run, runs[:place]) is not None for place, run in enumerate(runs))


def _lent_by(run: SweepRun) -> dict[str, object]:
    return {key: value for key, value in run.recipe.resolved().items() if key not in _OWN}


def lend(lender: Path, folder: Path, run: SweepRun) -> None:
    """Copy into a new run folder what it would compute again; nothing where the run was begun already."""
    if (folder / "recipe.yaml").exists():
        return
    theirs = RunFolder(lender)
    with RunFolder.claim(folder, run.recipe) as mine:
        rows = (lender / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        control = [row for row in rows if json.loads(row)["model"] == "control"]
        (folder / "metrics.jsonl").write_text("".join(control), encoding="utf-8")
        for stage, pattern in _PARTS.items():
            record = theirs.stage_record(stage)
            if record is None:
                continue
            for source in lender.glob(pattern) if pattern else ():
                target = folder / source.relative_to(lender)
                target.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)
            record.seconds, record.cost = 0.0, {}
            record.choose(stage, f"taken from {lender.name}", "the recipes differ in their objective alone")
            mine.keep(record)
