"""A sweep through the command line: killed in the middle it continues, a run that fails stops no other, and every run
is what it is alone."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

RUNS = [f"temperature-{value}-seed{seed}" for value in (1, 4) for seed in (0, 1)]


def command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "stillhouse", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    process = command(*arguments)
    out, told = process.communicate(timeout=600)
    return subprocess.CompletedProcess(arguments, process.returncode, out, told)


@pytest.fixture
def sweep(tiny_recipe: Callable[..., dict[str, Any]], tmp_path: Path, make_student: Any, bos_tokenizer: Any) -> Path:
    make_student(seed=5, using=bos_tokenizer, max_position_embeddings=512).save(tmp_path / "teacher")
    made = tiny_recipe(tmp_path / "teacher", objective=["forward_kl"], evaluate=["likelihood", "fidelity"], samples=1)
    made["train"] |= {"steps": 2, "precision": "auto"}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(made))
    text = yaml.safe_dump({"sweep": "base.yaml", "seeds": [0, 1], "grid": {"objective.forward_kl.temperature": [1, 4]}})
    (tmp_path / "tau.yaml").write_text("# Two temperatures.\n" + text)
    return tmp_path / "tau.yaml"


def wait_for(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < until, f"waited in vain: {what}"
        time.sleep(0.05)


def locked(run: Path) -> bool:
    """Whether a process works in a run folder."""
    if not (run / ".lock").exists():
        return False
    with (run / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def numbers(out: Path) -> dict[str, Any]:
    """sweep.json without times."""
    found = json.loads((out / "sweep.json").read_text())
    for setting in found["settings"].values():
        for run in setting["runs"].values():
            del run["seconds"]
    del found["reason"]
    return found


SLOW = pytest.mark.slow
KILLS = [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=SLOW), pytest.param(signal.SIGINT, marks=SLOW)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kill", KILLS)
def test_a_sweep_that_is_stopped_in_the_middle_continues(sweep: Path, tmp_path: Path, kill: signal.Signals) -> None:
    out = tmp_path / "out"
    arguments = ("sweep", str(sweep), "--jobs", "2", "--out", str(out))
    process = command(*arguments)
    wait_for(lambda: any((out / "runs").glob("*/stages/train-student.json")), "for the first student")
    process.send_signal(kill)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert not (out / "manifest.json").exists()
    wait_for(lambda: not any(locked(run) for run in (out / "runs").iterdir()), "for the runs to stop with their sweep")
    done = {run.name: (run / "manifest.json").stat().st_mtime_ns for run in (out / "runs").glob("*") if whole(run)}
    assert len(done) < len(RUNS)

    again = cli(*arguments)
    assert again.returncode == 0, again.stderr
    assert sorted(run.name for run in (out / "runs").iterdir() if whole(run)) == sorted(RUNS)
    assert {name: (out / "runs" / name / "manifest.json").stat().st_mtime_ns for name in done} == done
    found = numbers(out)
    assert found["failed"] == {}
    assert found["comparisons"]["temperature-4 - temperature-1"]["fidelity.kl"]["seeds"] == 2
    assert (out / "manifest.json").exists()
    assert "temperature-1" in (out / "report.html").read_text()


def whole(run: Path) -> bool:
    return (run / "manifest.json").exists()


@pytest.mark.timeout(900)
def test_runs_of_a_sweep_are_what_they_are_alone_and_share_what_is_the_same(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = cli("sweep", str(sweep), "--seeds", "1", "--jobs", "1", "--out", str(out), "--json")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout) == json.loads((out / "sweep.json").read_text())
    lent = out / "runs" / "temperature-4-seed1"
    control = json.loads((lent / "stages" / "train-control.json").read_text())
    assert control["choices"][-1]["value"] == "taken from temperature-1-seed1"
    alone = tmp_path / "alone"
    recipe = out / "recipes" / "temperature-4-seed1.yaml"
    done = cli("run", str(recipe), "--out", str(alone))
    assert done.returncode == 0, done.stderr
    for name in ("student/model.safetensors", "control/model.safetensors", "samples.jsonl"):
        assert (alone / name).read_bytes() == (lent / name).read_bytes(), name
    expected, found = (json.loads((run / "evaluation.json").read_text()) for run in (alone, lent))
    assert found == expected
    rows = [(row["model"], row["step"]) for row in map(json.loads, (lent / "metrics.jsonl").read_text().splitlines())]
    assert {model for model, _ in rows} == {"student", "control"}

    # More seeds go into the same folder; another recipe does not.
    grown = cli("sweep", str(sweep), "--seeds", "1,0", "--jobs", "2", "--out", str(out), "--json")
    assert grown.returncode == 0, grown.stderr
    found = json.loads(grown.stdout)
    assert found["threads"] == json.loads(first.stdout)["threads"]
    assert list(found["settings"]["temperature-4"]["runs"]) == ["1", "0"]
    refused = cli("sweep", str(sweep), "train.steps=3", "--out", str(out))
    assert refused.returncode == 1
    assert "overrides.train.steps" in refused.stderr


@pytest.mark.timeout(900)
def test_a_run_that_fails_stops_no_other_and_is_tried_again(sweep: Path, tmp_path: Path) -> None:
    out, variants = tmp_path / "out", tmp_path / "variants.yaml"
    row = {"prompt": "1 + 1 =", "completion": "2"}
    elsewhere = {"path": str(tmp_path / "later.jsonl"), "prompt": "prompt", "completion": "completion"}
    settings = {"absent": {"data.heldout": elsewhere}, "fine": {}}
    variants.write_text(yaml.safe_dump({"sweep": "base.yaml", "seeds": [0], "variants": settings}, sort_keys=False))
    arguments = ("sweep", str(variants), "--jobs", "1", "--out", str(out))
    failed = cli(*arguments)
    assert failed.returncode == 1
    assert "absent-seed0: DataError: There is no data file" in failed.stdout
    assert "later.jsonl" in json.loads((out / "sweep.json").read_text())["failed"]["absent-seed0"]
    assert not (out / "manifest.json").exists()
    Path(elsewhere["path"]).write_text("".join(json.dumps(row | {"id": f"later-{n}"}) + "\n" for n in range(4)))
    mended = cli(*arguments)
    assert mended.returncode == 0, mended.stderr
    found = numbers(out)
    assert found["failed"] == {}
    assert found["comparisons"]["fine - absent"]["fidelity.kl"]["examples"] == 0  # measured on other data


def test_check_multiplies_and_runs_nothing(sweep: Path, tmp_path: Path) -> None:
    done = cli("sweep", str(sweep), "--check", "--json", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["runs"] == RUNS
    assert 0 < found["seconds"]["shared"] < 4 * found["seconds"]["one"]
    assert not (tmp_path / "out").exists()
