"""Trackers through the real command line: a run, a run that was killed, a run that failed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from tracked import tensorboard_points, wandb_points
from transformers import PreTrainedTokenizerBase

from stillhouse.tracking.base import full_points, read_rows


@pytest.fixture(scope="module")
def recipe_file(
    tmp_path_factory: pytest.TempPathFactory,
    chat_tokenizer: PreTrainedTokenizerBase,
    make_student: Any,
    tiny_recipe: Any,
) -> Path:
    folder = tmp_path_factory.mktemp("tracked")
    make_student(seed=7, using=chat_tokenizer, hidden_size=32, max_position_embeddings=512).save(folder / "teacher")
    track = ["tensorboard", "trackio", {"wandb": {"project": "mine"}}]
    recipe = tiny_recipe(folder / "teacher", evaluate=["likelihood", "fidelity"], samples=0, track=track)
    (folder / "tracked.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "tracked.yaml"


def command(recipe_file: Path, out: Path, *more: str) -> tuple[list[str], dict[str, str]]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TRACKIO_DIR": str(recipe_file.parent / "trackio"),
        "WANDB_MODE": "offline",
    }
    return [
        sys.executable,
        "-m",
        "stillhouse",
        "run",
        str(recipe_file),
        *more,
        "--out",
        str(out),
        "--json",
    ], environment


def run(recipe_file: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    arguments, environment = command(recipe_file, out, *more)
    return subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=300)


def seen_in_trackio(recipe_file: Path, out: Path) -> list[tuple[str, int, float]]:
    """In a process of its own, since trackio reads TRACKIO_DIR when it is imported."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "import json; from pathlib import Path; from tracked import trackio_points\n"
        f"print(json.dumps(list(trackio_points(Path({str(out)!r})))))"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(recipe_file.parent / "trackio")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return [tuple(point) for point in json.loads(done.stdout)]


def told(out: Path) -> tuple[Counter[tuple[str, int]], dict[str, float]]:
    """Which points a finished run has, and the values of its evaluation."""
    training = Counter((name, row["step"]) for row in read_rows(out) for name in full_points(row))
    models = json.loads((out / "evaluation.json").read_text())["models"]
    final = {f"evaluation/{m}/{name}": e["value"] for m, found in models.items() for name, e in found.items()}
    return training, final


def assert_all_show(recipe_file: Path, out: Path) -> None:
    training, final = told(out)
    assert training["student/objectives/forward_kl", 3] == 1
    assert training["control/evaluation/likelihood.loss", 2] == 1
    assert final.keys() >= {"evaluation/student/fidelity.kl", "evaluation/teacher/likelihood.loss"}
    for points in (tensorboard_points(out), seen_in_trackio(recipe_file, out), wandb_points(out)):
        found = list(points)
        assert Counter((name, step) for name, step, _ in found if name not in final) == training
        shown = {name: value for name, _, value in found if name in final}
        assert shown == pytest.approx(final, rel=1e-5)


def test_all_trackers_show_what_the_run_folder_holds(recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(recipe_file, out)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == str(out)  # what trackers print stays away from stdout
    assert_all_show(recipe_file, out)
    again = run(recipe_file, out)
    assert "train-student" in json.loads(again.stdout)["skipped"]
    assert_all_show(recipe_file, out)


def test_a_killed_run_that_continues_shows_every_point_once(recipe_file: Path, tmp_path: Path) -> None:
    """Killed without warning while the student trains, between two checkpoints, so that steps are taken twice."""
    out, more = tmp_path / "run", ("train.steps=60", "train.checkpoint_every=20", "train.evaluate_every=7")
    arguments, environment = command(recipe_file, out, *more)
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    for _ in range(30_000):  # minutes on a busy machine
        rows = list(read_rows(out))
        if rows and rows[-1]["step"] >= 25:
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = list(read_rows(out))
    assert before[-1]["step"] >= 25
    assert {row["model"] for row in before} == {"student"}, "the kill came too late to prove anything"
    done = run(recipe_file, out, *more)
    assert done.returncode == 0, done.stderr
    training, final = told(out)
    assert max(training.values()) == 1
    for points in (tensorboard_points(out), seen_in_trackio(recipe_file, out), wandb_points(out)):
        assert Counter((name, step) for name, step, _ in points if name not in final) == training


def test_a_tracker_that_cannot_be_opened_stops_the_run_before_the_data(recipe_file: Path, tmp_path: Path) -> None:
    """W&B online without a key: nobody wants to learn that after the teacher has written for hours."""
    out = tmp_path / "run"
    arguments, environment = command(recipe_file, out, "track=[wandb]")
    environment = {k: v for k, v in environment.items() if k != "WANDB_API_KEY"} | {
        "WANDB_MODE": "online",
        "NETRC": str(tmp_path / "none"),
        "HOME": str(tmp_path),
    }
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 1
    assert "RunError: track names wandb, which cannot be opened" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (out / "data").exists()
