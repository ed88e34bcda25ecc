"""The study of traces: files of both forms, with and without labels, broken ones, and what its run leaves behind."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import DataError, RecipeError
from stillhouse.recipe_file import load
from stillhouse.studies.base import conduct
from stillhouse.studies.traces import TraceQuality
from stillhouse.traces._source import TraceSource, read_traces

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def writing(*rows: dict[str, Any], name: str = "traces.jsonl") -> str:
        place = tmp_path / name
        place.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(place)

    return writing


def questions(count: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    """Sums answered by three sources, of which `good` errs rarely and the others often, in ways of their own."""
    draw, rows = random.Random(seed), []
    for n in range(count):
        a, b = draw.randint(2, 40), draw.randint(2, 40)
        row: dict[str, Any] = {"question": f"Ann has {a} apples and gets {b} more in week {n}. How many has she?"}
        for source, chance in (("good", 0.9), ("fair", 0.6), ("poor", 0.4)):
            right = draw.random() < chance
            said = a + b if right else a + b + draw.choice([-2, 1, 3, 10])
            row[source] = {"solution": f"{a} + {b} = {said} apples.\n#### {said}", "is_correct": right}
        rows.append(row)
    return rows


def flat(rows: list[dict[str, Any]], *, labels: bool) -> list[dict[str, Any]]:
    return [
        {"q": row["question"], "text": row[s]["solution"], "by": s} | ({"ok": row[s]["is_correct"]} if labels else {})
        for row in rows
        for s in ("good", "fair", "poor")
    ]


def study(path: str, **settings: Any) -> TraceQuality:
    columns = settings.pop("columns", {})
    given = {"model": None, "resamples": 100, **settings}
    return TraceQuality.model_validate({"study": "traces", "data": {"traces": {"path": path, **columns}}, **given})


class TestRun:
    def test_everything_is_measured_and_left_behind(self, write: Write, tmp_path: Path) -> None:
        found = conduct(study(write(*questions())), tmp_path / "run")
        assert found == json.loads((tmp_path / "run" / "traces.json").read_text())
        area = found["auroc"]
        assert {"agreement", "recomputed", "combined", "combined_alone", "unsupervised", "unsupervised_alone"} <= set(
            area
        )
        assert area["recomputed"] == 1  # every error of these traces is one of arithmetic
        assert area["combined"] > 0.9
        assert all(low <= area[name] <= high for name, (low, high) in found["intervals"].items())
        assert found["n"] == found["card"]["traces"] == 72
        assert found["settings"]["device"] == "auto"
        assert found["choices"][0]["reason"]
        wrong = json.loads((tmp_path / "run" / "equations.json").read_text())
        assert len(wrong) == found["card"]["traces_with_wrong_equations"] > 0
        rows = [json.loads(line) for line in (tmp_path / "run" / "scores.jsonl").read_text().splitlines()]
        assert len(rows) == 72
        assert set(rows[0]["scores"]) == set(area)
        page = (tmp_path / "run" / "report.html").read_text()
        assert "combined_alone" in page
        assert "questions answered with one voice" in page
        assert "combined_alone" in found["sees_one_trace"]
        assert "agreement" not in found["sees_one_trace"]

    def test_both_forms_say_the_same(self, write: Write, tmp_path: Path) -> None:
        columns = {"question": "q", "source": "by", "correct": "ok"}
        wide = conduct(study(write(*questions(), name="wide.jsonl")), tmp_path / "wide")
        rows = conduct(study(write(*flat(questions(), labels=True)), columns=columns), tmp_path / "flat")
        assert rows["auroc"] == pytest.approx(wide["auroc"], abs=1e-9)
        assert rows["card"] == wide["card"]

    def test_without_labels_there_is_a_card_and_a_score(self, write: Write, tmp_path: Path) -> None:
        columns = {"question": "q", "source": "by"}
        labelled = conduct(study(write(*questions(), name="wide.jsonl")), tmp_path / "wide")
        found = conduct(study(write(*flat(questions(), labels=False)), columns=columns), tmp_path / "flat")
        assert (found["n"], found["auroc"]) == (0, {})
        assert found["card"] == labelled["card"] | {"labelled": 0}
        rows = [json.loads(line) for line in (tmp_path / "flat" / "scores.jsonl").read_text().splitlines()]
        known = [json.loads(line) for line in (tmp_path / "wide" / "scores.jsonl").read_text().splitlines()]
        assert [r["scores"]["unsupervised"] for r in rows] == [r["scores"]["unsupervised"] for r in known]
        assert "combined" not in rows[0]["scores"]
        assert "hold an equation that is wrong" in (tmp_path / "flat" / "report.md").read_text()

    def test_one_question_alone_has_no_combination(self, write: Write, tmp_path: Path) -> None:
        row = questions(1, seed=1)[0]
        row["good"]["is_correct"], row["poor"]["is_correct"] = True, False
        found = conduct(study(write(row)), tmp_path / "run")
        assert "agreement" in found["auroc"]
        assert "combined" not in found["auroc"]

    def test_few_signals_do(self, write: Write, tmp_path: Path) -> None:
        found = conduct(study(write(*questions()), signals=["agreement", {"repetition": {"n": 2}}]), tmp_path / "run")
        assert set(found["auroc"]) == {"agreement", "repetition", "repetition.run", "combined", "combined_alone"}

    def test_a_model_reads_along_and_is_asked_once(self, write: Write, tmp_path: Path) -> None:
        asked = study(write(*questions(4)), model="stillhouse:arithmetic", signals=["utility", "likelihood"])
        found = conduct(asked, tmp_path / "run")
        assert {"utility", "utility.answer", "likelihood", "likelihood.lowest"} <= set(found["auroc"])
        before = (tmp_path / "run" / "signals.npy").stat().st_mtime_ns
        assert conduct(asked, tmp_path / "run") == found
        assert (tmp_path / "run" / "signals.npy").stat().st_mtime_ns == before


class TestBadInput:
    def test_a_missing_solution_is_an_error_or_left_out_as_asked(self, write: Write, tmp_path: Path) -> None:
        rows = questions(6)
        rows[2]["fair"]["solution"] = None
        del rows[3]["poor"]["solution"]
        rows[4]["good"]["solution"] = "  "
        path = write(*rows)
        with pytest.raises(DataError, match=r"traces-3, fair: the solution is missing.*data\.traces\.missing: drop"):
            read_traces(TraceSource(path=path))
        traces, left_out = read_traces(TraceSource(path=path, missing="drop"))
        assert (len(traces), left_out) == (15, 3)
        found = conduct(study(path, columns={"missing": "drop"}), tmp_path / "run")
        assert found["card"]["left_out"] == 3

    def test_a_missing_column_is_named(self, write: Write) -> None:
        rows = questions(3)
        del rows[2]["fair"]
        with pytest.raises(DataError, match="traces-3, fair: the solution is missing"):
            read_traces(TraceSource(path=write(*rows)))

    def test_an_answer_that_is_no_number_is_kept_and_counted(self, write: Write, tmp_path: Path) -> None:
        rows = questions()
        rows[0]["good"]["solution"] = rows[0]["fair"]["solution"] = "I cannot say."
        found = conduct(study(write(*rows)), tmp_path / "run")
        assert found["card"]["without_answer"] == 2
        scored = [json.loads(line) for line in (tmp_path / "run" / "scores.jsonl").read_text().splitlines()]
        assert [row["scores"]["agreement"] for row in scored[:2]] == [0, 0]  # silence agrees with nobody

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"question": "q", "solved": "3"}, "none holds a mapping with 'solution'"),
            ({"prompt": "q", "text": "3"}, "no column 'question'"),
            ({"question": "q", "text": "3", "correct": "perhaps"}, "correctness is 'perhaps'"),
            ({"question": "q", "text": ""}, "the solution is missing"),
        ],
    )
    def test_rows_that_cannot_be_used(self, write: Write, row: dict[str, Any], message: str) -> None:
        with pytest.raises(DataError, match=message):
            read_traces(TraceSource(path=write(row)))

    def test_ids_differ(self, write: Write) -> None:
        rows = [{"question": "q", "text": "3", "id": "same"}] * 2
        with pytest.raises(DataError, match="two traces with the id 'same'"):
            read_traces(TraceSource(path=write(*rows)))

    def test_what_the_row_says_of_its_answer_counts(self, write: Write) -> None:
        row = {"question": "q", "text": "so it is 3", "answer": 4, "correct": 0, "source": "a", "id": 7}
        (trace,), _ = read_traces(TraceSource(path=write(row)))
        assert (trace.answer, trace.correct, trace.source, trace.id) == (4, False, "a", "7")

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("signals=[agrement]", "Did you mean 'agreement'"),
            ("signals=[steps, steps]", "names steps twice"),
            ("signals=[{repetition: {n: 0}}]", "at least 1 word"),
            ("signals=[{repetition: {m: 3}}]", "no setting 'm'"),
            ("folds=1", "greater than or equal to 2"),
        ],
    )
    def test_wrong_settings_are_found_before_anything_starts(self, override: str, message: str) -> None:
        with pytest.raises(RecipeError, match=message):
            load("trace-quality", [override])

    def test_a_signal_without_its_model(self) -> None:
        with pytest.raises(RecipeError, match="utility, which needs a model"):
            load("trace-quality", ["signals=[utility]", "model=null"])


def test_on_four_real_models_it_keeps_what_it_promises(shared: Path, tmp_path: Path) -> None:
    found = conduct(study(str(shared / "data" / "gsm8k" / "model_solutions.jsonl")), tmp_path / "run")
    area = found["auroc"]
    assert found["n"] == 2640
    assert area["agreement"] == pytest.approx(0.883, abs=0.001)
    assert found["intervals"]["combined"][0] > 0.9
    assert found["intervals"]["unsupervised"][0] > 0.9
    assert found["intervals"]["combined_alone"][0] > 0.7
    assert found["over_agreement"]["combined"]["low"] > 0
