"""The page of the study of coresets: who beats random, at equal rows and at equal bytes, and what labels change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from stillhouse.report.charts import Figure, slug
from stillhouse.report.findings import Findings, Table
from stillhouse.report.lines import KINDS, Line, lines
from stillhouse.report.numbers import ABSENT, count, fixed, percent
from stillhouse.studies._coreset_draw import FULL, RANDOM
from stillhouse.studies._coreset_summary import HERDING

Cell = Mapping[str, Any]
Cells = Sequence[Cell]
Write = Callable[[Cell], str]

_AGAINST = ("against_random", "against_herding", "against_random_at_equal_bytes")
_TRUSTED = " Trust teacher: a row counts by how likely the teacher that never saw it finds its label."
_BRIEF = {
    "herding on KD gradients": "herding (KD)",
    "gradient_match": "grad. match",
    "kernel_herding (trust teacher)": "kernel h. (trust)",
}
_RESOLVED = "↑ and ↓: resolved better and worse"


def page(found: Mapping[str, Any]) -> Findings:
    """Claim, figures and tables; the claim is about the first features."""
    parts: list[Table | Figure] = []
    for place, part in enumerate(found["features"]):
        name = f", {part['features']}" if len(found["features"]) > 1 else ""
        parts += [*_pictures(part, place, name), _overview(part, name), *_tables(part, name)]
    parts.append(_data(found))
    return Findings(*_said(found), parts)


def _said(found: Mapping[str, Any]) -> tuple[str, str]:
    """The claim and what it rests on."""
    first = found["features"][0]
    cells, names = first["cells"], _names(first["cells"])
    best = names[0]
    own = _of(cells, best)
    ahead, behind = _resolved(own, "against_random")
    who = _capital(best.replace(", weighted", " with its weights"))
    claim = f"{who} beats random choice in {ahead} of {len(own)} settings and loses in {behind or 'none'}"
    rivals = ""
    if any("against_herding" in cell for cell in own):
        ahead, behind = _resolved(own, "against_herding")
        rivals = f" Held against herding it is better in {ahead} of {len(own)} and worse in {behind}."
    gain = fmean(cell["against_random"]["difference"] for cell in own)
    whole = [c for c in cells if c["selector"] == FULL and c["labels"] == "hard"]
    all_rows = " and ".join(f"{_share(c)} ({c['student']})" for c in whole)
    settings = found["settings"]
    evidence = (
        "A setting is a number of rows, a kind of labels and a student. On average it gains "
        f"{fixed(100 * gain, 1)} points, with hindsight the best of {len(names)} ways to choose.{rivals} "
        f"All {count(first['rows_of_a_draw'])} rows of a draw give {all_rows}; the teacher that labels them is "
        f"right on {percent(first['teacher']['accuracy'], 0.01)} of rows it never saw. "
        f"n = {count(found['heldout'])} held-out texts, {settings['seeds']} draws."
    )
    return claim, evidence


# Which cells.


def _label(cell: Cell) -> str:
    return f"{cell['selector']}, weighted" if cell["weighted"] else cell["selector"]


def _names(cells: Cells) -> list[str]:
    """Ways to choose, without the controls, in the order in which they stand against random choice."""
    names = dict.fromkeys(_label(cell) for cell in cells if "against_random" in cell)
    return sorted(names, key=lambda name: _standing(_of(cells, name), "against_random"), reverse=True)


def _of(cells: Cells, name: str) -> list[Cell]:
    return [cell for cell in cells if _label(cell) == name]


def _values(cells: Cells, field: str) -> list[Any]:
    return list(dict.fromkeys(cell[field] for cell in cells if cell["selector"] != FULL))


def _settings(cells: Cells) -> list[tuple[str, str]]:
    """Students with kinds of labels."""
    return [(student, labels) for student in _values(cells, "student") for labels in _values(cells, "labels")]


def _in(cells: Cells, student: str, labels: str) -> list[Cell]:
    return [cell for cell in cells if (cell["student"], cell["labels"]) == (student, labels)]


def _resolved(cells: Cells, against: str) -> tuple[int, int]:
    """In how many cells a difference is resolved, better and worse."""
    clear = [cell[against]["difference"] for cell in cells if against in cell and cell[against]["resolved"]]
    return sum(one > 0 for one in clear), sum(one < 0 for one in clear)


def _standing(cells: Cells, against: str) -> tuple[int, float]:
    ahead, behind = _resolved(cells, against)
    return ahead - behind, fmean(cell[against]["difference"] for cell in cells)


# How numbers are written.


def _capital(name: str) -> str:
    return "MLP" if name == "mlp" else _plain(name[:1].upper() + name[1:])


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _share(cell: Cell) -> str:
    return percent(cell["accuracy"]["value"], 0.01)


def _points(value: float) -> str:
    return fixed(100 * value, 1, signed=True)


def _arrow(one: Mapping[str, Any] | None) -> str:
    if one is None or not one["resolved"]:
        return ""
    return "\u00a0↑" if one["difference"] > 0 else "\u00a0↓"


def _accuracy(cell: Cell) -> str:
    return fixed(100 * cell["accuracy"]["value"], 1) + _arrow(cell.get("against_random"))


def _against(kind: str) -> Write:
    def write(cell: Cell) -> str:
        one = cell.get(kind)
        if one is None:
            return ABSENT
        ends = f"{_points(one['low'])} to {_points(one['high'])}" if one["low"] is not None else "no interval"
        return f"{_points(one['difference'])} [{ends}]{_arrow(one)}"

    return write


def _gain(cell: Cell) -> str:
    one = cell.get("against_hard")
    return ABSENT if one is None else _points(one["difference"]) + _arrow(one)


# Tables.


def _rows(cells: Cells, names: Sequence[str], columns: Sequence[tuple[Mapping[str, Any], Write]]) -> list[list[str]]:
    """A row a way to choose, random choice last; of each column which cell it shows, and how."""
    found = []
    for name in [*names, RANDOM]:
        own = _of(cells, name)
        row = []
        for wanted, write in columns:
            cell = next((c for c in own if all(c[key] == value for key, value in wanted.items())), None)
            row.append(ABSENT if cell is None else write(cell))
        if set(row) != {ABSENT}:
            found.append([_plain(name), *row])
    return found


def _overview(part: Mapping[str, Any], name: str) -> Table:
    cells = part["cells"]
    rows = []
    for way in _names(cells):
        own = _of(cells, way)
        counted = []
        for kind in _AGAINST:
            of = sum(kind in cell for cell in own)
            ahead, behind = _resolved(own, kind)
            counted.append(f"{ahead} / {behind} of {of}" if of else ABSENT)
        mean = _points(fmean(cell["against_random"]["difference"] for cell in own))
        rows.append([_plain(way), mean, *counted])
    return Table(
        f"Better and worse, over all settings{name}",
        ["chosen by", "mean gain on random", "random", "herding", "random at equal bytes"],
        rows,
        "In how many settings a way to choose is resolved better / worse than random choice of as many rows with the "
        "same labels, than herding, and than random choice with as many bytes, where random's own sets span them. "
        "Each interval stands alone; none is corrected for their number. Weighted: its rows count by the weights that "
        "it gives them. What is not said to look at gradients (CE: of cross-entropy, KD: of the distance to the "
        "teacher) looks at the vectors of the texts." + (_TRUSTED if any("trust" in row[0] for row in rows) else ""),
    )


def _tables(part: Mapping[str, Any], name: str) -> list[Table]:
    cells = part["cells"]
    budgets, names = _values(cells, "budget"), _names(cells)
    found = []
    for student, labels in _settings(cells):
        own = _in(cells, student, labels)
        whole = next(cell for cell in own if cell["selector"] == FULL)
        last = budgets[-1]
        columns = [({"budget": budget}, _accuracy) for budget in budgets]
        columns.append(({"budget": last}, lambda cell: percent(cell["retention"]["value"], 0.01)))
        found.append(
            Table(
                f"{_capital(student)}, {labels} labels: accuracy by rows of a class{name}",
                ["chosen by", *map(str, budgets), f"share of all rows, {last}"],
                _rows(own, names, columns),
                f"Percent, mean of draws; {_RESOLVED} than random. All rows: {_share(whole)}; the last column says "
                "how much of that is kept.",
            )
        )
    for student, labels in _settings(cells):
        own = [cell for cell in _in(cells, student, labels) if cell["selector"] != RANDOM]
        columns = [({"budget": b}, _against(kind)) for kind in _AGAINST[:2] for b in budgets]
        heads = [f"{kind}, {b}" for kind in ("random", "herding") for b in budgets]
        found.append(
            Table(
                f"{_capital(student)}, {labels} labels: points better than random and than herding{name}",
                ["chosen by", *heads],
                _rows(own, names, columns),
                "Paired by draw and held-out text; 95\u00a0% intervals over both.",
            )
        )
    return [*found, _soft(cells, budgets, name), *_bytes(cells, budgets, name)]


def _soft(cells: Cells, budgets: Sequence[int], name: str) -> Table:
    students = _values(cells, "student")
    columns = [({"budget": b, "student": s, "labels": "soft"}, _gain) for s in students for b in budgets]
    return Table(
        f"What the teacher’s labels add to the same rows{name}",
        ["chosen by", *(f"{student}, {budget}" for student in students for budget in budgets)],
        _rows(cells, _names(cells), columns),
        f"Points of accuracy, soft labels minus hard ones; {_RESOLVED}.",
    )


def _bytes(cells: Cells, budgets: Sequence[int], name: str) -> list[Table]:
    own = [cell for cell in cells if cell["student"] == cells[0]["student"]]

    def text(cell: Cell) -> str:
        return fixed(cell["text_bytes"] / 1000, 1)

    def label(cell: Cell) -> str:
        return fixed(cell["label_bytes"] / 1000, 2)

    columns = [({"budget": b, "labels": "hard"}, text) for b in budgets]
    columns += [({"budget": budgets[-1], "labels": labels}, label) for labels in ("hard", "soft")]
    heads = [*(f"text, {b}" for b in budgets), f"hard labels, {budgets[-1]}", f"soft labels, {budgets[-1]}"]
    weigh = Table(
        f"What the sets weigh, in kB{name}",
        ["chosen by", *heads],
        _rows(own, _names(cells), columns),
        "Text in UTF-8; a hard label is one byte, a soft one a float16 a class, a weight a float16.",
    )
    rivals = [cell for cell in cells if cell["selector"] != RANDOM]
    settings = _settings(cells)
    middle = budgets[1:-1] or budgets
    equal = [
        ({"budget": b, "student": s, "labels": k}, _against("against_random_at_equal_bytes"))
        for s, k in settings
        for b in middle
    ]
    matched = Table(
        f"Points better than random choice with as many bytes{name}",
        ["chosen by", *(f"{s}, {k}, {b}" for s, k in settings for b in middle)],
        _rows(rivals, _names(cells), equal),
        "Random’s accuracy at a set’s bytes lies between two of its own sets, by the logarithm of their bytes; a set "
        "beyond its largest or smallest is not compared.",
    )
    return [weigh, matched] if matched.rows else [weigh]


# Figures.


def _pictures(part: Mapping[str, Any], place: int, name: str) -> list[Figure]:
    """Accuracy against rows for every student and kind of labels, and against bytes for the first student."""
    cells = part["cells"]
    if len(_values(cells, "budget")) < 2:
        return []
    shown = _shown(cells)
    found = []
    for student, labels in _settings(cells):
        own = _in(cells, student, labels)
        title = f"{_capital(student)}, {labels} labels{name}"
        found.append(_figure(f"rows-{place}", title, own, shown, "budget", "rows of a class"))
    for labels in _values(cells, "labels"):
        student = cells[0]["student"]
        sized = [
            {**cell, "kB": (cell["text_bytes"] + cell["label_bytes"]) / 1000} for cell in _in(cells, student, labels)
        ]
        title = f"{_capital(student)}, {labels} labels, by size{name}"
        found.append(_figure(f"bytes-{place}", title, sized, shown, "kB", "kB of text and labels"))
    return found


def _shown(cells: Cells) -> list[str]:
    """As many ways to choose as lines have colours: herding, and those that are best on average."""
    plain = [name for name in _names(cells) if not name.endswith(", weighted")]
    ranked = sorted(plain, key=lambda name: fmean(c["accuracy"]["value"] for c in _of(cells, name)), reverse=True)
    first = [HERDING] if HERDING in ranked else []
    return [*first, *(name for name in ranked if name != HERDING)][:KINDS]


def _figure(name: str, title: str, cells: Cells, shown: Sequence[str], field: str, axis: str) -> Figure:
    rows = []
    for way in [*shown, RANDOM]:
        own = sorted(_of(cells, way), key=lambda cell: cell[field])
        points = [(cell[field], cell["accuracy"]["value"]) for cell in own]
        rows.append(Line(_short(way), points, reference=way == RANDOM))
    picture = lines(f"fig-{name}-{slug(title)}", title, rows, (axis, "right"), percent)
    whole = next(cell for cell in cells if cell["selector"] == FULL)
    return Figure(title, picture, f"Dotted: random choice. All rows: {_share(whole)}.")


def _short(name: str) -> str:
    """A name that fits beside a line."""
    for long, brief in _BRIEF.items():
        name = name.replace(long, brief)
    return _plain(name)


def _data(found: Mapping[str, Any]) -> Table:
    settings = found["settings"]
    rows = [[name, count(number)] for name, number in found["counts"].items()]
    rows.append(["held out", count(found["heldout"])])
    if found["leaked"]:
        rows.append(["held out, left out because the training data hold the same text", count(found["leaked"])])
    left = "; ".join(f"{_plain(name)} {why}" for name, why in found["left_out"].items())
    teachers = [part["teacher"] for part in found["features"]]
    return Table(
        "The data",
        ["class", "rows"],
        rows,
        f"Each of {settings['seeds']} draws keeps {percent(settings['share'])} of every class, the same rows for all "
        "ways to choose; all choose equally many rows of each class. Intervals cover draws of this pool and held-out "
        "texts like these, not other pools. Soft labels: a softmax regression’s on the same vectors, fitted to the "
        f"other folds of the draw, at temperature {' and '.join(fixed(t['temperature'], 2) for t in teachers)}. "
        "Vectors are fitted to the texts of all rows, held-out ones among them, and to no label."
        + (f" Left out: {left}." if left else ""),
    )
