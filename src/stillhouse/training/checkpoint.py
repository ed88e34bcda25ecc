"""Checkpoints: everything that one update changes, written by all processes together, whole or not at all, and read
back into another number of processes.

    step-000123/
      shard-*.safetensors    weights and optimiser state, each process what it holds (torch.distributed.checkpoint)
      random-RANK.state      the random generators of each process, as safetensors too
      state.json             step, tokens, place in the data

Nothing is pickled. Parameters go by their names, so that a checkpoint fits whatever the weights are spread over.
"""

from __future__ import annotations

import errno
import json
import math
import os
import random
import shutil
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from stillhouse import world
from stillhouse.errors import CheckpointError
from stillhouse.training.loop import TrainState

FORMAT = 2


def save_checkpoint(folder: Path, state: TrainState, *, keep: int = 2) -> Path:
    """Write `folder/step-000123/`, complete or not at all, and prune all but the newest `keep`.

    Raises:
        CheckpointError: the disk is full; every checkpoint before stands.
    """
    place = folder / f"step-{state.step:06d}"
    partial = folder / f".{place.name}.partial"
    world.first(lambda: _empty(partial))
    try:
        _write(partial, state)
    except (OSError, CheckpointException) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not _disk_is_full(error):
            raise
        raise CheckpointError(
            f"The disk is full at {folder}: the checkpoint of step {state.step} was not written. Every checkpoint "
            "before stands; free some space and give the same command again."
        ) from error
    world.wait()
    world.first(lambda: _publish(partial, place, keep))
    return place


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("step-*"))


def load_checkpoint(place: Path, state: TrainState) -> None:
    """Fill a fresh state (made by `begin` as for a new run) with a checkpoint's contents.

    Raises:
        CheckpointError: unreadable, of another format, or of another model.
    """
    try:
        facts = json.loads((place / "state.json").read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise CheckpointError(
                f"{place} is a checkpoint of format {facts['format']}; this version reads {FORMAT}. Continue with the "
                "version that wrote it, or move it away to start again."
            )
        _read_tensors(place, state)
        _restore_random(place)
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError, CheckpointException) as error:
        if isinstance(error, CheckpointError):
            raise
        told = "; ".join(map(str, _causes(error)))
        raise CheckpointError(
            f"{place} cannot be continued from: {told}. Move it away to continue from the one before."
        ) from error
    state.batches.load_state_dict(facts["batches"])
    state.step, state.tokens = facts["step"], facts["tokens"]


def _empty(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _write(partial: Path, state: TrainState) -> None:
    writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
    with _one_process_is_fine():
        dcp.save({**_weights(state), **_moments(state)}, storage_writer=writer, no_dist=world.size() == 1)
    save_file(_random_states(), str(partial / f"random-{world.rank()}.state"))
    if world.is_main():
        facts = {"format": FORMAT, "step": state.step, "tokens": state.tokens, "batches": state.batches.state_dict()}
        (partial / "state.json").write_text(json.dumps(facts), encoding="utf-8")


def _publish(partial: Path, place: Path, keep: int) -> None:
    for file in partial.iterdir():
        _sync(file)
    if place.exists():
        shutil.rmtree(place)
    partial.rename(place)
    _sync(place.parent)
    for old in checkpoints(place.parent)[:-keep]:
        # What is left of one that is being removed when the process dies must not look like a checkpoint.
        gone = old.rename(old.with_name(f".{old.name}.partial"))
        shutil.rmtree(gone)


def _weights(state: TrainState) -> dict[str, Tensor]:
    """What training changes: trainable parameters, tied ones once, and buffers that belong to the model's state."""
    model = state.student.lm.model
    kept = model.state_dict().keys()
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return trained | {name: buffer for name, buffer in model.named_buffers() if name in kept}


def _moments(state: TrainState) -> dict[str, Tensor]:
    """The optimiser's state under each parameter's name; numbers as vectors of one, which is what can be sharded."""
    flat = {}
    for name, parameter in state.student.lm.model.named_parameters():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            tensor = torch.as_tensor(value)
            flat[f"optimizer.{name}.{key}"] = tensor.reshape(1) if tensor.ndim == 0 else tensor
    return flat


def _read_tensors(place: Path, state: TrainState) -> None:
    reader = HuggingFaceStorageReader(str(place))
    metadata = reader.read_metadata().state_dict_metadata
    found = {name: facts.size for name, facts in metadata.items() if isinstance(facts, TensorStorageMetadata)}
    weights = _weights(state)
    if missing := weights.keys() - found.keys():
        raise CheckpointError(
            f"{place} is of another model: it lacks {len(missing)} of its weights, such as {min(missing)}. Move it "
            "away to start again."
        )
    moments: dict[str, Tensor] = {}
    numbers: list[tuple[dict[str, Tensor], str]] = []
    for name, parameter in state.student.lm.model.named_parameters():
        prefix = f"optimizer.{name}."
        for key in [key for key in found if key.startswith(prefix)]:
            short = key.removeprefix(prefix)
            if tuple(found[key]) == tuple(parameter.shape) and short != "step":
                moments[key] = torch.zeros_like(parameter)
            else:
                moments[key] = torch.zeros(1, device=parameter.device)
                numbers.append((state.optimizer.state[parameter], short))
            state.optimizer.state[parameter][short] = moments[key]
    with _one_process_is_fine():
        dcp.load({**weights, **moments}, storage_reader=reader, no_dist=world.size() == 1)
    for values, key in numbers:
        values[key] = values[key].reshape(())


def _random_states() -> dict[str, Tensor]:
    """Every generator that training or data could draw from."""
    _, words, position, drawn, gauss = np.random.get_state()
    _, internal, next_gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*map(int, words), position, drawn], dtype=torch.int64),
        "python": torch.tensor(internal, dtype=torch.int64),
        "gauss": torch.tensor([gauss, torch.nan if next_gauss is None else next_gauss], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random(place: Path) -> None:
    """A process that the checkpoint does not know goes on with the first one's draws."""
    file = place / f"random-{world.rank()}.state"
    states = load_file(str(file if file.exists() else place / "random-0.state"))
    torch.set_rng_state(states["torch"])
    *words, position, drawn = states["numpy"].tolist()
    gauss, next_gauss = states["gauss"].tolist()
    np.random.set_state(("MT19937", np.array(words, dtype=np.uint32), position, drawn, gauss))
    random.setstate((3, tuple(states["python"].tolist()), None if math.isnan(next_gauss) else next_gauss))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


@contextmanager
def _one_process_is_fine() -> Generator[None, None, None]:
    """torch warns where there is one process, even if told so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        yield


def _disk_is_full(error: BaseException) -> bool:
    told = "No space left", f"os error {errno.ENOSPC}"
    return any(
        getattr(cause, "errno", None) == errno.ENOSPC or any(t in str(cause) for t in told) for cause in _causes(error)
    )


def _causes(error: BaseException) -> list[BaseException]:
    """What failed in each process where torch hands that over, else the error itself."""
    return [failure[0] for failure in error.failures.values()] if isinstance(error, CheckpointException) else [error]


def _sync(path: Path) -> None:
    # Renaming is atomic only for what has reached the disk.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
