"""Two settings of one recipe, side by side at several seeds: the paired difference of every seed.

    python benchmarks/settings_at_seeds.py quickstart --a train.optimizer=muon --b train.optimizer=adamw \\
        --both "objective=[cross_entropy]" "evaluate=[likelihood]" samples=0 --json

Both are measured on the same held-out examples; the difference is a minus b on one metric.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from stillhouse import stages
from stillhouse.comparing import compare_runs
from stillhouse.recipe_file import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="quickstart")
    parser.add_argument("--a", nargs="+", default=["train.optimizer=muon"], help="key.path=value of the one")
    parser.add_argument("--b", nargs="+", default=["train.optimizer=adamw"], help="key.path=value of the other")
    plain = ["objective=[cross_entropy]", "evaluate=[likelihood]", "samples=0"]
    parser.add_argument("--both", nargs="*", default=plain, help="key.path=value of both")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--role", default="student", help="which model of each run")
    parser.add_argument("--metric", default="likelihood.loss")
    parser.add_argument("--out", type=Path, help="keep the runs here; a temporary folder otherwise")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for seed in args.seeds:
            row = one_seed(args, seed, (args.out or Path(scratch)) / f"seed-{seed}")
            print(json.dumps(row) if args.json else row, flush=True)


def one_seed(args: argparse.Namespace, seed: int, folder: Path) -> dict[str, object]:
    for name, overrides in (("a", args.a), ("b", args.b)):
        stages.run(load_recipe(args.recipe, [*args.both, *overrides, f"seed={seed}"]), folder / name)
    found = compare_runs([folder / "b", folder / "a"], args.role)
    values = {name: found["runs"][str(folder / name)][args.metric] for name in ("a", "b")}
    (pair,) = found["comparisons"].values()
    setting = {"a": args.a, "b": args.b, "both": args.both, "seed": seed, "role": args.role, "metric": args.metric}
    ratio = values["a"]["value"] / values["b"]["value"]
    return {**setting, "values": values, "ratio": round(ratio, 4), "a - b": pair[args.metric]}


if __name__ == "__main__":
    main()
