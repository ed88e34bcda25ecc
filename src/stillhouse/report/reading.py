"""Reads a run folder into typed pieces; what a run did not write is simply empty."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stillhouse.errors import RunError
from stillhouse.report.numbers import Metric, is_number

FORMAT = 1
MODELS = ("teacher", "student_before", "random_control", "random", "control", "student")
NAMES = {
    "teacher": "teacher",
    "student_before": "student before",
    "random_control": "random rows (plain)",
    "random": "random rows (distilled)",
    "control": "control (plain training)",
    "student": "student (distilled)",
}
SHORT = {
    "teacher": "teacher",
    "student_before": "before",
    "random_control": "random, plain",
    "random": "random rows",
    "control": "control",
    "student": "student",
}


def model_name(model: str) -> str:
    """A model's readable name."""
    return NAMES.get(model, model.replace("_", " "))


def detail(name: str) -> tuple[str, str]:
    """A model's name and what stands in brackets behind it.

    >>> detail("control (plain training)")
    ('control', 'plain training')
    """
    short, _, rest = name.partition(" (")
    return short, rest.removesuffix(")")


@dataclass(frozen=True)
class Measurement:
    """One model's value of one metric; `stderr` is None for exact counts."""

    value: float
    stderr: float | None = None
    n: int | None = None

    def over(self, other: Measurement) -> float | None:
        """The ratio to another value, where both are positive and finite."""
        if not is_number(self.value) or not is_number(other.value) or min(self.value, other.value) <= 0:
            return None
        return self.value / other.value


@dataclass(frozen=True)
class Interval:
    """A share with its confidence interval."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """A paired difference of two models, with its interval and what the test could have seen at all."""

    difference: float
    low: float | None
    high: float | None
    resolved: bool
    mde: float | None = None
    n: int | None = None
    stderr: float | None = None

    @property
    def half_width(self) -> float | None:
        """Half of the interval, which sets how finely the difference is written."""
        return (self.high - self.low) / 2 if is_number(self.low) and is_number(self.high) else None


@dataclass(frozen=True)
class Shift:
    """One metric from a data set to a less familiar one: each model's change, and how much more the student's is than
    another's, by pair."""

    metric: str
    home: str
    away: str
    changes: Mapping[str, Comparison]
    excess: Mapping[str, Comparison]


@dataclass(frozen=True)
class Evaluation:
    """evaluation.json with typed access; every look-up answers None for what was not measured."""

    raw: Mapping[str, Any]

    @property
    def models(self) -> list[str]:
        """The models that were measured: the four in their fixed order, then any other."""
        measured = self.raw["models"]
        return [m for m in MODELS if m in measured] + [m for m in measured if m not in MODELS]

    @property
    def headline(self) -> Metric | None:
        """The metric of the headline, if the student was measured on it."""
        name = self.raw.get("headline")
        return self.metric(name) if isinstance(name, str) and self.measurement("student", name) else None

    def metric(self, name: str) -> Metric:
        """A metric's description; on additional data sets that of the metric without its prefix."""
        known = self.raw.get("metrics") or {}
        base = name.rpartition(":")[2]
        info = known.get(name) or known.get(base) or {}
        better = info.get("better")
        title = str(info.get("title") or base.replace(".", " ").replace("_", " "))
        return Metric(name, title, str(info.get("unit") or ""), better if better in ("higher", "lower") else "none")

    @property
    def metrics(self) -> list[Metric]:
        """All metrics that any model was measured on, in the file's order, the headline first, other data sets last."""
        measured = [name for values in self.raw["models"].values() for name in values]
        order = {name: place for place, name in enumerate(dict.fromkeys([*(self.raw.get("metrics") or {}), *measured]))}
        names = sorted(set(measured), key=lambda name: (name != self.raw.get("headline"), ":" in name, order[name]))
        return [self.metric(name) for name in names]

    def measurement(self, model: str, metric: str) -> Measurement | None:
        """One model's value of one metric."""
        found = self.raw["models"].get(model, {}).get(metric)
        if not isinstance(found, Mapping) or not isinstance(found.get("value"), int | float):
            return None
        return Measurement(found["value"], found.get("stderr"), found.get("n"))

    def comparison(self, pair: str, metric: str) -> Comparison | None:
        """A difference such as `student - control` on one metric."""
        return read_comparison(((self.raw.get("comparisons") or {}).get(pair) or {}).get(metric))

    def interval(self, kind: str, metric: str) -> Interval | None:
        """The `recovery` or `gap_closed` of one metric, where it could be computed."""
        found = (self.raw.get(kind) or {}).get(metric)
        if not isinstance(found, Mapping) or not is_number(found.get("value")):
            return None
        return Interval(found["value"], found.get("low"), found.get("high"))

    def shifts(self) -> list[Shift]:
        """Every metric that was measured on two data sets, with how it changes from one to the other."""
        rows = [row for row in self.raw.get("generalisation") or [] if isinstance(row, Mapping)]
        return [read_shift(row) for row in rows if {"metric", "home", "away"} <= row.keys()]

    def signatures(self) -> list[Mapping[str, Any]]:
        """The failure signatures that were found."""
        return [found for found in self.raw.get("signatures") or [] if isinstance(found, Mapping)]

    def reliability(self) -> dict[str, list[dict[str, Any]]]:
        """Reliability bins by model, in the models' order."""
        found = self.raw.get("reliability") or {}
        return {model: found[model] for model in self.models if found.get(model)}


