"""Every trace signal that the registry finds, held to its contract, and broken ones that it must catch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from building import MakeStudent

from stillhouse import registry
from stillhouse.models import CausalLM
from stillhouse.testing import check_trace_signal
from stillhouse.traces.base import Scores, Trace, TraceSignal


@pytest.mark.parametrize("name", registry.names("trace_signal"))
def test_signal_keeps_its_contract(name: str, make_student: MakeStudent) -> None:
    signal = registry.build("trace_signal", name, {})
    check_trace_signal(signal, make_student().lm if signal.needs_model else None)


@dataclass(frozen=True, kw_only=True)
class Sound(TraceSignal):
    columns: ClassVar[Mapping[str, str]] = {"": "characters"}

    def score(self, traces: Sequence[Trace], model: CausalLM | None) -> Scores:
        return {"": np.array([float(len(trace.text)) for trace in traces])}


@dataclass(frozen=True, kw_only=True)
class Peeking(Sound):
    def score(self, traces: Sequence[Trace], model: CausalLM | None) -> Scores:
        return {"": np.array([float(bool(trace.correct)) for trace in traces])}


@dataclass(frozen=True, kw_only=True)
class Ranking(Sound):
    def score(self, traces: Sequence[Trace], model: CausalLM | None) -> Scores:
        return {"": np.arange(len(traces), dtype=np.float64)}


@dataclass(frozen=True, kw_only=True)
class Crowded(Sound):
    def score(self, traces: Sequence[Trace], model: CausalLM | None) -> Scores:
        return {"": np.full(len(traces), float(len(traces)))}


@dataclass(frozen=True, kw_only=True)
class Infinite(Sound):
    def score(self, traces: Sequence[Trace], model: CausalLM | None) -> Scores:
        return {"": np.array([np.inf] * len(traces))}


@dataclass(frozen=True, kw_only=True)
class Short(Sound):
    def score(self, traces: Sequence[Trace], model: CausalLM | None) -> Scores:
        return {"": np.zeros(max(0, len(traces) - 1))}


@dataclass(frozen=True, kw_only=True)
class Nameless(Sound):
    columns: ClassVar[Mapping[str, str]] = {"length": "characters"}


def test_a_sound_signal_passes() -> None:
    check_trace_signal(Sound())


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Peeking, "reads `correct`"),
        (Ranking, "another order"),
        (Crowded, "says `alone`"),
        (Infinite, "not finite"),
        (Short, "shape"),
        (Nameless, "has no column ''"),
    ],
)
def test_a_broken_signal_is_caught(broken: type[TraceSignal], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_trace_signal(broken())
