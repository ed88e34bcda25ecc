"""Rows go to metrics.jsonl and to every tracker; a tracker that fails takes nothing with it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import pytest

from stillhouse import registry
from stillhouse.errors import MissingExtraError, RecipeError, RunError
from stillhouse.metrics import Metrics
from stillhouse.recipe_file import load_recipe
from stillhouse.runs import RunFolder, StageRecord
from stillhouse.tracking.base import Row, Tracker, TrackerSession


@dataclass(frozen=True, kw_only=True)
class Diary(Tracker):
    """Writes down every call, and fails where it is told to."""

    package: ClassVar[str] = "stillhouse"
    fails_at: str = "never"

    def open(self, run_folder: Path, recipe: Mapping[str, Any], name: str) -> TrackerSession:
        if self.fails_at == "open":
            raise ConnectionError("no route to host")
        return Pages(run_folder / "diary.txt", self.fails_at)


class Pages(TrackerSession):
    def __init__(self, place: Path, fails_at: str) -> None:
        self.place, self.fails_at = place, fails_at

    def write(self, line: str) -> None:
        if line == self.fails_at:
            raise TimeoutError("the network is down")
        with self.place.open("a") as stream:
            stream.write(line + "\n")

    def log(self, row: Row) -> None:
        self.write(f"{row['model']} {row['step']}" + (f" {json.dumps(row['final'])}" if "final" in row else ""))

    def forget(self, model: str, after: int) -> None:
        self.write(f"forget {model} {after}")

    def close(self, *, failed: bool = False) -> None:
        self.write(f"close {failed}")


def row(step: int, model: str = "student") -> dict[str, Any]:
    return {"model": model, "step": step, "loss": 1.0 / step}


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_every_row_goes_to_the_file_and_to_the_tracker(tmp_path: Path) -> None:
    RunFolder(tmp_path).log(row(1))  # of a session before
    metrics = Metrics(RunFolder(tmp_path))
    metrics.open([Diary()], {}, "run")
    metrics.log(row(2))
    metrics.forget("student", 1)
    metrics.log(row(2))
    metrics.conclude({"teacher": {"fidelity.kl": {"value": 0.5, "stderr": 0.1, "n": 9}}}, step=2)
    metrics.close()
    final = 'teacher 2 {"fidelity.kl": 0.5}'
    assert lines(tmp_path / "diary.txt") == [
        "student 1",
        "student 2",
        "forget student 1",
        "student 2",
        final,
        "close False",
    ]
    assert [json.loads(line)["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_run_that_fails_is_a_failed_run_for_the_tracker_too(tmp_path: Path) -> None:
    metrics = Metrics(RunFolder(tmp_path))
    metrics.open([Diary()], {}, "run")
    with pytest.raises(ZeroDivisionError), closing(metrics):
        raise ZeroDivisionError
    assert lines(tmp_path / "diary.txt") == ["close True"]


@pytest.mark.parametrize("fails_at", ["student 2", "forget student 1", "close False"])
def test_a_tracker_that_fails_is_dropped_once_aloud_and_on_record(
    fails_at: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics(RunFolder(tmp_path))
    metrics.open([Diary(fails_at=fails_at)], {}, "run")
    for step in (1, 2):
        metrics.log(row(step))
    metrics.forget("student", 1)
    for step in (2, 3):
        metrics.log(row(step))
    record = StageRecord("train-student", "")
    metrics.account(record)
    metrics.account(record)
    metrics.close()
    assert [json.loads(line)["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert "the network is down" in warning.getMessage()
    assert "metrics.jsonl" in warning.getMessage()
    if fails_at != "close False":  # by then all records are written
        (choice,) = record.choices
        assert choice["value"] == "dropped"
        assert "TimeoutError: the network is down" in choice["reason"]


def test_a_tracker_that_cannot_be_opened_stops_the_run_with_its_reason(tmp_path: Path) -> None:
    metrics = Metrics(RunFolder(tmp_path))
    with pytest.raises(
        RunError, match=r"cannot be opened: ConnectionError: no route to host\. .*leave .* out of track"
    ):
        metrics.open([Diary(fails_at="open")], {}, "run")


def test_a_tracker_that_fails_on_what_the_folder_holds_stops_the_run_before_it_starts(tmp_path: Path) -> None:
    RunFolder(tmp_path).log(row(1))
    with pytest.raises(RunError, match="the network is down"):
        Metrics(RunFolder(tmp_path)).open([Diary(fails_at="student 1")], {}, "run")


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a distribution look as if it were not installed."""
    version = metadata.version

    def remove(package: str) -> None:
        def found(name: str) -> str:
            if name == package:
                raise metadata.PackageNotFoundError(name)
            return version(name)

        monkeypatch.setattr(metadata, "version", found)

    return remove


@pytest.mark.parametrize("name", registry.names("tracker"))
def test_a_missing_package_is_found_before_anything_starts(name: str, without: Any) -> None:
    from stillhouse.preflight import make_plan

    recipe = load_recipe("quickstart", [f"track={name}"])
    make_plan(recipe)
    without(registry.component("tracker", name).package)
    with pytest.raises(MissingExtraError, match=rf'{name}, which is not installed. pip install "stillhouse\[track\]"'):
        make_plan(recipe)


def test_one_name_is_a_list_of_one() -> None:
    recipe = load_recipe("quickstart", ["track={wandb: {project: mine, mode: offline}}"], build=True)
    (tracker,) = (item.build("tracker") for item in recipe.track)
    assert (tracker.project, tracker.mode) == ("mine", "offline")


@pytest.mark.parametrize(
    ("track", "message"),
    [
        ("[tensorbord]", "There is no tracker named 'tensorbord'|there is no tracker named 'tensorbord'. Did you mean"),
        ("[wandb, trackio, wandb]", "track names wandb twice"),
        ("[{wandb: {projct: a}}]", "has no setting 'projct'. Did you mean 'project'"),
        ("[{wandb: {api_key: a}}]", "has no setting 'api_key'"),
        ("[{tensorboard: {flush_seconds: 0}}]", "flush_seconds is 0; it must be at least 1"),
    ],
)
def test_a_wrong_track_is_refused_by_name(track: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("quickstart", [f"track={track}"], build=True)


@pytest.mark.parametrize("variable", ["TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"])
def test_trackio_on_a_server_is_refused_since_a_resumed_run_would_double_its_points(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "https://example.invalid")
    with pytest.raises(RunError, match=rf"{variable} is set.*trackio sync"):
        Metrics(RunFolder(tmp_path)).open([registry.build("tracker", "trackio", {})], {}, "run")


def test_trackio_without_a_database_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_STORAGE_MODE", "jsonl")
    with pytest.raises(RunError, match="Set TRACKIO_DIR to a local folder"):
        Metrics(RunFolder(tmp_path)).open([registry.build("tracker", "trackio", {})], {}, "run")
