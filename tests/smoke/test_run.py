"""The whole of it in seconds: a random teacher of a few thousand weights, eight problems, three updates."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from building import StopAtTwo, StoppedHereError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from stillhouse import stages
from stillhouse.recipe import Recipe, builtin_recipes
from stillhouse.recipe_file import load, load_recipe
from stillhouse.runs import RunFolder
from stillhouse.sweep_file import is_sweep

FILES = {
    "recipe.yaml",
    "environment.json",
    "metrics.jsonl",
    "evaluation.json",
    "samples.jsonl",
    "report.html",
    "report.md",
    "manifest.json",
}


@pytest.fixture(scope="module")
def teacher(
    tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: PreTrainedTokenizerBase, make_student: Any
) -> Path:
    folder = tmp_path_factory.mktemp("models") / "teacher"
    make_student(seed=7, using=chat_tokenizer, hidden_size=32, max_position_embeddings=512).save(folder)
    return folder


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, teacher: Path, tiny_recipe: Any) -> Path:
    recipe = tiny_recipe(teacher)
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def cli(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stillhouse", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300)


@pytest.fixture(scope="module")
def finished(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    done = cli("run", str(recipe_file), "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no terminal, no progress
    assert json.loads(done.stdout)["run"] == str(out)
    return out


def test_a_run_leaves_everything_it_promises(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} >= {*FILES, "student", "control", "data", "stages"}
    # Whoever opens the folder again, as other tests do, touches its lock.
    written = [path for path in finished.rglob("*") if path.is_file() and path.name != ".lock"]
    newest = max(written, key=lambda path: path.stat().st_mtime_ns)
    assert newest.name == "manifest.json"


def test_evaluation_holds_four_models_and_the_paired_comparison(finished: Path) -> None:
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert list(evaluation["models"]) == ["teacher", "student_before", "control", "student"]
    for role, metrics in evaluation["models"].items():
        assert {"likelihood.loss", "tasks.accuracy"} <= set(metrics), role
        assert all(set(m) == {"value", "stderr", "n"} for m in metrics.values())
    comparison = evaluation["comparisons"]["student - control"]["likelihood.loss"]
    assert {"difference", "low", "high", "resolved"} <= set(comparison)
    assert comparison["low"] <= comparison["difference"] <= comparison["high"]


def test_metrics_name_each_objective_and_evaluate_on_the_way(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    student = [row for row in rows if row["model"] == "student" and "loss" in row]
    assert [row["step"] for row in student] == [1, 2, 3]
    weighted = 0.5 * student[0]["objectives"]["forward_kl"] + student[0]["objectives"]["cross_entropy"]
    assert student[0]["loss"] == pytest.approx(weighted, rel=1e-5)
    assert any("evaluation" in row and row["step"] == 2 for row in rows)


def test_the_student_is_an_ordinary_folder(finished: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished / "student")
    tokenizer = AutoTokenizer.from_pretrained(finished / "student")
    ids = tokenizer("Ann has 2 apples.", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] > ids.shape[1]
    card = (finished / "student" / "README.md").read_text()
    assert "distilled from" in card
    assert "forward_kl" in card


def test_the_same_command_again_does_nothing_and_says_so(finished: Path, recipe_file: Path) -> None:
    weights = (finished / "student" / "model.safetensors").stat().st_mtime_ns
    done = cli("run", str(recipe_file), "--out", str(finished), "--json")
    assert done.returncode == 0, done.stderr
    assert {"data", "train-student", "train-control", "evaluate-student"} <= set(json.loads(done.stdout)["skipped"])
    assert (finished / "student" / "model.safetensors").stat().st_mtime_ns == weights


def test_another_recipe_is_refused_and_the_difference_named(finished: Path, recipe_file: Path) -> None:
    done = cli("run", str(recipe_file), "train.steps=4", "--out", str(finished))
    assert done.returncode == 1
    assert "train.steps (3 there, 4 here)" in done.stderr
    assert "--out" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_runs_in_one_folder_at_once_are_refused(finished: Path, recipe_file: Path) -> None:
    recipe = RunFolder(finished).recipe()
    with RunFolder.claim(finished, recipe):
        done = cli("run", str(recipe_file), "--out", str(finished))
    assert done.returncode == 1
    assert f"in use by another run (process {os.getpid()})" in done.stderr


def test_a_folder_with_other_files_is_left_alone(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = cli("run", str(recipe_file), "--out", str(tmp_path))
    assert done.returncode == 1
    assert "thesis.txt" in done.stderr


def test_a_stopped_run_continues_and_ends_with_the_same_weights(
    recipe_file: Path, finished: Path, tmp_path: Path
) -> None:
    """Stopped after the second update: the next command takes the last one alone, and nothing differs."""
    recipe = load_recipe(str(recipe_file))
    stop_at_two = StopAtTwo()

    with pytest.raises(StoppedHereError):
        stages.run(recipe, tmp_path / "run", stop_at_two)
    stages.run(recipe, tmp_path / "run", stop_at_two)
    assert stop_at_two.seen == [1, 2, 2, 3]  # the first update was kept in a checkpoint, the second was not yet
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student").state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(finished / "student").state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["model"] == "student" and "loss" in row] == [1, 2, 3]


def test_compare_pairs_runs_by_example(finished: Path, recipe_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "seed1"
    assert cli("run", str(recipe_file), "seed=1", "--out", str(other)).returncode == 0
    done = cli("compare", str(finished), str(other), "--json")
    assert done.returncode == 0, done.stderr
    (pair,) = json.loads(done.stdout)["comparisons"].values()
    assert pair["likelihood.loss"]["n"] == 6
    text = cli("compare", str(finished), str(other)).stdout
    assert "resolved" in text
    alone = cli("compare", str(finished))
    assert alone.returncode == 2
    assert "at least two" in alone.stderr


@pytest.mark.parametrize(
    "verb", [["check", "RECIPE"], ["list"], ["show", "forward_kl"], ["show", "RECIPE"], ["doctor"]]
)
def test_every_reading_verb_speaks_text_and_json(verb: list[str], recipe_file: Path) -> None:
    arguments = [str(recipe_file) if part == "RECIPE" else part for part in verb]
    text = cli(*arguments)
    assert text.returncode == 0, text.stderr
    assert text.stdout.strip()
    json.loads(cli(*arguments, "--json").stdout)


def test_check_estimates_without_loading_weights(recipe_file: Path, teacher: Path, tmp_path: Path) -> None:
    weights = teacher / "model.safetensors"
    weights.rename(tmp_path / "kept")
    weights.write_bytes(b"no weights at all")
    try:
        done = cli("check", str(recipe_file), "--json")
    finally:
        (tmp_path / "kept").replace(weights)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["estimate"]["peak_memory_bytes"] > 0


def test_report_is_written_again_without_torch(finished: Path) -> None:
    (finished / "report.html").unlink()
    code = "import sys; from stillhouse.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, "report", str(finished)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (finished / "report.html").exists(), done.stderr[-500:]
    imported = set(re.findall(r"\|\s+(\S+)$", done.stderr, re.MULTILINE))
    assert "stillhouse.report.page" in imported
    assert not imported & {"torch", "transformers"}


def test_train_then_evaluate_is_run_in_two_halves(recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "halves"
    assert cli("train", str(recipe_file), "control=false", "--out", str(out)).returncode == 0
    assert not (out / "evaluation.json").exists()
    done = cli("evaluate", str(out), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "evaluation.json").read_text())
    assert "control" not in found["models"]
    assert (out / "manifest.json").exists()


def test_sequence_level_distillation_with_the_original_text_as_control(recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "sequence"
    overrides = ["objective=[cross_entropy]", "data.steps=[{teacher_text: {max_new_tokens: 4, temperature: 0}}]"]
    done = cli("run", str(recipe_file), *overrides, "--out", str(out))
    assert done.returncode == 0, done.stderr
    original = (out / "data" / "control.jsonl").read_text().splitlines()
    written = (out / "data" / "train.jsonl").read_text().splitlines()
    assert json.loads(original[0])["completion"] != json.loads(written[0])["completion"]
    assert json.loads(written[0])["meta"]["made_by"]["synthesizer"] == "teacher_text"
    assert "control" in json.loads((out / "evaluation.json").read_text())["models"]


def test_a_poisoned_run_stops_and_keeps_its_last_good_checkpoint(recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "diverged"
    done = cli("run", str(recipe_file), "train.lr=1e30", "train.clip=null", "train.steps=6", "--out", str(out))
    assert done.returncode == 1
    assert "not a finite number" in done.stderr
    assert "Lower train.lr" in done.stderr
    assert list((out / "checkpoints").rglob("*.safetensors"))


@pytest.mark.parametrize("name", [name for name in builtin_recipes() if not is_sweep(name)])
def test_every_recipe_resolves(name: str) -> None:
    recipe = load(name)
    for _, family, component in recipe.components() if isinstance(recipe, Recipe) else ():
        component.build(family)
    assert recipe.name == name


def test_prompts_alone_leave_nothing_to_train_a_control_on(recipe_file: Path, tmp_path: Path) -> None:
    """Found out before anything is trained, said in the environment, and no crash after the student is done."""
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"{n} + 1 ="}) + "\n" for n in range(8)))
    (tmp_path / "heldout.jsonl").write_text('{"prompt": "2 + 2 =", "completion": "4"}\n' * 3)
    overrides = [
        "objective=[cross_entropy]",
        "data.steps=[{teacher_text: {max_new_tokens: 4, temperature: 0}}]",
        f"data.train={{path: {tmp_path / 'prompts.jsonl'}}}",
        f"data.heldout={{path: {tmp_path / 'heldout.jsonl'}}}",
    ]
    done = cli("run", str(recipe_file), *overrides, "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "control" not in json.loads((tmp_path / "run" / "evaluation.json").read_text())["models"]
    choices = json.loads((tmp_path / "run" / "environment.json").read_text())["choices"]
    assert any(c["name"] == "control" and "teacher's" in c["reason"] for c in choices)


def test_a_teacher_that_changed_under_its_name_is_noticed(recipe_file: Path, teacher: Path, tmp_path: Path) -> None:
    import shutil

    mine = tmp_path / "teacher"
    shutil.copytree(teacher, mine)
    out = ["control=false", "--out", str(tmp_path / "run"), "--json"]
    command = ["run", str(recipe_file), f"teacher.hf.model={mine}", *out]
    assert cli(*command).returncode == 0
    assert "train-student" in json.loads(cli(*command).stdout)["skipped"]
    weights = bytearray((mine / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (mine / "model.safetensors").write_bytes(weights)
    assert json.loads(cli(*command).stdout)["skipped"] == []
