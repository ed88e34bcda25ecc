"""What somebody sees who looks at a run in each tracker's own tool."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Point = tuple[str, int | None, float]


def tensorboard_points(run_folder: Path) -> Iterator[Point]:
    """Through TensorBoard's own reader, which is what its pages show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for folder in sorted((run_folder / "tensorboard").iterdir()):
        accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        accumulator.Reload()
        for tag in accumulator.Tags()["scalars"]:
            final = tag.startswith("final/")
            name = f"evaluation/{folder.name}/{tag.removeprefix('final/')}" if final else f"{folder.name}/{tag}"
            yield from ((name, event.step, event.value) for event in accumulator.Scalars(tag))


def trackio_points(run_folder: Path, project: str = "stillhouse") -> Iterator[Point]:
    """From the database that its dashboard reads."""
    from trackio.sqlite_storage import SQLiteStorage

    name = (run_folder / "trackio" / "run").read_text().strip()
    assert SQLiteStorage.get_runs(project).count(name) == 1
    for row in SQLiteStorage.get_logs(project, name):
        yield from ((k, row["step"], v) for k, v in row.items() if k not in ("step", "timestamp"))


def wandb_points(run_folder: Path) -> Iterator[Point]:
    """From every file that `wandb sync` would send for the run."""
    identifier = json.loads((run_folder / "wandb" / "stillhouse.json").read_text())["id"]
    summary: dict[str, Any] = {}
    for file in sorted((run_folder / "wandb").glob(f"*-{identifier}*/*.wandb")):
        for record in finished_records(file):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                row = {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                model = next(key for key in row if not key.startswith("_")).partition("/")[0]
                clock = next(key for key in (f"{model}/evaluation/step", f"{model}/step") if key in row)
                shown = {k: v for k, v in row.items() if not k.startswith("_") and not k.endswith("/step")}
                yield from ((name, row[clock], value) for name, value in shown.items())
            if kind == "summary":
                summary |= {i.key: json.loads(i.value_json) for i in record.summary.update}
    yield from ((name, None, value) for name, value in summary.items() if name.startswith("evaluation/"))


def finished_records(file: Path) -> list[Any]:
    """The records of a finished run; W&B's own process writes the last of them a moment after the run was finished."""
    for _ in range(100):
        records = list(wandb_records(file))
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.1)
    raise AssertionError(f"{file} has no end")


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: a LevelDB log of protobuf messages, behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, pending = file.read_bytes(), 7, b""
    while place < len(data):
        left = 32768 - place % 32768
        if left < 7:  # the rest of a block that has no place for a record's header
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        pending += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(pending)
            pending = b""


READERS: dict[str, Callable[[Path], Iterator[Point]]] = {
    "tensorboard": tensorboard_points,
    "trackio": trackio_points,
    "wandb": wandb_points,
}
