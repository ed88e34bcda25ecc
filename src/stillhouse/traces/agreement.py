"""Self-consistency: the share of the other answers to the same question that end in the same number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stillhouse.traces.base import Scores, Trace, TraceSignal, by_group

if TYPE_CHECKING:
    from stillhouse.models import CausalLM


@dataclass(frozen=True, kw_only=True)
class Agreement(TraceSignal):
    """`score_i = |{j != i : a_j = a_i}| / (n - 1)` over the n traces of a question (Wang et al. 2022, arXiv 2203.11171,
    who take the majority; leave-one-out, so that no trace votes for itself).

    A trace without a final number agrees with none; a question with a single trace says nothing, which is 0.
    """

    alone: ClassVar[bool] = False
    columns: ClassVar[Mapping[str, str]] = {"": "share of the other answers that are the same number"}

    def score(self, traces: Sequence[Trace], model: CausalLM | None) -> Scores:
        """The share of the others that agree."""
        score_E = np.zeros(len(traces))
        for places in by_group(traces):
            votes = Counter(traces[place].answer for place in places)
            for place in places:
                answer = traces[place].answer
                if answer is not None and len(places) > 1:
                    score_E[place] = (votes[answer] - 1) / (len(places) - 1)
        return {"": score_E}
