"""Checkpoints: everything one update changes, written atomically, the oldest pruned, read back without pickle."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, load_model, save_file, save_model

from stillhouse.errors import CheckpointError
from stillhouse.training.loop import TrainState

FORMAT = 1


def save_checkpoint(folder: Path, state: TrainState, *, keep: int = 2) -> Path:
    """Write `folder/step-000123/`, complete or not at all, and prune all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"step-{state.step:06d}"
    partial = folder / f".{place.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    save_model(state.student.lm.model, str(partial / "model.safetensors"))
    save_file(_optimizer_tensors(state), str(partial / "optimizer.safetensors"))
    save_file({"torch": torch.get_rng_state()}, str(partial / "random.safetensors"))
    facts = {"format": FORMAT, "step": state.step, "tokens": state.tokens, "batches": state.batches.state_dict()}
    (partial / "state.json").write_text(json.dumps(facts), encoding="utf-8")
    for file in partial.iterdir():
        _sync(file)
    if place.exists():
        shutil.rmtree(place)
    partial.rename(place)
    _sync(folder)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return place


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("step-*"))


def load_checkpoint(place: Path, state: TrainState) -> None:
    """Fill a fresh state (student, optimizer and batches built as for a new run) with a checkpoint's contents.

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
        load_model(state.student.lm.model, str(place / "model.safetensors"), device=str(state.student.lm.device))
        _load_optimizer(state, load_file(str(place / "optimizer.safetensors"), device=str(state.student.lm.device)))
        torch.set_rng_state(load_file(str(place / "random.safetensors"))["torch"])
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{place} cannot be continued from: {error}. Move it away to continue from the one before."
        ) from error
    state.batches.load_state_dict(facts["batches"])
    state.step, state.tokens = facts["step"], facts["tokens"]


def _optimizer_tensors(state: TrainState) -> dict[str, torch.Tensor]:
    flat = {}
    for index, values in state.optimizer.state_dict()["state"].items():
        for key, value in values.items():
            flat[f"{index}.{key}"] = value if isinstance(value, torch.Tensor) else torch.tensor(value)
    return flat


def _load_optimizer(state: TrainState, flat: dict[str, torch.Tensor]) -> None:
    nested: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in flat.items():
        index, _, key = name.partition(".")
        nested.setdefault(int(index), {})[key] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": nested, "param_groups": groups})


def _sync(path: Path) -> None:
    # Renaming is atomic only for what has reached the disk.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
