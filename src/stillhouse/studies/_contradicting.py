"""The committee study's second half: how every rule stands up to planted contradictions, on problems made for it.

Shapes: Q questions, K teachers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from stillhouse.auroc import auroc
from stillhouse.consensus._contradictions import MODES, Contradictions, Mode, Planted
from stillhouse.consensus.base import Consensus, ConsensusRule, Vote
from stillhouse.data.arithmetic import generate
from stillhouse.recipe_parts import Section
from stillhouse.statistics import Measurement, compare, estimate
from stillhouse.studies._choosing import measured

BEST = "best single"
"""What the rules are held against: of each draw the teacher that is right most often, which takes hindsight."""
_Z95 = 1.96
_RESAMPLES = 1000


class CurveSection(Section):
    """Which contradictions are planted."""

    rates: list[float] = Field([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6], min_length=1, description="of planted answers")
    modes: list[Mode] = Field(list(MODES), min_length=1, description="how the planted answers hang together")
    teachers: list[int] = Field([3, 4], min_length=1, description="sizes of the committee")
    questions: int = Field(200, ge=2, description="problems of each draw")
    seeds: int = Field(5, ge=1, description="draws, each with problems and contradictions of its own")

    @field_validator("rates")
    @classmethod
    def _rising_shares(cls, rates: list[float]) -> list[float]:
        if sorted(set(rates)) != rates or not 0 <= rates[0] <= rates[-1] <= 1:
            raise ValueError(f"rates must rise within 0 to 1, found {rates}")
        return rates

    @field_validator("teachers")
    @classmethod
    def _committees(cls, teachers: list[int]) -> list[int]:
        if min(teachers) < 2:
            raise ValueError(f"a committee needs at least two teachers, found {min(teachers)}")
        return teachers


@dataclass(frozen=True)
class Draw:
    """One seed's problems with contradictions in their answers."""

    right: tuple[Vote, ...]
    planted: Planted


def contradict(
    section: CurveSection, rules: Mapping[str, ConsensusRule], seed: int, report: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    """Every rule, and the best single teacher, at every rate: accuracy, its interval, and how well the planted answers
    are told from honest ones, as plain data.

    Args:
        section: what is planted.
        rules: by the names they are shown under.
        seed: of the first draw.
        report: called with how many settings are done, of how many.
    """
    problems = [list(generate(section.questions, seed=seed + place, steps=(2, 4))) for place in range(section.seeds)]
    cells = list(product(section.modes, section.teachers, section.rates))
    found = []
    for done, (mode, teachers, rate) in enumerate(cells):
        report(done, len(cells))
        draws = []
        for place, of_seed in enumerate(problems):
            injector = Contradictions(rate=rate, mode=mode, seed=seed + place)
            topics = [problem.steps[-1].op for problem in of_seed]
            right = tuple(problem.answer for problem in of_seed)
            draws.append(Draw(right, injector.inject([[answer] * teachers for answer in right], topics)))
        best = _pool([measured([row[_best(draw)] for row in draw.planted.votes], draw.right) for draw in draws])
        where = {"mode": mode, "teachers": teachers, "rate": rate}
        found.append({"rule": BEST, **where, "accuracy": _with_interval(best)})
        for name, rule in rules.items():
            decided = [rule.decide(draw.planted.votes) for draw in draws]
            hits = _pool([measured(one.chosen, draw.right) for one, draw in zip(decided, draws, strict=True)])
            against = compare(hits, best, resamples=_RESAMPLES, seed=seed)
            told = {"accuracy": _with_interval(hits), "against_best_single": asdict(against)}
            found.append({"rule": name, **where, **told, "auroc": _detection(decided, draws)})
    report(len(cells), len(cells))
    return found


def _best(draw: Draw) -> int:
    planted_QK = draw.planted.planted_QK
    return int(planted_QK.sum(axis=0).argmin())


def _pool(parts: Sequence[Measurement]) -> Measurement:
    """The draws' questions as one measurement; every question has its own contradictions, so they are independent."""
    ids = tuple(f"{place}/{name}" for place, part in enumerate(parts) for name in part.ids)
    return replace(parts[0], ids=ids, sums_EM=np.concatenate([part.sums_EM for part in parts]))


def _with_interval(hits: Measurement) -> dict[str, Any]:
    found = estimate(hits)
    spread = _Z95 * (found.stderr or 0.0)
    return {**asdict(found), "low": max(0.0, found.value - spread), "high": min(1.0, found.value + spread)}


def _detection(decided: Sequence[Consensus], draws: Sequence[Draw]) -> float | None:
    """How well planted answers are told from honest ones: one that was not chosen is suspected as much as the rule is
    sure, one that was chosen as little."""
    suspicion, planted = [], []
    for one, draw in zip(decided, draws, strict=True):
        chosen_QK = np.array(
            [[vote == answer for vote in row] for row, answer in zip(draw.planted.votes, one.chosen, strict=True)]
        )
        sure_Q1: NDArray[np.float64] = np.array(one.confidence)[:, None]
        suspicion.append(np.where(chosen_QK, 1 - sure_Q1, sure_Q1).ravel())
        planted.append(draw.planted.planted_QK.ravel())
    return auroc(np.concatenate(suspicion), np.concatenate(planted).astype(np.float64))


def summarize_curves(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of every curve its mean accuracy over the rates, and where the rule stands against the best single teacher: the
    highest rate at which it is resolved better, and the lowest at which it is resolved worse."""
    found = []
    curves = dict.fromkeys((cell["mode"], cell["teachers"], cell["rule"]) for cell in cells)
    for mode, teachers, rule in curves:
        own = [c for c in cells if (c["mode"], c["teachers"], c["rule"]) == (mode, teachers, rule)]
        row = {"mode": mode, "teachers": teachers, "rule": rule, "mean": fmean(c["accuracy"]["value"] for c in own)}
        if rule != BEST:
            clear = [(c["rate"], c["against_best_single"]) for c in own if c["against_best_single"]["resolved"]]
            row["better_up_to"] = max((rate for rate, one in clear if one["difference"] > 0), default=None)
            row["breakdown"] = min((rate for rate, one in clear if one["difference"] < 0), default=None)
            known = [c["auroc"] for c in own if c["auroc"] is not None]
            row["auroc"] = fmean(known) if known else None
        found.append(row)
    return found