def read_comparison(found: object) -> Comparison | None:
    """A difference as evaluation.json holds it."""
    if not isinstance(found, Mapping) or not isinstance(found.get("difference"), int | float):
        return None
    low, high, resolved = found.get("low"), found.get("high"), found.get("resolved") is True
    return Comparison(found["difference"], low, high, resolved, found.get("mde"), found.get("n"), found.get("stderr"))


def read_shift(row: Mapping[str, Any]) -> Shift:
    """A change between data sets as evaluation.json holds it."""
    changes, excess = (
        {name: read for name, found in (row.get(part) or {}).items() if (read := read_comparison(found))}
        for part in ("changes", "excess")
    )
    return Shift(str(row["metric"]), str(row["home"]), str(row["away"]), changes, excess)


@dataclass(frozen=True)
class Run:
    """What a run folder holds for the report."""

    path: Path
    evaluation: Evaluation
    rows: list[dict[str, Any]]
    recipe_text: str
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    stages: list[dict[str, Any]]
    samples: list[dict[str, Any]]


def read_run(path: Path) -> Run:
    """Read a run folder; only evaluation.json is required."""
    source = path / "evaluation.json"
    if not source.is_file():
        raise RunError(
            f"{path} holds no evaluation.json, so there is nothing to report yet. Finish the run first (stillhouse run "
            "takes up where it stopped), or name another run folder."
        )
    raw = read_json(source)
    if raw.get("format") != FORMAT or not isinstance(raw.get("models"), dict):
        raise RunError(
            f"{source} has format {raw.get('format')!r}; this Stillhouse reads format {FORMAT} with a 'models' table. "
            "Evaluate the run again with this version, or report it with the version that wrote it."
        )
    recipe = path / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else ""
    return Run(
        path=path,
        evaluation=Evaluation(raw),
        rows=read_rows(path / "metrics.jsonl"),
        recipe_text=text,
        recipe=read_recipe(text),
        environment=read_json(path / "environment.json") if (path / "environment.json").is_file() else {},
        stages=[read_json(stage) for stage in stage_files(path)],
        samples=read_rows(path / "samples.jsonl"),
    )


def stage_files(path: Path) -> list[Path]:
    """The stages' records in the order in which they were finished."""
    return sorted((path / "stages").glob("*.json"), key=lambda file: (file.stat().st_mtime_ns, file.name))


def read_recipe(text: str) -> Mapping[str, Any]:
    """The recipe as data; a text that is no YAML mapping is still shown, as text."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        raise RunError(f"{path} is not valid JSON ({error}). Delete it and run its stage again.") from error
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise RunError(f"{path} should hold a JSON object, not a {kind}. Delete it and run its stage again.")
    return found


def read_rows(path: Path) -> list[dict[str, Any]]:
    """JSON lines; a last line that was cut off by a killed run is left out, any other broken line is an error."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise RunError(f"{path}, line {number} is not valid JSON ({error}). Repair or delete the line.") from error
        if isinstance(row, dict):
            rows.append(row)
    return rows
