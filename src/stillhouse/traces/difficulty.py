"""How hard the question looks: its length and its numbers; the same for all traces of a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stillhouse.traces._facts import given, spelled
from stillhouse.traces.base import Scores, Trace, TraceSignal

if TYPE_CHECKING:
    from stillhouse.models import CausalLM


@dataclass(frozen=True, kw_only=True)
class Difficulty(TraceSignal):
    """Minus the logarithm of the question's words.

    It does not look at the trace at all, and so cannot choose among the answers to one question: it says to which
    questions answers may be trusted. Long questions need more steps, and are answered worse (Cobbe et al. 2021, arXiv
    2110.14168).
    """

    columns: ClassVar[Mapping[str, str]] = {
        "": "logarithm of the question's words, negative",
        "numbers": "numbers in the question, negative",
        "spelled": "numbers in words, negative",
        "percent": "a percent sign in the question, negative",
    }

    def score(self, traces: Sequence[Trace], model: CausalLM | None) -> Scores:
        """Counts, negative."""
        questions = [trace.question for trace in traces]
        return {
            "": -np.log1p([float(len(question.split())) for question in questions]),
            "numbers": -np.array([float(len(given(question)[0])) for question in questions]),
            "spelled": -np.array([float(len(spelled(question))) for question in questions]),
            "percent": -np.array([float("%" in question) for question in questions]),
        }
