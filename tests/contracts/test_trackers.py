"""Every tracker that the registry finds, held to the public contract, and broken ones it must catch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import wandb
from tracked import READERS
from wandb_server import serving

from stillhouse import registry
from stillhouse.testing import check_tracker
from stillhouse.tracking.base import Row, Tracker, TrackerSession, full_points


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    wandb.teardown()  # it reads its environment once in a process


@pytest.mark.parametrize("name", registry.names("tracker"))
def test_tracker_keeps_its_contract(name: str, tmp_path: Path) -> None:
    check_tracker(registry.build("tracker", name, {}), tmp_path, READERS[name])


def test_wandb_keeps_its_contract_online_where_it_must_ask_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as server:
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        check_tracker(registry.build("tracker", "wandb", {"project": "mine"}), tmp_path, server.points)
        assert (
            len(server.runs) == 2
        )  # W&B cannot take points back, so the training that started over is a run of its own


# The contract itself: each broken tracker must be caught, or passing it means nothing.


@dataclass(frozen=True, kw_only=True)
class Sound(Tracker):
    """Keeps its points in a JSON file."""

    package: ClassVar[str] = "stillhouse"

    def open(self, run_folder: Path, recipe: Mapping[str, Any], name: str) -> TrackerSession:
        return Session(run_folder / "points.json", recipe)


class Session(TrackerSession):
    def __init__(self, place: Path, recipe: Mapping[str, Any]) -> None:
        self.place, self.recipe = place, recipe
        self.points: dict[str, float] = json.loads(place.read_text()) if place.exists() else {}

    def log(self, row: Row) -> None:
        self.points |= {f"{row['step']} {name}": value for name, value in full_points(row).items()}

    def forget(self, model: str, after: int) -> None:
        self.points = {k: v for k, v in self.points.items() if f" {model}/" not in k or int(k.split()[0]) <= after}

    def close(self, *, failed: bool = False) -> None:
        self.place.write_text(json.dumps(self.points))


def read(run_folder: Path) -> Iterator[tuple[str, int, float]]:
    for key, value in json.loads((run_folder / "points.json").read_text()).items():
        step, _, name = key.partition(" ")
        yield name.rstrip("+"), int(step), value


class Doubling(Session):
    """Adds a point again when it is told again."""

    def log(self, row: Row) -> None:
        for name, value in full_points(row).items():
            key = f"{row['step']} {name}"
            while key in self.points:
                key += "+"
            self.points[key] = value


class Forgetting(Session):
    """Begins every session with nothing, and writes the last row only."""

    def log(self, row: Row) -> None:
        self.points = {}
        super().log(row)


class Keeping(Session):
    """Never takes a point back."""

    def forget(self, model: str, after: int) -> None:
        return


class Stale(Session):
    """Keeps the first evaluation that it was told."""

    def log(self, row: Row) -> None:
        new = {f"{row['step']} {name}": value for name, value in full_points(row).items()}
        self.points = new | self.points if "final" in row else self.points | new


class Meddling(Session):
    """Puts its own mark into the recipe."""

    def log(self, row: Row) -> None:
        super().log(row)
        dict.__setitem__(self.recipe, "mark", 1)  # ty: ignore[invalid-argument-type]


def test_a_sound_one_passes(tmp_path: Path) -> None:
    check_tracker(Sound(), tmp_path, read)


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (Doubling, "shows what it should not after a session in which nothing new happened"),
        (Forgetting, "lost points after a first session"),
        (Keeping, "shows what it should not after a training that started over"),
        (Stale, "lost points after an evaluation that was done again"),
        (Meddling, "changed the recipe"),
    ],
)
def test_a_broken_tracker_is_caught(broken: type[Session], clause: str, tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Broken(Sound):
        def open(self, run_folder: Path, recipe: Mapping[str, Any], name: str) -> TrackerSession:
            return broken(run_folder / "points.json", recipe)

    with pytest.raises(AssertionError, match=clause):
        check_tracker(Broken(), tmp_path, read)
