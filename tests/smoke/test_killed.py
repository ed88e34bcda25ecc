"""Killed at random instants and started again by the same command, a run ends as one that was never killed: the same
weights, data, stored signals and evaluation, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

SAME = (
    "data/*.jsonl",
    "signals/*",
    "signals/tokenizer/*",
    "student/*",
    "control/*",
    "evaluation/*.npz",
    "samples.jsonl",
)
"""Of a run folder, what must be the same bytes; the rest holds times."""


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "stillhouse", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, told = process.communicate(timeout=600)
    assert process.returncode == 0, told.decode()[-3000:]


def content(folder: Path) -> dict[str, bytes]:
    files = {path for pattern in SAME for path in folder.glob(pattern) if path.is_file()}
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(files)}
    # Cards name the day; what they say besides is in the recipe and the manifest.
    return {name: data for name, data in found.items() if not name.endswith(("README.md", ".lock"))}


def told(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, sorted, without their times: every step once."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("seconds", None)
    return sorted(rows, key=lambda row: (row["model"], row["step"], "evaluation" in row))


def killed_until_done(arguments: Callable[[Path], list[str]], folder: Path, draw: random.Random, longest: float) -> int:
    """Start, kill after a while, start again, until it ends by itself; how often it was killed."""
    kills = 0
    while True:
        process = start(arguments(folder))
        try:
            process.wait(timeout=draw.uniform(0.3, longest))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            longest *= 1.05  # a machine that is slower than thought must not make this go on for ever
        else:
            finish(process)
            return kills


def check_kills(arguments: Callable[[Path], list[str]], home: Path, kills: int, *, metrics: bool) -> None:
    whole = home / "whole"
    begun = time.monotonic()
    finish(start(arguments(whole)))
    took = time.monotonic() - begun
    expected = content(whole)
    assert expected
    draw, seen = random.Random(kills), 0
    while seen < kills:
        folder = home / f"killed-{seen}"
        seen += killed_until_done(arguments, folder, draw, longest=min(30, 0.7 * took))
        found = content(folder)
        assert found.keys() == expected.keys()
        assert [name for name in expected if found[name] != expected[name]] == []
        if metrics:
            assert told(folder) == told(whole)


@pytest.fixture
def recipe(tiny_recipe: Callable[..., dict[str, Any]], tmp_path: Path, make_student: Any, bos_tokenizer: Any) -> Path:
    make_student(seed=5, using=bos_tokenizer, max_position_embeddings=512).save(tmp_path / "teacher")
    settings = {
        "score": {"k": 8},
        "data": {
            "train": {"teacher_text": {"count": 40, "max_new_tokens": 40, "seed": 1}},
            "heldout": {"teacher_text": {"count": 10, "max_new_tokens": 40, "seed": 2}},
            "max_length": 64,
        },
        "objective": ["forward_kl"],
        "evaluate": ["likelihood", "fidelity"],
        "samples": 2,
    }
    made = tiny_recipe(tmp_path / "teacher", **settings)
    made["student"]["config"]["attention_dropout"] = 0.1  # draws random numbers at every update
    made["train"] |= {"steps": 12, "tokens_per_step": 400, "checkpoint_every": 2, "evaluate_every": 4}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(made))
    return path


@pytest.mark.timeout(900)
def test_a_run_that_is_killed_a_few_times(recipe: Path, tmp_path: Path) -> None:
    check_kills(lambda out: ["run", str(recipe), "--out", str(out)], tmp_path, 3, metrics=True)


@pytest.mark.timeout(900)
def test_a_store_whose_scoring_is_killed_a_few_times(recipe: Path, tmp_path: Path) -> None:
    check_kills(lambda out: ["score", str(recipe), "--out", str(out)], tmp_path, 2, metrics=False)


QUICKSTART = ["train.checkpoint_every=25", "train.precision=float32", "evaluate=[likelihood,fidelity,calibration]"]
"""As it ships, but for: frequent checkpoints, a precision that is not measured (a busy machine could choose the other
one), and evaluators that measure no speed."""


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_quickstart_killed_at_twenty_instants(tmp_path: Path) -> None:
    check_kills(lambda out: ["run", "quickstart", *QUICKSTART, "--out", str(out)], tmp_path, 20, metrics=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_quickstart_scoring_killed_at_twenty_instants(tmp_path: Path) -> None:
    check_kills(lambda out: ["score", "quickstart", "--out", str(out)], tmp_path, 20, metrics=False)
