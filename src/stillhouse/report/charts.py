"""From a run's numbers to its figures: chooses, cleans and thins what `figures` draws."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from markupsafe import Markup

from stillhouse.report import figures, svg
from stillhouse.report.figures import Bar, Dot, Say, Series
from stillhouse.report.numbers import NBSP, Metric, count, fixed, in_bytes, is_number, percent
from stillhouse.report.reading import MODELS, Evaluation, Run, model_name

POINTS = 120  # more points than this in one line are averaged in bins
QUALITY_CURVES = 4
NO_PLOT_FAMILIES = ("efficiency",)


@dataclass(frozen=True)
class Figure:
    """One figure with what stands above and below it."""

    title: str
    picture: Markup
    note: str = ""


def slug(text: str) -> str:
    """A name fit for an id in the page."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "figure"


def speaker(metric: Metric) -> Say:
    """How a metric's ticks are written."""
    if metric.unit == "share":
        return lambda value: fixed(100 * value, 0 if float(f"{100 * value:.6g}").is_integer() else 1) + NBSP + "%"
    if metric.unit == "bytes":
        return in_bytes
    return figures.plain_number


def axis_title(metric: Metric) -> str:
    """A metric's title with unit and direction."""
    unit = f", {metric.label_unit}" if metric.label_unit else ""
    title = svg.shortened(metric.title, 52 - len(unit))
    hint = f" ({metric.arrow} {metric.better} is better)" if metric.arrow else ""
    return f"{title}{unit}{hint if len(title + unit + hint) <= 56 else ' ' + metric.arrow}"


def dot(evaluation: Evaluation, model: str, metric: Metric) -> Dot | None:
    """A model's value as a point of a figure; None if it is absent or not finite."""
    found = evaluation.measurement(model, metric.id)
    if found is None or not is_number(found.value):
        return None
    spread = metric.stderr(found.stderr)
    label = metric.value(found.value, found.stderr) + (f" ± {spread}" if spread else "")
    return Dot(model, found.value, found.stderr if is_number(found.stderr) else 0.0, label)


def headline_figure(evaluation: Evaluation) -> Figure | None:
    """All models on the headline metric."""
    metric = evaluation.headline
    if metric is None:
        return None
    rows = [found for model in evaluation.models if (found := dot(evaluation, model, metric))]
    if len(rows) < 2:
        return None
    picture = figures.dots("fig-headline", f"{metric.title} of the models", rows, axis_title(metric), speaker(metric))
    note = "± one standard error; bars are 95\u00a0% intervals." if any(row.stderr for row in rows) else ""
    return Figure(metric.title, picture, note)


def kept_figures(evaluation: Evaluation) -> list[Figure]:
    """Recovery and share of the gap closed, by metric, each as an interval plot."""
    found = []
    higher = [metric for metric in evaluation.metrics if metric.better == "higher"]
    if rows := bars(evaluation, "recovery", higher):
        marks = {1.0: "the teacher"}
        title = "Recovery: the student’s score over its teacher’s"
        picture = figures.intervals("fig-recovery", title, rows, "share of the teacher’s score", marks)
        found.append(Figure(title, picture))
    if rows := bars(evaluation, "gap_closed", evaluation.metrics):
        marks = {0.0: "plain training", 1.0: "the teacher"}
        title = "Gap closed: from plain training towards the teacher"
        found.append(Figure(title, figures.intervals("fig-gap", title, rows, "share of the gap", marks)))
    return found


def bars(evaluation: Evaluation, kind: str, metrics: Sequence[Metric]) -> list[Bar]:
    """The rows of an interval plot."""
    rows = []
    for metric in metrics:
        share = evaluation.interval(kind, metric.id)
        if share is None or metric.family in NO_PLOT_FAMILIES:
            continue
        low, high = (end if is_number(end) else share.value for end in (share.low, share.high))
        spread = f" ({fixed(100 * low, 0)} to {fixed(100 * high, 0)})" if high > low else ""
        title = f"{metric.title}, {metric.dataset.replace('_', ' ')}" if metric.dataset else metric.title
        rows.append(Bar(title, share.value, low, high, percent(share.value) + spread))
    return rows


def training_figures(run: Run) -> tuple[list[Figure], str]:
    """The loss by objective for every trained model, and a sentence on values left out."""
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    dropped = 0
    for row in run.rows:
        if not is_number(row.get("step")) or "evaluation" in row:
            continue
        parts = row.get("objectives") or {"loss": row.get("loss")}
        for name, value in parts.items():
            if is_number(value):
                lines.setdefault(name, {}).setdefault(str(row.get("model")), []).append((row["step"], value))
            else:
                dropped += 1
    found = []
    for name, by_model in lines.items():
        drawn = [thin(model, by_model[model]) for model in in_order(by_model)]
        picture = figures.curves(f"fig-loss-{slug(name)}", "loss", drawn, None, figures.plain_number, log=True)
        note = "Line: mean of neighbouring steps; band: their range." if any(series.band for series in drawn) else ""
        found.append(Figure(f"Training loss: {name}", picture, note))
    what = "value that is not a finite number is" if dropped == 1 else "values that are not finite numbers are"
    return found, f"{count(dropped)} {what} left out of the curves." if dropped else ""


