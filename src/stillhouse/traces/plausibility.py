"""Whether the numbers look like those of a solved problem: whole, positive, of a likely size, the answer last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stillhouse.traces._facts import calculation, close, given
from stillhouse.traces.base import Scores, Trace, TraceSignal

if TYPE_CHECKING:
    from stillhouse.models import CausalLM


@dataclass(frozen=True, kw_only=True)
class Plausibility(TraceSignal):
    """Whether the final number is the last one computed; and besides what it looks like, and what the steps on the way
    to it look like.

    Problems of daily life are made to come out even: of GSM8K's 7,473 training answers (Cobbe et al. 2021, arXiv
    2110.14168) every one is a whole number and three are below zero.
    """

    columns: ClassVar[Mapping[str, str]] = {
        "": "the answer is the last computed number",
        "answered": "there is a final number",
        "whole": "the answer is a whole number",
        "negative": "the answer is below zero, negative",
        "size": "logarithm of the answer's size, negative",
        "asked": "the answer is a number of the question, negative",
        "fractional": "results on the way that are not whole, negative",
        "below": "results on the way below zero, negative",
        "same": "steps that calculate a number with itself, negative",
    }

    def score(self, traces: Sequence[Trace], model: CausalLM | None) -> Scores:
        """The nine properties."""
        table = np.array([_properties(trace) for trace in traces]).reshape(len(traces), len(self.columns))
        return dict(zip(self.columns, table.T, strict=True))


def _properties(trace: Trace) -> tuple[float, ...]:
    steps = calculation(trace.text)
    results = [equation.result for equation in steps]
    answer = trace.answer
    return (
        float(answer is not None and bool(results) and close(results[-1], answer)),
        float(answer is not None),
        float(answer is not None and answer.denominator == 1),
        -float(answer is not None and answer < 0),
        -_size(answer),
        -float(answer in given(trace.question)[1]),
        -float(sum(result.denominator != 1 for result in results)),
        -float(sum(result < 0 for result in results)),
        -float(sum(len(set(equation.operands)) < len(equation.operands) for equation in steps)),
    )


def _size(answer: Fraction | None) -> float:
    """`log10(1 + |a|)`, by the digits where the number is too large for a float."""
    if answer is None:
        return 0.0
    whole = abs(answer.numerator) // answer.denominator
    return float(len(str(whole))) if whole > 10**15 else float(np.log10(1 + abs(float(answer))))
