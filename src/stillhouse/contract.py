"""Clauses that every component is held to, whatever its family; `stillhouse.testing` builds on them."""

from __future__ import annotations

import dataclasses
from typing import Any


def demand(holds: bool, otherwise: str) -> None:
    """Raise `AssertionError` with what was seen unless a clause holds; unlike `assert` it also speaks under `-O`."""
    if not holds:
        raise AssertionError(otherwise)


def check_settings(component: Any) -> None:
    """Settings are a value (contract C6): equal to their copy, hashable, printable, frozen.

    Raises:
        AssertionError: they are not.
    """
    twin, name = dataclasses.replace(component), type(component).__name__
    demand(
        twin == component and hash(twin) == hash(component),
        f"{component!r} is not equal to its own copy; settings are values",
    )
    demand(name in repr(component), f"{component!r} does not print its class")
    field = dataclasses.fields(component)[0].name if dataclasses.fields(component) else "anything"
    try:
        setattr(component, field, None)
    except dataclasses.FrozenInstanceError:
        return
    raise AssertionError(f"{name} can be changed; declare it @dataclass(frozen=True, kw_only=True)")
