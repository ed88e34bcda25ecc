"""The page of a sweep, from what sweep.json holds: which setting is best and whether that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from stillhouse.replicates import student_quantile
from stillhouse.report.charts import Figure, axis_title, slug, speaker
from stillhouse.report.findings import Findings, Table
from stillhouse.report.numbers import ABSENT, NBSP, Metric, duration, fixed, is_number
from stillhouse.report.sweep_figures import Place, ranks, trend

_FEW = 10
"""Seeds below which a reader is told that they are few."""


def sweep_findings(found: Mapping[str, Any]) -> Findings:
    """Claim, tables and figures of a sweep."""
    metrics = [Metric(id=name, **found["metrics"][name]) for name in found["shown"]]
    seeds = [len(setting["runs"]) for setting in found["settings"].values()]
    evidence = f"{len(seeds)} settings, seeds {', '.join(map(str, found['seeds']))}, {sum(seeds)} runs."
    if found["failed"]:
        evidence += f" Failed and not in any number: {', '.join(found['failed'])}."
    evidence += _few(max(seeds))
    figures = [figure for metric in metrics if (figure := _figure(found, metric))]
    return Findings(
        _claim(found, metrics[0]), evidence, [_means(found, metrics), *figures, *_differences(found, metrics)]
    )


def _few(seeds: int) -> str:
    """What so few seeds mean for the intervals; nothing where they are many."""
    if seeds == 1:
        return " One seed cannot say how much another one would change: intervals are over examples."
    if seeds >= _FEW:
        return ""
    wide = student_quantile(0.95, seeds - 1)
    return f" {seeds} seeds are few: a 95\u00a0% interval over them is {fixed(wide, 1)} standard errors to each side."


def _claim(found: Mapping[str, Any], metric: Metric) -> str:
    best = found["best"].get(metric.id)
    means = {name: value for name in found["settings"] if (value := _mean(found, name, "student", metric))}
    if best is None:
        return f"{metric.title} of {len(means)} settings, of which neither direction is better"
    name, against = best["setting"], best["against"]
    value = metric.value(means[name]["value"], means[name]["stderr"], unit=True)
    if not against:
        return f"{name} gives {metric.name} {value}; there is no other setting to hold it against"
    unresolved = [other for other, d in against.items() if not d["resolved"]]
    if len(unresolved) == len(against):
        return (
            f"No setting is better than all others by {metric.name}: the best, {name}, {value}, is told apart from none"
        )
    if unresolved:
        others = ", ".join(unresolved)
        return f"{name} has the best {metric.name}, {value}, but is not told apart from {others}"
    nearest = min(against, key=lambda other: abs(against[other]["difference"]))
    return (
        f"{name} has the best {metric.name}, {value}: {_change(against[nearest], metric)} against {nearest}, the next"
    )


def _mean(found: Mapping[str, Any], setting: str, role: str, metric: Metric) -> dict[str, Any] | None:
    return found["settings"][setting]["means"].get(role, {}).get(metric.id)


def _spread(metric: Metric, found: Mapping[str, Any]) -> float | None:
    return (found["high"] - found["low"]) / 2 if is_number(found["low"]) else None


def _with_interval(found: Mapping[str, Any] | None, metric: Metric) -> str:
    if found is None:
        return ABSENT
    said = metric.value(found["value"], found["stderr"])
    if not is_number(found["low"]) or found["low"] == found["high"]:
        return said
    low, high = (metric.value(found[end], found["stderr"]).removesuffix(f"{NBSP}%") for end in ("low", "high"))
    return f"{said} ({low} to {high})"


def _change(found: Mapping[str, Any], metric: Metric) -> str:
    """A paired difference with its interval and what it comes to."""
    spread = _spread(metric, found)
    said = metric.difference(found["difference"], spread, unit=metric.unit == "share")
    if spread is None:
        return f"{said}, unresolved"
    said += f" ({metric.difference(found['low'], spread)} to {metric.difference(found['high'], spread)})"
    if not found["resolved"]:
        return f"{said}, unresolved"
    if metric.better == "none":
        return f"{said}, resolved"
    return f"{said}, {'better' if (found['difference'] > 0) == (metric.better == 'higher') else 'worse'}"


def _heads(metrics: Sequence[Metric]) -> list[str]:
    return [" ".join(filter(None, (metric.title, metric.label_unit, metric.arrow))) for metric in metrics]


def _means(found: Mapping[str, Any], metrics: Sequence[Metric]) -> Table:
    rows = [
        [name, *(_with_interval(_mean(found, name, "student", metric), metric) for metric in metrics)]
        for name in found["settings"]
    ]
    for role, title in (("control", "control, without the teacher"), ("teacher", "teacher")):
        found_means = [[_mean(found, name, role, metric) for metric in metrics] for name in found["settings"]]
        if found_means and all(means == found_means[0] for means in found_means) and any(found_means[0]):
            rows.append(
                [title, *(_with_interval(mean, metric) for mean, metric in zip(found_means[0], metrics, strict=True))]
            )
    note = "Means over seeds of the student; in brackets the 95\u00a0% interval over seeds by Student’s distribution."
    return Table("Settings", ["setting", *_heads(metrics)], rows, note)


def _differences(found: Mapping[str, Any], metrics: Sequence[Metric]) -> list[Table]:
    heads, tables = _heads(metrics), []
    if found["comparisons"]:
        first = next(iter(found["comparisons"])).rpartition(" - ")[2]
        rows = [[pair.rpartition(" - ")[0], *_changes(d, metrics)] for pair, d in found["comparisons"].items()]
        note = (
            f"{_basis(found['comparisons'].values(), metrics)} Unresolved: the interval holds zero, or the difference "
            "is smaller than a test of this size can find. The intervals are not widened for the number of comparisons."
        )
        tables.append(Table(f"Against {first}", ["setting", *heads], rows, note))
    against = {name: setting["student - control"] for name, setting in found["settings"].items()}
    if any(against.values()):
        rows = [[name, *_changes(d, metrics)] for name, d in against.items()]
        note = f"{_basis(against.values(), metrics)} The control is the same student trained without the teacher."
        tables.append(Table("Against the control", ["setting", *heads], rows, note))
    return [*tables, _every_run(found, metrics)]


def _changes(differences: Mapping[str, Any], metrics: Sequence[Metric]) -> list[str]:
    return [_change(differences[m.id], m) if m.id in differences else ABSENT for m in metrics]


def _basis(differences: Any, metrics: Sequence[Metric]) -> str:
    """How the differences were paired, in a sentence."""
    wanted = {metric.id for metric in metrics}
    found = list(chain.from_iterable([d for name, d in item.items() if name in wanted] for item in differences))
    kinds = list(dict.fromkeys(d["basis"] for d in found))
    words = {"seeds and examples": "by seed and by example", "seeds": "by seed", "examples": "by example, of one seed"}
    return f"Paired {'; some '.join(words[kind] for kind in kinds)}; in brackets the 95\u00a0% interval."


def _every_run(found: Mapping[str, Any], metrics: Sequence[Metric]) -> Table:
    rows = []
    for setting in found["settings"].values():
        for run in setting["runs"].values():
            estimates = [run["models"]["student"].get(metric.id) for metric in metrics]
            cells = [
                metric.value(e["value"], e["stderr"])
                + (f" ± {spread}" if (spread := metric.stderr(e["stderr"])) else "")
                if e
                else ABSENT
                for e, metric in zip(estimates, metrics, strict=True)
            ]
            rows.append([run["folder"], *cells, duration(run["seconds"])])
    note = f"± one standard error over examples. {found['jobs']} at a time, threads of each: {found['threads']}."
    return Table("Every run", ["run", *_heads(metrics), "time"], rows, note)


def _figure(found: Mapping[str, Any], metric: Metric) -> Figure | None:
    """The metric against what was varied: on a number line where one number was, else setting by setting."""
    places = []
    varied = found["varied"]
    for name, setting in found["settings"].items():
        mean = _mean(found, name, "student", metric)
        if mean is None or not is_number(mean["value"]):
            continue
        value = setting["overrides"][varied[0]] if len(varied) == 1 else None
        each = [run["models"]["student"][metric.id]["value"] for run in setting["runs"].values()]
        control = (_mean(found, name, "control", metric) or {}).get("value")
        label = metric.value(mean["value"], mean["stderr"])
        interval = (mean["low"], mean["high"]) if is_number(mean["low"]) else None
        places.append(Place(name, value, mean["value"], interval, each, control, label))
    if len(places) < 2:
        return None
    note = "Small: every seed. Large: their mean, with its 95\u00a0% interval over seeds."
    if any(place.control is not None for place in places):
        note += " Triangles: the control’s mean."
    picture, name = None, f"fig-sweep-{slug(metric.id)}"
    if all(is_number(place.at) for place in places):
        picture = trend(name, axis_title(metric), places, varied[0], speaker(metric))
    else:
        picture = ranks(name, metric.title, places, axis_title(metric), speaker(metric))
    return Figure(metric.title, picture, note)
