"""What evaluation leaves on disk: each model's per-example contributions, and the summary that reports read.

numpy only, so that `compare` and `report` never load torch.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.errors import RunError
from stillhouse.generalising import shifts
from stillhouse.signatures import find_signatures
from stillhouse.statistics import Estimate, Measurement, Metric, Share, compare, estimate, gap_closed, recovery

FORMAT = 1
ROLES = ("teacher", "student_before", "random_control", "random", "control", "student")
"""The models that a run may measure: `random` is the student on as many random rows, `random_control` the control on
them."""
COMPARED = (
    ("student", "control"),
    ("student", "random"),
    ("control", "random_control"),
    ("student", "student_before"),
    ("student", "teacher"),
)


@dataclass
class ModelResult:
    """Everything measured on one model, metrics under their full names such as `wizard_of_oz:likelihood.loss`."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    measurements: dict[str, Measurement] = field(default_factory=dict)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    correct: dict[str, bool] = field(default_factory=dict)
    reliability: list[dict[str, float]] = field(default_factory=list)

    def values(self) -> dict[str, Estimate]:
        """Every metric with its standard error."""
        return {**{name: estimate(m) for name, m in self.measurements.items()}, **self.estimates}

    def without(self, names: Collection[str]) -> ModelResult:
        """The same without the measurements of some metrics."""
        return replace(self, measurements={name: m for name, m in self.measurements.items() if name not in names})

    def save(self, stem: Path) -> None:
        """Write `stem.npz` (contributions) and `stem.json` (the rest)."""
        stem.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {}
        for name, m in self.measurements.items():
            arrays[f"{name}/sums"], arrays[f"{name}/ids"] = m.sums_EM, np.array(m.ids, dtype=np.str_)
        np.savez_compressed(stem.with_suffix(".npz"), **arrays)
        rest = {
            "metrics": {name: asdict(m) for name, m in self.metrics.items()},
            "kinds": {name: m.kind for name, m in self.measurements.items()},
            "estimates": {name: asdict(e) for name, e in self.estimates.items()},
            "outputs": self.outputs,
            "correct": self.correct,
            "reliability": self.reliability,
        }
        stem.with_suffix(".json").write_text(json.dumps(rest, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, stem: Path) -> ModelResult:
        """The inverse of `save`.

        Raises:
            RunError: that model was not evaluated.
        """
        place = stem.with_suffix(".json")
        if not place.exists():
            raise RunError(
                f"{place} does not exist: {stem.name!r} was not evaluated. `stillhouse evaluate {stem.parents[1]}` "
                "does it."
            )
        rest = json.loads(place.read_text(encoding="utf-8"))
        with np.load(stem.with_suffix(".npz"), allow_pickle=False) as arrays:
            measurements = {
                name: Measurement(tuple(arrays[f"{name}/ids"].tolist()), arrays[f"{name}/sums"], kind)
                for name, kind in rest["kinds"].items()
            }
        return cls(
            {name: Metric(**m) for name, m in rest["metrics"].items()},
            measurements,
            {name: Estimate(**e) for name, e in rest["estimates"].items()},
            rest["outputs"],
            rest["correct"],
            rest["reliability"],
        )


def comparisons(one: ModelResult, other: ModelResult) -> dict[str, dict[str, Any]]:
    """One minus other, paired by example, for every metric both have."""
    return {
        name: asdict(compare(m, other.measurements[name]))
        for name, m in one.measurements.items()
        if name in other.measurements
    }


def choose_headline(metrics: Mapping[str, Metric], wanted: str | None) -> str:
    """The metric of a report's first sentence: the recipe's, else a task's, else closeness to the teacher, else
    likelihood.

    Raises:
        RunError: the recipe's is not among those measured.
    """
    if wanted is not None:
        if wanted not in metrics:
            raise RunError(f"headline is {wanted!r}, which was not measured. Measured: {', '.join(metrics)}.")
        return wanted
    for prefix in ("tasks.", "lm_eval.", "fidelity.kl", "likelihood.loss", ""):
        found = next((name for name in metrics if name.startswith(prefix)), None)
        if found is not None:
            return found
    raise RunError("Nothing was measured: evaluate names no evaluator that gave a number.")


def summarize(results: Mapping[str, ModelResult], headline: str | None) -> dict[str, Any]:
    """The content of evaluation.json from each role's result."""
    student, teacher, control = results["student"], results.get("teacher", ModelResult()), results.get("control")
    metrics = {name: m for result in results.values() for name, m in result.metrics.items()}
    measured = {role: results[role].measurements for role in ROLES if role in results}
    moved = shifts(measured)
    paired = [(one, other) for one, other in COMPARED if one in results and other in results]
    quality = [name for name in student.measurements if name in teacher.measurements]
    return {
        "format": FORMAT,
        "headline": choose_headline(metrics, headline),
        "models": {
            role: {name: asdict(e) for name, e in results[role].values().items()} for role in ROLES if role in results
        },
        "metrics": {name: asdict(m) for name, m in metrics.items()},
        "comparisons": {f"{one} - {other}": comparisons(results[one], results[other]) for one, other in paired},
        "recovery": {
            name: _share(recovery(student.measurements[name], teacher.measurements[name]))
            for name in quality
            if metrics[name].better == "higher"
        },
        "gap_closed": {
            name: _share(gap_closed(student.measurements[name], control.measurements[name], teacher.measurements[name]))
            for name in quality
            if control is not None and name in control.measurements
        },
        "reliability": {
            role: results[role].reliability for role in ROLES if role in results and results[role].reliability
        },
        "generalisation": [asdict(shift) for shift in moved],
        "signatures": [asdict(signature) for signature in find_signatures(measured, metrics, moved)],
    }


def _share(share: Share | None) -> dict[str, float] | None:
    return None if share is None else asdict(share)
