"""trackio: curves in a local database that its own dashboard shows, without an account."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

from stillhouse.tracking.base import Row, Tracker, TrackerSession, full_points, read_rows

_REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


@dataclass(frozen=True, kw_only=True)
class Trackio(Tracker):
    """A run in trackio's local database (`TRACKIO_DIR`); look at it with `trackio show --project PROJECT`.

    The database is asked what it holds, so that a run that continues adds what is missing, and the rows of steps that
    are taken again are replaced. It is written locally only; `trackio sync` brings a project to a Space.

    Attributes:
        project: under which trackio files the run.
        group: of runs that the dashboard shows and hides together.
    """

    package: ClassVar[str] = "trackio"
    project: str = "stillhouse"
    group: str | None = None

    def open(self, run_folder: Path, recipe: Mapping[str, Any], name: str) -> TrackerSession:
        """Begin the run, or find it again."""
        for variable in _REMOTE:
            if os.environ.get(variable):
                raise ValueError(
                    f"{variable} is set, and what a server holds cannot be asked here, so a run that continues would "
                    f"show its points twice. Unset it, and bring the finished project there with `trackio sync`"
                )
        from trackio.utils import TRACKIO_DIR, get_storage_mode

        if get_storage_mode() == "jsonl":
            raise ValueError(
                f"{TRACKIO_DIR} is on a network file system, where trackio keeps no database that can be asked. Set "
                "TRACKIO_DIR to a local folder, or TRACKIO_STORAGE_MODE=sqlite"
            )
        # The name alone finds a run again, and two run folders may bear the same.
        place = run_folder / "trackio" / "run"
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(f"{name}-{uuid4().hex[:6]}\n", encoding="utf-8")
        return _Session(self, run_folder, recipe, place.read_text(encoding="utf-8").strip())


Key = tuple[int, tuple[str, ...]]


class _Session(TrackerSession):
    """The run, and what the database holds of it: step and names to values, as JSON, in which NaN equals NaN."""

    def __init__(self, settings: Trackio, run_folder: Path, recipe: Mapping[str, Any], name: str) -> None:
        self.settings, self.run_folder, self.recipe, self.name = settings, run_folder, recipe, name
        self.held = self._stored()
        self._begin()

    def log(self, row: Row) -> None:
        """Add a row, unless it is there; write the run anew if it is there with other values."""
        key, values = _entry(row)
        if self.held.get(key) == values:
            return
        if key in self.held:
            self._begin_anew({k: v for k, v in self.held.items() if k != key})
        self._add(key, values)

    def forget(self, model: str, after: int) -> None:
        """Write the run anew without the void rows; trackio cannot drop single ones."""
        if any(step > after and names[0].startswith(f"{model}/") for step, names in self.held):
            self._begin_anew(dict(_entry(row) for row in read_rows(self.run_folder)))

    def close(self, *, failed: bool = False) -> None:
        """Wait until the database has everything; trackio itself would only warn where it has not."""
        self._end()
        missing = len(self.held.keys() - self._stored().keys())
        if missing:
            raise RuntimeError(f"trackio's database lacks {missing} of {len(self.held)} rows")

    def _begin(self) -> None:
        import trackio

        with redirect_stdout(sys.stderr):  # stdout is for results
            trackio.init(
                self.settings.project,
                name=self.name,
                group=self.settings.group,
                config=dict(self.recipe),
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )

    def _end(self) -> None:
        import trackio

        with redirect_stdout(sys.stderr):
            trackio.finish()

    def _add(self, key: Key, values: str) -> None:
        import trackio

        trackio.log(json.loads(values), step=key[0])
        self.held[key] = values

    def _begin_anew(self, rows: Mapping[Key, str]) -> None:
        import trackio

        self._end()
        for run in trackio.Api().runs(self.settings.project):
            if run.name == self.name:
                run.delete()
        self._begin()
        self.held = {}
        for key, values in rows.items():
            self._add(key, values)

    def _stored(self) -> dict[Key, str]:
        from trackio.sqlite_storage import SQLiteStorage

        rows = SQLiteStorage.get_logs(self.settings.project, self.name)
        bare = [(row["step"], {k: v for k, v in row.items() if k not in ("step", "timestamp")}) for row in rows]
        return {(step, tuple(sorted(values))): _text(values) for step, values in bare}


def _entry(row: Row) -> tuple[Key, str]:
    values = full_points(row)
    return (row["step"], tuple(sorted(values))), _text(values)


def _text(values: Mapping[str, float]) -> str:
    return json.dumps(values, sort_keys=True)
