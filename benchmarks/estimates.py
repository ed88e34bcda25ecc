"""Can `check` be believed? Its estimates of time, memory and disk against what the run then uses.

    python benchmarks/estimates.py --json
    python benchmarks/estimates.py --recipe mine.yaml train.steps=100

Without `--recipe`: the quickstart, the stories (where the teacher's folder is given by --stories), and a wide student
of six layers, all shortened by overrides. Check and run follow one another, each in a process of its own; the run's
peak of resident memory and the size of its folder are watched from outside while it works.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WIDE = (
    "student.config={model_type: llama, hidden_size: 512, intermediate_size: 1408, num_hidden_layers: 6, "
    "num_attention_heads: 8, num_key_value_heads: 8, max_position_embeddings: 384, tie_word_embeddings: true}"
)
SHORT = ["train.steps=300", "train.evaluate_every=150", "data.heldout.arithmetic.count=400"]
WIDE_SHORT = [
    "train.steps=12",
    "train.evaluate_every=6",
    "train.optimizer=adamw",
    "data.train.arithmetic.count=400",
    "data.heldout.arithmetic.count=100",
    "evaluate=[likelihood, fidelity, calibration, {tasks: {max_new_tokens: 24, batch_size: 32}}, efficiency]",
]
STORIES_SHORT = ["data.train.teacher_text.count=500", "data.heldout.teacher_text.count=100", "train.steps=60"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="+", metavar="RECIPE [KEY.PATH=VALUE]", help="one of your own instead")
    parser.add_argument("--stories", default="../shared/models/stories260K", help="the storyteller's folder")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    recipes = {"quickstart": ["quickstart", *SHORT], "wide": ["quickstart", WIDE, *WIDE_SHORT]}
    if Path(args.stories).is_dir():
        recipes["stories"] = ["stories", f"teacher.hf.model={Path(args.stories).resolve()}", *STORIES_SHORT]
    for name, recipe in ({args.recipe[0]: args.recipe} if args.recipe else recipes).items():
        row = {"recipe": name, "overrides": recipe[1:], **compare(recipe)}
        print(json.dumps(row) if args.json else text(row), flush=True)


def compare(recipe: list[str]) -> dict[str, Any]:
    verb = [sys.executable, "-m", "stillhouse"]
    started = time.perf_counter()
    done = subprocess.run([*verb, "check", *recipe, "--json"], capture_output=True, text=True, check=True)
    took = time.perf_counter() - started
    estimate = json.loads(done.stdout)["estimate"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        measured = watch([*verb, "run", *recipe, "--out", str(folder)], folder)
        records = [json.loads(file.read_text()) for file in (folder / "stages").glob("*.json")]
    stages = {record["stage"]: round(record["seconds"], 2) for record in records}
    expected = {key: estimate[name] for key, name in KEYS.items()}
    return {
        "check_seconds": round(took, 1),
        "estimate": expected,
        "measured": measured,
        "ratio": {key: round(expected[key] / measured[key], 3) for key in KEYS},
        "stages": {name: {"estimate": estimate["stages"].get(name), "measured": s} for name, s in stages.items()},
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


KEYS = {"seconds": "seconds", "memory_bytes": "peak_memory_bytes", "disk_bytes": "disk_bytes"}


def watch(command: list[str], folder: Path) -> dict[str, float]:
    """Wall time, the process's largest resident memory (Linux only) and the folder's largest size."""
    started, peak, largest = time.perf_counter(), 0, 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        peak = max(peak, high_water(process.pid))
        largest = max(largest, size_of(folder))
        time.sleep(0.05)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{process.stderr.read() if process.stderr else ''}")
    return {"seconds": round(time.perf_counter() - started, 1), "memory_bytes": peak, "disk_bytes": largest}


def high_water(pid: int) -> int:
    """VmHWM in bytes; 0 once the process has let go of its memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def size_of(folder: Path) -> int:
    """Bytes of a folder that is being written in: what goes while it is looked at does not count."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                total += (Path(place) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total


def text(row: dict[str, Any]) -> str:
    lines = [f"{row['recipe']}: checked in {row['check_seconds']} s"]
    for key, ratio in row["ratio"].items():
        lines.append(f"  {key:14} {row['estimate'][key]:>14,.0f} {row['measured'][key]:>14,.0f}  {ratio:.2f}")
    for name, pair in row["stages"].items():
        lines.append(f"    {name:24} {pair['estimate'] or 0:>10,.1f} {pair['measured']:>14,.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
