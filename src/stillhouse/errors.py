"""Every error a user can meet, in one family.

A message answers three questions: what happened, what was expected, and what to do about it.
`StillhouseError.exit_code` is what the command line exits with: 1 for a run that failed, 2 for a recipe (or an
argument) that is wrong.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StillhouseError(Exception):
    """Base of all errors that are meant for the user; anything else that escapes is a bug of ours."""

    exit_code = 1


class RecipeError(StillhouseError, ValueError):
    """The recipe, an override or an argument is wrong; nothing was started."""

    exit_code = 2


class SettingError(RecipeError):
    """A component has no such setting, or not with that value.

    Attributes:
        setting: its name; None where the settings do not fit each other.
    """

    def __init__(self, message: str, setting: str | None = None) -> None:
        super().__init__(message)
        self.setting = setting


class NeedsError(RecipeError):
    """A component needs something that another one does not provide (contract C5)."""


class DataError(StillhouseError, ValueError):
    """A data source cannot be read, or a row of it cannot be used."""

    exit_code = 2


class ModelError(StillhouseError, ValueError):
    """A model or tokenizer cannot be loaded, or two of them do not fit together."""

    exit_code = 2


class MissingExtraError(StillhouseError, ImportError):
    """An optional dependency is absent; the message names the extra that brings it."""


class RunError(StillhouseError, RuntimeError):
    """A run folder is locked, belongs to another recipe, or is incomplete."""


class CheckpointError(RunError):
    """A checkpoint cannot be read or does not fit the run."""


class SignalStoreError(RunError):
    """A signal store is damaged, unfinished, or does not fit the data, the tokenizer or the teacher."""


class RequestStoreError(RunError):
    """A store of answered requests cannot be read, or was written by a newer version."""


class TeacherError(StillhouseError, RuntimeError):
    """A teacher behind an API cannot be reached, refuses, or does not answer in form; what arrived before is kept."""


class BudgetError(StillhouseError, RuntimeError):
    """A teacher's budget of calls, tokens or money does not cover what is asked of it; nothing beyond it was spent."""


class TrainingDivergedError(StillhouseError, ArithmeticError):
    """The loss became NaN, infinite, or ran away; the last good checkpoint is kept."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that helps with a misspelt name: the closest known one, and all that exist.

    >>> did_you_mean("foward_kl", ["cross_entropy", "forward_kl"])
    "Did you mean 'forward_kl'? Known: cross_entropy, forward_kl."
    """
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(options) if options else 'none'}."
