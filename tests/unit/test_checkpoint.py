"""Checkpoints: whole or not at all, without pickle, refused in words."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stillhouse.data.batching import Batches
from stillhouse.errors import CheckpointError
from stillhouse.objectives.cross_entropy import CrossEntropy
from stillhouse.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from stillhouse.training.loop import Compute, TrainState, begin, train
from stillhouse.training.optim import Optim

OPTIM = Optim(lr=1e-2)


@pytest.fixture
def fresh(make_student: Any, render: Any, examples: Any) -> Any:
    def make(seed: int = 0, **settings: Any) -> TrainState:
        student = make_student(seed=seed, **settings)
        return begin(student, Batches(render(examples), tokens_per_batch=128), OPTIM, Compute())

    return make


def advance(state: TrainState, steps: int) -> TrainState:
    list(train(state.student, state.batches, None, [CrossEntropy()], steps=steps, optim=OPTIM, state=state))
    return state


@pytest.mark.parametrize("tied", [False, True])
def test_what_was_saved_comes_back(fresh: Any, tmp_path: Path, tied: bool) -> None:
    saved = advance(fresh(tied=tied), 3)
    place = save_checkpoint(tmp_path, saved)
    found = fresh(seed=9, tied=tied)
    load_checkpoint(place, found)
    assert (found.step, found.tokens, found.batches.state_dict()) == (
        saved.step,
        saved.tokens,
        saved.batches.state_dict(),
    )
    for a, b in zip(saved.student.lm.model.parameters(), found.student.lm.model.parameters(), strict=True):
        assert torch.equal(a, b)
        one, other = saved.optimizer.state[a], found.optimizer.state[b]
        assert one.keys() == other.keys() > {"step"}
        assert all(torch.equal(one[key], other[key]) and one[key].shape == other[key].shape for key in one)


def test_every_generator_goes_on_where_it_was(fresh: Any, tmp_path: Path) -> None:
    state = fresh()
    random.gauss(0, 1)  # leaves its twin for the next call
    np.random.standard_normal(1)
    place = save_checkpoint(tmp_path, state)

    def drawn() -> list[float]:
        return [torch.rand(1).item(), random.gauss(0, 1), random.random(), *np.random.standard_normal(2).tolist()]

    expected = drawn()
    load_checkpoint(place, fresh())
    assert drawn() == expected


def test_nothing_is_pickled(fresh: Any, tmp_path: Path) -> None:
    place = save_checkpoint(tmp_path, advance(fresh(), 1))
    assert {p.suffix for p in place.iterdir()} == {".safetensors", ".state", ".json"}
    for path in place.glob("*.s*t*"):
        assert load_file(str(path))


def test_the_oldest_go(fresh: Any, tmp_path: Path) -> None:
    state = fresh()
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, advance(state, step), keep=2)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-000003", "step-000004"]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_of_another_format(fresh: Any, tmp_path: Path) -> None:
    place = save_checkpoint(tmp_path, fresh())
    facts = json.loads((place / "state.json").read_text())
    (place / "state.json").write_text(json.dumps({**facts, "format": 1}))
    with pytest.raises(CheckpointError, match="is a checkpoint of format 1; this version reads 2"):
        load_checkpoint(place, fresh())


def test_of_another_model(fresh: Any, tmp_path: Path) -> None:
    place = save_checkpoint(tmp_path, fresh())
    with pytest.raises(CheckpointError, match=r"is of another model: it lacks \d+ of its weights, such as model"):
        load_checkpoint(place, fresh(num_hidden_layers=3))
    with pytest.raises(CheckpointError, match="cannot be continued from"):
        load_checkpoint(place, fresh(hidden_size=32))


@pytest.mark.parametrize("file", ["state.json", "shard-00001-model-00001-of-00001.safetensors", "random-0.state"])
@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_damaged(fresh: Any, tmp_path: Path, file: str, harm: str) -> None:
    place = save_checkpoint(tmp_path, advance(fresh(), 1))
    data = (place / file).read_bytes()
    (place / file).unlink()
    if harm == "cut":
        (place / file).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"Move it away"):
        load_checkpoint(place, fresh())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small file system to fill")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_last_good_one(fresh: Any, small_disk: Path) -> None:
    state = fresh()
    good = save_checkpoint(small_disk / "checkpoints", advance(state, 1))
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - 20_000))
    with pytest.raises(CheckpointError, match=r"The disk is full .* step 2 was not written.*Every checkpoint before"):
        save_checkpoint(small_disk / "checkpoints", advance(state, 2))
    assert [p.name for p in (small_disk / "checkpoints").iterdir()] == [good.name]
    (small_disk / "ballast").unlink()
    load_checkpoint(good, fresh())
    save_checkpoint(small_disk / "checkpoints", state)
    assert len(checkpoints(small_disk / "checkpoints")) == 2
