"""The committee study: solutions read, choices measured against hindsight, contradictions planted and survived."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from stillhouse.cli import show
from stillhouse.consensus.majority import Majority
from stillhouse.errors import DataError, RecipeError
from stillhouse.recipe_file import load
from stillhouse.report.lines import Line, lines
from stillhouse.studies._choosing import EVIDENCE, Solved, choose, fitted_with_gold, measured, tabulate, withheld
from stillhouse.studies._contradicting import CurveSection, contradict, summarize_curves
from stillhouse.studies.base import conduct
from stillhouse.studies.committee import CommitteeStudy
from stillhouse.traces._source import TraceSource, read_traces

SMALL = [
    "contradictions.questions=40",
    "contradictions.seeds=2",
    "contradictions.rates=[0, 0.3]",
    "contradictions.teachers=[3]",
]


def solution(q: int, answer: int | str) -> dict[str, str]:
    return {"solution": f"{q} + {q} = <<{q}+{q}={2 * q}>>{2 * q}\nA: {answer}"}


def solve(path: Path, **columns: Any) -> Solved:
    source = TraceSource(path=str(path), **{"reference": "ground_truth", "missing": "drop", **columns})
    return tabulate(read_traces(source)[0], source.path)


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    place = folder / "solutions.jsonl"
    place.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return place


@pytest.fixture
def solutions(tmp_path: Path) -> Path:
    """Sixty sums: ann is right on four of five, bob and eve on two of three, so that their majority beats all three."""
    rows = []
    for q in range(1, 61):
        right = 2 * q
        answers = {
            "ann": right if q % 5 else right + 1,
            "bob": right if q % 3 else right + 2,
            "eve": right if (q + 1) % 3 else right + 3,
        }
        cells = {name: solution(q, answer) for name, answer in answers.items()}
        rows.append({"question": f"What is {q} twice?", "ground_truth": f"{q} * 2 = {right}\nA: {right}", **cells})
    return write(tmp_path, rows)


def test_the_study_answers_both_questions(solutions: Path, tmp_path: Path) -> None:
    study = load("committee", [f"data.traces.path={solutions}", *SMALL], build=True)
    assert isinstance(study, CommitteeStudy)
    found = conduct(study, tmp_path / "out")
    choosing = found["choosing"]
    assert choosing["n"] == 60
    assert choosing["best_single"] == "ann"
    assert choosing["teachers"]["ann"]["value"] == pytest.approx(0.8)
    by_rule = {row["rule"]: row for row in choosing["rules"] if row["evidence"] == "all answers"}
    # bob and eve never err together, so a majority fails only where ann errs with one of them: 2 in 3 of her errors.
    assert by_rule["majority"]["accuracy"]["value"] >= 1 - 8 / 60
    assert by_rule["majority"]["against_best_single"]["n"] == 60
    assert choosing["oracle"]["value"] == 1
    assert found == json.loads((tmp_path / "out" / "committee.json").read_text())
    page = (tmp_path / "out" / "report.html").read_text()
    assert "known with hindsight alone" in page
    assert page.count("<svg") >= 4  # a curve for each kind of contradictions
    assert (tmp_path / "out" / "manifest.json").exists()


def test_a_study_that_was_stopped_does_not_choose_again(solutions: Path, tmp_path: Path) -> None:
    study = load("committee", [f"data.traces.path={solutions}", *SMALL])
    seen: list[str] = []

    def watch(stage: str, done: int, total: int, note: str) -> None:
        seen.append(stage)

    conduct(study, tmp_path / "out", watch)  # ty: ignore[invalid-argument-type]
    assert {"choose", "contradict"} == set(seen)
    seen.clear()
    conduct(study, tmp_path / "out", watch)  # ty: ignore[invalid-argument-type]
    assert seen == []


def test_rules_never_see_the_right_answers(solutions: Path) -> None:
    solved = solve(solutions)
    other = [row | {"ground_truth": "A: 999"} for row in map(json.loads, solutions.read_text().splitlines())]
    blind = solve(write(solutions.parent, other))
    rules = {"majority": Majority()}
    one, two = choose(solved, rules, 0), choose(blind, rules, 0)
    assert [row["reliability"] for row in one["rules"]] == [row["reliability"] for row in two["rules"]]
    assert two["rules"][0]["accuracy"]["value"] == 0
    assert two["rules"][0]["auroc"] is None


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda rows: [rows[0] | {"ground_truth": "A: many"}], "the right answer, 'A: many', holds no number"),
        (lambda rows: [rows[0] | {"ground_truth": None}], "no right answer in 'ground_truth'"),
        (lambda rows: [{"question": "?", "ground_truth": "1", "ann": {"solution": "1"}}], "at least two teachers"),
        (lambda rows: [rows[0], rows[0]], "two solutions of ann to one question, solutions-1/ann and solutions-2/ann"),
    ],
)
def test_files_that_cannot_be_used_say_why(solutions: Path, change: Any, word: str) -> None:
    rows = change([json.loads(line) for line in solutions.read_text().splitlines()])
    with pytest.raises(DataError, match=word):
        solve(write(solutions.parent, rows))


def test_somebody_must_say_what_is_right(solutions: Path) -> None:
    with pytest.raises(DataError, match=r"ann: nobody says whether it is right.*data\.traces\.reference"):
        solve(solutions, reference=None)
    rows = [json.loads(line) for line in solutions.read_text().splitlines()]
    for row in rows:
        for name in ("ann", "bob", "eve"):
            row[name]["is_correct"] = True
    with pytest.raises(DataError, match="another answer to the same question is said to be right as well"):
        solve(write(solutions.parent, rows), reference=None)


def test_what_is_right_may_be_said_of_each_trace_and_a_row_may_be_one(solutions: Path) -> None:
    asked = [json.loads(line) for line in solutions.read_text().splitlines()]
    rows = [
        {"question": row["question"], "text": row[name]["solution"], "source": name, "correct": answer == 2 * q}
        for q, row in enumerate(asked, start=1)
        for name in ("ann", "bob", "eve")
        for answer in [int(row[name]["solution"].rpartition(" ")[2])]
    ]
    rules = {"majority": Majority()}
    known = choose(solve(solutions), rules, 0)
    assert choose(solve(write(solutions.parent, rows), reference=None), rules, 0) == known


def test_solutions_that_are_missing_or_answer_nothing_are_no_votes(solutions: Path) -> None:
    rows = [json.loads(line) for line in solutions.read_text().splitlines()]
    rows[0]["ann"] = None
    del rows[1]["ann"]
    rows[2]["ann"] = {"solution": "I do not know."}
    rows[3]["ann"] = "A: 8"  # text without its key
    solved = solve(write(solutions.parent, rows))
    assert [row[solved.teachers.index("ann")] for row in solved.votes[:4]] == [None, None, None, Fraction(8)]
    assert choose(solved, {"majority": Majority()}, 0)["no_answer"] == {"ann": 3, "bob": 0, "eve": 0}


def test_teachers_may_be_named(solutions: Path) -> None:
    solved = solve(solutions, solutions=["eve", "ann"], limit=5)
    assert solved.teachers == ("eve", "ann")
    assert len(solved) == 5
    with pytest.raises(DataError, match=r"no column 'eva'.*Did you mean 'eve'"):
        solve(solutions, solutions=["eva", "ann"])


@pytest.mark.parametrize(
    ("rules", "word"), [("[majority, majority]", "names majority twice"), ("majorty", "Did you mean 'majority'")]
)
def test_rules_that_are_wrong(rules: str, word: str, solutions: Path, tmp_path: Path) -> None:
    study = load("committee", [f"data.traces.path={solutions}", f"rules={rules}", *SMALL])
    with pytest.raises(RecipeError, match=word):
        conduct(study, tmp_path / "out")  # ty: ignore[invalid-argument-type]


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("contradictions.rates=[0.3, 0.1]", "must rise"),
        ("contradictions.teachers=[1]", "at least two teachers"),
        ("contradictions.modes=[odd]", "'independent'"),
        ("data.traces.pth=x", "pth"),
    ],
)
def test_settings_that_are_wrong(override: str, word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        load("committee", [override])


# What a solution says against itself.


@pytest.mark.parametrize(
    ("text", "against"),
    [
        ("12 - 5 = <<12-5=7>>7, 7 / 2 = <<7/2=3.5>>3.5", set()),
        ("12 - 5 = <<12-5=7>>7, 7 * 9 = <<7*9=63>>63", {"grounded"}),
        ("12 - 5 = <<12-5=8>>8", {"recomputed", "grounded"}),
        ("no equation", set()),
    ],
)
def test_evidence_speaks_against_a_solution(text: str, against: set[str], tmp_path: Path) -> None:
    question = "Ann has a dozen eggs and eats 5. Half of the rest is sold."
    row = {"question": question, "ground_truth": "A: 7", "ann": {"solution": text}, "bob": {"solution": "A: 7"}}
    found = {evidence: withheld(solve(write(tmp_path, [row])), evidence) for evidence in EVIDENCE}
    assert found == {evidence: [[evidence in against, False]] for evidence in EVIDENCE}


def test_the_fitted_ceiling_never_looks_at_the_question_it_answers(solutions: Path) -> None:
    """Where all but one teacher are always wrong it follows the right one; a question cannot help itself."""
    rows = [json.loads(line) for line in solutions.read_text().splitlines()]
    for q, row in enumerate(rows, start=1):
        row |= {"ann": solution(q, 2 * q), "bob": solution(q, -1), "eve": solution(q, -2)}
    solved = solve(write(solutions.parent, rows))
    assert fitted_with_gold(solved, 0) == solved.right
    wrong = solve(solutions, solutions=["bob", "eve"])
    assert not measured(fitted_with_gold(wrong, 0), wrong.right).sums_EM[:, 0].any()


# Contradictions.


def test_at_rate_zero_all_is_well_and_more_contradictions_hurt() -> None:
    section = CurveSection(rates=[0.0, 0.3, 0.6], modes=["independent"], teachers=[3], questions=60, seeds=2)
    cells = contradict(section, {"majority": Majority()}, 0, lambda done, total: None)
    curve = [cell for cell in cells if cell["rule"] == "majority"]
    values = [cell["accuracy"]["value"] for cell in curve]
    assert values[0] == 1 > values[1] > values[2]
    assert curve[0]["auroc"] is None
    assert curve[1]["auroc"] > 0.8
    assert curve[1]["accuracy"]["n"] == 120
    assert curve[1]["accuracy"]["low"] < values[1] < curve[1]["accuracy"]["high"]
    assert contradict(section, {"majority": Majority()}, 0, lambda done, total: None) == cells


def test_curves_are_summed_up_by_what_is_resolved() -> None:
    def cell(rate: float, value: float, difference: float, resolved: bool) -> dict[str, Any]:
        against = {"difference": difference, "resolved": resolved}
        where = {"mode": "topic", "teachers": 3, "rule": "majority", "rate": rate}
        return {**where, "accuracy": {"value": value}, "against_best_single": against, "auroc": 0.5}

    cells = [
        cell(0.0, 1, 0, False),
        cell(0.1, 0.9, 0.1, True),
        cell(0.2, 0.7, -0.01, False),
        cell(0.3, 0.4, -0.2, True),
    ]
    (row,) = summarize_curves(cells)
    assert (row["better_up_to"], row["breakdown"], row["auroc"]) == (0.1, 0.3, 0.5)
    assert row["mean"] == pytest.approx(0.75)


def test_lines_are_drawn_with_their_intervals_and_labels_apart() -> None:
    rows = [
        Line("one", [(0, 1.0), (1, 0.5)], [(0, 0.9, 1.0), (1, 0.4, 0.6)]),
        Line("two <&>", [(0, 1.0), (1, 0.5)]),
        Line("best", [(0, 1.0), (1, 0.9)], reference=True),
    ]
    picture = str(lines("fig", "Title", rows, ("rate", "right"), str))
    assert picture.count("<polyline") == 3
    assert picture.count("<polygon") == 1
    assert "l-0" in picture
    assert "l-1" in picture
    assert "dotted l-ref" in picture
    assert "two &lt;&amp;&gt;" in picture


def test_the_recorded_solutions_of_four_real_models(shared: Path, tmp_path: Path) -> None:
    """The anchors: the best single teacher 56.2 %, an oracle 66.8 %; no rule is far from the best teacher."""
    place = shared / "data" / "gsm8k" / "model_solutions.jsonl"
    if not place.exists():
        pytest.skip("../shared/data/gsm8k/model_solutions.jsonl is not there")
    found = conduct(load("committee", [f"data.traces.path={place}", *SMALL]), tmp_path / "out")["choosing"]  # ty: ignore[invalid-argument-type]
    assert found["best_single"] == "175b_verification"
    assert found["teachers"]["175b_verification"]["value"] == pytest.approx(0.562, abs=0.0005)
    assert found["oracle"]["value"] == pytest.approx(0.668, abs=0.0005)
    rules = {row["rule"]: row for row in found["rules"] if row["evidence"] == "all answers"}
    assert rules["most_agreed"]["accuracy"]["value"] == found["teachers"]["175b_verification"]["value"]
    for row in rules.values():
        assert row["accuracy"]["value"] > 0.55
        assert row["auroc"] > 0.75
        assert max(row["reliability"], key=row["reliability"].__getitem__) == "175b_verification"


def test_all_that_bear_a_name_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show("committee")
    told = capsys.readouterr().out
    places = [told.index(word) for word in ("teacher committee:", "study committee:", "# recipe committee\n")]
    assert places == sorted(places)
    show("committee", ["seed=7"], as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"teacher", "study", "recipe"}
    assert found["recipe"]["seed"] == 7
    show("trace-quality", as_json=True)  # one alone is shown as itself
    assert json.loads(capsys.readouterr().out)["study"] == "traces"
