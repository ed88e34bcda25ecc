"""`sweep`: every run of a sweep, side by side where cores allow, then what they say together.

Each run is a process of its own in a run folder of its own, so a sweep that is stopped continues by the same command,
and a run that fails stops no other.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from stillhouse import world
from stillhouse.checking.check import check
from stillhouse.errors import RunError
from stillhouse.report.findings import write_findings
from stillhouse.report.sweep_page import sweep_findings
from stillhouse.runs import RunFolder, environment
from stillhouse.sweep_file import MAY_GROW, Sweep, SweepRun
from stillhouse.sweep_sharing import lend, lender_of, settle_precision, shared_seconds
from stillhouse.sweep_summary import summarize_sweep
from stillhouse.workshop import Progress, silent

_PATIENCE = 60.0
"""Seconds that a run's process gets to stop, or an earlier sweep's to let go of its folder."""
_TOLD = 4000
"""Characters of a failed run's last words that are kept."""


@dataclass(frozen=True)
class Concurrency:
    """How many runs work side by side and with how many threads each, with the reasons."""

    jobs: int
    threads: int
    reason: str


def run_sweep(
    sweep: Sweep, runs: Sequence[SweepRun], out: Path, jobs: int | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """Run what is not done yet and write `sweep.json`, `report.html` and `report.md`; the content of `sweep.json`.

    Args:
        sweep: what to try.
        runs: its runs, as `sweep_file.expand` gives them.
        out: the sweep's folder; runs are in `runs/` there.
        jobs: how many at once; none chooses.
        progress: called after every run.

    Raises:
        RunError: the folder is in use or belongs to another sweep; every run failed; a metric was not measured.
    """
    if world.expected() > 1:
        raise RunError("A sweep starts processes of its own. Start it without torchrun.")
    runs, precision = settle_precision(runs)
    with RunFolder.claim(out, sweep, free=MAY_GROW) as folder:
        todo = [run for run in runs if not (folder_of(out, run) / "manifest.json").exists()]
        if todo:
            (out / "manifest.json").unlink(missing_ok=True)
        chosen = _agree(folder, sweep, todo or runs, jobs, precision)
        with _terminated_as_interrupted():
            failed = _run_all(runs, todo, out, chosen, progress)
        found = summarize_sweep(sweep, runs, out, failed)
        found |= {"jobs": chosen.jobs, "threads": chosen.threads, "reason": chosen.reason}
        folder.write_json("sweep.json", found)
        write_findings(out, sweep.name, sweep_findings(found))
        if not failed:
            folder.finish(sweep)
    return found


def folder_of(out: Path, run: SweepRun) -> Path:
    """A run's own folder in the folder of its sweep."""
    return out / "runs" / run.name


def check_sweep(sweep: Sweep, runs: Sequence[SweepRun], jobs: int | None = None) -> dict[str, Any]:
    """What a sweep would cost: the estimate of its first run, times their number, less what they share."""
    runs, _ = settle_precision(runs)
    first = check(runs[0].recipe)
    chosen = choose_concurrency(first, len(runs), jobs)
    seconds = first["estimate"]["seconds"]
    shared = shared_seconds(runs, first["estimate"].get("stages", {}))
    return {
        "sweep": sweep.resolved(),
        "runs": [run.name for run in runs],
        "jobs": chosen.jobs,
        "threads": chosen.threads,
        "reason": chosen.reason,
        "seconds": {
            "one": seconds,
            "shared": round(shared, 1),
            "all": round((seconds * len(runs) - shared) / chosen.jobs, 1),
        },
        "disk_bytes": first["estimate"]["disk_bytes"] * len(runs),
        "first": first,
    }


def choose_concurrency(first: dict[str, Any], runs: int, jobs: int | None) -> Concurrency:
    """Jobs and threads from the check of one run: as many at once as cores and memory allow, since what is done side by
    side has nothing to wait for, while threads of one run wait for one another."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if jobs is not None:
        return Concurrency(jobs, max(1, cores // jobs), "--jobs")
    if first["device"]["value"] != "cpu":
        return Concurrency(1, cores, f"one run at a time fills the accelerator ({first['device']['value']})")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    needed = first["estimate"]["peak_memory_bytes"]
    fitting = max(1, int(memory // needed))
    jobs = min(runs, cores, fitting)
    limit = {runs: "as many as there are runs", fitting: "as many as fit into memory", cores: "one for every core"}[
        jobs
    ]
    return Concurrency(
        jobs,
        max(1, cores // jobs),
        f"{limit}: {runs} runs, {cores} cores, {needed / 2**30:.1f} GiB each of {memory / 2**30:.1f} free",
    )


def _agree(folder: RunFolder, sweep: Sweep, runs: Sequence[SweepRun], jobs: int | None, precision: str) -> Concurrency:
    """Jobs and threads; a sweep that was begun keeps its threads, whose number changes how sums are rounded."""
    place = folder.path / "environment.json"
    if place.exists():
        begun = folder.read_json("environment.json")
        reason = f"the sweep was begun with {begun['threads']} threads a run, whose number changes rounding"
        return Concurrency(jobs or begun["jobs"], begun["threads"], reason)
    first = {} if jobs is not None else check(runs[0].recipe)
    chosen = choose_concurrency(first, len(runs), jobs)
    choices = [
        {"name": "jobs", "value": f"{chosen.jobs}, of {chosen.threads} threads", "reason": chosen.reason},
        {"name": "precision", "value": "one for all runs", "reason": precision},
    ]
    facts = {**environment(), "seed": sweep.seed, "jobs": chosen.jobs, "threads": chosen.threads, "choices": choices}
    folder.write_json("environment.json", facts)
    return chosen


def _run_all(
    runs: Sequence[SweepRun], todo: Sequence[SweepRun], out: Path, chosen: Concurrency, progress: Progress
) -> dict[str, str]:
    """Every run in a process of its own, some at once; the last words of those that failed."""
    waiting, running, failed = list(todo), dict[str, _Job](), dict[str, str]()
    finished = [run for run in runs if run not in waiting]
    progress("sweep", len(finished), len(runs), "")
    try:
        while waiting or running:
            while waiting and len(running) < chosen.jobs:
                run = waiting.pop(0)
                if lender := lender_of(run, finished):
                    lend(folder_of(out, lender), folder_of(out, run), run)
                running[run.name] = _Job(run, out, chosen.threads)
            for name, job in list(running.items()):
                if job.process.poll() is not None:
                    del running[name]
                    if error := job.error():
                        failed[name] = error
                    else:
                        finished.append(job.run)
                    done = len(finished) + len(failed)
                    progress("sweep", done, len(runs), f"{name} {'failed' if error else 'done'}")
            time.sleep(0.1)
    finally:
        for job in running.values():
            job.let_go()
        for job in running.values():
            job.wait()
    return failed


class _Job:
    """The process of one run."""

    def __init__(self, run: SweepRun, out: Path, threads: int) -> None:
        self.run = run
        self.folder, self.log = folder_of(out, run), out / "logs" / f"{run.name}.log"
        _wait_until_free(self.folder)
        recipe = out / "recipes" / f"{run.name}.yaml"
        for place in (recipe, self.log):
            place.parent.mkdir(parents=True, exist_ok=True)
        recipe.write_text(yaml.safe_dump(run.recipe.resolved(), sort_keys=False, allow_unicode=True), encoding="utf-8")
        command = [sys.executable, "-m", "stillhouse.tethered", "run", str(recipe), "--out", str(self.folder)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which then lets go of its runs
            )

    def error(self) -> str | None:
        """Why an ended run is not whole, in its own last words; None where it is."""
        self.let_go()
        code = self.process.returncode
        if code == 0 and (self.folder / "manifest.json").exists():
            return None
        told = self.log.read_text(encoding="utf-8", errors="replace").strip()
        if code < 0:
            return f"killed by {signal.Signals(-code).name}, by the system where memory ran out. Log: {self.log}"
        starts = [found.start() for found in re.finditer(r"^\w*(?:Error|Exception)\b", told, re.MULTILINE)]
        return told[starts[-1] if starts else 0 :][-_TOLD:] or f"exit code {code}, without a word. Log: {self.log}"

    def let_go(self) -> None:
        """Close the pipe whose end tells the run to stop."""
        if self.process.stdin is not None:
            self.process.stdin.close()

    def wait(self) -> None:
        """Until the run has stopped; one that does not is killed, which a run folder survives."""
        try:
            self.process.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _wait_until_free(folder: Path) -> None:
    """A run of an earlier sweep that was killed a moment ago may still be stopping; its folder is locked until then."""
    until = time.monotonic() + _PATIENCE
    while _held(folder) and time.monotonic() < until:
        time.sleep(0.2)


def _held(folder: Path) -> bool:
    lock = folder / ".lock"
    if not lock.exists():
        return False
    with lock.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def _terminated_as_interrupted() -> Generator[None, None, None]:
    """SIGTERM stops a sweep as Ctrl-C does, with its runs."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
