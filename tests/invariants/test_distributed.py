"""One process is two: the same updates, the same evaluation, and checkpoints that one number of them hands to another.

Two gloo processes on this machine, started by torchrun as on any cluster.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

WORKER = Path(__file__).parent / "distributed_worker.py"


def launch(processes: int, job: str, folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    paths = [str(WORKER.parents[1]), str(WORKER.parents[2] / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*command, str(WORKER), job, str(folder), *settings],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def outcome(processes: int, job: str, folder: Path, *settings: str) -> dict[str, Tensor]:
    done = launch(processes, job, folder, *settings)
    assert done.returncode == 0, done.stderr[-4000:]
    return load_file(str(folder / f"result-{processes}.safetensors"))


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], atol: float) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=atol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("shard", "tied"),
        ("shard", "packing", "optimizer=muon"),
        pytest.param(("tied", "optimizer=muon"), marks=pytest.mark.slow),
        pytest.param(("packing",), marks=pytest.mark.slow),
        pytest.param(("shard",), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_two_processes_take_the_updates_of_one(settings: tuple[str, ...], tmp_path: Path) -> None:
    alone = outcome(1, "train", tmp_path, *settings)
    together = outcome(2, "train", tmp_path, *settings)
    assert (alone["told"][:, 0] > 0.1).all()
    # float64 weights; what is told and the loss's own sums are float32
    assert_same(alone, together, atol=1e-5)


def test_bfloat16_is_the_same_to_its_precision(tmp_path: Path) -> None:
    """Alone under autocast; together with sharded weights gathered in bfloat16 and gradients summed in float32."""
    settings = ("shard", "tied", "bfloat16")
    alone, together = outcome(1, "train", tmp_path, *settings), outcome(2, "train", tmp_path, *settings)
    torch.testing.assert_close(together["told"][:, 0], alone["told"][:, 0], rtol=0.03, atol=0)
    assert together["model.norm.weight"].dtype == torch.float32


def test_any_update_is_the_same_by_two_processes(tmp_path: Path) -> None:
    """Random models, examples and ways to cut an update, copied and sharded in turn."""
    assert_same(outcome(1, "random", tmp_path), outcome(2, "random", tmp_path), atol=1e-5)


@pytest.mark.parametrize(("before", "after", "how"), [(2, 1, "shard"), (1, 2, "shard"), (2, 1, "copied")])
def test_a_checkpoint_is_continued_by_another_number_of_processes(
    before: int, after: int, how: str, tmp_path: Path
) -> None:
    whole = outcome(1, "train", tmp_path, how)
    done = launch(before, "train", tmp_path, how, "stopped")
    assert done.returncode == 0, done.stderr[-4000:]
    continued = outcome(after, "train", tmp_path, how, "continued")
    assert len(continued["told"]) == 3
    told = whole.pop("told")[2:]
    assert_same({**whole, "told": told}, continued, atol=1e-5)


@pytest.mark.parametrize("settings", [("temperature=1.0",), ("temperature=0", "shard")], ids=" ".join)
def test_evaluation_and_generation_are_shared_and_say_the_same(settings: tuple[str, ...], tmp_path: Path) -> None:
    alone, together = outcome(1, "evaluate", tmp_path, *settings), outcome(2, "evaluate", tmp_path, *settings)
    assert torch.equal(alone["written"], together["written"])
    assert_same(alone, together, atol=1e-5)


def test_a_process_that_dies_ends_the_others(tmp_path: Path) -> None:
    done = launch(2, "dies", tmp_path)
    assert done.returncode != 0
    assert "exitcode" in done.stderr
    assert "(pid" in done.stderr
