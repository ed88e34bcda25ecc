"""A run's folder: who may write in it, what each stage left behind, and the manifest that says it is whole.

recipe.yaml  environment.json  data/*.jsonl  tokens/  signals/  checkpoints/  metrics.jsonl  student/  control/
evaluation/  evaluation.json  samples.jsonl  report.html  report.md  stages/*.json  manifest.json (last)
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import time
from collections.abc import Collection, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import yaml

from stillhouse import world
from stillhouse.errors import RunError
from stillhouse.recipe import Recipe
from stillhouse.recipe_parts import Component
from stillhouse.records import bytes_under, fingerprint, whole

FORMAT = 1


@dataclass
class StageRecord:
    """What one stage did: kept so that it is not done twice, and for the report's bill.

    Attributes:
        name: of the stage.
        fingerprint: of everything that went in.
        seconds: wall time.
        cost: counts, such as teacher_tokens_read.
        choices: automatic decisions, each `{"name", "value", "reason"}` (contract C7).
        out: facts that later stages need.
    """

    name: str
    fingerprint: str
    seconds: float = 0.0
    cost: dict[str, int] = field(default_factory=dict)
    choices: list[dict[str, Any]] = field(default_factory=list)
    out: dict[str, Any] = field(default_factory=dict)

    def choose(self, name: str, value: object, reason: str) -> None:
        """Record an automatic choice with its reason."""
        self.choices.append({"name": name, "value": value, "reason": reason})

    def tell(self, told: Mapping[str, str]) -> None:
        """Record what a teacher has to say about its being asked."""
        for name, value in told.items():
            self.choose(f"teacher, {name}", value, "seen while asking")


class Runnable(Protocol):
    """What a run folder is made by: a recipe, a study, or a sweep."""

    @property
    def name(self) -> str:
        """Of the run."""
        ...

    @property
    def seed(self) -> int:
        """Of its draws."""
        ...

    def resolved(self) -> dict[str, Any]:
        """Everything it says, with every default written out."""
        ...


class RunFolder:
    """An opened run folder. Use `RunFolder.claim` to write in it; the constructor alone only reads."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    @contextmanager
    def claim(
        cls, path: str | Path, recipe: Runnable, *, free: Collection[str] = ("track",)
    ) -> Generator[RunFolder, None, None]:
        """Hold a run folder for one recipe; a second process is refused, and so is another recipe.

        Args:
            path: of the folder, which is made where it is not there.
            recipe: what it is for.
            free: keys that may change under way; of a recipe, the trackers, which only look on.

        Raises:
            RunError: the folder is in use, or was made by another recipe.
        """
        folder = cls(path)
        with ExitStack() as held:
            world.first(lambda: folder._take(recipe, held, free))
            yield folder

    def _take(self, recipe: Runnable, held: ExitStack, free: Collection[str]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        lock = held.enter_context((self.path / ".lock").open("a+"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise RunError(
                f"{self.path} is in use by another run (process {lock.read().strip() or 'unknown'}). Wait for it, or "
                "give this run a folder of its own with --out."
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._adopt(recipe, free)

    def _adopt(self, recipe: Runnable, free: Collection[str]) -> None:
        place = self.path / "recipe.yaml"
        wanted = recipe.resolved()
        if place.exists():
            found = yaml.safe_load(place.read_text(encoding="utf-8"))
            if differences := _differences(_without(found, free), _without(wanted, free)):
                raise RunError(
                    f"{self.path} was made by another recipe; it differs in {', '.join(differences)}. Two ways on: "
                    f"continue the old run with its own recipe (`stillhouse {'sweep' if 'sweep' in wanted else 'run'} "
                    f"{place} --out {self.path}`), or give this one a folder of its own with --out."
                )
            if found == wanted:
                return
        foreign = [] if place.exists() else [p.name for p in self.path.iterdir() if p.name != ".lock"]
        if foreign:
            raise RunError(
                f"{self.path} is not a run folder and not empty (it holds {', '.join(sorted(foreign)[:5])}). Choose "
                "another with --out."
            )
        place.write_text(yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def recipe(self) -> Recipe:
        """The recipe this folder was made by.

        Raises:
            RunError: it is no run folder.
        """
        place = self.path / "recipe.yaml"
        if not place.exists():
            raise RunError(f"{self.path} is no run folder: it has no recipe.yaml. `stillhouse run RECIPE` makes one.")
        found = yaml.safe_load(place.read_text(encoding="utf-8"))
        if "study" in found:
            raise RunError(f"{self.path} holds a study, which has no models: its answer is in report.html there.")
        if "sweep" in found:
            raise RunError(
                f"{self.path} holds a sweep; its runs are in {self.path / 'runs'}, what they say in report.html."
            )
        return Recipe.model_validate(found)

    @contextmanager
    def stage(self, name: str, inputs: Mapping[str, Any]) -> Generator[tuple[StageRecord, bool], None, None]:
        """Run a stage, or learn that it is done: yields its record and whether it was finished before on the same
        inputs.

        The record is written when the block ends without an error, so its existence means that the stage is whole. All
        processes go through a stage together; the first one says whether it is done, and writes.
        """
        key = fingerprint(dict(inputs))
        done = world.first(lambda: self.stage_record(name))
        if done is not None and done.fingerprint == key:
            yield done, True
            return
        record = StageRecord(name, key)
        started = time.perf_counter()
        yield record, False
        record.seconds = time.perf_counter() - started
        self.keep(record)
        world.wait()

    def keep(self, record: StageRecord) -> None:
        """Write a stage's record, which says that the stage is whole."""
        self.write_json(f"stages/{record.name}.json", {"stage": record.name, **_without_name(record)})

    def stage_record(self, name: str) -> StageRecord | None:
        """What a finished stage left, or None."""
        place = self.path / "stages" / f"{name}.json"
        if not place.exists():
            return None
        row = json.loads(place.read_text(encoding="utf-8"))
        return StageRecord(name=row.pop("stage"), **row)

    def stage_records(self) -> list[StageRecord]:
        """All finished stages in the order they ended."""
        files = sorted((self.path / "stages").glob("*.json"), key=lambda p: p.stat().st_mtime_ns)
        return [record for file in files if (record := self.stage_record(file.stem))]

    def write_json(self, name: str, value: object) -> None:
        """Write JSON atomically: a reader sees the old file or the new one. Only the first process writes."""
        if not world.is_main():
            return
        place = self.path / name
        with whole(place) as partial:
            partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the folder.

        Raises:
            RunError: it is not there.
        """
        place = self.path / name
        if not place.exists():
            raise RunError(f"{self.path} has no {name}: that stage has not finished. `stillhouse run` continues it.")
        return json.loads(place.read_text(encoding="utf-8"))

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row to metrics.jsonl, in the first process alone."""
        if not world.is_main():
            return
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    def forget_metrics(self, model: str, after: int) -> None:
        """Drop the rows of steps that a continued run is about to take again."""
        place = self.path / "metrics.jsonl"
        if not world.is_main() or not place.exists():
            return
        rows = [line for line in place.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        kept = [line for line in rows if (row := json.loads(line))["model"] != model or row["step"] <= after]
        with whole(place) as partial:
            partial.write_text("".join(kept), encoding="utf-8")

    def finish(self, recipe: Runnable) -> None:
        """Write the manifest: the last file, whose existence means that the run is whole."""
        records = self.stage_records()
        cost: dict[str, int] = {}
        for record in records:
            for key, value in record.cost.items():
                cost[key] = cost.get(key, 0) + value
        sizes = {
            part: bytes_under(self.path / part)
            for part in ("data", "tokens", "features", "signals", "student", "checkpoints", "dataset")
        }
        self.write_json(
            "manifest.json",
            {
                "format": FORMAT,
                "name": recipe.name,
                "recipe": fingerprint(recipe.resolved()),
                "seed": recipe.seed,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": {record.name: round(record.seconds, 3) for record in records},
                "cost": cost,
                "bytes": sizes,
                "fingerprints": {record.name: record.fingerprint for record in records},
                "data": (self.stage_record("data") or StageRecord("data", "")).out,
            },
        )


def _without(recipe: Mapping[str, Any], free: Collection[str]) -> dict[str, Any]:
    """A recipe without what may change under way: some keys, and how patiently its teacher is asked."""
    lasting = {key: value for key, value in recipe.items() if key not in free}
    if "teacher" in lasting:
        lasting["teacher"] = Component.model_validate(lasting["teacher"]).lasting("teacher")
    return lasting


def _without_name(record: StageRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key != "name"}


def _differences(old: Any, new: Any, place: str = "") -> list[str]:
    """The dotted keys at which two recipes differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            d for key in keys for d in _differences(old.get(key), new.get(key), f"{place}.{key}" if place else str(key))
        ]
    return [] if old == new else [f"{place} ({old!r} there, {new!r} here)"]


_PACKAGES = (
    *("torch", "numpy", "transformers", "tokenizers", "safetensors", "datasets", "pyarrow", "pydantic"),
    *("peft", "lm-eval"),
)


def environment() -> dict[str, Any]:
    """What a run ran on: versions, machine and the state of the source, gathered without importing any of it."""
    return {
        "stillhouse": metadata.version("stillhouse"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "processes": world.size(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "packages": {name: installed_version(name) for name in _PACKAGES},
        "git": _git(),
    }


def installed_version(package: str) -> str | None:
    """Of a distribution; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git() -> dict[str, Any] | None:
    """Commit and cleanliness of the working directory's repository; None outside of one."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        status = subprocess.run(
            ["git", "status", "--porcelain"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(status.strip())}
