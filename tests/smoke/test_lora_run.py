"""A recipe with adapters through the real stages: merged or alone, stopped and continued, and refused beforehand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from building import StopAtTwo, StoppedHereError
from transformers import AutoModelForCausalLM

from stillhouse import adapters, stages
from stillhouse.checking.check import check
from stillhouse.errors import RecipeError, RunError
from stillhouse.models import CausalLM, load_config
from stillhouse.recipe import LoRA
from stillhouse.recipe_file import load_recipe

SETTINGS = ["train.activation_checkpointing=true", "train.lr=0.01"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: Any, make_student: Any, tiny_recipe: Any) -> Path:
    """A folder with a teacher, a student to start from, and a recipe of the two."""
    home = tmp_path_factory.mktemp("home")
    make_student(seed=7, using=chat_tokenizer, hidden_size=32, max_position_embeddings=512).save(home / "teacher")
    make_student(seed=8, using=chat_tokenizer, tied=True, max_position_embeddings=512).save(home / "base")
    evaluate = ["likelihood", "fidelity", {"efficiency": {"trials": 1, "batch_size": 1, "memory": False}}]
    student = {"model": str(home / "base"), "lora": {"r": 4, "alpha": 8}}
    recipe = tiny_recipe(home / "teacher", student=student, evaluate=evaluate)
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return home


def recipe_of(home: Path, *overrides: str) -> Any:
    return load_recipe(str(home / "recipe.yaml"), [*SETTINGS, *overrides])


@pytest.fixture(scope="module")
def merged(home: Path) -> Path:
    stages.run(recipe_of(home), home / "merged")
    return home / "merged"


@pytest.fixture(scope="module")
def alone(home: Path) -> Path:
    stages.run(recipe_of(home, "student.lora.merge=false"), home / "alone")
    return home / "alone"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def values(run: Path, role: str) -> dict[str, float]:
    found = json.loads((run / "evaluation.json").read_text())["models"][role]
    return {name: metric["value"] for name, metric in found.items() if "second" not in name}


def test_merged_student_is_an_ordinary_folder_whose_adapted_layers_moved(home: Path, merged: Path) -> None:
    base, student, control = weights(home / "base"), weights(merged / "student"), weights(merged / "control")
    assert base.keys() == student.keys()
    for name, tensor in base.items():
        moved = "proj" in name
        assert torch.equal(tensor, student[name]) is not moved, name
        assert torch.equal(tensor, control[name]) is not moved, name
    assert not torch.equal(student["model.layers.0.mlp.up_proj.weight"], control["model.layers.0.mlp.up_proj.weight"])
    card = (merged / "student" / "README.md").read_text()
    count = adapters.trainable_parameters(load_config(str(home / "base")), LoRA(r=4, alpha=8))
    assert f"LoRA adapters of rank 4 (alpha 8) on all-linear: {count:,} parameters, merged into its weights" in card
    assert f"A language model of {CausalLM.load(str(home / 'base')).parameters():,} parameters" in card


def test_adapters_alone_evaluate_as_their_sum_does(home: Path, merged: Path, alone: Path) -> None:
    assert {p.name for p in (alone / "student").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not (alone / "student" / "model.safetensors").exists()
    assert "library_name: peft" in (alone / "student" / "README.md").read_text()
    for role in ("teacher", "student_before", "control", "student"):
        assert values(alone, role) == pytest.approx(values(merged, role), rel=1e-4, abs=1e-6), role
    assert values(alone, "student")["likelihood.loss"] != values(alone, "student_before")["likelihood.loss"]
    assert "evaluate-student" in stages.evaluate_run(alone).skipped


def test_a_folder_that_was_not_trained_is_not_evaluated(home: Path, tmp_path: Path) -> None:
    stages.score(recipe_of(home), tmp_path / "scored")
    with pytest.raises(RunError, match="no trained student yet"):
        stages.evaluate_run(tmp_path / "scored")


def test_a_stopped_run_continues_and_ends_with_the_same_adapters(home: Path, alone: Path, tmp_path: Path) -> None:
    stop_at_two = StopAtTwo()

    recipe = recipe_of(home, "student.lora.merge=false")
    with pytest.raises(StoppedHereError):
        stages.train_only(recipe, tmp_path / "run", stop_at_two)
    stages.train_only(recipe, tmp_path / "run", stop_at_two)
    assert stop_at_two.seen == [1, 2, 2, 3]
    ours, theirs = (run / "student" / "adapter_model.safetensors" for run in (tmp_path / "run", alone))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_student_from_scratch_may_be_adapted_too(home: Path, tiny_recipe: Any, tmp_path: Path) -> None:
    student = tiny_recipe(home / "teacher")["student"] | {"lora": {"target_modules": ["q_proj", "lm_head"]}}
    student["config"]["tie_word_embeddings"] = True
    recipe = recipe_of(home, f"student={json.dumps(student)}", "control=false", "evaluate=[likelihood]", "samples=0")
    stages.run(recipe, tmp_path / "run")
    choices = json.loads((tmp_path / "run" / "stages" / "train-student.json").read_text())["choices"]
    told = {choice["name"]: choice["value"] for choice in choices}
    assert "beside" in told["trained parameters"]
    assert told["head and embeddings"] == "a matrix each"
    assert not CausalLM.load(str(tmp_path / "run" / "student")).model.config.tie_word_embeddings
    with pytest.raises(RecipeError, match=r"override student.*lora\.merge is false"):
        load_recipe(str(home / "recipe.yaml"), [f"student={json.dumps(student)}", "student.lora.merge=false"])


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("student.lora.target_modules=[q_prj]", "Did you mean 'q_proj'?"),
        ("student.lora.modules_to_save=[head]", "Did you mean 'lm_head'?"),
        ("train.optimizer=muon", "Set train.optimizer: adamw"),
        ("student.lora.r=0", "student.lora.r"),
        ("student.lora.rank=4", "unknown key 'rank'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(home: Path, override: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check(recipe_of(home, override))
    assert told in str(caught.value)


def test_without_peft_check_and_run_name_the_extra(home: Path, tmp_path: Path) -> None:
    for verb in (["check", "RECIPE"], ["run", "RECIPE", "--out", str(tmp_path / "run")]):
        arguments = ["stillhouse", *(str(home / "recipe.yaml") if part == "RECIPE" else part for part in verb)]
        code = (
            f"import sys; sys.modules['peft'] = None; sys.argv = {arguments!r}; from stillhouse.cli import main; main()"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stderr
        assert 'pip install "stillhouse[peft]"' in done.stderr.replace("\n", " ")
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "data").exists()


def test_adapters_that_adapters_alone_would_be_put_on_are_refused(home: Path, alone: Path) -> None:
    overrides = [f"student.model={alone / 'student'}", "student.lora.merge=false"]
    with pytest.raises(RecipeError, match="holds adapters itself"):
        check(recipe_of(home, *overrides))
    check(recipe_of(home, overrides[0]))  # merged they may
