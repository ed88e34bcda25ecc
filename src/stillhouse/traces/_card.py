"""What a file of traces is like, whether or not anyone knows which are right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from stillhouse.solutions.equations import equations
from stillhouse.traces._facts import calculation
from stillhouse.traces.base import Trace, by_group


def card(traces: Sequence[Trace], wrong: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Counts of a file of traces; `wrong` is what `wrong_equations` found."""
    groups = by_group(traces)
    several = [[traces[place].answer for place in places] for places in groups if len(places) > 1]
    steps = [len(calculation(trace.text)) for trace in traces]
    return {
        "traces": len(traces),
        "questions": len(groups),
        "sources": dict(Counter(trace.source for trace in traces)),
        "without_answer": sum(trace.answer is None for trace in traces),
        "labelled": sum(trace.correct is not None for trace in traces),
        "agreeing_pairs": _pairs(several),
        "unanimous": fmean(len(set(given)) == 1 and given[0] is not None for given in several) if several else None,
        "equations": sum(len(equations(trace.text)) for trace in traces),
        "wrong_equations": sum(len(found) for found in wrong.values()),
        "traces_with_wrong_equations": len(wrong),
        "traces_without_equations": steps.count(0),
        "mean_steps": fmean(steps),
        "median_characters": median(len(trace.text) for trace in traces),
        "repetitive": sum(_repetitive(trace.text) for trace in traces),
    }


def wrong_equations(traces: Sequence[Trace]) -> dict[str, list[str]]:
    """By the id of a trace, the equations that are written in it and do not hold; traces without any are left out."""
    found = {trace.id: [e.written for e in equations(trace.text) if not e.right] for trace in traces}
    return {name: written for name, written in found.items() if written}


def _pairs(several: Sequence[Sequence[Any]]) -> float | None:
    """The share of pairs of answers to one question that are the same number."""
    same = sum(
        count * (count - 1) for given in several for answer, count in Counter(given).items() if answer is not None
    )
    pairs = sum(len(given) * (len(given) - 1) for given in several)
    return same / pairs if pairs else None


def _repetitive(text: str) -> bool:
    """Whether more than half of its runs of four words were there before, or half of it is one word."""
    words = text.lower().split()
    runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    turning = bool(runs) and len(set(runs)) < len(runs) / 2
    return turning or max((len(word) for word in words), default=0) > max(100, len(text) / 2)
