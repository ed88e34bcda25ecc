"""What the runs of a sweep say together: values, means over seeds, paired differences, the best. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stillhouse.errors import RunError, did_you_mean
from stillhouse.replicates import Difference, difference, difference_of_values, mean_over_seeds
from stillhouse.results import ModelResult
from stillhouse.runs import RunFolder
from stillhouse.sweep_file import Sweep, SweepRun

FORMAT = 1
_Results = Mapping[int, ModelResult]
"""By seed."""


def summarize_sweep(sweep: Sweep, runs: Sequence[SweepRun], out: Path, failed: Mapping[str, str]) -> dict[str, Any]:
    """The content of sweep.json.

    Args:
        sweep: what was tried.
        runs: all of its runs.
        out: its folder.
        failed: by the run's name, why it is not whole.

    Raises:
        RunError: no run is whole; a metric was not measured.
    """
    whole = [run for run in runs if run.name not in failed]
    if not whole:
        words = "\n".join(f"{name}: {error}" for name, error in failed.items())
        raise RunError(f"Every run of the sweep failed; the same command tries them again.\n{words}")
    evaluations = {run: RunFolder(out / "runs" / run.name).read_json("evaluation.json") for run in whole}
    first = evaluations[whole[0]]
    shown = sweep.metrics or [first["headline"]]
    for name in shown:
        if name not in first["metrics"]:
            raise RunError(
                f"metrics names {name!r}, which was not measured. {did_you_mean(name, first['metrics'])} The runs are "
                "kept: mend the name, and the same command writes the page."
            )
    students = _load(whole, out, "student")
    settings = {}
    for setting in sweep.settings():
        mine = {run: found for run, found in evaluations.items() if run.setting == setting.name}
        settings[setting.name] = {
            "overrides": setting.overrides,
            "runs": {run.seed: _run_facts(run, found, out) for run, found in mine.items()},
            "means": _means(mine.values()),
            "student - control": _against_control(mine, students.get(setting.name, {}), out),
        }
    names = list(students)
    return {
        "format": FORMAT,
        "name": sweep.name,
        "recipe": sweep.sweep,
        "overrides": sweep.overrides,
        "varied": list(sweep.grid or {}),
        "seeds": sweep.seeds,
        "shown": shown,
        "metrics": first["metrics"],
        "settings": settings,
        "comparisons": {f"{name} - {names[0]}": _between(students[name], students[names[0]]) for name in names[1:]},
        "best": {name: found for name in shown if (found := _best(name, first["metrics"][name], settings, students))},
        "failed": dict(failed),
    }


def _load(runs: Sequence[SweepRun], out: Path, role: str) -> dict[str, dict[int, ModelResult]]:
    found: dict[str, dict[int, ModelResult]] = {}
    for run in runs:
        result = ModelResult.load(out / "runs" / run.name / "evaluation" / role)
        found.setdefault(run.setting, {})[run.seed] = result
    return found


def _run_facts(run: SweepRun, evaluation: Mapping[str, Any], out: Path) -> dict[str, Any]:
    manifest = RunFolder(out / "runs" / run.name).read_json("manifest.json")
    return {
        "folder": f"runs/{run.name}",
        "seconds": round(sum(manifest["seconds"].values()), 1),
        "models": evaluation["models"],
        "student - control": evaluation["comparisons"].get("student - control", {}),
    }


def _means(evaluations: Any) -> dict[str, dict[str, Any]]:
    """By role and metric, over the seeds that have it."""
    values: dict[str, dict[str, list[float]]] = {}
    for evaluation in evaluations:
        for role, metrics in evaluation["models"].items():
            for name, estimate in metrics.items():
                values.setdefault(role, {}).setdefault(name, []).append(estimate["value"])
    return {
        role: {name: asdict(mean_over_seeds(found)) for name, found in metrics.items()}
        for role, metrics in values.items()
    }


def _against_control(
    evaluations: Mapping[SweepRun, Mapping[str, Any]], students: _Results, out: Path
) -> dict[str, dict[str, Any]]:
    having = [run for run, found in evaluations.items() if "control" in found["models"]]
    if not having:
        return {}
    return _between(students, _load(having, out, "control")[having[0].setting])


def _between(ones: _Results, others: _Results, wanted: str | None = None) -> dict[str, dict[str, Any]]:
    """One minus other for the wanted metric, or every one that both have, over the seeds that both have."""
    seeds = [seed for seed in ones if seed in others]
    if not seeds:
        return {}
    names = [
        name
        for name in ones[seeds[0]].metrics
        if wanted in (None, name)
        and all(name in result.metrics for seed in seeds for result in (ones[seed], others[seed]))
    ]
    return {name: asdict(_difference(name, [ones[s] for s in seeds], [others[s] for s in seeds])) for name in names}


def _difference(name: str, ones: Sequence[ModelResult], others: Sequence[ModelResult]) -> Difference:
    if all(name in result.measurements for result in (*ones, *others)):
        return difference([r.measurements[name] for r in ones], [r.measurements[name] for r in others])
    return difference_of_values([r.values()[name].value for r in ones], [r.values()[name].value for r in others])


def _best(
    name: str, metric: Mapping[str, Any], settings: Mapping[str, Any], students: Mapping[str, _Results]
) -> dict[str, Any] | None:
    """The setting whose mean is best, and its difference from every other; None where no direction is better."""
    if metric["better"] == "none":
        return None
    means = {key: settings[key]["means"]["student"][name]["value"] for key in students}
    best = (max if metric["better"] == "higher" else min)(means, key=means.__getitem__)
    against = {}
    for other in students:
        if other != best and (found := _between(students[best], students[other], name)):
            against[other] = found[name]
    return {"setting": best, "against": against}
