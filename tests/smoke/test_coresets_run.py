"""The recipe of coresets through the command line, on files made here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

WORDS = {"sea": ("ship", "tide", "reef", "sail"), "land": ("hill", "road", "barn", "oak")}
SMALL = ["budgets=[1, 3]", "seeds=2", "students=[linear]", "features=[{tfidf: {dimensions: 6, pairs: false}}]"]


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stillhouse", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def write(place: Path, count: int, name: str) -> Path:
    rows = []
    for number in range(count):
        label = ("sea", "land")[number % 2]
        words = WORDS[label]
        rows.append({"text": f"{words[number % 4]} {words[number // 2 % 4]} {name}{number}", "label": label})
    place.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return place


def test_the_recipe_runs_with_every_selector_and_can_be_asked_again(tmp_path: Path) -> None:
    train, heldout = write(tmp_path / "train.jsonl", 40, "a"), write(tmp_path / "dev.jsonl", 20, "b")
    command = ["run", "coresets", f"data.train.path={train}", f"data.heldout.path={heldout}", *SMALL]
    done = cli(*command, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "coresets.json").read_text())
    ways = {cell["selector"] for cell in found["features"][0]["cells"]}
    assert {"random", "full data", "herding", "gradient_match (CE)", "gradient_match (KD)"} <= ways
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    before = (tmp_path / "out" / "coresets.json").read_bytes()
    assert cli(*command, "--out", str(tmp_path / "out")).returncode == 0
    assert (tmp_path / "out" / "coresets.json").read_bytes() == before


def test_a_class_that_is_too_small_is_said_before_anything_is_computed(tmp_path: Path) -> None:
    train, heldout = write(tmp_path / "train.jsonl", 40, "a"), write(tmp_path / "dev.jsonl", 20, "b")
    overrides = [f"data.train.path={train}", f"data.heldout.path={heldout}", *SMALL[1:]]
    done = cli("run", "coresets", *overrides, "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "has 20 rows of class 'land', of which a draw keeps 16" in done.stderr
    assert not (tmp_path / "out" / "features").exists()
