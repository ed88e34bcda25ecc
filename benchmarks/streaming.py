"""Peak memory and time of a run over many rows: reading, rendering, a few updates of a tiny student.

    python benchmarks/streaming.py --rows 1000000 --json

Made rows of a short prompt and completion go through the real stages in a process of their own. `--score` asks the
built-in teacher about every row as well, which takes hours for a million. A stage's peak is that of all before it too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any


def write_rows(path: Path, rows: int) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for n in range(rows):
            count, more = n % 89, n % 97
            row = {"prompt": f"Row {n}: Ann has {count} apples and buys {more}.", "completion": f" {count + more}"}
            stream.write(json.dumps(row) + "\n")


def recipe_of(data: Path, args: argparse.Namespace) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    chosen: dict[str, Any] = {
        "teacher": "stillhouse:arithmetic",
        "student": {"config": {"model_type": "llama", "max_position_embeddings": 128, **sizes}},
        "data": {"train": {"path": str(data)}, "heldout": {"path": str(data), "limit": 100}},
        "objective": ["cross_entropy"],
        "train": {"steps": args.steps, "tokens_per_step": args.tokens, "precision": "float32"},
        "evaluate": ["likelihood"],
        "control": False,
        "seed": args.seed,
    }
    return chosen | ({"objective": ["forward_kl"], "score": {"k": 8}} if args.score else {})


class Watch:
    """Notes time and peak memory whenever a stage reports progress."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}
        self._last = time.perf_counter()

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        """The callback that stages report to."""
        now = time.perf_counter()
        found = self.stages.setdefault(stage, {"seconds": 0.0, "peak_mb": 0.0})
        found["seconds"] += now - self._last
        found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self._last = now


def measure(args: argparse.Namespace, folder: Path, pipe: Any) -> None:
    import torch

    from stillhouse import stages
    from stillhouse.recipe import Recipe

    torch.set_num_threads(args.threads)
    recipe = Recipe.model_validate(recipe_of(folder / "rows.jsonl", args))
    watch = Watch()
    stages.train_only(recipe, folder / "run", watch)
    watch("last checkpoint and the student", 1, 1, "")
    sizes = {part: sum(f.stat().st_size for f in (folder / "run" / part).rglob("*")) for part in ("data", "tokens")}
    pipe.send({"stages": watch.stages, "disk_mb": {part: size / 2**20 for part, size in sizes.items()}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"rows": 1_000_000, "steps": 20, "tokens": 16384, "seed": 0, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--score", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_rows(Path(name) / "rows.jsonl", args.rows)
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(args, Path(name), theirs))
        process.start()
        theirs.close()
        try:
            found = ours.recv()
        except EOFError as error:
            raise SystemExit("the run ended with an error, so nothing is reported; it stands above") from error
        process.join()
    peak = max(stage["peak_mb"] for stage in found["stages"].values())
    setting = {k: v for k, v in vars(args).items() if k != "json"}
    row = {"setting": setting, "peak_mb": peak, **found}
    print(json.dumps(row) if args.json else json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
