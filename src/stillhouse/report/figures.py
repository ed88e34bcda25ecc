"""The report's charts, as inline SVG. Every function takes finite numbers and answers one figure.

All charts are 400 units wide: on a phone they fill the column, on a desk they stand side by side.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from stillhouse.report import svg
from stillhouse.report.numbers import count, duration, percent, significant
from stillhouse.report.reading import SHORT, model_name

WIDTH = 400.0
Z95 = 1.96
Say = Callable[[float], str]
Sized = tuple["Dot", float]  # a point and its model's size


@dataclass(frozen=True)
class Dot:
    """One model's value with its standard error, and how it is written."""

    model: str
    value: float
    stderr: float
    label: str


@dataclass(frozen=True)
class Bar:
    """One labelled row of an interval plot or a bar chart."""

    title: str
    value: float
    low: float
    high: float
    label: str


@dataclass(frozen=True)
class Series:
    """One model's line; `band` is the range that was averaged into each point."""

    model: str
    points: list[tuple[float, float]]
    band: list[tuple[float, float, float]]


def dots(name: str, title: str, rows: Sequence[Dot], axis_title: str, say: Say) -> Markup:
    """The models on one axis with 95 % intervals: the picture of the headline."""
    bounds = [row.value + sign * Z95 * row.stderr for row in rows for sign in (-1, 1)]
    axis = svg.fit(bounds, 14, WIDTH - 14)
    row_height, top = 44.0, 8.0
    bottom = top + row_height * len(rows) + 2
    parts = [svg.x_axis(axis, bottom, axis_title, say, top)]
    for place, row in enumerate(rows):
        y = top + row_height * (place + 0.5) + 8
        low, high = row.value - Z95 * row.stderr, row.value + Z95 * row.stderr
        style = f"interval {svg.tone(row.model)}"
        parts.append(svg.line(axis(low), y, axis(high), y, style) if row.stderr else "")
        parts.append(svg.marker(row.model, axis(row.value), y, f"{model_name(row.model)}: {row.label}", 5.5))
        parts.append(svg.text(14, y - 15, model_name(row.model), "label halo"))
        parts.append(svg.text(WIDTH - 14, y - 15, row.label, "label halo strong", "end"))
    said = "; ".join(f"{model_name(row.model)} {row.label}" for row in rows)
    return svg.document(name, title, f"{said}. Bars are 95 % intervals.", (WIDTH, bottom + 40), parts)


def intervals(name: str, title: str, rows: Sequence[Bar], axis_title: str, marks: dict[float, str]) -> Markup:
    """Shares with their intervals, one row a metric; `marks` names the shares that mean something, such as 1."""
    ends = [end for row in rows for end in (row.low, row.high)]
    low, high = max(-1.0, min([*ends, *marks])), min(2.0, max([*ends, *marks]))
    axis = svg.fit([low, high], 14, WIDTH - 14)
    row_height, top = 42.0, 22.0
    bottom = top + row_height * len(rows) + 4
    parts = [svg.x_axis(axis, bottom, axis_title, percent)]
    for share, words in marks.items():
        x = min(max(axis(share), 14 + 3 * len(words)), WIDTH - 14 - 3 * len(words))
        parts.append(svg.text(x, top - 8, words, "tick", "middle"))
    for place, row in enumerate(rows):
        y = top + row_height * (place + 0.5) + 9
        parts += [svg.line(axis(share), y - 9, axis(share), y + 9, "reference") for share in marks]
        left, right = max(axis.inside(row.low), axis.start + 5), min(axis.inside(row.high), axis.end - 5)
        parts.append(svg.line(left, y, right, y, "interval m-student"))
        parts += [arrow(axis, end, y) for end in (row.low, row.high)]
        if axis.low <= row.value <= axis.high:
            parts.append(svg.marker("student", axis(row.value), y, f"{row.title}: {row.label}", 5))
        parts.append(svg.text(14, y - 13, svg.shortened(row.title, 50 - len(row.label)), "label halo"))
        parts.append(svg.text(WIDTH - 14, y - 13, row.label, "label halo", "end"))
    said = "; ".join(f"{row.title} {row.label}" for row in rows)
    return svg.document(name, title, f"{said}. Bars are 95 % intervals.", (WIDTH, bottom + 40), parts)


