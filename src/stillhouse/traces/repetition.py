"""Repeated runs of words, by which text that turns in circles is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stillhouse.traces.base import Scores, Trace, TraceSignal

if TYPE_CHECKING:
    from stillhouse.models import CausalLM


@dataclass(frozen=True, kw_only=True)
class Repetition(TraceSignal):
    """`|distinct n-grams| / |n-grams| - 1`, zero where none is repeated (seq-rep-n of Welleck et al. 2019, arXiv
    1908.04319, negative); and minus the longest run of one character, which catches a decimal that never ends.

    Attributes:
        n: words of a run.
    """

    columns: ClassVar[Mapping[str, str]] = {
        "": "share of n-grams that were there before, negative",
        "run": "logarithm of the longest repetition of up to four characters, negative",
    }

    n: int = 4

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n must be at least 1 word, found {self.n}")

    def score(self, traces: Sequence[Trace], model: CausalLM | None) -> Scores:
        """Shares of repeated n-grams, and longest runs."""
        return {
            "": np.array([self._distinct(trace.text.lower().split()) - 1 for trace in traces]),
            "run": -np.log1p([float(_longest_run(trace.text)) for trace in traces]),
        }

    def _distinct(self, words: Sequence[str]) -> float:
        grams = [tuple(words[i : i + self.n]) for i in range(len(words) - self.n + 1)]
        return len(set(grams)) / len(grams) if grams else 1.0


def _longest_run(text: str) -> int:
    """Characters of the longest stretch that repeats a unit of one to four characters."""
    longest = 0
    for period in range(1, 5):
        current = 0
        for a, b in zip(text, text[period:], strict=False):
            current = current + 1 if a == b else 0
            longest = max(longest, current)
    return longest
