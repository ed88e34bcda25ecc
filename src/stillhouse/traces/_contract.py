"""The contract of trace signals as a check that anyone can call: `check_trace_signal`.

Raises `AssertionError` with the clause that is broken and what was seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stillhouse.answers import number
from stillhouse.contract import check_settings, demand
from stillhouse.statistics import FloatArray
from stillhouse.traces.base import Scores, Trace, TraceSignal

if TYPE_CHECKING:
    from stillhouse.models import CausalLM

_TEXTS = (
    "5 + 3 = <<5+3=8>>8 apples.\n8 * 2 = <<8*2=16>>16\n#### 16",
    "He has 5 + 3 = 9 apples.\nSo he has 9 * 2 = 18\n#### 18",
    "It is 16.",
    "I do not know",
    "3" * 300,
)
_QUESTIONS = ("Tom has 5 apples and buys 3 more. Ann has twice as many. How many has Ann?", "How much is 20% of 1,200?")


def check_trace_signal(signal: TraceSignal, model: CausalLM | None = None) -> None:
    """Hold a signal to its contract.

    Settings are a value. Every column that it announces is there, finite, one value a trace, and the empty name, the
    signal's own, is among them. Scores do not depend on the order of the traces, nor on whether they are right. A
    signal that says `alone` scores a trace as if no other existed. No traces give no scores.

    Args:
        signal: with settings of your choice.
        model: for a signal that needs one.

    Raises:
        AssertionError: a clause is broken.

    >>> from stillhouse.traces.agreement import Agreement
    >>> check_trace_signal(Agreement())
    """
    check_settings(signal)
    demand("" in signal.columns, f"{signal!r} has no column '', its own score; it has {sorted(signal.columns)}")
    traces = _traces()
    scores = signal.score(traces, model)
    _check_shape(signal, scores, len(traces))
    _check_shape(signal, signal.score([], model), 0)
    labelled = [dataclasses.replace(trace, correct=place % 2 == 0) for place, trace in enumerate(traces)]
    _same(scores, signal.score(labelled, model), f"{signal!r} reads `correct`, which is there for evaluation alone")
    order = np.random.default_rng(0).permutation(len(traces))
    shuffled = signal.score([traces[i] for i in order], model)
    expected = {name: values_E[order] for name, values_E in scores.items()}
    _same(expected, shuffled, f"{signal!r} scores traces otherwise in another order")
    if signal.alone:
        single = [signal.score([trace], model) for trace in traces]
        joined = {name: np.concatenate([one[name] for one in single]) for name in scores}
        _same(scores, joined, f"{signal!r} says `alone`, and scores a trace otherwise when others are there")


def _traces() -> list[Trace]:
    return [
        Trace(
            id=f"{q}-{t}", question=question, group=question, text=text, answer=number(text), source=("a", "b")[t % 2]
        )
        for q, question in enumerate(_QUESTIONS)
        for t, text in enumerate(_TEXTS)
    ]


def _check_shape(signal: TraceSignal, scores: Scores, count: int) -> None:
    demand(
        set(scores) == set(signal.columns), f"{signal!r} announces {sorted(signal.columns)} and gives {sorted(scores)}"
    )
    for name, values_E in scores.items():
        demand(
            values_E.shape == (count,),
            f"{signal!r}: column {name!r} has the shape {values_E.shape} for {count} traces",
        )
        demand(bool(np.isfinite(values_E).all()), f"{signal!r}: column {name!r} is not finite everywhere")


def _same(expected: Scores, found: Scores, otherwise: str) -> None:
    for name, values_E in expected.items():
        gap = _largest(values_E - found[name])
        demand(gap < 1e-4, f"{otherwise} (column {name!r}, by {gap:.2g})")


def _largest(values: Sequence[float] | FloatArray) -> float:
    return float(np.abs(values).max()) if len(values) else 0.0
