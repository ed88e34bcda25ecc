"""What the steps are worth to a small model: how much likelier they make the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stillhouse.answers import MARKER
from stillhouse.solutions.tokens import without_annotations
from stillhouse.traces.base import Scores, Trace, TraceSignal

if TYPE_CHECKING:
    from stillhouse.models import CausalLM


@dataclass(frozen=True, kw_only=True)
class Utility(TraceSignal):
    """`log q(a | x, r) - log q(a | x)` in nats, for question x, steps r and the trace's own answer a under the small
    model q (the pointwise V-information of the steps about the answer: Ethayarajh et al. 2021, arXiv 2110.08420; of
    rationales: Chen et al. 2022, arXiv 2210.04982, whose REV is its conditional form).

    The steps are the trace without its annotations and its last line, which gives the answer; the answer is written
    `#### 18` behind them. 0 for a trace without a final number.
    """

    needs_model: ClassVar[bool] = True
    columns: ClassVar[Mapping[str, str]] = {
        "": "nats by which the steps make the answer likelier",
        "answer": "log-probability of the answer behind the steps",
    }

    def score(self, traces: Sequence[Trace], model: CausalLM | None) -> Scores:
        """The difference, and its first term."""
        from stillhouse.traces._reading import logprobs

        assert model is not None  # it says `needs_model`
        questions = [trace.question for trace in traces]
        steps = [without_annotations(trace.text).strip().rpartition("\n") for trace in traces]
        answers = [f"{MARKER} {_written(trace)}" for trace in traces]
        behind = logprobs(model, questions, answers, [before + newline for before, newline, _ in steps])
        with_steps_E = np.array([values_N.sum() for values_N in behind])
        alone_E = np.array([values_N.sum() for values_N in logprobs(model, questions, answers)])
        known_E = np.array([trace.answer is not None for trace in traces], dtype=np.float64)
        return {"": (with_steps_E - alone_E) * known_E, "answer": with_steps_E * known_E}


def _written(trace: Trace) -> str:
    """An answer as people write it: whole, or with the decimals that it needs, nine at most."""
    if trace.answer is None:
        return ""
    if trace.answer.denominator == 1:
        return str(trace.answer.numerator)
    return f"{trace.answer.numerator / trace.answer.denominator:.9g}"
