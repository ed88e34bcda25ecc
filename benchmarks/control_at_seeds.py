"""Does the distilled student beat its control? One recipe, several seeds, the paired difference of each run.

    python benchmarks/control_at_seeds.py quickstart --seeds 0 1 2 --json

Every run trains student and control on the same batches; the difference on the headline metric is paired by held-out
example.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from stillhouse import stages
from stillhouse.recipe_file import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="quickstart")
    parser.add_argument("overrides", nargs="*", help="key.path=value")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="keep the runs here; a temporary folder otherwise")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for seed in args.seeds:
            row = one_run(args.recipe, args.overrides, seed, (args.out or Path(scratch)) / f"seed-{seed}")
            print(json.dumps(row) if args.json else line(row), flush=True)


def one_run(name: str, overrides: list[str], seed: int, folder: Path) -> dict[str, object]:
    started = time.perf_counter()
    stages.run(load_recipe(name, [*overrides, f"seed={seed}"]), folder)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    metric = evaluation["headline"]
    return {
        "recipe": name,
        "overrides": overrides,
        "seed": seed,
        "metric": metric,
        "models": {role: values[metric] for role, values in evaluation["models"].items() if metric in values},
        "student - control": evaluation["comparisons"]["student - control"][metric],
        "gap_closed": evaluation["gap_closed"].get(metric),
        "seconds": round(time.perf_counter() - started, 1),
    }


def line(row: dict) -> str:
    values = ", ".join(f"{role} {value['value']:.4g}" for role, value in row["models"].items())
    found = row["student - control"]
    verdict = "resolved" if found["resolved"] else "unresolved"
    interval = f"{found['difference']:+.4g} [{found['low']:+.4g}, {found['high']:+.4g}]"
    return f"seed {row['seed']}: {row['metric']}: {values}; student - control {interval} {verdict}, n = {found['n']}"


if __name__ == "__main__":
    main()
