"""What a student lost, through the command line's own code: diversity, and how it fares on data it knows less."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import PreTrainedTokenizerBase

from stillhouse import stages
from stillhouse.comparing import compare_runs
from stillhouse.recipe_file import load_recipe
from stillhouse.results import ModelResult
from stillhouse.runs import RunFolder
from stillhouse.terminal import comparison_table, outcome_text
from stillhouse.workshop import Workshop

ROLES = ["teacher", "student_before", "control", "student"]


@pytest.fixture(scope="module")
def recipe_file(
    tmp_path_factory: pytest.TempPathFactory,
    chat_tokenizer: PreTrainedTokenizerBase,
    make_student: Any,
    tiny_recipe: Any,
) -> Path:
    folder = tmp_path_factory.mktemp("lost")
    make_student(seed=7, using=chat_tokenizer, hidden_size=32, max_position_embeddings=512).save(folder / "teacher")
    recipe = tiny_recipe(folder / "teacher")
    recipe["data"]["train"]["arithmetic"]["count"] = 12
    recipe["data"]["out_of_domain"] = {
        "longer": {"arithmetic": {"count": 5, "steps": [3, 3], "split": "heldout", "distractors": 0.0}}
    }
    writing = {"samples": 2, "limit": 4, "max_new_tokens": 5}
    recipe["evaluate"] = ["likelihood", "calibration", {"tasks": {"max_new_tokens": 4}}, "generalisation"]
    recipe["evaluate"].append({"diversity": writing})
    path = folder / "lost.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def run(recipe_file: Path) -> Path:
    out = recipe_file.parent / "run"
    stages.run(load_recipe(str(recipe_file)), out)
    return out


@pytest.fixture(scope="module")
def evaluation(run: Path) -> dict[str, Any]:
    return json.loads((run / "evaluation.json").read_text())


def test_everything_is_measured_on_every_model(evaluation: dict[str, Any]) -> None:
    assert list(evaluation["models"]) == ROLES
    for values in evaluation["models"].values():
        assert {"generalisation.train_loss", "diversity.self_bleu", "longer:diversity.entropy"} <= values.keys()
        assert "longer:generalisation.train_loss" not in values
        assert values["diversity.entropy"]["n"] == 4
    assert evaluation["recovery"]["diversity.entropy"]["value"] > 0


def test_the_sample_is_of_the_training_data_and_the_same_for_all(run: Path) -> None:
    trained = {json.loads(line)["id"] for line in (run / "data" / "train.jsonl").read_text().splitlines()}
    found = [ModelResult.load(run / "evaluation" / role).measurements["generalisation.train_loss"] for role in ROLES]
    assert len(trained) == 12
    assert len(found[0].ids) == 6  # as many as are held out
    assert set(found[0].ids) < trained
    assert all(m.ids == found[0].ids for m in found)
    assert not np.array_equal(found[0].sums_EM, found[-1].sums_EM)


def test_changes_between_data_sets_and_the_page(run: Path, evaluation: dict[str, Any]) -> None:
    rows = {(row["metric"], row["home"], row["away"]): row for row in evaluation["generalisation"]}
    assert ("likelihood.loss", "train", "heldout") in rows
    assert {name for name, home, away in rows if (home, away) == ("heldout", "longer")} == {
        name for name in evaluation["models"]["student"] if f"longer:{name}" in evaluation["models"]["student"]
    }
    student, models = rows["likelihood.loss", "train", "heldout"], evaluation["models"]
    for role in ROLES:
        values = models[role]
        gap = values["likelihood.loss"]["value"] - values["generalisation.train_loss"]["value"]
        assert student["changes"][role]["difference"] == pytest.approx(gap)
    assert student["excess"].keys() == {"student - teacher", "student - control"}
    assert "From training data to held-out data" in (run / "report.html").read_text()
    assert "### On less familiar data" in (run / "report.md").read_text()


def test_a_student_of_three_updates_on_noise_shows_no_signature(run: Path, evaluation: dict[str, Any]) -> None:
    assert evaluation["signatures"] == []
    assert "Failure signature" not in (run / "report.html").read_text()
    told = outcome_text({"skipped": [], "report": "r", "student": "s"}, evaluation)
    assert "diversity.distinct_2" in told
    assert "Failure" not in told


def test_samples_are_the_tasks_answers_and_not_the_draws(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert all(row["correct"].keys() == set(ROLES) for row in rows)


def test_the_curve_of_training_data_is_drawn_too(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("generalisation.train_loss" in row.get("evaluation", {}) for row in rows)


def test_runs_compare_but_not_on_each_ones_own_training_data(recipe_file: Path, run: Path) -> None:
    other = recipe_file.parent / "other"
    stages.run(load_recipe(str(recipe_file), ["data.train.arithmetic.seed=5", "control=false"]), other)
    found = compare_runs([run, other])
    (pair,) = found["comparisons"].values()
    assert {"likelihood.loss", "diversity.entropy"} <= pair.keys()
    assert not any(name.startswith("generalisation") for name in pair)
    assert found["not_compared"] == ["generalisation.train_bits_per_byte", "generalisation.train_loss"]
    assert "each run has its own training data: generalisation.train_bits_per_byte" in comparison_table(found)


def test_windows_of_long_texts_are_drawn_with_the_texts_they_are_of(recipe_file: Path, tmp_path: Path) -> None:
    words = "the cat sat on the mat, the cat ate the rat. "
    for name, count in (("train", 6), ("held", 3)):
        lines = [json.dumps({"text": f"{name} {i}: {words * 3}"}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    sources = [
        f"data.{part}={{path: {tmp_path / file}.jsonl, text: text}}"
        for part, file in (("train", "train"), ("heldout", "held"))
    ]
    settings = [*sources, "data.out_of_domain={}", "data.max_length=24", "evaluate=[likelihood, generalisation]"]
    recipe = load_recipe(str(recipe_file), settings)
    stages.train_only(recipe, tmp_path / "run")
    shop = Workshop(recipe, RunFolder(tmp_path / "run"))
    heldout = shop.heldout()
    assert heldout.training is not None
    drawn = heldout.training()
    assert len(drawn.rendered) == len(heldout.rendered) > 3
    assert {r.id.rpartition("/")[0] for r in drawn.rendered} == {e.id for e in drawn.examples}
    again = Workshop(recipe, RunFolder(tmp_path / "run")).heldout()
    assert again.training is not None
    assert [r.id for r in again.training().rendered] == [r.id for r in drawn.rendered]
