"""The condensing study's numbers: accuracies over seeds, differences paired by seed and text, what crossing costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

import numpy as np

from stillhouse.replicates import difference, mean_over_seeds
from stillhouse.statistics import Measurement
from stillhouse.studies._condensing import BASELINES, GOLD, TEACHER, TEXT, unpack

Cells = Sequence[Mapping[str, Any]]


def measured(cell: Mapping[str, Any], count: int) -> Measurement:
    """A cell's hits."""
    hits = unpack(cell["hits"], count).astype(np.float64)
    return Measurement(tuple(f"{place:06}" for place in range(count)), np.stack([hits, np.ones(count)], 1))


def accuracy(cell: Mapping[str, Any], count: int) -> float:
    """A cell's share of hits."""
    return float(unpack(cell["hits"], count).mean())


def _where(cells: Cells, **wanted: Any) -> list[Mapping[str, Any]]:
    found = [cell for cell in cells if all(cell[key] == value for key, value in wanted.items())]
    return sorted(found, key=lambda cell: cell["seed"])


def summarize_budgets(cells: Cells, count: int) -> list[dict[str, Any]]:
    """Of each set, budget and student the mean over seeds, and differences: to random rows and to medoids with the
    teacher's labels, and to whichever of the four controls is best there, which is known with hindsight and so is in
    the controls' favour."""
    keys = ("per_class", "student", "method", "labels", "form")
    best = _best_controls(cells, count)
    rows = []
    for key in dict.fromkeys(tuple(cell[name] for name in keys) for cell in cells):
        named = dict(zip(keys, key, strict=True))
        own = _where(cells, **named)
        row = {**named, "accuracy": asdict(mean_over_seeds([accuracy(cell, count) for cell in own]))}
        for start in BASELINES:
            control = {**named, "method": start, "labels": TEACHER, "form": TEXT}
            if control != named:
                theirs = _where(cells, **control)
                found = difference([measured(c, count) for c in own], [measured(c, count) for c in theirs])
                row[f"against_{start}"] = asdict(found)
        strongest = best[named["per_class"], named["student"]]
        if named["method"] not in BASELINES:
            found = difference([measured(c, count) for c in own], [measured(c, count) for c in strongest])
            control = f"{strongest[0]['method']}, {strongest[0]['labels']} labels"
            row["against_best_control"] = {**asdict(found), "control": control}
        facts = [cell["facts"] for cell in own]
        for name in ("bytes", "objective", "moved", "log_prob"):
            told = [fact[name] for fact in facts if fact.get(name) is not None]
            row[name] = fmean(told) if told else None
        row["notes"] = sorted({note for fact in facts for note in fact.get("notes", ())})
        row["texts"] = list(facts[0].get("texts", ()))
        rows.append(row)
    return rows


def _best_controls(cells: Cells, count: int) -> dict[tuple[int, str], Cells]:
    """Of each budget and student the cells of the control with the highest mean accuracy."""
    found: dict[tuple[int, str], Cells] = {}
    for where in dict.fromkeys((cell["per_class"], cell["student"]) for cell in cells):
        controls = [
            _where(cells, per_class=where[0], student=where[1], method=start, labels=labels, form=TEXT)
            for start in BASELINES
            for labels in (GOLD, TEACHER)
        ]
        found[where] = max(controls, key=lambda own: fmean(accuracy(cell, count) for cell in own))
    return found


def summarize_matrix(cells: Cells, count: int, full: Mapping[str, float], chance: float) -> list[dict[str, Any]]:
    """Of each condenser, learner and student: accuracy, and what is kept of the student's own set and of full data.

    `kept` is the accuracy on the set condensed for the learner over that on the set condensed for the student itself;
    `of_full` over that on all data; `of_full_above_chance` the same with chance taken off both.
    """
    rows = []
    pairs = dict.fromkeys((cell["method"], cell["learner"], cell["student"]) for cell in cells)
    for method, learner, student in pairs:
        own = _where(cells, method=method, learner=learner, student=student)
        values = [accuracy(cell, count) for cell in own]
        row: dict[str, Any] = {"method": method, "learner": learner, "student": student}
        row["accuracy"] = asdict(mean_over_seeds(values))
        row["of_full"] = asdict(mean_over_seeds([value / full[student] for value in values]))
        above = full[student] - chance
        row["of_full_above_chance"] = asdict(mean_over_seeds([(value - chance) / above for value in values]))
        if learner is not None:
            home = _where(cells, method=method, learner=student, student=student)
            diagonal = [accuracy(cell, count) for cell in home]
            row["kept"] = asdict(mean_over_seeds([v / d for v, d in zip(values, diagonal, strict=True)]))
            control = _where(cells, method=BASELINES[0], learner=None, student=student)
            found = difference([measured(c, count) for c in own], [measured(c, count) for c in control])
            row["against_random"] = asdict(found)
        rows.append(row)
    return rows


def summarize_crossing(cells: Cells, count: int, full: Mapping[str, float]) -> list[dict[str, Any]]:
    """Of each condenser, over all pairs of different learner and student, seed by seed: what is kept off the diagonal,
    and what it amounts to of full data, on the diagonal and off it."""
    rows = []
    for method in dict.fromkeys(cell["method"] for cell in cells if cell["learner"] is not None):
        own = [cell for cell in cells if cell["method"] == method]
        seeds = sorted({cell["seed"] for cell in own})
        kept, away, home = [], [], []
        for seed in seeds:
            at = {(c["learner"], c["student"]): accuracy(c, count) for c in own if c["seed"] == seed}
            crossed = [
                (value, at[student, student], full[student])
                for (learner, student), value in at.items()
                if learner != student
            ]
            kept.append(fmean(value / diagonal for value, diagonal, _ in crossed))
            away.append(fmean(value / whole for value, _, whole in crossed))
            home.append(fmean(at[s, s] / full[s] for s in full))
        row: dict[str, Any] = {"method": method, "kept": asdict(mean_over_seeds(kept))}
        row["of_full_off_diagonal"] = asdict(mean_over_seeds(away))
        row["of_full_on_diagonal"] = asdict(mean_over_seeds(home))
        rows.append(row)
    return rows
