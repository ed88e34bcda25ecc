"""The condensing study, tiny, through the front door: numbers, a page, and no work done twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.errors import DataError, RecipeError
from stillhouse.recipe_file import load
from stillhouse.studies._condensed_numbers import summarize_crossing, summarize_matrix
from stillhouse.studies._condensing import pack
from stillhouse.studies.base import conduct

TINY = [
    "per_class=[2]",
    "seeds=2",
    "places=4",
    "students=[linear]",
    "student_steps=2",
    "full_steps=2",
    "condensers=[{gradient_matching: {rounds: 1, steps: 2}}, {select_and_relabel: {learners: 1, learner_steps: 1}}]",
    "matrix={learners: [linear, mlp], per_class: 2, seeds: 2}",
]


@pytest.fixture
def overrides(shared: Path, tmp_path: Path) -> list[str]:
    pytest.importorskip("model2vec")
    folder = shared / "models" / "potion-base-4M-int8"
    if not folder.is_dir():
        pytest.skip("../shared/models/potion-base-4M-int8 is not there")
    good, bad = ["great fun", "a moving film", "very good", "fine acting"], ["dull", "a bad film", "boring", "no fun"]
    told = [(text, label) for label, texts in enumerate([bad, good]) for text in texts]
    rows = [{"text": f"{text} {n}", "label": label} for n in range(4) for text, label in told]
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = [f"data.train.path={tmp_path}/train.jsonl", f"data.heldout.path={tmp_path}/dev.jsonl"]
    return [*data, f"embeddings={folder}", *TINY]


def check(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["check", *arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_check_foretells_time_and_memory_without_spending_them(overrides: list[str]) -> None:
    told = json.loads(check("condense-text", *overrides))
    assert list(told["stages"]) == ["full", "budgets", "matrix"]
    assert all(stage["seconds"] >= 0 and stage["memory_bytes"] > 10**7 for stage in told["stages"].values())
    assert told["warnings"] == []
    # A graph of ten million steps of a student: known without building it.
    endless = "condensers=[{trajectory_matching: {student_steps: 10000000, rounds: 2}}]"
    told = json.loads(check("condense-text", *overrides, endless))
    assert any("trajectory_matching for a mlp learner" in text for text in told["warnings"])
    assert any("student_steps 10000000); lower one of these" in text for text in told["warnings"])
    assert told["seconds"] > 1000


def test_check_finds_what_a_run_would_stumble_over(overrides: list[str]) -> None:
    with pytest.raises(DataError, match=r"Class '0' has 16 rows, and 17 a class were asked for"):
        check("condense-text", *overrides, "per_class=[17]")


def test_the_study_compares_every_set_with_random_rows(overrides: list[str], stories: str, tmp_path: Path) -> None:
    study: Any = load("condense-text", [*overrides, f"language_model={stories}"], build=True)
    found = conduct(study, tmp_path / "out")
    assert found["n"] == found["rows"] == 32
    sets = {(row["method"], row["labels"], row["form"]): row for row in found["budgets"]}
    assert {
        (method, labels, "text")
        for method in ("random", "medoids", "select_and_relabel")
        for labels in ("gold", "teacher")
    } <= set(sets)
    assert {form for method, _, form in sets if method == "gradient_matching"} == {
        "vectors",
        "nearest text",
        "fluent text",
    }
    for (method, labels, form), row in sets.items():
        assert row["accuracy"]["seeds"] == 2
        assert ("against_random" in row) != ((method, labels, form) == ("random", "teacher", "text"))
        assert ("against_best_control" in row) == (method not in ("random", "medoids"))
    best = max(
        sets[method, labels, "text"]["accuracy"]["value"]
        for method in ("random", "medoids")
        for labels in ("gold", "teacher")
    )
    chosen = sets["select_and_relabel", "teacher", "text"]
    assert chosen["against_best_control"]["difference"] == pytest.approx(chosen["accuracy"]["value"] - best)
    vectors, text = (sets["gradient_matching", "teacher", form] for form in ("vectors", "nearest text"))
    assert vectors["bytes"] > text["bytes"]
    assert text["moved"] > 0
    assert vectors["objective"] > 0
    assert len(text["texts"]) == 4
    diagonal = [row for row in found["matrix"] if row["learner"] == row["student"]]
    assert all(row["kept"]["value"] == 1 for row in diagonal)
    assert {row["method"] for row in found["crossing"]} == {"gradient_matching", "select_and_relabel"}
    assert found == json.loads((tmp_path / "out" / "condensation.json").read_text())
    folder = str(tmp_path / "out" / "dataset")
    rows = list(datasets.load_dataset(folder, "gradient_matching", split="train", cache_dir=str(tmp_path / "cache")))
    assert len({row["id"] for row in rows}) == len(rows) == 4 * (2 * 2 + 1)  # vectors and nearest, twice; fluent once
    for row in rows:
        assert sum(row["distribution"]) == pytest.approx(1, abs=1e-5)
        assert (row["text"] is None) == (row["form"] == "vectors") == (row["vectors"] is not None)
        lineage = json.loads(row["lineage"])
        assert lineage["method"] == "gradient_matching"
        assert lineage["its_text"].split()[-1].isdigit()
    card = (tmp_path / "out" / "dataset" / "README.md").read_text()
    assert "config_name: select_and_relabel" in card
    assert "| gradient_matching | teacher | nearest text | 2 |" in card
    page = (tmp_path / "out" / "report.html").read_text()
    for word in ("Condensed for one, training another", "What projecting to text loses", "known with hindsight"):
        assert word in page
    seen: list[str] = []
    again = conduct(study, tmp_path / "out", lambda stage, done, total, note: seen.append(stage))
    assert again == found
    assert not seen
    shutil.move(tmp_path / "out" / "dataset", tmp_path / "away")
    assert conduct(study, tmp_path / "out") == found
    there, here = ((place / "data" / "gradient_matching.parquet") for place in (tmp_path / "away", Path(folder)))
    assert there.read_bytes() == here.read_bytes()


def test_what_is_kept_is_counted_against_the_students_own_set() -> None:
    """Condensed for itself a student is right on 8 of 10, for the other on 4; on all rows on all."""

    def cell(learner: str, student: str, seed: int) -> dict[str, Any]:
        hits = np.arange(10) < (8 if learner == student else 4)
        return {"method": "m", "learner": learner, "student": student, "seed": seed, "hits": pack(hits)}

    names = ("one", "two")
    cells = [cell(learner, student, seed) for learner in names for student in names for seed in (0, 1)]
    random = [
        {**cell("one", student, seed), "method": "random", "learner": None} for student in names for seed in (0, 1)
    ]
    rows = summarize_matrix([*cells, *random], 10, {"one": 1.0, "two": 1.0}, 0.5)
    away = next(row for row in rows if (row["learner"], row["student"]) == ("one", "two"))
    assert away["kept"]["value"] == pytest.approx(0.5)
    assert away["of_full"]["value"] == pytest.approx(0.4)
    assert away["of_full_above_chance"]["value"] == pytest.approx(-0.2)
    assert away["against_random"]["seeds"] == 2
    (whole,) = summarize_crossing([*cells, *random], 10, {"one": 1.0, "two": 1.0})
    assert whole["kept"]["value"] == pytest.approx(0.5)
    assert whole["of_full_on_diagonal"]["value"] == pytest.approx(0.8)
    assert whole["of_full_off_diagonal"]["value"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("students=[liner]", "Did you mean 'linear'"),
        ("matrix.learners=[mlp, mlp]", "named once"),
        ("seeds=1", "greater than or equal to 2"),
        ("per_class=[]", "at least 1 item"),
    ],
)
def test_settings_that_are_wrong(override: str, word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        load("condense-text", [override])


def test_condensers_and_data_that_are_wrong(overrides: list[str], tmp_path: Path) -> None:
    for more, error, word in (
        ("condensers=[gradient_macthing]", RecipeError, "Did you mean 'gradient_matching'"),
        ("per_class=[17]", DataError, "Class '0' has 16 rows"),
        ("data.train.limit=4", DataError, "at least two"),
    ):
        study: Any = load("condense-text", [*overrides, more])
        with pytest.raises(error, match=word):
            conduct(study, tmp_path / word.split()[0])
