"""A sweep: one recipe, tried with several settings and several seeds. Its file is read and expanded into runs here.

A grid is the product of its values; variants are named mappings of overrides. Every run is an ordinary recipe, and all
of them are validated before the first one starts.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from stillhouse.errors import RecipeError, did_you_mean
from stillhouse.recipe import Recipe
from stillhouse.recipe_file import explain, find_recipe, load_recipe, read_yaml
from stillhouse.recipe_parts import Name, Section

Overrides = dict[str, Any]
MAY_GROW = frozenset({"grid", "variants", "seeds", "metrics"})
"""What a sweep's folder lets change: every run has a folder and a recipe of its own."""
_SLUG = 100


class Sweep(Section):
    """A recipe, what is changed in it, and with which seeds; exactly one of `grid` and `variants`."""

    name: Name = "sweep"
    sweep: str = Field(description="a recipe file beside this one, or the name of a built-in recipe")
    overrides: Overrides = Field({}, description="settings of every run, by their key.path")
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] | None = Field(
        None, description="values to try, by their key.path; several keys make every combination"
    )
    variants: dict[Name, Overrides] | None = Field(None, description="named settings, each a mapping of overrides")
    seeds: Annotated[list[int], Field(min_length=1)] = Field([0, 1, 2], description="every setting runs once with each")
    metrics: list[str] = Field([], description="what the page shows, the first in its claim; none takes the headline")

    @field_validator("seeds")
    @classmethod
    def _once_each(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed stands twice; the same run twice says nothing new")
        return seeds

    @field_validator("grid")
    @classmethod
    def _different_values(cls, grid: dict[str, list[Any]] | None) -> dict[str, list[Any]] | None:
        for key, values in (grid or {}).items():
            if len({json.dumps(value, sort_keys=True, default=str) for value in values}) < len(values):
                raise ValueError(f"{key} names a value twice; name each once")
        return grid

    @model_validator(mode="after")
    def _one_way_to_differ(self) -> Sweep:
        given = [name for name in ("grid", "variants") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                "a sweep needs exactly one of grid (such as {train.lr: [0.01, 0.02]}) or variants (such as {short: "
                f"{{train.steps: 100}}}}); found {' and '.join(given) or 'none'}"
            )
        for key in (*self.overrides, *(self.grid or {}), *(key for v in (self.variants or {}).values() for key in v)):
            if key in ("seed", "name"):
                raise ValueError(f"a sweep gives every run its {key} itself; name the seeds under seeds")
        return self

    @property
    def seed(self) -> int:
        """The first of its seeds."""
        return self.seeds[0]

    def resolved(self) -> dict[str, Any]:
        """The sweep with every default written out, as plain data."""
        return self.model_dump(mode="json")

    def settings(self) -> list[Setting]:
        """Every setting that is tried, in the order of the file; a grid's last key varies fastest."""
        if self.variants:
            return [Setting(name, chosen) for name, chosen in self.variants.items()]
        grid = self.grid or {}
        lasts = [key.rpartition(".")[2] for key in grid]
        short = [last if lasts.count(last) == 1 else key for key, last in zip(grid, lasts, strict=True)]
        found: dict[str, Setting] = {}
        for values in itertools.product(*grid.values()):
            slug = _slug("-".join(f"{key}-{_said(value)}" for key, value in zip(short, values, strict=True)))
            name = slug if slug not in found else f"{slug}-{len(found)}"
            found[name] = Setting(name, dict(zip(grid, values, strict=True)))
        return list(found.values())


@dataclass(frozen=True)
class Setting:
    """One way in which the recipe is tried: its name, fit for a folder, and what it changes."""

    name: str
    overrides: Overrides


@dataclass(frozen=True, eq=False)
class SweepRun:
    """One run of a sweep: a setting with a seed."""

    setting: str
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.recipe.name


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:_SLUG] or "setting"


def is_sweep(name: str) -> bool:
    """Whether a recipe's name or file means a sweep.

    >>> is_sweep("temperature"), is_sweep("quickstart")
    (True, False)
    """
    return "sweep" in read_yaml(find_recipe(name))[0]


