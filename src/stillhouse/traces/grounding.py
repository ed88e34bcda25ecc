"""Where the numbers of a trace come from: which of the question's are never used, and which come from nowhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stillhouse.solutions.tokens import numbers
from stillhouse.traces._facts import calculation, close, given
from stillhouse.traces.base import Scores, Trace, TraceSignal

if TYPE_CHECKING:
    from stillhouse.models import CausalLM

_COMMON = frozenset(map(Fraction, (1, 2, 7, 10, 12, 24, 30, 52, 60, 100, 365, 1000)))
"""What everyone may calculate with unasked: halves, days, months, hours, percent."""


@dataclass(frozen=True, kw_only=True)
class Grounding(TraceSignal):
    """Minus the numbers of the question that no equation of the trace calculates with.

    A number counts as used also as a percentage (20 for 20 %, 0.8 for what 20 % leave). An operand is chained where it
    is an earlier result, from nowhere where it is neither that nor in the question, also as a word, nor one that
    everyone knows (12 months, 60 minutes, 100 per cent). A result is dead where no later step calculates with it.

    The thought is that of step verifiers (Cobbe et al. 2021, arXiv 2110.14168; Ling et al. 2023, arXiv 2306.03872:
    each step names its premises), with counting in place of a model.
    """

    columns: ClassVar[Mapping[str, str]] = {
        "": "numbers of the question that no equation uses, negative",
        "unmentioned": "numbers of the question that the trace never writes, negative",
        "nowhere": "operands from nowhere, negative",
        "dead": "results that no later step uses, negative",
        "chained": "share of operands that are earlier results",
    }

    def score(self, traces: Sequence[Trace], model: CausalLM | None) -> Scores:
        """The five counts."""
        table = np.array([_counts(trace) for trace in traces]).reshape(len(traces), len(self.columns))
        return dict(zip(self.columns, table.T, strict=True))


def _counts(trace: Trace) -> tuple[float, ...]:
    asked, known = given(trace.question)
    results: list[Fraction] = []
    used: set[Fraction] = set()
    alive: set[int] = set()
    nowhere = chained = operands = 0
    for equation in calculation(trace.text):
        for operand in equation.operands:
            operands += 1
            used.add(operand)
            earlier = [place for place, result in enumerate(results) if close(result, operand)]
            if earlier:
                chained += 1
                alive.add(earlier[-1])
            elif operand not in known and operand not in _COMMON:
                nowhere += 1
        results.append(equation.result)
    written = used | set(numbers(trace.text))
    unused = sum(not forms & used for forms in asked)
    unmentioned = sum(not forms & written for forms in asked)
    dead = len(set(range(len(results) - 1)) - alive)
    return -unused, -unmentioned, -nowhere, -dead, chained / max(1, operands)