def quality_figures(run: Run) -> list[Figure]:
    """Held-out quality during training: the headline metric and a few more, the teacher as a level."""
    rows = [row for row in run.rows if isinstance(row.get("evaluation"), dict) and is_number(row.get("step"))]
    names = dict.fromkeys(name for row in rows for name in row["evaluation"])
    wanted = run.evaluation.raw.get("headline")
    metrics = [run.evaluation.metric(name) for name in sorted(names, key=lambda name: (name != wanted, ":" in name))]
    found = []
    for metric in metrics:
        by_model: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if is_number(row["evaluation"].get(metric.id)):
                by_model.setdefault(str(row.get("model")), []).append((row["step"], row["evaluation"][metric.id]))
        if metric.family in NO_PLOT_FAMILIES or not any(len(points) > 1 for points in by_model.values()):
            continue
        drawn = [thin(model, by_model[model]) for model in in_order(by_model)]
        level = dot(run.evaluation, "teacher", metric)
        picture = figures.curves(
            f"fig-steps-{slug(metric.id)}",
            axis_title(metric),
            drawn,
            level,
            speaker(metric),
            log=metric.better == "lower",
        )
        note = "Points: the first held-out examples, at most 100." + (" Dotted: the teacher, on all." if level else "")
        found.append(Figure(f"{metric.title} during training", picture, note))
    return found[:QUALITY_CURVES]


def in_order(models: dict[str, Any]) -> list[str]:
    """The student last, so that its line lies on top."""
    return [model for model in MODELS if model in models] + [model for model in models if model not in MODELS]


def thin(model: str, points: list[tuple[float, float]]) -> Series:
    """A line of at most `POINTS` points, each the mean of its neighbours, with their range as a band."""
    points = sorted(points)
    if len(points) <= POINTS:
        return Series(model, points, [])
    edges = [round(place * len(points) / POINTS) for place in range(POINTS + 1)]
    bins = [points[first:last] for first, last in pairwise(edges)]
    steps = [fmean(step for step, _ in part) for part in bins[:-1]] + [points[-1][0]]
    values = [[value for _, value in part] for part in bins]
    line = [(step, fmean(part)) for step, part in zip(steps, values, strict=True)]
    return Series(model, line, [(step, min(part), max(part)) for step, part in zip(steps, values, strict=True)])


def reliability_figures(evaluation: Evaluation) -> list[Figure]:
    """One reliability diagram a model, with its expected calibration error."""
    found = []
    for model, rows in evaluation.reliability().items():
        if model == "student_before":  # a model that was not trained yet has nothing to be sure of
            continue
        bins = [(row.get("confidence"), row.get("accuracy"), row.get("count")) for row in rows]
        known = sorted((a, b, n) for a, b, n in bins if is_number(a) and is_number(b) and is_number(n) and n > 0)
        if not known:
            continue
        metric = evaluation.metric("calibration.ece")
        error = dot(evaluation, model, metric)
        note = f"{metric.title} {error.label}" if error else ""
        name = f"fig-reliability-{slug(model)}"
        picture = figures.reliability(name, model, known, note or "No calibration error given")
        found.append(Figure(model_name(model).capitalize(), picture, note))
    return found


def size_figure(evaluation: Evaluation) -> Figure | None:
    """The headline metric against the models' sizes."""
    metric = evaluation.headline
    for name, title in (("efficiency.parameters", "parameters"), ("efficiency.bytes", "size on disk")):
        rows = []
        for model in evaluation.models:
            size = evaluation.measurement(model, name)
            point = dot(evaluation, model, metric) if metric else None
            if point and size and is_number(size.value) and size.value > 0:
                rows.append((point, size.value))
        if metric and len({size for _, size in rows}) > 1:
            say = (figures.whole_count if title == "parameters" else in_bytes, speaker(metric))
            picture = figures.size_scatter("fig-size", axis_title(metric), rows, title, say)
            return Figure(f"{metric.title} against {title}", picture, "Bars are 95\u00a0% intervals.")
    return None


def stage_figure(run: Run) -> Figure | None:
    """Wall time by stage."""
    rows = [(str(stage.get("stage")), stage["seconds"]) for stage in run.stages if is_number(stage.get("seconds"))]
    return Figure("Time by stage", figures.stage_bars("fig-stages", rows)) if rows else None
