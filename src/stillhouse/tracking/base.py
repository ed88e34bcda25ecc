"""What a tracker is: a mirror of metrics.jsonl in somebody else's tool.

A row says something about one model at one step, as `metrics.jsonl` does: `{"model": "student", "step": 3, "loss": 2.1,
"objectives": {"forward_kl": 2.1}, ...}`, or `{"model", "step", "evaluation": {...}}` on the way, or at the end
`{"model", "step", "final": {...}}`. Whoever opens a session tells it every row that `metrics.jsonl` holds, and then
each new one, so that a session only has to see to it that no point appears twice.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from stillhouse.errors import MissingExtraError

Row = Mapping[str, Any]


class TrackerSession(ABC):
    """An opened tracker: it holds each row that it was told once, however often it is told."""

    @abstractmethod
    def log(self, row: Row) -> None:
        """Hold a row. One that an earlier session of the same run folder holds already is not held twice."""

    @abstractmethod
    def forget(self, model: str, after: int) -> None:
        """Rows of a model beyond a step are void: a run that continues takes those steps again. metrics.jsonl has
        forgotten them already."""

    @abstractmethod
    def close(self, *, failed: bool = False) -> None:
        """Write out what is still on its way, and mark the run as failed if it was.

        Raises:
            Exception: not everything has arrived.
        """


@dataclass(frozen=True, kw_only=True)
class Tracker(ABC):
    """Settings of one tool that shows curves."""

    family: ClassVar[str] = "tracker"
    package: ClassVar[str]
    """The distribution that it writes through."""
    install: ClassVar[str] = 'pip install "stillhouse[track]"'

    def require(self) -> None:
        """See that its package is installed, without importing it.

        Raises:
            MissingExtraError: it is not; with the command that brings it.
        """
        try:
            metadata.version(self.package)
        except metadata.PackageNotFoundError as error:
            raise MissingExtraError(
                f"track names a tracker that needs the package {self.package}, which is not installed. {self.install}"
            ) from error

    @abstractmethod
    def open(self, run_folder: Path, recipe: Mapping[str, Any], name: str) -> TrackerSession:
        """Begin, or continue what an earlier session began for this folder.

        Args:
            run_folder: of the run; what the tracker keeps to know the run again lies in it.
            recipe: resolved, to be shown beside the curves.
            name: of the run, for people.

        Raises:
            Exception: it cannot; the run does not start.
        """


def points(row: Row) -> dict[str, float]:
    """A row's numbers by name, the model left out.

    >>> points({"model": "student", "step": 3, "loss": 2.5, "objectives": {"forward_kl": 2.5}})
    {'loss': 2.5, 'objectives/forward_kl': 2.5}
    >>> points({"model": "student", "step": 3, "evaluation": {"likelihood.loss": 1.5}})
    {'evaluation/likelihood.loss': 1.5}
    """
    found: dict[str, float] = {}
    for key, value in row.items():
        if key in ("model", "step"):
            continue
        inner = value if isinstance(value, Mapping) else None
        found |= {key: value} if inner is None else {f"{key}/{name}": number for name, number in inner.items()}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def full_points(row: Row) -> dict[str, float]:
    """A row's numbers by name, for tools whose runs hold all models at once.

    >>> full_points({"model": "control", "step": 3, "loss": 2.5})
    {'control/loss': 2.5}
    >>> full_points({"model": "student", "step": 9, "final": {"fidelity.kl": 0.5}})
    {'evaluation/student/fidelity.kl': 0.5}
    """
    model = row["model"]
    return {
        f"evaluation/{model}/{name.removeprefix('final/')}" if name.startswith("final/") else f"{model}/{name}": value
        for name, value in points(row).items()
    }


def read_rows(run_folder: Path) -> Iterator[dict[str, Any]]:
    """What metrics.jsonl holds; a last line that a kill cut off is left out."""
    place = run_folder / "metrics.jsonl"
    if place.exists():
        with place.open(encoding="utf-8") as lines:
            yield from (json.loads(line) for line in lines if line.endswith("\n"))
