"""The contract of trackers as a check that anyone can call: `stillhouse.testing.check_tracker`.

It plays the life of a run folder: a run, the same run continued after a kill, and the same training started over.
Raises `AssertionError` with the clause that is broken and what was seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from stillhouse.contract import check_settings, demand
from stillhouse.runs import RunFolder
from stillhouse.tracking.base import Row, Tracker, TrackerSession, full_points, read_rows

Point = tuple[str, int | None, float]
Read = Callable[[Path], Iterable[Point]]


def check_tracker(tracker: Tracker, run_folder: Path, read: Read) -> None:
    """Hold a tracker to its contract (C6).

    Settings are a value. Every number of every row is shown once under its name, and at its step. A session that is
    opened for a folder which had one before, and is told everything again, shows no point twice and loses none; a step
    that is taken again with the same values is shown once; of a training that starts over with other values none of
    the old is left. The finished evaluation is shown as it was told last. The recipe is left as it was.

    Args:
        tracker: with settings of your choice; it writes where they and its environment say.
        run_folder: empty, to play a run in.
        read: from the run folder, all that somebody who looks at the tool sees: names as `full_points` makes them,
            steps (None where it shows none), values.

    Raises:
        AssertionError: a clause is broken.

    >>> check_tracker(MyTracker(), tmp_path, read)  # doctest: +SKIP
    """
    check_settings(tracker)
    tracker.require()
    recipe: dict[str, Any] = {"name": "contract", "seed": 0, "train": {"steps": 4, "lr": 1e-3}, "track": ["it"]}
    play = _Play(tracker, run_folder, read, recipe)
    play.begin()
    play.log(*(_training("student", step) for step in (1, 2)), _evaluation("student", 2), _training("student", 3))
    play.expect("after a first session")
    play.begin()
    play.expect("after a session in which nothing new happened")
    play.begin()
    play.forget("student", 2)  # as a run does that continues from its checkpoint of step 2
    play.log(_training("student", 3), _training("student", 4), _evaluation("student", 4))
    play.log(_training("control", 1), _evaluation("control", 1))
    play.conclude(0.25)
    play.expect("after a run that continued from step 2")
    play.begin()
    play.conclude(0.125)
    play.expect("after an evaluation that was done again")
    play.begin()
    play.forget("student", 0)
    play.log(_training("student", 1, loss=8.0), _evaluation("student", 1, loss=16.0))
    play.conclude(0.5)
    play.expect("after a training that started over")
    demand(recipe == play.kept, f"{tracker!r} changed the recipe: {recipe}")


class _Play:
    """A run folder and the session of the moment, as `Metrics` drives them."""

    def __init__(self, tracker: Tracker, folder: Path, read: Read, recipe: dict[str, Any]) -> None:
        self.tracker, self.folder, self.read, self.recipe = tracker, RunFolder(folder), read, recipe
        self.kept = {**recipe, "train": dict(recipe["train"]), "track": list(recipe["track"])}
        self.session: TrackerSession
        self.final: list[Row] = []

    def begin(self) -> None:
        self.session = self.tracker.open(self.folder.path, self.recipe, "contract")
        for row in read_rows(self.folder.path):
            self.session.log(row)

    def log(self, *rows: Row) -> None:
        for row in rows:
            self.folder.log(row)
            self.session.log(row)

    def forget(self, model: str, after: int) -> None:
        self.folder.forget_metrics(model, after)
        self.session.forget(model, after)

    def conclude(self, value: float) -> None:
        self.final = [{"model": m, "step": 4, "final": {"fidelity.kl": value}} for m in ("student", "teacher")]
        for row in self.final:
            self.session.log(row)

    def expect(self, when: str) -> None:
        """Close the session and see that exactly what was told can be read."""
        self.session.close()
        rows = [*read_rows(self.folder.path), *self.final]
        told = Counter((name, row["step"], float(v)) for row in rows for name, v in full_points(row).items())
        # A tool that keeps no step for final values says None.
        steps: dict[str, int] = {name: row["step"] for row in self.final for name in full_points(row)}
        found: Counter[Point] = Counter()
        for name, step, value in self.read(self.folder.path):
            found[name, steps.get(name, -1) if step is None else step, float(value)] += 1
        missing, extra = told - found, found - told
        demand(not missing, f"{self.tracker!r} lost points {when}: {sorted(missing.elements())}")
        demand(not extra, f"{self.tracker!r} shows what it should not {when}: {sorted(extra.elements())}")


def _training(model: str, step: int, loss: float = 2.0) -> dict[str, Any]:
    return {
        "model": model,
        "step": step,
        "loss": loss * 0.5**step,
        "objectives": {"forward_kl": loss * 0.5**step, "cross_entropy": 0.5},
        "lr": 0.5**step,
        "tokens": 64 * step,
    }


def _evaluation(model: str, step: int, loss: float = 4.0) -> dict[str, Any]:
    return {"model": model, "step": step, "evaluation": {"likelihood.loss": loss * 0.5**step}}
