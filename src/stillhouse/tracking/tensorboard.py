"""TensorBoard event files in the run's folder, a TensorBoard run for each model, so that all models share charts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stillhouse.tracking.base import Row, Tracker, TrackerSession, points, read_rows

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True, kw_only=True)
class TensorBoard(Tracker):
    """Event files under `RUN/tensorboard/MODEL`; look at them with `tensorboard --logdir RUN/tensorboard`.

    A run that continues writes them anew from metrics.jsonl, so that they hold what it holds, no point twice and none
    lost with a killed process. Points under `final/` are the values of the finished evaluation.

    Attributes:
        flush_seconds: how long a point may wait in memory before it can be seen.
    """

    package: ClassVar[str] = "tensorboard"
    flush_seconds: int = 10

    def __post_init__(self) -> None:
        if self.flush_seconds < 1:
            raise ValueError(f"flush_seconds is {self.flush_seconds}; it must be at least 1")

    def open(self, run_folder: Path, recipe: Mapping[str, Any], name: str) -> TrackerSession:
        """Import what it needs, and make place for the files."""
        from torch.utils.tensorboard import SummaryWriter  # noqa: F401 -- a broken installation shows here, not later

        folder = run_folder / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        return _Session(folder, self.flush_seconds)


class _Session(TrackerSession):
    """One writer and one file for each model, made when its first row comes."""

    def __init__(self, folder: Path, flush_seconds: int) -> None:
        self.folder = folder
        self.flush_seconds = flush_seconds
        self.writers: dict[str, SummaryWriter] = {}

    def log(self, row: Row) -> None:
        """Add a row's numbers to its model's file."""
        model = row["model"]
        if model not in self.writers:
            self._begin(model)
        for name, value in points(row).items():
            self.writers[model].add_scalar(name, value, row["step"])

    def forget(self, model: str, after: int) -> None:
        """Write a model's file anew without the void rows."""
        if model in self.writers:
            self.writers.pop(model).close()
            self._begin(model)
            for row in read_rows(self.folder.parent):
                if row["model"] == model:
                    self.log(row)

    def close(self, *, failed: bool = False) -> None:
        """Write out and close the files."""
        for writer in self.writers.values():
            writer.close()
        self.writers.clear()

    def _begin(self, model: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = self.folder / model
        superseded = list(folder.glob("events.out.tfevents.*"))
        # purge_step takes back what a TensorBoard that is looking has read from the superseded files.
        self.writers[model] = SummaryWriter(str(folder), purge_step=0, flush_secs=self.flush_seconds)
        for file in superseded:
            file.unlink()
