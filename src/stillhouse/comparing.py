"""`compare`: the difference between runs, paired example by example, with its interval. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillhouse.errors import RecipeError
from stillhouse.generalising import ON_TRAINING_DATA
from stillhouse.results import ModelResult, comparisons
from stillhouse.runs import RunFolder


def compare_runs(folders: Sequence[Path], role: str = "student") -> dict[str, Any]:
    """Each later run's model minus the first run's, for every metric that both have; without those of training data,
    of which each run has its own.

    Args:
        folders: run folders, at least two.
        role: which of a run's models: student, control, student_before or teacher.

    Raises:
        RecipeError: fewer than two folders.
        RunError: a folder that was not evaluated.
        DataError: runs measured on different held-out examples.
    """
    if len(folders) < 2:
        raise RecipeError("compare takes at least two run folders, such as `stillhouse compare runs/a runs/b`.")
    results = []
    for folder in folders:
        RunFolder(folder).recipe()
        results.append(ModelResult.load(folder / "evaluation" / role))
    first, own = results[0], set(ON_TRAINING_DATA.values())
    return {
        "role": role,
        "runs": {
            str(folder): {name: vars(e) for name, e in result.values().items()}
            for folder, result in zip(folders, results, strict=True)
        },
        "metrics": {name: vars(m) for name, m in first.metrics.items()},
        "comparisons": {
            f"{folder} - {folders[0]}": comparisons(result.without(own), first)
            for folder, result in zip(folders[1:], results[1:], strict=True)
        },
        "not_compared": sorted(own & first.measurements.keys()),
    }
