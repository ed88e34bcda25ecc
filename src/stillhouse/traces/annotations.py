"""Whether what a trace notes for its calculator and what it writes around it are the same."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stillhouse.solutions.equations import equations
from stillhouse.solutions.tokens import ANNOTATION
from stillhouse.traces._facts import carried
from stillhouse.traces.base import Scores, Trace, TraceSignal

if TYPE_CHECKING:
    from stillhouse.models import CausalLM


@dataclass(frozen=True, kw_only=True)
class Annotations(TraceSignal):
    """Minus the annotations `<<a*b=c>>` (Cobbe et al. 2021, arXiv 2110.14168) that are not what stands around them:
    behind which another number than c is written, as in `<<3*4=12>>13`, or whose own line calculates something else, as
    in `3 + 4 = <<3*4=12>>12`. Zero where there is none.
    """

    columns: ClassVar[Mapping[str, str]] = {
        "": "annotations whose result is not the number written behind them, negative",
        "line": "annotations that calculate otherwise than their line, negative",
    }

    def score(self, traces: Sequence[Trace], model: CausalLM | None) -> Scores:
        """Both counts."""
        return {
            "": -np.array([float(carried(trace.text)) for trace in traces]),
            "line": -np.array([float(_otherwise(trace.text)) for trace in traces]),
        }


def _otherwise(text: str) -> int:
    """Lines with one annotation and one plain equation whose exact values differ."""
    count = 0
    for line in text.split("\n"):
        if len(re.findall(ANNOTATION, line)) == 1:
            found = equations(line)
            noted, plain = ([e for e in found if e.annotated is kind] for kind in (True, False))
            count += len(noted) == len(plain) == 1 and not set(noted[0].values) & set(plain[0].values)
    return count
