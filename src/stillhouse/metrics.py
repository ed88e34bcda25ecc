"""Where a run's rows go: metrics.jsonl, which is the truth, and the trackers, which mirror it.

A tracker is somebody else's code and often somebody else's network. It may refuse before the run starts, which stops
the run; a tracker that fails later is dropped with one warning, and the run goes on, since every row is in
metrics.jsonl: the same command again tells the tracker what it lacks.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stillhouse.errors import RunError
from stillhouse.registry import name_of
from stillhouse.runs import RunFolder, StageRecord
from stillhouse.tracking.base import Row, Tracker, TrackerSession, read_rows

_LOG = logging.getLogger(__name__)


class Metrics:
    """The rows of one run folder; without trackers nothing but the file."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._sessions: dict[str, TrackerSession] = {}
        self._dropped: list[dict[str, str]] = []

    def open(self, trackers: Sequence[Tracker], recipe: Mapping[str, Any], name: str) -> None:
        """Open the trackers and tell them what the folder holds already.

        Raises:
            MissingExtraError: a package is not installed.
            RunError: a tracker cannot be opened, with its own reason.
        """
        for tracker in trackers:
            tracker.require()
            called = name_of(tracker)
            try:
                self._sessions[called] = session = tracker.open(self.folder.path, recipe, name)
                for row in read_rows(self.folder.path):
                    session.log(row)
            except Exception as error:
                raise RunError(
                    f"track names {called}, which cannot be opened: {_reason(error)}. Mend that, or leave {called} out "
                    "of track: metrics.jsonl and the report hold every number without it."
                ) from error

    def log(self, row: Row) -> None:
        """A new row."""
        self.folder.log(row)
        self._each(f"at {row['model']} step {row['step']}", lambda session: session.log(row))

    def forget(self, model: str, after: int) -> None:
        """Drop the rows of steps that a continued run is about to take again."""
        self.folder.forget_metrics(model, after)
        self._each(f"before {model} step {after + 1}", lambda session: session.forget(model, after))

    def conclude(self, models: Mapping[str, Mapping[str, Mapping[str, Any]]], step: int) -> None:
        """What evaluation.json says about each model, as of the last step; metrics.jsonl does not repeat it."""
        for model, found in models.items():
            row = {"model": model, "step": step, "final": {name: metric["value"] for name, metric in found.items()}}
            self._each(f"at the evaluation of {model}", lambda session, row=row: session.log(row))

    def account(self, record: StageRecord) -> None:
        """Record which trackers were dropped since the last account."""
        record.choices += self._dropped
        self._dropped = []

    def close(self) -> None:
        """Close every tracker; on the way out of an error they learn that the run failed."""
        failed = sys.exception() is not None
        self._each("at the end", lambda session: session.close(failed=failed))
        self._sessions.clear()

    def _each(self, when: str, act: Callable[[TrackerSession], None]) -> None:
        for name, session in list(self._sessions.items()):
            try:
                act(session)
            except Exception as error:  # noqa: BLE001 -- whatever a tracker raises, training goes on
                del self._sessions[name]
                reason = f"{when}: {_reason(error)}"
                self._dropped.append({"name": f"tracker {name}", "value": "dropped", "reason": reason})
                _LOG.warning(
                    "The tracker %s failed %s. The run goes on without it; every row is in %s, and the same command "
                    "again, once the run is done, tells the tracker what it lacks.",
                    name,
                    reason,
                    self.folder.path / "metrics.jsonl",
                )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).rstrip('.')}" if str(error) else type(error).__name__
