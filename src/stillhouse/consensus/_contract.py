"""The contract of consensus rules as a check that anyone can call: `stillhouse.testing.check_consensus_rule`."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import numpy as np

from stillhouse.consensus.base import Consensus, ConsensusRule, Vote
from stillhouse.contract import check_settings, demand

_QUESTIONS, _SURE = 240, (0.9, 0.8, 0.7, 0.6, 0.75)
"""Of the votes that a rule is tried on: how many, and how often each of its teachers is right. With unequal teachers
hardly anything is tied, and what is tied may go to the teacher that is named first."""


class _Opaque:
    """An answer that can be compared and nothing else: no order, no text, no number."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "an answer"


def check_consensus_rule(rule: ConsensusRule) -> None:
    """Hold a rule to its contract (C6, and what a choice without right answers must keep).

    Settings are a value: frozen, equal to their copy, hashable, printable. It chooses only answers that were given,
    unanimous ones always, and none where none was given; confidences and reliabilities are shares. Teachers in another
    order, questions in another order and answers under other names change the names alone, and answers that have no
    value but can be compared are as good as any: nothing but which votes are equal decides. A teacher that answers at
    random is given a lower reliability than all that know something. The same votes give the same choice, and
    `abstain_below` withholds exactly what is less sure.

    Args:
        rule: with settings of your choice.

    Raises:
        AssertionError: a clause is broken.

    >>> from stillhouse.consensus.majority import Majority
    >>> check_consensus_rule(Majority())
    """
    check_settings(rule)
    always = dataclasses.replace(rule, abstain_below=0.0)
    votes = _votes(seed=1)
    decided = _decide(always, votes)
    _check_shares(decided, votes, always)
    demand(always.decide(votes) == decided, f"{rule!r} decides otherwise the second time")
    _check_unanimous(always)
    _check_names(always, votes, decided)
    _check_random_teacher(always)
    _check_abstaining(rule, votes, decided)


def _votes(seed: int, sure: Sequence[float] = _SURE, questions: int = _QUESTIONS) -> list[list[Vote]]:
    """Teachers that are right so often, and otherwise give one of six wrong answers; some give none."""
    draw = random.Random(seed)
    return [
        [
            None if draw.random() < 0.03 else f"right {q}" if draw.random() < share else f"wrong {draw.randrange(6)}"
            for share in sure
        ]
        for q in range(questions)
    ]


def _decide(rule: ConsensusRule, votes: list[list[Vote]]) -> Consensus:
    kept = [list(row) for row in votes]
    decided = rule.decide(votes)
    demand(votes == kept, f"{rule!r} changed the votes it was given; work on copies")
    return decided


def _check_shares(decided: Consensus, votes: list[list[Vote]], rule: ConsensusRule) -> None:
    counts = len(decided.chosen), len(decided.confidence), len(decided.reliability)
    wanted = len(votes), len(votes), len(votes[0])
    demand(counts == wanted, f"{rule!r} gives {counts} choices, confidences and reliabilities, expected {wanted}")
    for row, answer in zip(votes, decided.chosen, strict=True):
        given = {vote for vote in row if vote is not None}
        demand(answer in given or (answer is None and not given), f"{answer!r} was chosen from {row}")
    shares = [*decided.confidence, *decided.reliability]
    demand(all(0 <= share <= 1 for share in shares), f"confidence or reliability is not between 0 and 1: {shares}")


def _check_unanimous(rule: ConsensusRule) -> None:
    for votes in ([["a", "a", "a"]], [["a", "a"], ["b", None], [None, "c"]], [[None, None, "a"]] * 3):
        given = [next(vote for vote in row if vote is not None) for row in votes]
        demand(list(rule.decide(votes).chosen) == given, f"{rule!r} does not choose what all say in {votes}")
    empty = rule.decide([["a", "a"], [None, None]])
    demand(empty.chosen == ("a", None), f"{rule!r} chooses {empty.chosen[1]!r} where nobody answered")
    demand(empty.confidence[1] == 0, f"{rule!r} is {empty.confidence[1]} sure where nobody answered")


def _check_names(rule: ConsensusRule, votes: list[list[Vote]], decided: Consensus) -> None:
    order = [3, 1, 4, 0, 2]
    moved = rule.decide([[row[k] for k in order] for row in votes])
    same = moved.chosen == decided.chosen and np.allclose(moved.confidence, decided.confidence, atol=1e-6)
    demand(same, f"teachers in another order change what {rule!r} chooses, or how sure it is")
    back = [decided.reliability[k] for k in order]
    demand(np.allclose(moved.reliability, back, atol=1e-6), f"{rule!r}: reliabilities do not move with their teachers")
    turned = rule.decide(votes[::-1])
    demand(turned.chosen[::-1] == decided.chosen, f"questions in another order change what {rule!r} chooses")
    names: dict[Vote, Vote] = {None: None}
    opaque = [[names.setdefault(vote, _Opaque()) for vote in row] for row in votes]
    renamed = rule.decide(opaque)
    demand(
        list(renamed.chosen) == [names[answer] for answer in decided.chosen],
        f"answers under other names change what {rule!r} chooses; only which of them are equal may decide",
    )


def _check_random_teacher(rule: ConsensusRule) -> None:
    for seed in range(3):
        reliability = rule.decide(_votes(seed, (0.8, 0.75, 0.0, 0.7))).reliability
        others = [value for k, value in enumerate(reliability) if k != 2]
        demand(
            reliability[2] < min(others),
            f"{rule!r} gives a teacher that answers at random the reliability {reliability[2]:.3f}, others {others}",
        )


def _check_abstaining(rule: ConsensusRule, votes: list[list[Vote]], decided: Consensus) -> None:
    bar = float(np.median(decided.confidence))
    found = dataclasses.replace(rule, abstain_below=bar)
    wanted = tuple(
        answer if sure >= bar else None for answer, sure in zip(decided.chosen, decided.confidence, strict=True)
    )
    demand(found.decide(votes).chosen == wanted, f"{found!r} does not withhold exactly what is less sure")
