"""How long a trace is: equations, lines and characters; the longer, the more can have gone wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stillhouse.traces._facts import calculation
from stillhouse.traces.base import Scores, Trace, TraceSignal

if TYPE_CHECKING:
    from stillhouse.models import CausalLM


@dataclass(frozen=True, kw_only=True)
class Steps(TraceSignal):
    """Minus the number of steps, a step being an equation (annotations where there are any, else those of the text).

    Complexity of the steps is what Fu et al. 2022 (arXiv 2210.00720) choose examples by; among the answers of one small
    model the relation turns round, for hard questions take long answers, so that short counts as better here.
    """

    columns: ClassVar[Mapping[str, str]] = {
        "": "equations, negative",
        "operations": "signs in them, negative",
        "lines": "lines, negative",
        "characters": "logarithm of the characters, negative",
    }

    def score(self, traces: Sequence[Trace], model: CausalLM | None) -> Scores:
        """Counts, negative."""
        steps = [calculation(trace.text) for trace in traces]
        return {
            "": -np.array([float(len(found)) for found in steps]),
            "operations": -np.array([float(sum(len(e.operators) for e in found)) for found in steps]),
            "lines": -np.array([float(1 + trace.text.strip().count("\n")) for trace in traces]),
            "characters": -np.log1p([len(trace.text) for trace in traces]),
        }
