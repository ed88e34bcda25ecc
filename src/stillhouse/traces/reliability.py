"""Agreement weighted by how reliable each source proves, learnt from the answers alone (Dawid and Skene)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stillhouse.statistics import FloatArray
from stillhouse.traces.base import Scores, Trace, TraceSignal, by_group

if TYPE_CHECKING:
    from stillhouse.models import CausalLM

_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Reliability(TraceSignal):
    """The posterior probability of each trace's answer in the one-coin model of Dawid and Skene (1979, doi
    10.2307/2346806), fitted by expectation-maximisation on the answers, without any label.

    Source s is right with probability p_s, else it gives one of the K - 1 wrong answers, each alike. So for answer a of
    a question, `P(a) ~ prod_{s says a} p_s * prod_{s says else} (1 - p_s) / (K - 1)`, and the K - m answers that nobody
    gave count too. Then `p_s` becomes the mean posterior of what s said, with one success and one failure added. Traces
    without a source are of one and the same. A trace without a final number is not right.

    It is not `consensus.DawidSkene`, which gives every teacher one vote and starts from a majority whose ties go to who
    is named first: a source may write several traces, and trust in them must not hang on the order of a file.

    Attributes:
        answers: K, how many answers a question could have; wrong answers coincide with probability 1 / (K - 1).
        iterations: at most.
    """

    alone: ClassVar[bool] = False
    columns: ClassVar[Mapping[str, str]] = {"": "probability of the answer, by who gave it and who did not"}

    answers: int = 10
    iterations: int = 100

    def __post_init__(self) -> None:
        if self.answers < 2:
            raise ValueError(f"answers must be at least 2, the right one and a wrong one; found {self.answers}")

    def score(self, traces: Sequence[Trace], model: CausalLM | None) -> Scores:
        """The posterior of each trace's own answer."""
        groups = by_group(traces)
        reliable = dict.fromkeys((trace.source for trace in traces), 0.5)
        belief_E = np.zeros(len(traces))
        for _ in range(self.iterations):
            for places in groups:
                belief_E[places] = self._posterior([traces[place] for place in places], reliable)
            before, reliable = reliable, _reliabilities(traces, belief_E)
            if max((abs(reliable[s] - before[s]) for s in reliable), default=0.0) < _TOLERANCE:
                break
        return {"": belief_E}

    def _posterior(self, traces: Sequence[Trace], reliable: Mapping[str, float]) -> FloatArray:
        given = sorted({trace.answer for trace in traces if trace.answer is not None})
        wrong = {source: (1 - p) / (self.answers - 1) for source, p in reliable.items()}
        none = sum(float(np.log(wrong[trace.source])) for trace in traces)
        said = dict.fromkeys(given, 0.0)
        for trace in traces:
            if trace.answer is not None:
                said[trace.answer] += float(np.log(reliable[trace.source]) - np.log(wrong[trace.source]))
        unsaid = self.answers - len(given)
        logs = [none + said[answer] for answer in given] + ([none + float(np.log(unsaid))] if unsaid > 0 else [])
        weights = np.exp(np.array(logs) - max(logs, default=0.0))
        posterior = dict(zip(given, weights / weights.sum(), strict=False))
        return np.array([0.0 if trace.answer is None else posterior[trace.answer] for trace in traces])


def _reliabilities(traces: Sequence[Trace], belief_E: FloatArray) -> dict[str, float]:
    right, count = Counter[str](), Counter[str]()
    for trace, belief in zip(traces, belief_E.tolist(), strict=True):
        right[trace.source] += belief
        count[trace.source] += 1
    return {source: (right[source] + 1) / (count[source] + 2) for source in count}
