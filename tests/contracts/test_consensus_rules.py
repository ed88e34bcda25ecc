"""Every consensus rule that the registry finds, held to the public contract, and broken ones it must catch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from stillhouse import registry
from stillhouse.consensus.base import Choice, Consensus, ConsensusRule, IntArray, Vote
from stillhouse.consensus.dawid_skene import DawidSkene
from stillhouse.consensus.majority import Majority
from stillhouse.consensus.weighted import Weighted
from stillhouse.testing import check_consensus_rule


@pytest.mark.parametrize("name", registry.names("consensus_rule"))
def test_rule_keeps_its_contract(name: str) -> None:
    check_consensus_rule(registry.build("consensus_rule", name, {}))


@pytest.mark.parametrize(
    "rule",
    [Majority(abstain_below=0.7), Weighted(power=3), DawidSkene(difficulties=2), DawidSkene(abstain_below=0.9)],
    ids=repr,
)
def test_rule_keeps_its_contract_with_other_settings(rule: ConsensusRule) -> None:
    check_consensus_rule(rule)


@pytest.mark.parametrize("name", registry.names("consensus_rule"))
def test_every_rule_has_a_summary_and_is_called_by_its_file(name: str) -> None:
    assert registry.summary("consensus_rule", name).endswith(".")
    assert registry.name_of(registry.component("consensus_rule", name)()) == name


def of(codes_QK: IntArray, chosen_Q: IntArray) -> Choice:
    """A choice with the confidence and reliability of a majority."""
    sound = Majority().choose(codes_QK)
    return Choice(chosen_Q, sound.confidence_Q, sound.reliability_K)


@dataclass(frozen=True, kw_only=True)
class First(ConsensusRule):
    """Follows the teacher that is named first."""

    def choose(self, codes_QK: IntArray) -> Choice:
        return of(codes_QK, codes_QK.max(axis=1) * 0)


@dataclass(frozen=True, kw_only=True)
class Minority(ConsensusRule):
    """Chooses the last answer that came up, so that unanimity alone hides it."""

    def choose(self, codes_QK: IntArray) -> Choice:
        return of(codes_QK, codes_QK.max(axis=1) + (codes_QK.max(axis=1) > 0) * 5)


@dataclass(frozen=True, kw_only=True)
class Largest(ConsensusRule):
    """Looks at the answers themselves."""

    def choose(self, codes_QK: IntArray) -> Choice:
        raise NotImplementedError

    def decide(self, votes: Sequence[Sequence[Vote]]) -> Consensus:
        sound = Majority().decide(votes)
        largest = [max([v for v in row if v is not None], key=str, default=None) for row in votes]
        return Consensus(tuple(largest), sound.confidence, sound.reliability)


@dataclass(frozen=True, kw_only=True)
class Trusting(ConsensusRule):
    """Takes everybody to be right."""

    def choose(self, codes_QK: IntArray) -> Choice:
        return Majority().choose(codes_QK)._replace(reliability_K=np.ones(codes_QK.shape[1]))


@dataclass(frozen=True, kw_only=True)
class Odds(ConsensusRule):
    """Gives odds for confidences."""

    def choose(self, codes_QK: IntArray) -> Choice:
        sound = Majority().choose(codes_QK)
        return sound._replace(confidence_Q=sound.confidence_Q * 3)


@dataclass(frozen=True, kw_only=True)
class Moody(ConsensusRule):
    """Decides otherwise every time."""

    def choose(self, codes_QK: IntArray) -> Choice:
        sound = Majority().choose(codes_QK)
        return sound._replace(confidence_Q=np.random.default_rng().random(len(codes_QK)))


@dataclass(frozen=True, kw_only=True)
class Resolute(ConsensusRule):
    """Never abstains."""

    def choose(self, codes_QK: IntArray) -> Choice:
        return Majority().choose(codes_QK)

    def decide(self, votes: Sequence[Sequence[Vote]]) -> Consensus:
        return Majority().decide(votes)


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (First(), "teachers in another order"),
        (Minority(), "was chosen from"),
        (Largest(), "other names"),
        (Trusting(), "answers at random"),
        (Odds(), "not between 0 and 1"),
        (Moody(), "second time"),
        (Resolute(), "does not withhold"),
    ],
    ids=repr,
)
def test_contract_catches(broken: ConsensusRule, clause: str) -> None:
    with pytest.raises(AssertionError, match=clause):
        check_consensus_rule(broken)
