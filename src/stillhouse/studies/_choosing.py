"""The committee study's first half: choosing among recorded solutions without right answers, held against hindsight.

Shapes: E questions, K teachers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse import registry
from stillhouse.auroc import auroc
from stillhouse.consensus._disagreements import pairs
from stillhouse.consensus.base import ConsensusRule, Vote, encode, most_supported, one_hot
from stillhouse.errors import DataError
from stillhouse.solutions.steps import first_difference
from stillhouse.statistics import Measurement, compare, estimate
from stillhouse.traces.base import Trace, TraceSignal

_FOLDS = 10
_POWERS = (0, 1, 2, 3, 4, 6, 8)

EVIDENCE: Mapping[str, Sequence[tuple[str, str]]] = {
    "all answers": (),
    "recomputed": (("recomputed", "wrong"),),
    "grounded": (("recomputed", "wrong"), ("grounding", "nowhere")),
}
"""Which answers vote: all, those whose equations hold, those that besides take no number from nowhere. Of each the
columns of trace signals that must be zero."""


@dataclass(frozen=True)
class Solved:
    """Questions with several teachers' solutions.

    Attributes:
        teachers: their names.
        table: of each question every teacher's solution, None where it is missing.
    """

    teachers: tuple[str, ...]
    table: tuple[tuple[Trace | None, ...], ...]

    @cached_property
    def votes(self) -> list[list[Vote]]:
        """The final numbers; None where a solution is missing or holds none."""
        return [[trace and trace.answer for trace in row] for row in self.table]

    @cached_property
    def right(self) -> list[Vote]:
        """The right answers, for measuring alone; None where no teacher gives it."""
        return [next((trace.answer for trace in row if trace and trace.correct), None) for row in self.table]

    def __len__(self) -> int:
        return len(self.table)


def tabulate(traces: Sequence[Trace], path: str) -> Solved:
    """Traces by question and teacher.

    Raises:
        DataError: fewer than two teachers, two solutions of one teacher to one question, a trace of which nobody knows
            whether it is right, two answers that are both said to be right.
    """
    teachers = tuple(dict.fromkeys(trace.source for trace in traces))
    if len(teachers) < 2:
        raise DataError(
            f"{path} holds solutions of {', '.join(teachers) or 'nobody'}; choosing needs at least two teachers. Name "
            "their columns with data.traces.solutions, or of a row a trace the column that says who wrote it with "
            "data.traces.source."
        )
    found: dict[str, dict[str, Trace]] = {}
    for trace in traces:
        told = found.setdefault(trace.group, {})
        if trace.source in told:
            raise DataError(
                f"{path} holds two solutions of {trace.source} to one question, {told[trace.source].id} and "
                f"{trace.id}; a teacher has one vote. Leave one out."
            )
        told[trace.source] = trace
        if trace.correct is None:
            raise DataError(
                f"{path}, {trace.id}: nobody says whether it is right, and rules are measured by that. Name the column "
                "of the right answer: data.traces.reference=COLUMN."
            )
        if trace.correct and any(one.correct and one.answer != trace.answer for one in told.values()):
            raise DataError(f"{path}, {trace.id}: another answer to the same question is said to be right as well.")
    return Solved(teachers, tuple(tuple(told.get(name) for name in teachers) for told in found.values()))


def withheld(solved: Solved, evidence: str) -> list[list[bool]]:
    """Of every solution whether some evidence speaks against it."""
    traces = [trace for row in solved.table for trace in row if trace]
    against: set[str] = set()
    for name, column in EVIDENCE[evidence]:
        signal: TraceSignal = registry.build("trace_signal", name, {})
        scores_E = signal.score(traces, None)[column]
        against |= {trace.id for trace, score in zip(traces, scores_E, strict=True) if score != 0}
    return [[trace is not None and trace.id in against for trace in row] for row in solved.table]


def heard(solved: Solved, against: Sequence[Sequence[bool]]) -> list[list[Vote]]:
    """The votes that are not withheld; where that leaves none of a question, all of them."""
    found = []
    for votes, out in zip(solved.votes, against, strict=True):
        kept = [None if refused else vote for vote, refused in zip(votes, out, strict=True)]
        found.append(kept if any(vote is not None for vote in kept) else votes)
    return found


# How often that is right.


def measured(chosen: Sequence[Vote], right: Sequence[Vote]) -> Measurement:
    """Choices against right answers; none is wrong."""
    hits = [[float(answer is not None and answer == wanted), 1.0] for answer, wanted in zip(chosen, right, strict=True)]
    return Measurement(tuple(f"{place:06}" for place in range(len(hits))), np.array(hits))


def fitted_with_gold(solved: Solved, seed: int) -> list[Vote]:
    """A ceiling for weighted votes: weights fitted to the right answers of nine tenths, used on the last tenth.

    The weight of a vote is a power of its teacher's accuracy; the power is the best of a few on the same nine tenths.
    """
    votes = solved.votes
    codes_EK = encode(votes)
    right_EK = np.array([[v is not None and v == a for v in row] for row, a in zip(votes, solved.right, strict=True)])
    right_E = np.where(right_EK.any(axis=1), codes_EK[np.arange(len(votes)), right_EK.argmax(axis=1)], -2)
    fold_E = np.random.default_rng(seed).permutation(len(votes)) % _FOLDS
    chosen: list[Vote] = [None] * len(votes)
    for fold in range(_FOLDS):
        apart_E = fold_E == fold
        accuracy_K = right_EK[~apart_E].mean(axis=0)
        best = max(_POWERS, key=lambda p: (_weighed(codes_EK[~apart_E], accuracy_K**p) == right_E[~apart_E]).mean())
        for place, code in zip(np.flatnonzero(apart_E), _weighed(codes_EK[apart_E], accuracy_K**best), strict=True):
            chosen[place] = next((v for v, c in zip(votes[place], codes_EK[place], strict=True) if c == code), None)
    return chosen


def _weighed(codes_EK: NDArray[np.int64], weight_K: NDArray[np.float64]) -> NDArray[np.int64]:
    return most_supported(np.einsum("eka,k->ea", one_hot(codes_EK), weight_K), codes_EK)


def choose(solved: Solved, rules: Mapping[str, ConsensusRule], seed: int) -> dict[str, Any]:
    """Every rule on the recorded solutions, against the best single teacher, as plain data."""
    votes, right = solved.votes, solved.right
    single = {name: measured([row[k] for row in votes], right) for k, name in enumerate(solved.teachers)}
    accuracy = {name: estimate(m) for name, m in single.items()}
    best = max(accuracy, key=lambda name: accuracy[name].value)
    ceiling = measured(fitted_with_gold(solved, seed), right)
    against = {evidence: withheld(solved, evidence) for evidence in EVIDENCE}
    found = []
    for evidence, out in against.items():
        left = heard(solved, out)
        for name, rule in rules.items():
            decided = rule.decide(left)
            hits = measured(decided.chosen, right)
            found.append(
                {
                    "rule": name,
                    "evidence": evidence,
                    "accuracy": asdict(estimate(hits)),
                    "against_best_single": asdict(compare(hits, single[best], seed=seed)),
                    "auroc": auroc(np.array(decided.confidence), hits.sums_EM[:, 0]),
                    "reliability": dict(zip(solved.teachers, decided.reliability, strict=True)),
                }
            )
    return {
        "n": len(solved),
        "teachers": {name: asdict(one) for name, one in accuracy.items()},
        "best_single": best,
        "oracle": asdict(estimate(measured(right, right))),
        "fitted_with_gold": {
            "accuracy": asdict(estimate(ceiling)),
            "against_best_single": asdict(compare(ceiling, single[best], seed=seed)),
        },
        "rules": found,
        "withheld": {evidence: sum(map(sum, out)) for evidence, out in against.items()},
        "no_answer": {name: sum(row[k] is None for row in votes) for k, name in enumerate(solved.teachers)},
        "disagreement": _disagreement(solved, votes),
    }


def _disagreement(solved: Solved, votes: Sequence[Sequence[Vote]]) -> dict[str, Any]:
    """How often teachers differ, and at which step the solutions of each two that do."""
    names, first = solved.teachers, {}
    for pair in pairs(votes):
        at = [
            found.step
            for row in solved.table
            if (one := row[pair.one]) and (other := row[pair.other])
            if None not in (one.answer, other.answer) and one.answer != other.answer
            if (found := first_difference(one.text, other.text))
        ]
        first[f"{names[pair.one]} | {names[pair.other]}"] = {
            "both": pair.both,
            "differ": pair.differ,
            "at_step": {str(step): at.count(step) for step in sorted(set(at))},
        }
    unanimous = sum(len(set(row)) == 1 for row in votes)
    return {"unanimous": unanimous, "pairs": first}