def arrow(axis: svg.Axis, end: float, y: float) -> str:
    """An arrow head where an interval leaves the axis; nothing where it ends inside."""
    if axis.low <= end <= axis.high:
        return ""
    x, way = (axis.end, -1) if end > axis.high else (axis.start, 1)
    tip = f"<title>the interval goes on to {svg.xml(percent(end))}</title>"
    return f'<path d="M{x:.1f} {y:.1f}l{way * 7} -5v10z" class="mark m-student">{tip}</path>'


def curves(name: str, title: str, lines: Sequence[Series], reference: Dot | None, say: Say, *, log: bool) -> Markup:
    """Values against steps, labelled at the lines' ends; a reference is a level that was not trained.

    With `log`, values that span far apart are drawn on a logarithmic axis.
    """
    height, left, right, top = 236.0, 46.0, WIDTH - 62, 26.0
    bottom = height - 42
    values = [y for series in lines for _, y in series.points]
    values += [end for series in lines for _, low, high in series.band for end in (low, high)]
    values += [reference.value] if reference else []
    log = log and min(values) > 0 and max(values) / min(values) > 25
    y = svg.fit(values, bottom, top, log=log)
    x = svg.Axis(0, max([step for series in lines for step, _ in series.points] + [1]), left, right)
    axis_title = f"{title}, logarithmic" if log else title
    parts = [svg.y_axis(y, left, right, axis_title, say), svg.x_axis(x, bottom, "training step", whole_count)]
    if reference:
        level, style = y(reference.value), f"dotted {svg.tone(reference.model)}"
        parts.append(svg.line(left, level, right, level, style))
    for series in lines:
        band = [(x(step), y(high)) for step, _, high in series.band]
        band += [(x(step), y(low)) for step, low, _ in reversed(series.band)]
        parts.append(svg.area(band, f"band {svg.tone(series.model)}") if band else "")
    for series in lines:
        points = [(x(step), y(value)) for step, value in series.points]
        parts.append(svg.polyline(points, f"curve {svg.tone(series.model)}"))
        tip = f"{model_name(series.model)}, step {count(series.points[-1][0])}: {say(series.points[-1][1])}"
        parts.append(svg.marker(series.model, *points[-1], tip, 4))
    ends = [(series.model, series.points[-1][1]) for series in lines]
    ends += [(reference.model, reference.value)] if reference else []
    places = svg.spread([y(value) + 4 for _, value in ends], top + 4, bottom + 2)
    for (model, _), place in zip(ends, places, strict=True):
        parts.append(svg.text(right + 9, place, SHORT.get(model, model), f"label {svg.tone(model)}"))
    said = "; ".join(f"{model_name(model)} ends at {say(value)}" for model, value in ends)
    return svg.document(name, f"{title} against training steps", f"{said}.", (WIDTH, height), parts)


def reliability(name: str, model: str, bins: Sequence[tuple[float, float, float]], note: str) -> Markup:
    """How often a model is right when it is so sure; on the diagonal it is exactly as right as it says."""
    width, left, right, top, bottom = 290.0, 44.0, 280.0, 26.0, 262.0
    x, y = svg.Axis(0, 1, left, right), svg.Axis(0, 1, bottom, top)
    parts = [svg.y_axis(y, left, right, "right, of those predictions", percent)]
    parts.append(svg.x_axis(x, bottom, "confidence of the prediction", percent))
    most = max(number for _, _, number in bins)
    widths = [later - earlier for (earlier, *_), (later, *_) in pairwise(bins)]
    half = (x(min(widths, default=0.1)) - x(0)) * 0.36
    half = min(max(half, 2.0), 9.0)
    for confidence, _, number in bins:
        tall = 44.0 * number / most
        box = f'x="{x(confidence) - half:.1f}" y="{bottom - tall:.1f}" width="{2 * half:.1f}" height="{tall:.1f}"'
        parts.append(f'<rect {box} class="count"><title>{svg.xml(count(number))} predictions</title></rect>')
    parts.append(svg.line(left, bottom, right, top, "reference"))
    parts.append(svg.polyline([(x(sure), y(right_)) for sure, right_, _ in bins], f"curve {svg.tone(model)}"))
    for sure, right_, number in bins:
        tip = f"{percent(sure)} sure, {percent(right_)} right, {count(number)} predictions"
        parts.append(svg.marker(model, x(sure), y(right_), tip, 4))
    said = "; ".join(f"{percent(sure)} sure and {percent(right_)} right" for sure, right_, _ in bins)
    title = f"Reliability of the {model_name(model)}"
    return svg.document(name, title, f"{note}. {said}.", (width, bottom + 42), parts)


