"""Every written `a op b = c` recomputed exactly: the share that is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stillhouse.solutions.equations import equations
from stillhouse.traces.base import Scores, Trace, TraceSignal

if TYPE_CHECKING:
    from stillhouse.models import CausalLM


@dataclass(frozen=True, kw_only=True)
class Recomputed(TraceSignal):
    """`right / written`, over the equations that can be read for certain; 1 where there is none, for nothing is wrong.

    Sums, chains `2 + 3 = 5 + 1 = 6`, run-on steps, annotations `<<2*3=6>>` (Cobbe et al. 2021, arXiv 2110.14168),
    units, currency, percent, fractions; a result that rounds the exact value is right. What is read and what is not:
    `stillhouse.solutions.equations`.
    """

    columns: ClassVar[Mapping[str, str]] = {
        "": "share of the written equations that hold",
        "wrong": "equations that do not hold, negative",
        "written": "whether there is an equation",
    }

    def score(self, traces: Sequence[Trace], model: CausalLM | None) -> Scores:
        """Share, count and presence."""
        found = [[equation.right for equation in equations(trace.text)] for trace in traces]
        return {
            "": np.array([sum(right) / len(right) if right else 1.0 for right in found]),
            "wrong": np.array([float(sum(right) - len(right)) for right in found]),
            "written": np.array([float(bool(right)) for right in found]),
        }
