"""lm-eval's tasks in a whole run: four models, compared by example, and a wrong name refused before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from building import COLOUR_ROWS, COLOURS, MakeStudent, write_task
from transformers import PreTrainedTokenizerBase

from stillhouse import stages
from stillhouse.errors import DataError
from stillhouse.preflight import make_plan
from stillhouse.recipe_file import load_recipe


@pytest.fixture
def recipe_file(
    tmp_path: Path, chat_tokenizer: PreTrainedTokenizerBase, make_student: MakeStudent, tiny_recipe: Any
) -> Path:
    teacher = tmp_path / "teacher"
    make_student(seed=7, using=chat_tokenizer, hidden_size=32, max_position_embeddings=512).save(teacher)
    folder = write_task(tmp_path, "colours", COLOURS, COLOUR_ROWS)
    asked = {"lm_eval": {"tasks": ["colours"], "include_path": folder, "batch_size": 8}}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(teacher, evaluate=["likelihood", asked])))
    return path


def test_a_run_compares_its_models_on_a_task(recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stages.run(load_recipe(str(recipe_file)), out)
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["headline"] == "lm_eval.colours/acc"
    assert evaluation["metrics"]["lm_eval.colours/acc_norm"]["unit"] == "share"
    for role, metrics in evaluation["models"].items():
        assert metrics["lm_eval.colours/acc"]["n"] == 9, role
        assert metrics["lm_eval.colours/acc"]["stderr"] is not None
    paired = evaluation["comparisons"]["student - control"]["lm_eval.colours/acc"]
    assert paired["n"] == 9
    assert paired["low"] <= paired["difference"] <= paired["high"]
    assert "Accuracy on colours" in (out / "report.md").read_text()


def test_a_task_without_its_data_stops_the_run_before_it_starts(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "colours.jsonl").unlink()
    with pytest.raises(DataError, match="'colours' of lm-eval cannot be set up"):
        make_plan(load_recipe(str(recipe_file)))
