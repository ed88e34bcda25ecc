"""A figure of any lines against any number: what studies and sweeps plot that is no run of the four models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from stillhouse.report import svg
from stillhouse.report.figures import WIDTH, Say, plain_number

KINDS = 6
"""Colours, each with a dash of its own, so that lines are told apart without colour and where they lie on one another;
a seventh line begins again."""


@dataclass(frozen=True)
class Line:
    """Values against a number.

    Attributes:
        label: what stands at its end; short.
        points: (x, value), x rising.
        band: (x, low, high) of an interval around the values; empty for none.
        reference: drawn dotted in the colour of the text: what the others are held against.
    """

    label: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    reference: bool = False


def lines(name: str, title: str, rows: Sequence[Line], axis_titles: tuple[str, str], say: Say) -> Markup:
    """Lines with their intervals, labelled at their ends, best end first in the description.

    Args:
        name: unique in the page.
        title: of the figure.
        rows: at least one line, none without points.
        axis_titles: of the horizontal axis and of the vertical one.
        say: how a value is written.
    """
    height, left, right, top = 250.0, 46.0, WIDTH - 112, 26.0
    bottom = height - 42
    values = [y for row in rows for _, y in row.points] + [end for row in rows for _, *ends in row.band for end in ends]
    places = [x for row in rows for x, _ in row.points]
    y, x = svg.fit(values, bottom, top), svg.fit(places, left, right, pad=0.02)
    parts = [svg.y_axis(y, left, right, axis_titles[1], say), svg.x_axis(x, bottom, axis_titles[0], plain_number)]
    tones = _tones(rows)
    for row, tone in zip(rows, tones, strict=True):
        band = [(x(at), y(high)) for at, _, high in row.band] + [(x(at), y(low)) for at, low, _ in reversed(row.band)]
        parts.append(svg.area(band, f"band {tone}") if band else "")
    for row, tone in zip(rows, tones, strict=True):
        points = [(x(at), y(value)) for at, value in row.points]
        parts.append(svg.polyline(points, f"{'dotted' if row.reference else 'curve'} {tone}"))
    ends = svg.spread([y(row.points[-1][1]) + 4 for row in rows], top + 4, bottom + 2)
    for row, tone, place in zip(rows, tones, ends, strict=True):
        parts.append(svg.text(right + 7, place, svg.shortened(row.label, 18), f"label {tone}"))
    told = sorted(rows, key=lambda row: -row.points[-1][1])
    said = "; ".join(f"{row.label} ends at {say(row.points[-1][1])}" for row in told)
    return svg.document(name, title, f"{said}.", (WIDTH, height), parts)


def _tones(rows: Sequence[Line]) -> list[str]:
    """A style for each line; references take no colour from the others."""
    found, taken = [], 0
    for row in rows:
        found.append("l-ref" if row.reference else f"l-{taken % KINDS}")
        taken += not row.reference
    return found
