"""A run that chooses its data: random rows stand beside, weights reach the loss, and the data set trains another
student without the teacher."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.errors import DataError
from stillhouse.records import read_examples

STEPS: list[Any] = ["deduplicate", {"longest": {"budget": 6}}]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Callable[..., dict[str, Any]], make_student: Any
) -> Path:
    home = tmp_path_factory.mktemp("chosen")
    recipe = tiny_recipe(home / "teacher", score={"k": 8}, name="chosen")
    recipe["teacher"] = {"hf": {"model": "stillhouse:arithmetic"}}
    recipe["data"]["train"]["arithmetic"]["count"] = 20
    recipe["data"]["steps"] = STEPS
    (home / "chosen.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return home


def run(*arguments: object) -> Any:
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def chosen(folder: Path) -> Path:
    run("run", folder / "chosen.yaml", "--out", folder / "run")
    return folder / "run"


def test_random_rows_take_the_same_way(chosen: Path) -> None:
    data = json.loads((chosen / "stages" / "data.json").read_text())["out"]
    assert data["pool"]["examples"] <= 20
    assert data["train"]["examples"] == data["random"]["examples"] == 6
    assert 0 < max(data[name]["text_bytes"] for name in ("random", "train")) < data["pool"]["text_bytes"]
    rows = list(read_examples(chosen / "data" / "train.jsonl"))
    assert [step["selector"] for step in rows[0].meta["selected_by"]] == ["deduplicate", "longest"]
    assert not list((chosen / "data").glob(".*"))


def test_what_choosing_was_worth_is_measured_and_told(chosen: Path) -> None:
    summary = json.loads((chosen / "evaluation.json").read_text())
    assert list(summary["models"]) == ["teacher", "student_before", "random_control", "random", "control", "student"]
    assert {"student - random", "control - random_control"} <= set(summary["comparisons"])
    for page in ("report.html", "report.md"):
        assert "hoosing the rows" in (chosen / page).read_text(encoding="utf-8")


def test_the_data_set_loads_and_says_how_each_row_came_to_be(chosen: Path) -> None:
    loaded = datasets.load_dataset(str(chosen / "dataset"), split="train")
    assert isinstance(loaded, datasets.Dataset)
    assert loaded.num_rows == 6
    assert {"id", "prompt", "rationale", "completion", "weight", "lineage", "meta"} == set(loaded.column_names)
    assert json.loads(loaded[0]["lineage"])["selected_by"][-1]["reason"]
    card = (chosen / "dataset" / "README.md").read_text(encoding="utf-8")
    assert "`longest`: 6 rows" in card
    ledger = json.loads((chosen / "dataset" / "ledger.json").read_text())
    assert ledger["examples"] == 6
    told = json.loads((chosen / "stages" / "data.json").read_text())["out"]["train"]
    assert ledger["text_bytes"] == told["text_bytes"]
    shards = (chosen / "dataset" / "signals").glob("shard-*")
    assert ledger["distribution_bytes"] == sum(path.stat().st_size for path in shards) > 0


def test_it_trains_a_student_without_the_teacher_as_with_it(chosen: Path, folder: Path) -> None:
    """A soft-label coreset: rows, weights, the teacher's distributions and their temperature in one folder."""
    recipe = yaml.safe_load((folder / "chosen.yaml").read_text())
    recipe["teacher"] = {"stored": {"path": str(chosen / "dataset" / "signals")}}
    recipe["data"] |= {"train": {"path": str(chosen / "dataset" / "data" / "train.parquet")}, "steps": []}
    recipe |= {"score": None, "evaluate": ["likelihood"], "control": False}
    (folder / "again.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    run("train", folder / "again.yaml", "--out", folder / "again")
    weights = [(place / "student" / "model.safetensors").read_bytes() for place in (chosen, folder / "again")]
    assert weights[0] == weights[1]


def test_the_same_recipe_chooses_the_same_bytes(chosen: Path, folder: Path) -> None:
    run("score", folder / "chosen.yaml", "--out", folder / "scored")
    for name in ("train", "random"):
        files = [(place / "data" / f"{name}.jsonl").read_bytes() for place in (chosen, folder / "scored")]
        assert files[0] == files[1]


def test_without_baselines_nothing_random_is_trained(folder: Path) -> None:
    run("train", folder / "chosen.yaml", "baselines=false", "--out", folder / "alone")
    assert not (folder / "alone" / "data" / "random.jsonl").exists()
    assert not (folder / "alone" / "random").exists()


def test_check_counts_what_is_left_and_what_is_trained(folder: Path) -> None:
    facts = json.loads(run("check", folder / "chosen.yaml", "--json").stdout)
    assert facts["data"]["train"]["examples"] == 6
    assert {"train-random", "train-random_control"} <= set(facts["estimate"]["stages"])


@pytest.fixture
def files(tmp_path: Path, folder: Path) -> Path:
    """A recipe over files: five questions of the evaluation set stand in the training data, one of them rewritten."""
    problems = read_examples(folder / "run" / "data" / "heldout.jsonl")
    held = [{"prompt": p.prompt, "completion": p.completion} for p in problems]
    own = [{"prompt": f"What is {n} and {n + 1} together?", "completion": f" {2 * n + 1}"} for n in range(10)]
    leaked = [*held[:4], {**held[4], "prompt": str(held[4]["prompt"]).upper()}]
    for name, rows in (("train", [*own, *leaked]), ("heldout", held)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = yaml.safe_load((folder / "chosen.yaml").read_text())
    recipe["data"] = {name: {"path": str(tmp_path / f"{name}.jsonl")} for name in ("train", "heldout")}
    (tmp_path / "files.yaml").write_text(yaml.safe_dump(recipe | {"score": None}), encoding="utf-8")
    return tmp_path


def test_questions_of_the_evaluation_set_are_left_out_and_said(files: Path, chosen: Path) -> None:
    run("train", files / "files.yaml", "--out", files / "run")
    asked = [example.prompt for example in read_examples(files / "run" / "data" / "train.jsonl")]
    assert len(asked) == 10
    assert all("together" in (prompt or "") for prompt in asked)
    told = json.loads((files / "run" / "stages" / "data.json").read_text())["choices"]
    assert any(choice["value"].startswith("5 ") for choice in told)
    run("train", files / "files.yaml", "data.decontaminate=false", "--out", files / "all")
    assert len(list(read_examples(files / "all" / "data" / "train.jsonl"))) == 15


def test_an_evaluation_set_that_is_the_training_set_is_refused(files: Path, chosen: Path) -> None:
    same = f"data.train.path={files / 'heldout.jsonl'}"
    with pytest.raises(DataError, match="same rows"):
        run("train", files / "files.yaml", same, "--out", files / "run")


def test_a_budget_above_the_set_is_refused_before_training(folder: Path, chosen: Path) -> None:
    steps = "data.steps=[{longest: {budget: 21}}]"
    with pytest.raises(DataError, match="should choose 21 rows and was given 20"):
        run("train", folder / "chosen.yaml", steps, "--out", folder / "over")
    assert not (folder / "over" / "student").exists()
