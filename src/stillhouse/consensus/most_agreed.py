"""The most agreed teacher: one teacher decides, the one that agrees most with the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stillhouse.consensus.base import Choice, ConsensusRule, IntArray, agreement


@dataclass(frozen=True, kw_only=True)
class MostAgreed(ConsensusRule):
    """The best single teacher as far as it can be told without right answers: whose answers equal most of the others'
    answers over all questions. Where it gave none, the next one in that order decides. The confidence is the share of
    the given answers that equal the chosen one.
    """

    def choose(self, codes_QK: IntArray) -> Choice:
        """Follow one teacher."""
        agreement_K = agreement(codes_QK)
        order = np.argsort(-agreement_K, kind="stable")
        ranked_QK = codes_QK[:, order]
        chosen_Q = ranked_QK[np.arange(len(ranked_QK)), (ranked_QK >= 0).argmax(axis=1)]
        with_it_Q = (codes_QK == chosen_Q[:, None]).sum(axis=1)
        return Choice(chosen_Q, with_it_Q / (codes_QK >= 0).sum(axis=1), agreement_K)
