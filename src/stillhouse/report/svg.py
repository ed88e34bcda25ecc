"""The few SVG parts that every figure is made of: axes, ticks, markers, labels that do not overlap.

Colours come from the page's style sheet through a class per model, so that light, dark and print are decided there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from stillhouse.report.reading import MODELS

LINE = 14.0  # the least distance between two labels, in user units
# Characters that XML 1.0 cannot carry, not even escaped.
ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def printable(text: str) -> str:
    """Text without the control characters and lone surrogates that no page may hold."""
    return ILLEGAL.sub("\ufffd", text)


def xml(text: object) -> str:
    """Text made safe for element content and attributes."""
    return escape(printable(str(text)))


def tone(model: str) -> str:
    """The class that gives a model its colour."""
    return f"m-{model}" if model in MODELS else "m-other"


@dataclass(frozen=True)
class Axis:
    """Maps values onto pixels, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        place = (math.log(max(value, 1e-300)) if self.log else value) - low
        return self.start + (self.end - self.start) * place / (high - low)

    def inside(self, value: float) -> float:
        """The pixel of a value, held within the axis."""
        return self(min(max(value, self.low), self.high))

    def ticks(self, count: int = 5) -> list[float]:
        """Round values along the axis."""
        found = log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high, count)
        return found or [self.low, self.high]


def fit(values: Iterable[float], start: float, end: float, *, log: bool = False, pad: float = 0.06) -> Axis:
    """An axis that holds all values with a little room at both ends."""
    known = list(values) or [0.0, 1.0]
    low, high = min(known), max(known)
    if log:
        room = 1.35 if high / low > 1.5 else 2.0
        return Axis(low / room, high * room, start, end, log=True)
    room = (high - low) * pad or abs(high) * 0.1 or 1.0
    return Axis(low - room, high + room, start, end)


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten.

    >>> linear_ticks(0, 1, 5)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{place * step:.10g}") for place in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """One, two and five in every decade; only the decades when there are many.

    >>> log_ticks(3e5, 8e6)
    [500000.0, 1000000.0, 2000000.0, 5000000.0]
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [factor * 10.0**decade for decade in decades for factor in factors]
        found = [value for value in found if low <= value <= high]
        if len(found) <= 6:
            return found
    return found[:: len(found) // 5]


def text(x: float, y: float, content: object, style: str = "tick", anchor: str = "start") -> str:
    """A piece of text; `style` is a class of the style sheet."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{xml(content)}</text>'


def shortened(content: str, room: int) -> str:
    """Text of at most `room` characters, an ellipsis in place of the rest.

    >>> shortened("Expected calibration error", 12)
    'Expected ca…'
    """
    return content if len(content) <= room else content[: max(room - 1, 1)].rstrip() + "…"


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """A straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def polyline(points: Sequence[tuple[float, float]], style: str) -> str:
    """A line through points."""
    return f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" class="{style}"/>'


def area(points: Sequence[tuple[float, float]], style: str) -> str:
    """A closed area through points."""
    return f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" class="{style}"/>'


def marker(model: str, x: float, y: float, tip: str = "", radius: float = 4.5) -> str:
    """A model's marker: colour and shape both say which model it is."""
    r, wide, tall = radius, 1.2 * radius, 2 * radius
    title = f"<title>{xml(tip)}</title>" if tip else ""
    hollow = "hollow " if model.startswith("random") or model == "student_before" else ""
    style = f'class="mark {hollow}{tone(model)}"'
    if model == "teacher":
        path = f"M{x:.1f} {y - wide:.1f}l{wide:.1f} {wide:.1f}l{-wide:.1f} {wide:.1f}l{-wide:.1f} {-wide:.1f}z"
        return f'<path d="{path}" {style}>{title}</path>'
    if model in ("control", "random_control"):
        return f'<path d="M{x:.1f} {y - 1.1 * r:.1f}l{wide:.1f} {tall:.1f}h{-2 * wide:.1f}z" {style}>{title}</path>'
    if hollow:
        r -= 0.5
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" {style}>{title}</circle>'


def key(model: str) -> Markup:
    """A model's marker as a small picture for running text and table heads."""
    return Markup('<svg class="key" viewBox="0 0 14 14" aria-hidden="true">{}</svg>').format(
        Markup(marker(model, 7, 7))
    )


def spread(places: Sequence[float], low: float, high: float, gap: float = LINE) -> list[float]:
    """Label places moved apart until none overlaps, within bounds, in their order.

    >>> spread([10, 12, 50], 0, 100)
    [10, 24.0, 50]
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [0.0] * len(places)
    last = low - gap
    for i in order:
        last = moved[i] = max(places[i], last + gap)
    limit = high + gap
    for i in reversed(order):
        limit = moved[i] = min(moved[i], limit - gap)
    return moved


def x_axis(axis: Axis, y: float, label: str, say: Callable[[float], str], top: float | None = None) -> str:
    """Ticks, numbers and the title below a horizontal axis; grid lines up to `top` if it is given."""
    parts = [line(axis.start, y, axis.end, y, "axis")]
    for value in axis.ticks(4):
        x = axis(value)
        parts.append(line(x, y, x, y + 4, "axis") if top is None else line(x, top, x, y, "grid"))
        parts.append(text(x, y + 16, say(value), anchor="middle"))
    parts.append(text((axis.start + axis.end) / 2, y + 33, label, "axis-title", "middle"))
    return "".join(parts)


def y_axis(axis: Axis, left: float, right: float, label: str, say: Callable[[float], str]) -> str:
    """Grid lines, numbers, and the title above a vertical axis, where it can be read without turning the head."""
    parts = [text(0, 12, label, "axis-title")]
    for value in axis.ticks(4):
        parts.append(line(left, axis(value), right, axis(value), "grid"))
        parts.append(text(left - 6, axis(value) + 4, say(value), anchor="end"))
    return "".join(parts)


def document(name: str, title: str, description: str, size: tuple[float, float], parts: Iterable[str]) -> Markup:
    """A whole figure with its title and description for those who cannot see it; `name` is unique in the page."""
    width, height = size
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'style="max-width:{width * 1.25:g}px" aria-labelledby="{xml(name)}-t {xml(name)}-d">'
        f'<title id="{xml(name)}-t">{xml(title)}</title><desc id="{xml(name)}-d">{xml(description)}</desc>'
    )
    return Markup(head + "".join(parts) + "</svg>")  # every text in it went through xml()
