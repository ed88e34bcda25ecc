"""The page of the study of coresets: who beats random at how many rows, for every kind of labels and student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stillhouse.report.charts import Figure
from stillhouse.report.findings import Findings, Table
from stillhouse.report.lines import Line, lines
from stillhouse.report.numbers import ABSENT, percent
from stillhouse.studies._coreset_draw import FULL, RANDOM
from stillhouse.studies._coreset_summary import HERDING

Cells = Sequence[Mapping[str, Any]]

_DRAWN = 4
"""Selectors in a figure besides random: the best at the middle budget."""


def page(found: Mapping[str, Any]) -> Findings:
    """The claim is about the middle budget of the first students with the teacher's labels; everything follows."""
    first = found["features"][0]
    cells, settings = first["cells"], found["settings"]
    budget = sorted(settings["budgets"])[len(settings["budgets"]) // 2]
    student = settings["students"][0]
    own = _of(cells, student, "soft")
    rivals = [cell for cell in own if cell["budget"] == budget and cell["selector"] not in (FULL, RANDOM)]
    best = max(rivals, key=lambda cell: cell["accuracy"]["value"])
    random = next(cell for cell in own if cell["budget"] == budget and cell["selector"] == RANDOM)
    against = best["against_random"]
    claim = (
        f"With {budget} rows of a class and a teacher’s labels, the {student} student that learns from "
        f"{_name(best)} is right on {_share(best['accuracy']['value'])}, from random rows on "
        f"{_share(random['accuracy']['value'])}"
    )
    evidence = (
        f"Difference {_points(against)}, {_word(against)}; {found['heldout']:,} held-out rows, {settings['seeds']} "
        f"draws. Which of {len(rivals)} is best is known with hindsight. All {first['rows_of_a_draw']:,} rows of a "
        f"draw give {_share(_full(own)['accuracy']['value'])}; the teacher, fitted without the row, is right on "
        f"{_share(first['teacher']['accuracy'])}."
    )
    parts: list[Table | Figure] = []
    for features in found["features"]:
        for student in settings["students"]:
            parts += [_figure(features, student, labels) for labels in ("hard", "soft")]
            parts += [_table(features, student, labels) for labels in ("hard", "soft")]
    return Findings(claim, evidence, [*parts, _bytes(first, settings["students"][0])])


def _of(cells: Cells, student: str, labels: str) -> list[Mapping[str, Any]]:
    return [cell for cell in cells if (cell["student"], cell["labels"]) == (student, labels)]


def _full(own: Cells) -> Mapping[str, Any]:
    return next(cell for cell in own if cell["selector"] == FULL)


def _name(cell: Mapping[str, Any]) -> str:
    return f"{cell['selector']}, weighted" if cell["weighted"] else str(cell["selector"])


def _short(name: str) -> str:
    """A name that fits beside a line."""
    return name.replace("gradient_match", "grad. match").replace(", weighted", " w")


def _rows(own: Cells) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Cells by selector and budget: random first, the others by what they reach at their largest budget."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for cell in own:
        if cell["selector"] != FULL:
            found.setdefault(_name(cell), {})[cell["budget"]] = cell

    def place(item: tuple[str, dict[int, Mapping[str, Any]]]) -> tuple[bool, float]:
        name, by_budget = item
        return name != RANDOM, -by_budget[max(by_budget)]["accuracy"]["value"]

    return dict(sorted(found.items(), key=place))


def _figure(features: Mapping[str, Any], student: str, labels: str) -> Figure:
    rows = _rows(_of(features["cells"], student, labels))
    budgets = sorted(rows[RANDOM])
    middle = budgets[len(budgets) // 2]
    best = sorted(set(rows) - {RANDOM}, key=lambda name: -rows[name][middle]["accuracy"]["value"])[:_DRAWN]
    drawn = []
    for name in [RANDOM, *best]:
        accuracies = [(budget, rows[name][budget]["accuracy"]) for budget in budgets]
        points = [(float(budget), one["value"]) for budget, one in accuracies]
        band = [(float(budget), one["low"], one["high"]) for budget, one in accuracies]
        drawn.append(Line(_short(name), points, band, reference=name == RANDOM))
    title = f"{student} student, {labels} labels"
    identity = f"fig-{features['features']}-{student}-{labels}".replace(" ", "-").replace("(", "").replace(")", "")
    picture = lines(identity, title, drawn, ("rows of a class", "right"), percent)
    full = _share(_full(_of(features["cells"], student, labels))["accuracy"]["value"])
    note = (
        f"Random, and the {len(best)} best at {middle} rows. All rows: {full}. Bands: 95\u00a0% intervals over draws."
    )
    return Figure(f"{title}, {features['features']}", picture, note)


def _table(features: Mapping[str, Any], student: str, labels: str) -> Table:
    rows = _rows(_of(features["cells"], student, labels))
    budgets = sorted(rows[RANDOM])
    shown = []
    for name, by_budget in rows.items():
        cells = [by_budget[budget] for budget in budgets]
        marked = [f"{_share(cell['accuracy']['value'])}{_mark(cell)}" for cell in cells]
        largest = cells[-1].get("against_random")
        shown.append([name, *marked, ABSENT if largest is None else f"{_points(largest)}, {_word(largest)}"])
    return Table(
        f"{student} student, {labels} labels",
        ["selector", *(f"{budget} rows" for budget in budgets), f"against random at {budgets[-1]}"],
        shown,
        "Rows are of each class. ▲ and ▼: resolved better and worse than herding with the same labels, paired by draw "
        "and held-out row.",
    )


def _mark(cell: Mapping[str, Any]) -> str:
    against = cell.get(f"against_{HERDING}")
    if against is None or not against["resolved"]:
        return ""
    return " ▲" if against["difference"] > 0 else " ▼"


def _bytes(features: Mapping[str, Any], student: str) -> Table:
    """The same at equal bytes: what random rows of as many bytes reach, soft labels counted."""
    shown = []
    for labels in ("hard", "soft"):
        for name, by_budget in _rows(_of(features["cells"], student, labels)).items():
            budgets = sorted(by_budget)
            cell = by_budget[budgets[len(budgets) // 2]]
            against = cell.get("against_random_at_equal_bytes")
            said = ABSENT if against is None else f"{_points(against)}, {_word(against)}"
            shown.append([name, labels, f"{cell['text_bytes']:,.0f}", f"{cell['label_bytes']:,.0f}", said])
    return Table(
        f"At equal bytes, {student} student",
        ["selector", "labels", "bytes of text", "bytes of labels", "against random at as many bytes"],
        shown,
        "At the middle budget. Random is read between two of its budgets by the logarithm of their bytes; what lies "
        "beyond its budgets is not compared. A soft label is two bytes a class, a hard one a byte.",
    )


def _share(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"


def _points(found: Mapping[str, Any]) -> str:
    low, mean, high = (f"{100 * found[key]:+.1f}".replace("-", "−") for key in ("low", "difference", "high"))
    return f"{mean} points [{low}, {high}]"


def _word(found: Mapping[str, Any]) -> str:
    return "resolved" if found["resolved"] else "unresolved"
