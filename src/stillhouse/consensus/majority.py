"""Majority: the answer that most teachers give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stillhouse.consensus.base import Choice, ConsensusRule, IntArray, most_supported, one_hot, share_chosen


@dataclass(frozen=True, kw_only=True)
class Majority(ConsensusRule):
    """One teacher, one vote; the confidence is the share of the given answers that equal the chosen one.

    Ties go to the answer whose voters agree more with the other teachers over all questions, and where that is tied as
    well to the teacher that is named first: name first whom you trust most.
    """

    def choose(self, codes_QK: IntArray) -> Choice:
        """Count."""
        votes_QA = one_hot(codes_QK).sum(axis=1)
        chosen_Q = most_supported(votes_QA, codes_QK)
        confidence_Q = votes_QA[np.arange(len(chosen_Q)), chosen_Q] / votes_QA.sum(axis=1)
        return Choice(chosen_Q, confidence_Q, share_chosen(codes_QK, chosen_Q))