def size_scatter(name: str, title: str, rows: Sequence[Sized], size_title: str, say: tuple[Say, Say]) -> Markup:
    """Quality against size on a logarithmic axis, each point labelled, with 95 % intervals."""
    height, left, right, top = 260.0, 46.0, WIDTH - 16, 26.0
    bottom = height - 42
    say_size, say_value = say
    y = svg.fit([dot.value + sign * Z95 * dot.stderr for dot, _ in rows for sign in (-1, 1)], bottom, top)
    x = svg.fit([size for _, size in rows], left, right, log=True)
    parts = [svg.y_axis(y, left, right, title, say_value)]
    parts.append(svg.x_axis(x, bottom, f"{size_title}, logarithmic", say_size))
    for dot, size in rows:
        low, high = y(dot.value - Z95 * dot.stderr), y(dot.value + Z95 * dot.stderr)
        style = f"interval thin {svg.tone(dot.model)}"
        parts.append(svg.line(x(size), low, x(size), high, style) if dot.stderr else "")
    for dot, size in rows:
        parts.append(svg.marker(dot.model, x(size), y(dot.value), f"{model_name(dot.model)}: {dot.label}", 5))
    for leftwards in (False, True):
        side = [(dot, size) for dot, size in rows if (x(size) > (left + right) / 2) == leftwards]
        places = svg.spread([y(dot.value) + 4 for dot, _ in side], top + 6, bottom - 4)
        for (dot, size), place in zip(side, places, strict=True):
            at, anchor = (x(size) - 11, "end") if leftwards else (x(size) + 11, "start")
            style = f"label halo {svg.tone(dot.model)}"
            parts.append(svg.text(at, place, SHORT.get(dot.model, dot.model), style, anchor))
    said = "; ".join(f"{model_name(dot.model)} {dot.label} at {say_size(size)} {size_title}" for dot, size in rows)
    return svg.document(name, f"{title} against {size_title}", f"{said}.", (WIDTH, height), parts)


def stage_bars(name: str, rows: Sequence[tuple[str, float]]) -> Markup:
    """Time by stage."""
    top, row_height = 4.0, 40.0
    height = top + row_height * len(rows)
    longest = max(seconds for _, seconds in rows) or 1.0
    parts = []
    for place, (stage, seconds) in enumerate(rows):
        y = top + row_height * place
        parts.append(svg.text(0, y + 13, stage, "label"))
        parts.append(svg.text(WIDTH, y + 13, duration(seconds), "label strong", "end"))
        parts.append(f'<rect x="0" y="{y + 20:.1f}" width="{WIDTH:g}" height="7" rx="3.5" class="track"/>')
        long = max(7.0, WIDTH * seconds / longest)
        parts.append(f'<rect x="0" y="{y + 20:.1f}" width="{long:.1f}" height="7" rx="3.5" class="bar"/>')
    said = "; ".join(f"{stage} {duration(seconds)}" for stage, seconds in rows)
    return svg.document(name, "Time by stage", f"{said}.", (WIDTH, height), parts)


def whole_count(value: float) -> str:
    """A tick's count, without the zeros behind the point: `1 M`."""
    return re.sub(r"\.0+(?=\D)", "", count(value))


def plain_number(value: float) -> str:
    """A tick's number where the metric has no unit of its own."""
    return f"{value:g}".replace("-", "−") if abs(value) < 1e4 else significant(value)
