"""Components are found by their file's name: the folder is the list.

A family is a package; each module in it, except `base` and those that start with an underscore, is one component, named
after its file and holding exactly one concrete class of the family's base. Other distributions add components through
entry points in the group `stillhouse.<family>` (`reverse_kl_2 = "their_package.module:TheirClass"`). Listing reads file
names and docstrings only, so that it never imports torch.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from stillhouse.errors import RecipeError, SettingError, did_you_mean

FAMILIES: Mapping[str, str] = {
    "teacher": "stillhouse.teachers",
    "objective": "stillhouse.objectives",
    "synthesizer": "stillhouse.synthesis",
    "evaluator": "stillhouse.evaluation",
    "tracker": "stillhouse.tracking",
    "trace_signal": "stillhouse.traces",
    "study": "stillhouse.studies",
    "consensus_rule": "stillhouse.consensus",
    "feature": "stillhouse.features",
    "selector": "stillhouse.selection",
    "condenser": "stillhouse.condensation",
}
"""Family name, in the singular as messages say it, to the package that holds its components."""


def _package_folder(family: str) -> Path:
    spec = importlib.util.find_spec(FAMILIES[family])
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"package {FAMILIES[family]} of family {family!r} is missing from this installation")
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def _plugins(family: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=FAMILIES[family])}


def names(family: str) -> list[str]:
    """The names of all components of a family, sorted, without importing any of them."""
    own = [
        path.stem
        for path in _package_folder(family).glob("*.py")
        if path.stem != "base" and not path.stem.startswith("_")
    ]
    return sorted({*own, *_plugins(family)})


def family_of(name: str, families: Sequence[str]) -> str:
    """The one of several families that has a component of that name.

    Raises:
        RecipeError: none has.

    >>> family_of("rationales", ["selector", "synthesizer"])
    'synthesizer'
    """
    found = next((family for family in families if name in names(family)), None)
    if found is None:
        known = [name for family in families for name in names(family)]
        raise RecipeError(f"There is no {' or '.join(families)} named {name!r}. {did_you_mean(name, known)}")
    return found


def summary(family: str, name: str) -> str:
    """The first line of a component's module docstring, read from the source without running it."""
    path = _package_folder(family) / f"{name}.py"
    if not path.exists():
        return f"from {_plugins(family)[name].value}"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def component(family: str, name: str) -> type[Any]:
    """The class of a component.

    Raises:
        RecipeError: no component has that name; the message lists those that exist.
    """
    if name not in names(family):
        raise RecipeError(f"There is no {family} named {name!r}. {did_you_mean(name, names(family))}")
    if name in _plugins(family):
        return _plugins(family)[name].load()
    module = importlib.import_module(f"{FAMILIES[family]}.{name}")
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
        and getattr(value, "family", None) == family
    ]
    if len(found) != 1:
        raise RuntimeError(f"{module.__name__} must define exactly one {family}, found {[c.__name__ for c in found]}")
    return found[0]


def name_of(instance: Any) -> str:
    """The name by which recipes call a component: its entry point's, or that of the file it lives in."""
    cls = type(instance)
    place = f"{cls.__module__}:{cls.__qualname__}"
    plugged = (point.name for point in _plugins(cls.family).values() if point.value == place)
    return next(plugged, cls.__module__.rpartition(".")[2])


def build(family: str, name: str, settings: Mapping[str, Any]) -> Any:
    """A component from its name and settings, every value validated.

    Raises:
        RecipeError: unknown name; a `SettingError` for an unknown setting or a wrong value, with what was expected.
    """
    cls = component(family, name)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in settings:
        if key not in fields:
            raise SettingError(f"{family} {name!r} has no setting {key!r}. {did_you_mean(key, fields)}", key)
    try:
        # Lax on purpose: YAML reads 2e-5 as a string and 2 as an integer where a float is meant.
        return TypeAdapter(cls).validate_python(dict(settings))
    except ValidationError as error:
        raise SettingError(f"{family} {name!r}: {explain(error)}", _setting(error, settings)) from error


def _setting(error: ValidationError, settings: Mapping[str, Any]) -> str | None:
    """Which setting an error is about. A component's own checks know no place; their messages begin with the name."""
    first = error.errors()[0]
    if first["loc"]:
        return str(first["loc"][0])
    return next((key for key in settings if first["msg"].startswith(f"Value error, {key} ")), None)


def explain(error: ValidationError) -> str:
    """A validation error in one readable sentence per problem."""
    problems = []
    for item in error.errors(include_url=False):
        place = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        missing = item["type"] == "missing"
        problems.append(f"{place}: {message}" + ("" if missing else f" (got {item['input']!r})") if place else message)
    return "; ".join(problems)
