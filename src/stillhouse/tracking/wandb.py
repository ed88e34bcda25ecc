"""Weights & Biases: curves on its servers, or in files that can be sent there later."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stillhouse.tracking.base import Row, Tracker, TrackerSession, full_points, read_rows

if TYPE_CHECKING:
    import wandb

_FINISH_SECONDS = 60
"""How long the end of a run waits for the network; what has not arrived by then lies on disk for `wandb sync`."""
_TRAINED = ("student", "control", "random", "random_control")
_OFFLINE = ("offline", "dryrun")


@dataclass(frozen=True, kw_only=True)
class WandB(Tracker):
    """A W&B run; the key is W&B's own affair (`wandb login`, or `WANDB_API_KEY`) and no setting.

    A run that continues asks W&B how far it has come and sends what is missing. W&B cannot take points back: a step
    that is taken again keeps its first values, and a training that starts over is a new W&B run. Values of the
    finished evaluation are the run's summary. Offline nothing can be asked, so that the files are written anew from
    metrics.jsonl.

    Attributes:
        project: none takes `WANDB_PROJECT`, or else stillhouse.
        entity: the user or team; none takes `WANDB_ENTITY`, or the key's own.
        mode: none takes `WANDB_MODE`, or else online.
        group: of runs that are shown together.
        tags: to find the run by.
    """

    package: ClassVar[str] = "wandb"
    project: str | None = None
    entity: str | None = None
    mode: Literal["online", "offline", "disabled"] | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()

    def open(self, run_folder: Path, recipe: Mapping[str, Any], name: str) -> TrackerSession:
        """Begin the run, or find it again."""
        return _Session(self, run_folder, recipe, name)


class _Session(TrackerSession):
    """The run, and up to which step W&B holds what kind of rows."""

    def __init__(self, settings: WandB, run_folder: Path, recipe: Mapping[str, Any], name: str) -> None:
        self.settings, self.run_folder, self.recipe, self.name = settings, run_folder, recipe, name
        self.held: dict[str, int] = {}
        self.run = self._begin(continued=True)

    def log(self, row: Row) -> None:
        """Add a row that lies beyond what W&B holds of its kind; final values are the summary's."""
        values = full_points(row)
        if "final" in row:
            self.run.summary.update(values)
            return
        clock = f"{row['model']}/evaluation/step" if "evaluation" in row else f"{row['model']}/step"
        if row["step"] > self.held.get(clock, 0):
            self.run.log({f"{row['model']}/step": row["step"], clock: row["step"], **values})
            self.held[clock] = row["step"]

    def forget(self, model: str, after: int) -> None:
        """Nothing, as the steps to come are those that W&B has; a training that starts over is another run."""
        if after == 0 and any(clock.startswith(f"{model}/") for clock in self.held):
            self.run.finish()
            self.run = self._begin(continued=self.run.offline)
            for row in read_rows(self.run_folder):
                self.log(row)

    def close(self, *, failed: bool = False) -> None:
        """Send what is still on its way; W&B shows whether the run failed."""
        self.run.finish(exit_code=int(failed))

    def _begin(self, *, continued: bool) -> wandb.Run:
        import wandb

        mode = self.settings.mode or os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
        record = _Record(self.run_folder / "wandb")
        known = record.continued(offline=mode in _OFFLINE) if continued else None
        superseded = record.unsent(known) if known else []
        run = wandb.init(
            project=self.settings.project or os.environ.get("WANDB_PROJECT", "stillhouse"),
            entity=self.settings.entity,
            mode=self.settings.mode,
            group=self.settings.group,
            tags=self.settings.tags,
            dir=self.run_folder,
            id=known,
            name=self.name,
            config=dict(self.recipe),
            resume="allow",
            settings=wandb.Settings(console="off", finish_timeout=_FINISH_SECONDS, finish_timeout_raises=True),
        )
        for folder in superseded:  # every point is told again, and goes into this session's files
            shutil.rmtree(folder)
        for model in _TRAINED:
            run.define_metric(f"{model}/*", step_metric=f"{model}/step")
        if mode != "disabled":
            record.write(run.id, offline=run.offline)
        clocks = [f"{model}/{kind}step" for model in _TRAINED for kind in ("", "evaluation/")]
        self.held = {clock: int(step) for clock in clocks if (step := run.summary.get(clock)) is not None}
        return run


class _Record:
    """Which W&B run an earlier session of this run folder began, and how."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = folder / "stillhouse.json"

    def write(self, identifier: str, *, offline: bool) -> None:
        self.folder.mkdir(exist_ok=True)
        self.place.write_text(json.dumps({"id": identifier, "offline": offline}), encoding="utf-8")

    def continued(self, *, offline: bool) -> str | None:
        """The id of the W&B run to go on with, or None where it takes another one.

        That is where the server has points and nothing can ask it which: after `wandb sync` of files written offline,
        and where an online run goes on offline.
        """
        if not self.place.exists():
            return None
        earlier = json.loads(self.place.read_text(encoding="utf-8"))
        if not earlier["offline"]:
            return None if offline else str(earlier["id"])
        sent = any(self.folder.glob(f"offline-run-*-{earlier['id']}*/*.synced"))
        return None if sent else str(earlier["id"])

    def unsent(self, identifier: str) -> list[Path]:
        """Folders of that run that were written offline."""
        return list(self.folder.glob(f"offline-run-*-{identifier}*"))
