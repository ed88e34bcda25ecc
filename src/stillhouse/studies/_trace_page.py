"""The page of the study of traces: what each signal is worth, and what the file is like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillhouse.report import figures
from stillhouse.report.charts import Figure
from stillhouse.report.figures import Bar
from stillhouse.report.findings import Findings, Table
from stillhouse.report.numbers import ABSENT, count, fixed, percent, significant

_COMBINATIONS = {
    "combined": "all signals, fitted to the correctness of other questions",
    "combined_alone": "what sees one trace alone, fitted to the correctness of other questions",
    "unsupervised": "all signals, no label used",
    "unsupervised_alone": "what sees one trace alone, no label used",
}
_SHOWN = ("agreement", "reliability", *_COMBINATIONS)
_NOTE = (
    "AUROC: the share of pairs of a right and a wrong trace in which the right one scores higher; 50 % is chance. "
    "Intervals: 95 %, over questions, the fitted weights held. Within: pairs of one question alone, so that knowing "
    "hard questions from easy ones is worth nothing. No signal reads a gold answer; `combined` learns its weights "
    "from the correctness of other questions (cross-validated by question), `unsupervised` from the answers alone."
)


def page(found: Mapping[str, Any]) -> Findings:
    """Claim, tables and figure."""
    parts = [*_areas(found), _card(found["card"])]
    card = found["card"]
    size = f"{count(card['traces'])} traces of {count(card['questions'])} questions"
    if not found["auroc"]:
        wrong = count(card["traces_with_wrong_equations"])
        said = f"{wrong} of {count(card['traces'])} traces hold an equation that is wrong"
        return Findings(said, f"{size}; correctness is not known of both kinds, so no signal was measured.", parts)
    area = found["auroc"]
    best = max((name for name in _SHOWN if name in area), key=area.__getitem__, default=max(area, key=area.__getitem__))
    alone = "combined_alone"
    rest = f"; from one trace alone {_said(found, alone)}" if alone in area else ""
    evidence = f"AUROC {_said(found, best)}{rest}; n = {count(found['n'])} of {size}."
    return Findings(f"Right traces are best told from wrong ones by {_WORDS.get(best, best)}", evidence, parts)


_WORDS = {
    "unsupervised": "all signals together, without a label",
    "combined": "all signals together, weighed on other questions",
    "unsupervised_alone": "what one trace shows, without a label",
    "combined_alone": "what one trace shows, weighed on other questions",
    "agreement": "how many others agree",
    "reliability": "who gave the answer and who did not",
}
"""What the claim calls the best one; a signal that is not here goes by its name."""


def _said(found: Mapping[str, Any], name: str) -> str:
    low, high = found["intervals"][name]
    return f"{percent(found['auroc'][name], 0.01)} [{fixed(100 * low, 1)}, {fixed(100 * high, 1)}]"


def _areas(found: Mapping[str, Any]) -> list[Table | Figure]:
    area = found["auroc"]
    if not area:
        return []
    shown = [name for name in _SHOWN if name in area] or list(area)
    bars = [Bar(name.replace("_", " "), area[name], *found["intervals"][name], _said(found, name)) for name in shown]
    drawn = figures.intervals("fig-auroc", "AUROC of the combinations", bars, "AUROC", {0.5: "chance", 1.0: "perfect"})
    rows = [
        [
            name,
            _COMBINATIONS.get(name) or found["means"][name],
            "one trace" if name in found["sees_one_trace"] else "all answers",
            _said(found, name),
            percent(found["within"][name], 0.01),
        ]
        for name in sorted(area, key=lambda name: (name not in _COMBINATIONS, -area[name]))
    ]
    return [
        Figure("How well right and wrong traces are told apart", drawn, "Bars are 95 % intervals."),
        Table("Signals", ["signal", "what it says", "sees", "AUROC", "within"], rows, _NOTE),
        *_gains(found["over_agreement"]),
    ]


def _gains(gains: Mapping[str, Mapping[str, float]]) -> list[Table]:
    rows = [
        [
            name,
            fixed(100 * gain["difference"], 1, signed=True),
            f"{fixed(100 * gain['low'], 1, signed=True)} to {fixed(100 * gain['high'], 1, signed=True)}",
            "resolved" if gain["low"] > 0 or gain["high"] < 0 else "unresolved",
        ]
        for name, gain in gains.items()
    ]
    note = "Points of AUROC, paired: the same questions are drawn for both."
    return (
        [Table("Beyond agreement of the answers", ["signal", "gain", "95 % interval", ""], rows, note)] if rows else []
    )


def _card(card: Mapping[str, Any]) -> Table:
    sources = ", ".join(f"{name or 'not named'} ({count(number)})" for name, number in card["sources"].items())
    rows = [
        ["traces", count(card["traces"])],
        ["questions", count(card["questions"])],
        ["sources", sources],
        ["correctness known", count(card["labelled"])],
        ["left out, no text", count(card["left_out"])],
        ["cut to fit the model that reads along", count(card["cut"])],
        ["no number as answer", count(card["without_answer"])],
        ["pairs of answers that agree", _share(card["agreeing_pairs"])],
        ["questions answered with one voice", _share(card["unanimous"])],
        ["equations read", count(card["equations"])],
        ["of them wrong", count(card["wrong_equations"])],
        ["traces with a wrong equation", count(card["traces_with_wrong_equations"])],
        ["traces without an equation", count(card["traces_without_equations"])],
        ["steps, mean", significant(card["mean_steps"])],
        ["characters, median", count(card["median_characters"])],
        ["traces that turn in circles", count(card["repetitive"])],
    ]
    note = "The wrong equations are in equations.json, the scores of every trace in scores.jsonl."
    return Table("The traces", ["", ""], rows, note)


def _share(value: float | None) -> str:
    return ABSENT if value is None else percent(value, 0.01)
