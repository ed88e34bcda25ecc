"""Time and peak memory of condensing against how many rows are made, how large the learner is, how far it looks.

    python benchmarks/condensation.py --json
    python benchmarks/condensation.py --repeats 3 --axes rows

One setting varies at a time: rows of a class, hidden units of the learner (an MLP), steps of the learner that the outer
gradient flows through. Each point is a process of its own, because peak memory is a process's; `seconds` is the median
time of an outer step, `over` what the resident memory grew by at most. The exponent of a power law is fitted by least
squares to the logarithms of all repeats, with Student's 95 % interval; small settings are ruled by fixed costs, so that
it is a lower bound for large ones. Linux only.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from _common import spread

AXES: dict[str, tuple[int, ...]] = {
    "rows": (4, 16, 64, 256),
    "hidden": (32, 128, 512, 2048),
    "steps": (2, 4, 8, 16, 32),
}
BASE = {"rows": 10, "hidden": 64, "steps": 4}
WIDTH, PLACES, CLASSES, REAL = 128, 24, 2, 2000


def resident(key: str) -> float:
    """VmRSS or VmHWM of this process in megabytes (10^6 bytes)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024 / 1e6


def measure(method: str, point: dict[str, int], args: dict[str, Any], pipe: Any) -> None:
    """Seconds of each outer step and the memory that they took."""
    from stillhouse.classifiers.architectures import MLP
    from stillhouse.condensation.base import Real
    from stillhouse.condensation.gradient_matching import GradientMatching
    from stillhouse.condensation.trajectory_matching import TrajectoryMatching

    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(args["seed"])
    classes = torch.arange(REAL) % CLASSES
    inputs = torch.randn(REAL, PLACES, WIDTH, generator=draw)
    real = Real(inputs, torch.ones(REAL, PLACES), torch.eye(CLASSES)[classes], classes)

    def learner(seed: int) -> MLP:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return MLP(WIDTH, CLASSES, point["hidden"])

    outer, steps = args["outer"], point["steps"]
    common = {"per_class": point["rows"], "rounds": 1, "seed": args["seed"]}

    def run(count: int) -> float:
        if method == "gradient_matching":
            condenser: Any = GradientMatching(**common, steps=count, unroll=steps, learner_steps=0)
        else:
            # Three steps are the shortest expert: its cost is taken off below, being the same in both runs.
            condenser = TrajectoryMatching(
                **common, steps=count, student_steps=steps, experts=1, expert_steps=3, every=1, span=1, latest=0
            )
        started = time.perf_counter()
        condenser.condense(real, learner)
        return time.perf_counter() - started

    run(1)
    before = resident("VmRSS")
    seconds = [(run(outer + 1) - run(1)) / outer for _ in range(args["repeats"])]
    pipe.send({"seconds": seconds, "over": resident("VmHWM") - before})


def at(method: str, point: dict[str, int], args: argparse.Namespace) -> dict[str, Any]:
    """One point, measured in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=measure, args=(method, point, vars(args), theirs))
    process.start()
    found = ours.recv()
    process.join()
    return found


def exponent(points: list[tuple[float, float]]) -> dict[str, float]:
    """The slope of log y over log x with its 95 % interval."""
    from stillhouse.replicates import student_quantile

    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    slope, intercept = statistics.linear_regression(xs, ys)
    left = sum((y - intercept - slope * x) ** 2 for x, y in zip(xs, ys, strict=True))
    wide = sum((x - statistics.fmean(xs)) ** 2 for x in xs)
    half = student_quantile(0.95, len(points) - 2) * math.sqrt(left / (len(points) - 2) / wide)
    return {"exponent": slope, "low": slope - half, "high": slope + half, "n": len(points)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--methods", nargs="+", default=["gradient_matching", "trajectory_matching"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--outer", type=int, default=10, help="outer steps of a repeat")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    for method in args.methods:
        for axis in args.axes:
            times, memory = [], []
            for value in AXES[axis]:
                point = {**BASE, axis: value}
                found = at(method, point, args)
                times += [(value, seconds) for seconds in found["seconds"] if seconds > 0]
                memory.append((value, max(found["over"], 0.1)))
                say(
                    args,
                    {"method": method, **point, "axis": axis, "over_mb": found["over"]}
                    | spread("seconds", found["seconds"]),
                )
            for name, points in (("seconds", times), ("over_mb", memory)):
                say(args, {"method": method, "axis": axis, "of": name} | exponent(points))


def say(args: argparse.Namespace, row: dict[str, Any]) -> None:
    shown = {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}
    print(json.dumps(shown) if args.json else "  ".join(f"{key} {value}" for key, value in shown.items()), flush=True)


if __name__ == "__main__":
    main()
