"""Weighted: every vote counts as much as its teacher agrees with the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stillhouse.consensus.base import Choice, ConsensusRule, IntArray, agreement, most_supported, one_hot


@dataclass(frozen=True, kw_only=True)
class Weighted(ConsensusRule):
    """A vote's weight is the share of the other teachers' answers, over all questions, that equal its teacher's: one
    that often stands alone counts little. The confidence is the chosen answer's share of the weight.

    Attributes:
        power: of the weights; 0 is a majority, and the larger, the more the most agreed teacher decides alone.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.power >= 0:
            raise ValueError(f"power is {self.power}; it must be at least 0, which is a majority")

    def choose(self, codes_QK: IntArray) -> Choice:
        """Weigh and count."""
        agreement_K = agreement(codes_QK)
        support_QA = np.einsum("qka,k->qa", one_hot(codes_QK), agreement_K**self.power)
        chosen_Q = most_supported(support_QA, codes_QK)
        mass_Q = support_QA.sum(axis=1)
        won_Q = support_QA[np.arange(len(chosen_Q)), chosen_Q]
        # Where no voter ever agreed with anyone there is nothing to be sure of.
        confidence_Q = np.divide(won_Q, mass_Q, where=mass_Q > 0, out=np.zeros(len(mass_Q)))
        return Choice(chosen_Q, confidence_Q, agreement_K)
