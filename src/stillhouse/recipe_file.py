"""Reading a recipe: YAML with line numbers, overrides from the command line, and errors that say where."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from stillhouse import registry
from stillhouse.errors import RecipeError, SettingError, did_you_mean
from stillhouse.recipe import Recipe, builtin_recipes
from stillhouse.recipe_parts import Section

if TYPE_CHECKING:
    from stillhouse.studies.base import Study

KeyPath = tuple[str | int, ...]


def load_recipe(name: str, overrides: Sequence[str] = (), *, build: bool = False) -> Recipe:
    """Read, override and validate a recipe; `name` is a file or the name of a built-in recipe.

    Args:
        name: a file, or the name of a built-in recipe.
        overrides: `key.path=value` each.
        build: validate the settings of every component too, which imports the component's code (and torch with it).

    Raises:
        RecipeError: no such recipe, broken YAML, an unknown key or a wrong value, each with its line.

    >>> load_recipe("quickstart", ["train.steps=5"]).train.steps
    5
    """
    loaded = load(name, overrides, build=build)
    if not isinstance(loaded, Recipe):
        raise RecipeError(f"{name} is a study, which trains no student. Use `stillhouse run` or `show`.")
    return loaded


def load(name: str, overrides: Sequence[str] = (), *, build: bool = False) -> Recipe | Study:
    """As `load_recipe`, and where the file says `study: NAME` that study, which is its own kind of recipe.

    Raises:
        RecipeError: as `load_recipe`; or no such study.
    """
    path = find_recipe(name)
    raw, lines = read_yaml(path)
    for override in overrides:
        apply_override(raw, override)
    if "sweep" in raw:
        raise RecipeError(f"{name} is a sweep, which is many runs. Use `stillhouse sweep {name}`.")
    raw.setdefault("name", path.stem)
    kind: type[Any] = registry.component("study", str(raw["study"])) if "study" in raw else Recipe
    try:
        recipe = kind.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(explain(error, kind, path, lines, overrides)) from error
    if not isinstance(recipe, Recipe):
        return recipe
    for place, family, component in recipe.components() if build else ():
        try:
            component.build(family)
        except SettingError as error:
            inner = (*place, component.name, *([error.setting] if error.setting else []))
            raise SettingError(f"{_where(inner, path, lines, overrides)}: {error}", error.setting) from error
    return recipe


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path or by built-in name."""
    path = Path(name)
    if path.is_file():
        return path
    builtin = builtin_recipes()
    if name in builtin:
        return builtin[name]
    raise RecipeError(
        f"There is no recipe {name!r}: neither a file nor built in. {did_you_mean(name, builtin)} `stillhouse init` "
        "writes one to start from."
    )


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """A recipe's mapping as it stands in its file, and the line of every key.

    Raises:
        RecipeError: broken YAML, no mapping, or a key that stands twice.
    """
    text = path.read_text(encoding="utf-8")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict) or node is None:
        raise RecipeError(f"{path} must hold a mapping with the keys {', '.join(Recipe.model_fields)}.")
    lines: dict[KeyPath, int] = {}
    _collect_lines(node, (), lines)
    return raw, lines


def _collect_lines(node: yaml.Node, place: KeyPath, lines: dict[KeyPath, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*place, key.value)
            line = key.start_mark.line + 1
            if inner in lines:
                raise RecipeError(
                    f"The key {key.value!r} stands twice, on the lines {lines[inner]} and {line}. Keep one."
                )
            lines[inner] = line
            _collect_lines(value, inner, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            inner = (*place, index)
            lines[inner] = value.start_mark.line + 1
            _collect_lines(value, inner, lines)


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set one `key.path=value` in a raw recipe; the value is YAML, list items go by index or by their component's name.

    >>> raw = {"objective": [{"forward_kl": {"weight": 1}}]}
    >>> apply_override(raw, "objective.forward_kl.weight=0.5"); raw
    {'objective': [{'forward_kl': {'weight': 0.5}}]}
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"The override {override!r} is not of the form key.path=value, such as train.steps=100.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"The value of the override {override!r} is not valid YAML: {error}") from error
    parts = key.split(".")
    place: Any = raw
    for position, part in enumerate(parts[:-1]):
        place = _descend(place, part, override, ".".join(parts[: position + 1]))
    last = parts[-1]
    if isinstance(place, list):
        place[_index(place, last, override)] = value
    else:
        place[last] = value


def _descend(place: Any, part: str, override: str, so_far: str) -> Any:
    key: str | int = part
    if isinstance(place, list):
        key = _index(place, part, override)
        if isinstance(place[key], str):  # a bare component name gains settings
            place[key] = {place[key]: {}}
        if not part.isdecimal():  # by name one stands at the component's settings, by index at the component
            place, key = place[key], part
    child = place[key] if isinstance(place, list) else place.get(key)
    if child is None:
        child = place[key] = {}
    elif isinstance(child, str):
        child = place[key] = {child: {}}
    if not isinstance(child, dict | list):
        raise RecipeError(f"The override {override!r} goes below {so_far}, which is the plain value {child!r}.")
    return child


def _index(items: list[Any], part: str, override: str) -> int:
    first = [next(iter(item), None) if isinstance(item, dict) else item for item in items]
    known = [name if isinstance(name, str) else "" for name in first]
    if part.isdecimal() and int(part) < len(items):
        return int(part)
    if part in known:
        return known.index(part)
    raise RecipeError(
        f"The override {override!r} names {part!r}, which is not in that list. {did_you_mean(part, known)}"
    )


def explain(
    error: ValidationError, kind: type[Section], path: Path, lines: dict[KeyPath, int], overrides: Sequence[str]
) -> str:
    """What is wrong with a recipe, one line a problem, each with the place where it stands."""
    problems = []
    for item in error.errors(include_url=False):
        place = tuple(item["loc"])
        dotted = ".".join(str(part) for part in place)
        if item["type"] == "extra_forbidden":
            known = _known_keys(kind, place[:-1])
            message = f"unknown key {place[-1]!r}. {did_you_mean(str(place[-1]), known)}"
        elif item["type"] == "missing":
            message = f"missing key {place[-1]!r}"
        else:
            message = f"{item['msg'].removeprefix('Value error, ')} (got {item['input']!r})"
        where = _where(place, path, lines, overrides)
        problems.append(f"{where}: {dotted}: {message}" if dotted else f"{where}: {message}")
    return "\n".join(problems)


def _where(place: KeyPath, path: Path, lines: dict[KeyPath, int], overrides: Sequence[str]) -> str:
    by_index, by_name = [str(part) for part in place], [part for part in place if isinstance(part, str)]
    for override in reversed(overrides):  # the last one wins
        parts = override.partition("=")[0].split(".")
        if parts in (by_index[: len(parts)], by_name[: len(parts)]):
            return f"override {override}"
    for length in range(len(place), 0, -1):
        if place[:length] in lines:
            return f"{path}:{lines[place[:length]]}"
    return str(path)


def _known_keys(kind: type[Section], place: KeyPath) -> list[str]:
    """The keys of the section at a place of the recipe, for suggestions."""
    section: type[BaseModel] = kind
    for part in place:
        field = section.model_fields.get(str(part))
        candidates = [field.annotation, *get_args(field.annotation)] if field else [section]
        for candidate in candidates:
            nested = [candidate, *get_args(candidate)]
            for inner in nested:
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    section = inner
    return list(section.model_fields)
