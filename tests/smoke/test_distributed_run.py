"""A whole run by two processes under torchrun: the same student, store and evaluation as by one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

PROCESSES = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def stillhouse(*arguments: str, together: bool) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(PROCESSES if together else []), "-m", "stillhouse", *arguments]
    return subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture
def recipe(tiny_recipe: Callable[..., dict[str, Any]], tmp_path: Path, make_student: Any) -> Path:
    make_student(seed=5, max_position_embeddings=512).save(tmp_path / "teacher")
    made = tiny_recipe(tmp_path / "teacher", score={"k": 8}, evaluate=["likelihood", "fidelity", "calibration"])
    made["teacher"]["hf"]["shard"] = "always"
    made["objective"] = ["forward_kl"]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(made))
    return path


@pytest.mark.parametrize("shard", ["never", "always"])
def test_two_processes_make_the_run_of_one(recipe: Path, tmp_path: Path, shard: str) -> None:
    folders = tmp_path / "one", tmp_path / "two"
    for together, folder in enumerate(folders):
        done = stillhouse(
            "run", str(recipe), f"train.shard={shard}", "--out", str(folder), "--json", together=bool(together)
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads(done.stdout)["run"] == str(folder)  # one process speaks
    one, two = folders
    for role in ("student", "control"):
        alone, together_ = (load_file(str(folder / role / "model.safetensors")) for folder in folders)
        for name, weight in alone.items():
            torch.testing.assert_close(together_[name], weight, rtol=0, atol=1e-4)
    assert (one / "signals" / "shard-00000").stat().st_size == (two / "signals" / "shard-00000").stat().st_size
    values = [json.loads((folder / "evaluation.json").read_text())["models"]["student"] for folder in folders]
    for name, found in values[0].items():
        assert values[1][name]["value"] == pytest.approx(found["value"], rel=1e-3, abs=1e-4), name
    environment = json.loads((two / "environment.json").read_text())
    assert environment["processes"] == 2
    rows = [json.loads(line) for line in (two / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 1, 2, 3]  # written by one process


def test_adapters_of_a_sharded_student_are_saved_whole(recipe: Path, tmp_path: Path) -> None:
    settings = ["train.shard=always", "train.activation_checkpointing=true", "evaluate=[likelihood]", "control=false"]
    settings.append("student.lora={r: 4, target_modules: [q_proj, lm_head]}")
    for together, name in enumerate(("one", "two")):
        done = stillhouse("run", str(recipe), *settings, "--out", str(tmp_path / name), together=bool(together))
        assert done.returncode == 0, done.stderr[-3000:]
    alone, sharded = (load_file(str(tmp_path / name / "student" / "model.safetensors")) for name in ("one", "two"))
    assert alone.keys() == sharded.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(sharded[name], weight, rtol=0, atol=1e-4)


def test_processes_that_do_not_divide_an_update_are_refused(recipe: Path, tmp_path: Path) -> None:
    done = stillhouse("run", str(recipe), "train.accumulate=3", "--out", str(tmp_path / "out"), together=True)
    assert done.returncode != 0
    assert "3 micro-batches (train.accumulate), and 2 processes cannot share them evenly" in done.stderr
    assert "Set train.accumulate to a multiple of 2" in done.stderr


def test_a_folder_in_use_is_refused_once(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "foreign.txt").write_text("x")
    done = stillhouse("run", str(recipe), "--out", str(tmp_path / "out"), together=True)
    assert done.returncode != 0
    assert done.stderr.count("is not a run folder and not empty") == 1
