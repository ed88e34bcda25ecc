"""Which teacher to believe: choosing among solutions without right answers, and how rules stand contradictions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from stillhouse.consensus.base import ConsensusRule
from stillhouse.errors import RecipeError
from stillhouse.recipe_parts import Component, Section
from stillhouse.records import fingerprint_file
from stillhouse.report.charts import Figure
from stillhouse.report.findings import Findings, Table
from stillhouse.report.lines import Line, lines
from stillhouse.report.numbers import ABSENT, percent
from stillhouse.runs import RunFolder
from stillhouse.studies._choosing import choose, tabulate
from stillhouse.studies._contradicting import BEST, CurveSection, contradict, summarize_curves
from stillhouse.studies.base import Foresight, Study
from stillhouse.traces._source import TraceSource, read_traces
from stillhouse.workshop import Progress

_EXPLAINED = {
    "independent": "each errs alone",
    "correlated": "half of the errors are shared by all that err",
    "collusion": "half of the teachers, rounded down, agree on lies; the others err alone on a fifth",
    "topic": "on each topic half of the teachers, rounded up, err",
}


def _list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class CommitteeData(Section):
    """What is chosen from."""

    traces: TraceSource


class CommitteeStudy(Study):
    """Two questions about consensus rules.

    How often is each right that chooses among recorded solutions of several teachers without seeing the right answers?
    It is held against the best single teacher, which is known only with hindsight; against a weighting that was fitted
    to right answers, a ceiling for weighted votes; and against an oracle that is right wherever a teacher is. And at
    which rate of planted contradictions does each break, on problems whose right answers are known exactly?

    Attributes:
        data: the file of solutions.
        rules: consensus rules, as components.
        contradictions: what is planted.
    """

    result: ClassVar[str] = "committee.json"

    data: CommitteeData
    rules: Annotated[list[Component], BeforeValidator(_list)] = Field(
        [Component(name=name) for name in ("majority", "most_agreed", "weighted", "dawid_skene")], min_length=1
    )
    contradictions: CurveSection = CurveSection()

    def find(self, folder: RunFolder, progress: Progress) -> dict[str, Any]:
        """Both answers.

        Raises:
            RecipeError: no such rule, or the same one twice.
            DataError: the file of solutions cannot be used.
        """
        rules = self._built()
        solved = tabulate(read_traces(self.data.traces)[0], self.data.traces.path)
        named = {"rules": [item.model_dump(mode="json") for item in self.rules], "seed": self.seed}
        choosing = {
            **named,
            **self.data.model_dump(mode="json"),
            "file": fingerprint_file(Path(self.data.traces.path).expanduser()),
        }
        with folder.stage("choose", choosing) as (chose, done):
            if not done:
                progress("choose", 0, 1, "")
                chose.out = choose(solved, rules, self.seed)
                progress("choose", 1, 1, "")
        planted = {**named, **self.contradictions.model_dump(mode="json")}
        with folder.stage("contradict", planted) as (stood, done):
            if not done:
                cells = contradict(
                    self.contradictions, rules, self.seed, lambda at, of: progress("contradict", at, of, "")
                )
                stood.out = {"cells": cells, "curves": summarize_curves(cells)}
        return {"format": 1, "choosing": chose.out, "contradictions": stood.out}

    def foresee(self) -> Foresight:
        """The rules and the file.

        Raises:
            RecipeError, DataError: as `find`.
        """
        rules = self._built()
        traces, left_out = read_traces(self.data.traces)
        tabulate(traces, self.data.traces.path)
        return Foresight({"solutions": f"{len(traces):,}; {left_out:,} left out", "rules": ", ".join(rules)})

    def _built(self) -> dict[str, ConsensusRule]:
        rules: dict[str, ConsensusRule] = {}
        for item in self.rules:
            settings = ", ".join(f"{key} {value}" for key, value in item.settings.items())
            name = f"{item.name} ({settings})" if settings else item.name
            if name in rules:
                raise RecipeError(f"rules names {name} twice. Keep one.")
            rules[name] = item.build("consensus_rule")
        return rules

    def show(self, found: Mapping[str, Any]) -> Findings:
        """The claim is about choosing; the curves follow."""
        choosing, curves = found["choosing"], found["contradictions"]
        own = [row for row in choosing["rules"] if row["evidence"] == "all answers"]
        top = max(own, key=lambda row: row["accuracy"]["value"])
        single = choosing["teachers"][choosing["best_single"]]
        against = top["against_best_single"]
        word = "resolved" if against["resolved"] else "not resolved"
        claim = (
            f"Without right answers, {top['rule']} chooses right on {_share(top['accuracy'])} of {choosing['n']} "
            f"questions; the best single teacher is right on {_share(single)}"
        )
        evidence = (
            f"The difference is {_points(against['difference'])} points (95 % interval {_interval(against)}), {word}. "
            f"The best single teacher, {choosing['best_single']}, is known with hindsight alone, and so is which of "
            f"{len(own)} rules is best here. Some teacher is right on {_share(choosing['oracle'])}; a weighting fitted "
            f"to right answers reaches {_share(choosing['fitted_with_gold']['accuracy'])}."
        )
        parts: list[Table | Figure] = [_teachers(choosing), _chosen(choosing)]
        parts += [_figure(curves["cells"], mode, count) for mode, count in _panels(curves["cells"])]
        return Findings(claim, evidence, [*parts, _stood(curves["curves"])])


def _share(found: Mapping[str, Any]) -> str:
    return f"{100 * found['value']:.1f}\u00a0%"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def _interval(found: Mapping[str, Any]) -> str:
    return f"{_points(found['low'])} to {_points(found['high'])}"


def _teachers(choosing: Mapping[str, Any]) -> Table:
    rows = [
        [name, _share(one), str(choosing["no_answer"][name]), *(_share({"value": r["reliability"][name]}) for r in own)]
        for own in [[row for row in choosing["rules"] if row["evidence"] == "all answers"]]
        for name, one in choosing["teachers"].items()
    ]
    names = [row["rule"] for row in choosing["rules"] if row["evidence"] == "all answers"]
    unanimous = choosing["disagreement"]["unanimous"]
    return Table(
        "The teachers, and how reliable each rule takes them to be",
        ["teacher", "right", "no answer", *names],
        rows,
        f"All give the same answer to {unanimous} of {choosing['n']} questions. Reliabilities are what rules believe "
        "without right answers: most_agreed and weighted the agreement with the others, the rest the share of a "
        "teacher's answers that they take to be right.",
    )


def _chosen(choosing: Mapping[str, Any]) -> Table:
    rows = []
    for row in choosing["rules"]:
        against = row["against_best_single"]
        verdict = "resolved" if against["resolved"] else "unresolved"
        sure = ABSENT if row["auroc"] is None else f"{row['auroc']:.3f}"
        cells = [_share(row["accuracy"]), _points(against["difference"]), _interval(against), verdict, sure]
        rows.append([row["rule"], row["evidence"], *cells])
    gold = choosing["fitted_with_gold"]
    against = gold["against_best_single"]
    verdict = "resolved" if against["resolved"] else "unresolved"
    cells = [_share(gold["accuracy"]), _points(against["difference"]), _interval(against), verdict, ABSENT]
    rows.append(["fitted to right answers", "all answers", *cells])
    withheld = choosing["withheld"]
    smallest = max(row["against_best_single"]["mde"] or 0.0 for row in choosing["rules"])
    return Table(
        "Choosing without right answers",
        ["rule", "votes", "right", "against the best single", "95 % interval", "verdict", "AUROC of confidence"],
        rows,
        f"n = {choosing['n']}, paired by question; every one of these tests would have seen a difference of "
        f"{100 * smallest:.1f} points with 80 % power. Votes: all answers; recomputed leaves out "
        f"{withheld['recomputed']} solutions with an equation that does not hold; grounded leaves out "
        f"{withheld['grounded']}: these, and those that compute with a number which neither the question nor an "
        "earlier step gives. The last row was fitted to the right answers of nine tenths of the questions and measured "
        "on the rest.",
    )


def _panels(cells: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((cell["mode"], cell["teachers"]) for cell in cells))


def _figure(cells: Sequence[Mapping[str, Any]], mode: str, teachers: int) -> Figure:
    own = [cell for cell in cells if (cell["mode"], cell["teachers"]) == (mode, teachers)]
    rows = []
    for rule in dict.fromkeys(cell["rule"] for cell in own):
        of_rule = [(cell["rate"], cell["accuracy"]) for cell in own if cell["rule"] == rule]
        points = [(rate, one["value"]) for rate, one in of_rule]
        band = [(rate, one["low"], one["high"]) for rate, one in of_rule]
        rows.append(Line(re.sub(r"\((\w)\w*", r"(\1", rule), points, band, reference=rule == BEST))
    title = f"{mode.capitalize()} contradictions, {teachers} teachers"
    picture = lines(f"fig-{mode}-{teachers}", title, rows, ("rate of planted answers", "right"), percent)
    return Figure(title, picture, f"{_EXPLAINED[mode]}. Bands are 95\u00a0% intervals.")


def _stood(curves: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for curve in curves:
        against = [curve.get(key) for key in ("better_up_to", "breakdown")]
        said = [ABSENT if rate is None else f"{rate:g}" for rate in against]
        detected = curve.get("auroc")
        told = ABSENT if detected is None else f"{detected:.3f}"
        mean = _share({"value": curve["mean"]})
        rows.append([curve["rule"], curve["mode"], str(curve["teachers"]), mean, *said, told])
    return Table(
        "Standing contradictions",
        ["rule", "contradictions", "teachers", "right, mean of rates", "better up to", "breaks at", "detection"],
        rows,
        "Better up to: the highest rate at which the rule is resolved better than the best single teacher of each "
        "draw, known with hindsight. Breaks at: the lowest rate at which it is resolved worse. Detection: AUROC of "
        "telling planted answers from honest ones, mean of the rates.",
    )
