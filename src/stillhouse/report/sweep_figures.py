"""Figures of a sweep: a metric against the number that was varied, or setting by setting where no number was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from stillhouse.report import svg
from stillhouse.report.figures import WIDTH, Say, plain_number

_LOGARITHMIC = 5.0
"""From this ratio of the largest to the smallest value on, values stand on a logarithmic axis."""

_ASIDE = 9.0
"""How far the seeds stand beside their mean, which would hide them."""


@dataclass(frozen=True)
class Place:
    """One setting: its value where one number was varied, the student's mean with its interval, every seed's value, and
    the control's mean."""

    name: str
    at: float | None
    value: float
    interval: tuple[float, float] | None
    each: Sequence[float]
    control: float | None
    label: str


def _bounds(places: Sequence[Place]) -> list[float]:
    controls = [place.control for place in places if place.control is not None]
    return [v for p in places for v in (p.value, *p.each, *(p.interval or ()))] + controls


def _said(places: Sequence[Place]) -> str:
    return "; ".join(f"{place.name} {place.label}" for place in places) + "."


def trend(name: str, title: str, places: Sequence[Place], varied: str, say: Say) -> Markup:
    """A metric against the number that was varied: every seed, their mean with its interval, the control."""
    height, left, right, top = 250.0, 46.0, WIDTH - 16, 26.0
    bottom = height - 42
    known = sorted((place.at, place) for place in places if place.at is not None)
    values = [at for at, _ in known]
    log = values[0] > 0 and values[-1] / values[0] >= _LOGARITHMIC
    x, y = svg.fit(values, left, right, log=log), svg.fit(_bounds(places), bottom, top)
    parts = [svg.y_axis(y, left, right, title, say), svg.line(left, bottom, right, bottom, "axis")]
    for at in values:
        parts.append(svg.line(x(at), bottom, x(at), bottom + 4, "axis"))
        parts.append(svg.text(x(at), bottom + 16, plain_number(at), anchor="middle"))
    label = f"{varied}, logarithmic" if log else varied
    parts.append(svg.text((left + right) / 2, bottom + 33, label, "axis-title", "middle"))
    controls = [(x(at), y(place.control)) for at, place in known if place.control is not None]
    parts.append(svg.polyline(controls, "curve m-control"))
    parts += [svg.marker("control", *point, "control", 3.5) for point in controls]
    for at, place in known:
        if place.interval:
            parts.append(svg.line(x(at), y(place.interval[0]), x(at), y(place.interval[1]), "interval thin m-student"))
    parts.append(svg.polyline([(x(at), y(place.value)) for at, place in known], "curve m-student"))
    for at, place in known:
        parts += [svg.marker("student", x(at) + _ASIDE, y(value), say(value), 2.5) for value in place.each]
        parts.append(svg.marker("student", x(at), y(place.value), f"{place.name}: {place.label}", 5))
    return svg.document(name, f"{title} against {varied}", _said(places), (WIDTH, height), parts)


def ranks(name: str, title: str, places: Sequence[Place], axis_title: str, say: Say) -> Markup:
    """One row a setting: every seed, their mean with its interval, the control."""
    axis = svg.fit(_bounds(places), 14, WIDTH - 14)
    row_height, top = 44.0, 8.0
    bottom = top + row_height * len(places) + 2
    parts = [svg.x_axis(axis, bottom, axis_title, say, top)]
    for number, place in enumerate(places):
        y = top + row_height * (number + 0.5) + 8
        if place.interval:
            parts.append(svg.line(axis(place.interval[0]), y, axis(place.interval[1]), y, "interval m-student"))
        if place.control is not None:
            parts.append(svg.marker("control", axis(place.control), y, "control", 4))
        parts += [svg.marker("student", axis(value), y + _ASIDE, say(value), 2.5) for value in place.each]
        parts.append(svg.marker("student", axis(place.value), y, f"{place.name}: {place.label}", 5.5))
        parts.append(svg.text(14, y - 15, svg.shortened(place.name, 50 - len(place.label)), "label halo"))
        parts.append(svg.text(WIDTH - 14, y - 15, place.label, "label halo strong", "end"))
    return svg.document(name, title, _said(places), (WIDTH, bottom + 40), parts)
