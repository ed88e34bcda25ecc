"""Words of a trace that its question does not have: a solution that tells another story solves another problem."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stillhouse.traces.base import Scores, Trace, TraceSignal

if TYPE_CHECKING:
    from stillhouse.models import CausalLM

_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True, kw_only=True)
class Wording(TraceSignal):
    """Minus the number of distinct words of three letters or more that are in the trace and not in the question.

    The shares are the precision of the trace's words against the question's, as ROUGE-1 counts it (Lin 2004), of the
    whole, and of its last line against the question's last sentence, which asks.
    """

    columns: ClassVar[Mapping[str, str]] = {
        "": "words that the question does not have, negative",
        "shared": "share of the trace's words that the question has",
        "asked": "share of the words of the last step that the question's last sentence has",
    }

    def score(self, traces: Sequence[Trace], model: CausalLM | None) -> Scores:
        """Counts and shares."""
        rows = []
        for trace in traces:
            asked, said = _words(trace.question), _words(trace.text)
            last = _words((trace.text.strip().split("\n")[-2:] or [""])[0])
            wanted = _words(re.split(r"(?<=[.?!])\s", trace.question.strip())[-1])
            shared, answering = len(said & asked) / max(1, len(said)), len(last & wanted) / max(1, len(last))
            rows.append((-len(said - asked), shared, answering))
        table = np.array(rows, dtype=np.float64).reshape(len(traces), len(self.columns))
        return dict(zip(self.columns, table.T, strict=True))


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))
