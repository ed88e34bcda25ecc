"""What a trace is, and a signal that says how far to trust it. Shapes: E traces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from stillhouse.statistics import FloatArray

if TYPE_CHECKING:
    from stillhouse.models import CausalLM

Scores = Mapping[str, FloatArray]
"""Column to one value a trace [E]."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One worked solution of one question.

    Attributes:
        id: unique within the file.
        question: what was asked.
        group: which question, alike for all traces of it.
        text: the steps and the answer.
        answer: the number it ends in; None where it ends in none.
        source: who wrote it; empty where that is not known.
        correct: whether the answer is right, for measuring signals alone: no signal reads it. None where nobody knows.
    """

    id: str
    question: str
    group: str
    text: str
    answer: Fraction | None
    source: str = ""
    correct: bool | None = None


@dataclass(frozen=True, kw_only=True)
class TraceSignal(ABC):
    """Settings of one way to judge traces without a gold answer."""

    family: ClassVar[str] = "trace_signal"
    alone: ClassVar[bool] = True
    """Whether it sees one trace and its question alone, no other answer to the same question."""
    needs_model: ClassVar[bool] = False
    """Whether a small language model reads along."""
    columns: ClassVar[Mapping[str, str]]
    """What it says, by name; the empty name is the signal's own. Higher is more trustworthy, in every column."""

    @abstractmethod
    def score(self, traces: Sequence[Trace], model: CausalLM | None) -> Scores:
        """Every column of `columns`, one finite value a trace [E], whatever the order of the traces.

        `model` is given where the signal needs one.
        """


def by_group(traces: Sequence[Trace]) -> list[list[int]]:
    """The places of the traces of each question."""
    groups: dict[str, list[int]] = {}
    for place, trace in enumerate(traces):
        groups.setdefault(trace.group, []).append(place)
    return list(groups.values())
