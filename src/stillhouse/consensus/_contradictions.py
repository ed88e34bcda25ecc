"""Contradictions on purpose: wrong answers planted among right ones, at a rate and in a pattern, to test any rule on.

Shapes: Q questions, K teachers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from stillhouse.consensus.base import Vote
from stillhouse.errors import DataError

Mode = Literal["independent", "correlated", "collusion", "topic"]
MODES: tuple[Mode, ...] = get_args(Mode)


class Planted(NamedTuple):
    """Votes with contradictions in them, and which of them were planted."""

    votes: list[list[Vote]]
    planted_QK: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Contradictions:
    """How teachers are made to contradict one another. No teacher has a fixed place: who errs most, who colludes and
    who is weak where is drawn with the seed.

    The modes: `independent`, each teacher errs alone; `correlated`, the same, but at a share of the errors all teachers
    that err then give the same wrong answer at the same questions; `collusion`, half of the teachers (rounded down, so
    never a majority) agree on a lie beforehand, and the others err alone at the rate `honest`; `topic`, on each topic
    half of the teachers (rounded up) err alone, and the others are right.

    Attributes:
        rate: of planted answers, from 0 to 1: averaged over the teachers; in `collusion` of those that collude, in
            `topic` of those that are weak on the question's topic.
        mode: the pattern.
        spread: how unlike the teachers are in `independent` and `correlated`: their rates run evenly from `1 - spread`
            times the rate to `1 + spread` times, never above one.
        shared: the share of errors that `correlated` teachers have in common.
        honest: how often those err that do not collude.
        pool: how many different wrong answers a question has.
        seed: of all draws.
    """

    rate: float
    mode: Mode = "independent"
    spread: float = 0.5
    shared: float = 0.5
    honest: float = 0.2
    pool: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rate", "spread", "shared", "honest"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}; it must be one of {', '.join(MODES)}")
        if self.pool < 1:
            raise ValueError(f"pool is {self.pool}; a question needs at least one wrong answer")

    def inject(self, votes: Sequence[Sequence[Vote]], topics: Sequence[str] = ()) -> Planted:
        """Votes with some replaced by wrong ones. Where a teacher gave no answer, none is planted.

        Args:
            votes: of each question the answers of all teachers; `[[right] * teachers for right in answers]` begins
                with teachers that are always right.
            topics: of each question, for the mode `topic`.

        Raises:
            DataError: fewer than two teachers, or no topics where they are needed.
        """
        teachers = len(votes[0]) if votes else 2
        if teachers < 2:
            raise DataError(f"Contradictions need at least two teachers; there are votes of {teachers}.")
        if self.mode == "topic" and len(topics) != len(votes):
            raise DataError(f"The mode topic needs a topic for each of {len(votes)} questions; it got {len(topics)}.")
        draw = random.Random(f"{self.seed} {self.mode}")
        order = draw.sample(range(teachers), teachers)
        numbers: dict[str, int] = {}
        planted_QK = np.zeros((len(votes), teachers), dtype=bool)
        after = [list(row) for row in votes]
        for q, row in enumerate(after):
            topic = numbers.setdefault(topics[q], len(numbers)) if self.mode == "topic" else 0
            for k, lie in self._lies(draw, order, topic).items():
                if row[k] is not None:
                    row[k], planted_QK[q, k] = wrong(row[k], lie), True
        return Planted(after, planted_QK)

    def _lies(self, draw: random.Random, order: Sequence[int], topic: int) -> dict[int, int]:
        """Of one question who errs, and with which of its wrong answers; as many draws whatever the rate, so that a
        higher one plants more in the same places."""
        together, common_lie = draw.random(), draw.randrange(self.pool)
        lies = {}
        for rank, k in enumerate(order):
            alone, own_lie, shares = draw.random(), draw.randrange(self.pool), draw.random() < self.shared
            rate, joins = self._rate_of(rank, len(order), topic), self.mode == "correlated" and shares
            if self.mode == "collusion":
                joins = rank < len(order) // 2
                rate = self.rate if joins else self.honest
            if (together if joins else alone) < rate:
                lies[k] = common_lie if joins else own_lie
        return lies

    def _rate_of(self, rank: int, count: int, topic: int) -> float:
        if self.mode == "topic":  # who is weak moves on from topic to topic
            return self.rate if (rank - topic) % count < (count + 1) // 2 else 0.0
        return min(1.0, self.rate * (1 - self.spread + 2 * self.spread * rank / (count - 1)))


def wrong(answer: Vote, number: int) -> Vote:
    """One of an answer's wrong neighbours, the same for the same number; numbers stay numbers of their kind.

    >>> wrong(20, 0), wrong(20, 1), wrong("Paris", 2)
    (21, 19, 'not Paris (2)')
    """
    offset = (number // 2 + 1) * (1 if number % 2 == 0 else -1)
    if isinstance(answer, int | float | Fraction):
        return answer + offset
    return f"not {answer} ({number})"
