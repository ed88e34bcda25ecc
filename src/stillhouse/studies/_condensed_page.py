"""The condensing study for people: budgets, text against vectors, and the matrix of learners and students."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillhouse.report.charts import Figure
from stillhouse.report.findings import Findings, Table
from stillhouse.report.lines import Line, lines
from stillhouse.report.numbers import ABSENT, NBSP, fixed, in_bytes, percent
from stillhouse.studies._condensing import BASELINES, TEACHER, TEXT, VECTORS

Row = Mapping[str, Any]


def page(found: Mapping[str, Any]) -> Findings:
    """All of it."""
    student, smallest = found["settings"]["students"][0], found["settings"]["per_class"][0]
    rows = [r for r in found["budgets"] if (r["student"], r["per_class"]) == (student, smallest)]
    learned = [r for r in rows if r["method"] not in BASELINES]
    best = max(learned, key=lambda r: r["accuracy"]["value"])
    against, full = best["against_best_control"], found["full"][student]
    told = against["control"].replace(", ", " with ")
    word = "resolved" if against["resolved"] else "not resolved"
    claim = (
        f"{smallest} rows a class made by {best['method']} ({best['form']}, {best['labels']} labels) train the "
        f"{student} student to {_share(best)}; the best control, {told}, to "
        f"{_percent(best['accuracy']['value'] - against['difference'])}, all {found['rows']} rows to {_percent(full)}"
    )
    readable = max((r for r in learned if r["form"] != VECTORS), key=lambda r: r["accuracy"]["value"], default=None)
    said = (
        f" The best that can be read is {readable['method']} ({readable['form']}, {readable['labels']} labels) at "
        f"{_share(readable)}."
        if readable and readable["form"] != best["form"]
        else ""
    )
    evidence = (
        f"The difference is {_points(against['difference'])} points (95 % interval {_interval(against)}), {word}; "
        f"{found['n']} held-out texts, {against['seeds']} seeds, paired by seed and text. Which set and which control "
        f"is best is known with hindsight.{said}"
    )
    parts: list[Table | Figure] = []
    for name in found["settings"]["students"]:
        parts.append(_figure(found, name))
    for name in found["settings"]["students"]:
        parts.append(_budgets(found, name))
    parts += _lost(found)
    if found["matrix"]:
        parts += [_crossing(found), _matrix(found)]
    return Findings(claim, evidence, parts)


def _figure(found: Mapping[str, Any], student: str) -> Figure:
    own = [r for r in found["budgets"] if r["student"] == student and r["labels"] == TEACHER]
    shown = [r for r in own if r["form"] in (TEXT, VECTORS)]
    drawn = []
    for method in dict.fromkeys(r["method"] for r in shown):
        of_method = [(r["per_class"], r["accuracy"]) for r in shown if r["method"] == method]
        points = [(float(at), one["value"]) for at, one in of_method]
        band = [(float(at), one["low"], one["high"]) for at, one in of_method]
        name = method.removesuffix("_matching").replace("_", " ")  # short enough to stand whole beside its line
        drawn.append(Line(name, points, band, reference=method == "random"))
    budgets = sorted({r["per_class"] for r in shown})
    drawn.append(Line("all rows", [(float(at), found["full"][student]) for at in budgets], reference=True))
    title = f"The {student} student, with the teacher's labels"
    picture = lines(f"fig-{student}", title, drawn, ("rows a class", "right"), percent)
    note = "Vectors where vectors were learned, by what they match. Bands are 95\u00a0% intervals over seeds."
    return Figure(title, picture, note)


def _budgets(found: Mapping[str, Any], student: str) -> Table:
    own = [r for r in found["budgets"] if r["student"] == student]
    body = []
    for row in sorted(own, key=lambda r: (r["per_class"], -r["accuracy"]["value"])):
        cells = [str(row["per_class"]), row["labels"], row["form"], _share(row), _range(row)]
        for control in ("random", "best_control"):
            cells += _compared(row.get(f"against_{control}"))
        body.append([row["method"], *cells, in_bytes(row["bytes"])])
    condensed = "the one that is condensed for" if student == found["settings"]["students"][0] else "not condensed for"
    return Table(
        f"The {student} student, {condensed}",
        [
            "rows",
            "a class",
            "labels",
            "form",
            "right",
            "95 % interval",
            "against random, teacher's labels",
            "verdict",
            "against the best control",
            "verdict on that",
            "size",
        ],
        body,
        f"n = {found['n']} held-out texts, {found['settings']['seeds']} seeds; on all {found['rows']} rows this "
        f"student is right on {_percent(found['full'][student])}. Intervals of accuracies are over "
        "seeds, those of differences (in points) over seeds and texts. The best control at each budget is the best of "
        "random rows and medoids with gold or the teacher's labels, chosen with hindsight.",
    )


def _lost(found: Mapping[str, Any]) -> list[Table]:
    student = found["settings"]["students"][0]
    own = [r for r in found["budgets"] if r["student"] == student and r["objective"] is not None]
    if not own:
        return []
    body = []
    for row in own:
        told = [row["objective"], row["moved"], row["log_prob"]]
        numbers = [ABSENT if value is None else fixed(value, 2) for value in told]
        sample = " / ".join(row["texts"][:1]) or ABSENT
        body.append([row["method"], str(row["per_class"]), row["labels"], row["form"], _share(row), *numbers, sample])
    return [
        Table(
            "What projecting to text loses",
            ["condenser", "a class", "labels", "form", "right", "objective", "moved", "log-probability", "a row"],
            body,
            "Objective: the distance of gradients to those of the real rows, at learners that no condenser has seen. "
            "Moved: mean distance of a vector to the piece it became; the pieces' mean length is the square root of "
            "their width. Log-probability: of a row's text by the language model.",
        )
    ]


def _crossing(found: Mapping[str, Any]) -> Table:
    body = []
    for row in found["crossing"]:
        kept = [row[key] for key in ("kept", "of_full_on_diagonal", "of_full_off_diagonal")]
        body.append([row["method"], *(f"{_percent(one['value'])} ({_bounds(one)})" for one in kept)])
    section = found["settings"]["matrix"]
    return Table(
        "What is kept when another student is trained",
        ["condenser", "kept off the diagonal", "of full data, on the diagonal", "of full data, off it"],
        body,
        f"{section['per_class']} rows a class, teacher's labels, vectors, {section['seeds']} seeds; 95 % intervals "
        "over seeds. Kept: a student's accuracy on a set made for another kind of learner over its "
        "accuracy on the set made for its own kind.",
    )


def _matrix(found: Mapping[str, Any]) -> Table:
    students = found["settings"]["matrix"]["learners"]
    body = []
    for method, learner in dict.fromkeys((r["method"], r["learner"]) for r in found["matrix"]):
        cells = []
        for student in students:
            row = next(
                r for r in found["matrix"] if (r["method"], r["learner"], r["student"]) == (method, learner, student)
            )
            against = row.get("against_random")
            mark = (
                ""
                if against is None
                else " ≈"
                if not against["resolved"]
                else " ↑"
                if against["difference"] > 0
                else " ↓"
            )
            cells.append(f"{_percent(row['accuracy']['value'])} ({_bounds(row['accuracy'])}){mark}")
        body.append([method, learner or "none", *cells])
    full = ["all rows, gold labels", "none", *(_percent(found["full"][student]) for student in students)]
    return Table(
        "Condensed for one, training another",
        ["rows", "condensed for", *students],
        [*body, full],
        "Columns are the students that are trained. ↑ resolved better than random rows with the teacher's labels, ↓ "
        "resolved worse, ≈ unresolved.",
    )


def _compared(against: Mapping[str, Any] | None) -> list[str]:
    if against is None:
        return [ABSENT, ABSENT]
    verdict = "resolved" if against["resolved"] else "unresolved"
    return [f"{_points(against['difference'])} ({_interval(against)})", verdict]


def _share(row: Row) -> str:
    return _percent(row["accuracy"]["value"])


def _range(row: Row) -> str:
    return _bounds(row["accuracy"])


def _bounds(one: Mapping[str, Any]) -> str:
    return ABSENT if one["low"] is None else f"{_percent(one['low'])} to {_percent(one['high'])}"


def _percent(share: float) -> str:
    return f"{fixed(100 * share, 1)}{NBSP}%"


def _points(value: float) -> str:
    return fixed(100 * value, 1, signed=True)


def _interval(found: Mapping[str, Any]) -> str:
    return ABSENT if found["low"] is None else f"{_points(found['low'])} to {_points(found['high'])}"