def load_sweep(
    name: str, overrides: Sequence[str] = (), *, grid: Sequence[str] = (), seeds: str | None = None
) -> Sweep:
    """Read and validate a sweep.

    Args:
        name: a sweep file, the name of a built-in sweep, or any recipe where `grid` is given.
        overrides: `key.path=value` each, for every run.
        grid: `key.path=value,value` each, in place of the file's grid or variants.
        seeds: `0,1,2`, in place of the file's.

    Raises:
        RecipeError: no such file, an unknown key or a wrong value, each with its line; an override of what the sweep
            itself varies.

    >>> [setting.name for setting in load_sweep("quickstart", grid=["train.lr=0.01,0.02"]).settings()]
    ['lr-0.01', 'lr-0.02']
    """
    path = find_recipe(name)
    raw, lines = read_yaml(path)
    if "sweep" not in raw:  # the command line makes one
        if not grid:
            raise RecipeError(
                f"{name} is a recipe, not a sweep: it says nothing to vary. Give --grid, such as --grid "
                "train.lr=0.01,0.02, or write a sweep file (`stillhouse show temperature` is one)."
            )
        raw, lines, path = {"name": raw.get("name", path.stem), "sweep": name}, {}, Path("command line")
    elif isinstance(raw["sweep"], str) and (beside := path.parent / raw["sweep"]).is_file():
        raw["sweep"] = str(beside)
    if grid:
        raw.pop("variants", None)
        raw["grid"] = dict(_parse(item, "--grid", several=True) for item in grid)
    if seeds is not None:
        raw["seeds"] = _seeds(seeds)
    raw.setdefault("name", path.stem)
    given = dict(_parse(item, "override", several=False) for item in overrides)
    common = raw.setdefault("overrides", {})
    if isinstance(common, dict):
        common.update(given)
    try:
        sweep = Sweep.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(explain(error, Sweep, path, lines, ())) from error
    varied = {key for setting in sweep.settings() for key in setting.overrides}
    if both := [key for key in given if any(f"{key}.".startswith(f"{other}.") for other in varied)]:
        raise RecipeError(
            f"The override of {', '.join(both)} is for every run, and the sweep varies just that. Leave it out, or "
            "replace the grid with --grid."
        )
    return sweep


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise RecipeError(f"--seeds {text!r} is not of the form 0,1,2.") from error


def _parse(item: str, what: str, *, several: bool) -> tuple[str, Any]:
    key, equals, text = item.partition("=")
    if not equals or not key:
        example = "--grid train.lr=0.01,0.02" if several else "train.steps=100"
        raise RecipeError(f"{what} {item!r} is not of the form key.path=value, such as {example}.")
    try:
        return key, yaml.safe_load(f"[{text}]" if several else text)
    except yaml.YAMLError as error:
        raise RecipeError(f"The value of {what} {item!r} is not valid YAML: {error}") from error


def expand(sweep: Sweep, *, build: bool = False) -> list[SweepRun]:
    """Every run of a sweep with its own validated recipe: all seeds of the first setting, then those of the next.

    Raises:
        RecipeError: a run's recipe is wrong, with the setting it belongs to; a metric that no run will measure.
    """
    runs = []
    for setting in sweep.settings():
        for seed in sweep.seeds:
            changes = {**sweep.overrides, **setting.overrides, "seed": seed, "name": f"{setting.name}-seed{seed}"}
            try:
                recipe = load_recipe(
                    sweep.sweep, [_override(key, value) for key, value in changes.items()], build=build
                )
            except RecipeError as error:
                raise RecipeError(f"sweep {sweep.name}, setting {setting.name}: {error}") from error
            runs.append(SweepRun(setting.name, seed, recipe))
    for metric in sweep.metrics:
        _require_evaluator(metric, runs)
    return runs


def _override(key: str, value: Any) -> str:
    """A value of any kind as `key=value` on one line of YAML.

    >>> _override("train.clip", None), _override("data.heldout", {"path": "a b.jsonl"})
    ('train.clip=null', 'data.heldout={path: a b.jsonl}')
    """
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False, allow_unicode=True)
    return f"{key}=" + text.removesuffix("...\n").strip()


def _require_evaluator(metric: str, runs: Sequence[SweepRun]) -> None:
    for run in runs:
        data, _, plain = metric.rpartition(":")
        named = [component.name for component in run.recipe.evaluate]
        if (evaluator := plain.partition(".")[0]) not in named:
            raise RecipeError(
                f"metrics names {metric!r}, and no evaluator {evaluator!r} is in evaluate of {run.name}. "
                f"{did_you_mean(evaluator, named)}"
            )
        if data and data not in run.recipe.data.out_of_domain:
            raise RecipeError(
                f"metrics names {metric!r}, and {run.name} has no data {data!r} under data.out_of_domain. "
                f"{did_you_mean(data, run.recipe.data.out_of_domain)}"
            )
