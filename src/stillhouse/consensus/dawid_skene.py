"""Dawid-Skene: who is reliable and which answers are right, each estimated from the other (EM).

Shapes: Q questions, K teachers, A codes, H hypotheses (each code, and last that no answer is right), Z difficulties.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stillhouse.consensus.base import (
    Choice,
    ConsensusRule,
    FloatArray,
    IntArray,
    most_supported,
    one_hot,
    share_chosen,
)

_TOLERANCE = 1e-6
_NEVER = 1e-12


@dataclass(frozen=True, kw_only=True)
class DawidSkene(ConsensusRule):
    """Dawid and Skene (1979, Applied Statistics 28) for open answers: no fixed classes, the candidates are those given.

    A teacher is right with its own reliability, the same for all answers (the one-coin model), and wrong answers meet
    by chance, with a probability that is estimated along with the rest. One hypothesis more than there are candidates
    says that none of them is right, so that the confidence, the chosen answer's posterior, is low where everyone
    differs. With `difficulties` above one a question belongs to one of so many latent kinds, and every teacher has a
    reliability for each: easy questions, on which all agree, then say little about who is right on hard ones.

    It takes teachers to err independently of one another. Those that share training data or ancestors repeat each
    other's errors; their agreement is then taken for reliability, and the confidence is too high.

    Attributes:
        difficulties: latent kinds of questions.
        iterations: at most so many; it stops when no reliability moves by a millionth.
    """

    difficulties: int = 1
    iterations: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.difficulties < 1 or self.iterations < 1:
            raise ValueError(
                f"difficulties is {self.difficulties} and iterations is {self.iterations}; both must be at least 1"
            )

    def choose(self, codes_QK: IntArray) -> Choice:
        """Estimate until nothing moves."""
        facts = _Facts.of(codes_QK)
        state = _begin(codes_QK, facts, self.difficulties)
        for _ in range(self.iterations):
            before = state.right_KZ
            posterior_QHZ = _expect(facts, state)
            state = _maximise(facts, posterior_QHZ)
            if np.abs(state.right_KZ - before).max() < _TOLERANCE:
                break
        believed_QA = posterior_QHZ.sum(axis=2)[:, :-1]
        chosen_Q = most_supported(believed_QA, codes_QK)
        confidence_Q = believed_QA[np.arange(len(chosen_Q)), chosen_Q]
        right_K = np.einsum("qka,qa->k", facts.votes_QKH[:, :, :-1], believed_QA)
        answered_K = facts.answered_QK.sum(axis=0)
        reliability_K = np.divide(right_K, answered_K, where=answered_K > 0, out=np.zeros(len(right_K)))
        return Choice(chosen_Q, np.clip(confidence_Q, 0, 1), reliability_K)


class _Facts(NamedTuple):
    """What the votes say under each hypothesis.

    Attributes:
        votes_QKH: who voted for it.
        answered_QK: who voted at all.
        wrong_QH: votes that would be wrong.
        kinds_QH: how many different wrong answers they would be.
        pairs_QH: pairs of wrong votes.
        meetings_QH: those of them that are equal.
        possible_QH: whether somebody voted for it; always for the last, that no answer is right.
    """

    votes_QKH: FloatArray
    answered_QK: FloatArray
    wrong_QH: FloatArray
    kinds_QH: FloatArray
    pairs_QH: FloatArray
    meetings_QH: FloatArray
    possible_QH: FloatArray

    @classmethod
    def of(cls, codes_QK: IntArray) -> _Facts:
        votes_QKA = one_hot(codes_QK)
        votes_QKH = np.concatenate([votes_QKA, np.zeros_like(votes_QKA[:, :, :1])], axis=2)
        answered_QK = (codes_QK >= 0).astype(np.float64)
        counts_QH = votes_QKH.sum(axis=1)
        wrong_QH = answered_QK.sum(axis=1, keepdims=True) - counts_QH
        given_QH = (counts_QH > 0).astype(np.float64)
        kinds_QH = given_QH.sum(axis=1, keepdims=True) - given_QH
        meetings_QH = counts_QH * (counts_QH - 1) / 2
        meetings_QH = meetings_QH.sum(axis=1, keepdims=True) - meetings_QH
        possible_QH = given_QH.copy()
        possible_QH[:, -1] = 1
        pairs_QH = wrong_QH * (wrong_QH - 1) / 2
        return cls(votes_QKH, answered_QK, wrong_QH, kinds_QH, pairs_QH, meetings_QH, possible_QH)


class _State(NamedTuple):
    """Reliabilities, the probability that two wrong answers are equal, and how common each difficulty is."""

    right_KZ: FloatArray
    meet: float
    common_Z: FloatArray


def _begin(codes_QK: IntArray, facts: _Facts, difficulties: int) -> _State:
    """From the majority; with several difficulties, reliabilities from high to low."""
    majority_Q = most_supported(facts.votes_QKH[:, :, :-1].sum(axis=1), codes_QK)
    right_K = np.clip(share_chosen(codes_QK, majority_Q), 0.05, 0.95)
    easiness_Z = np.arange(difficulties, 0, -1) / (difficulties + 1)
    right_KZ = right_K[:, None] if difficulties == 1 else right_K[:, None] ** (1 / (2 * easiness_Z) ** 2)
    return _State(right_KZ, 0.1, np.full(difficulties, 1 / difficulties))


def _expect(facts: _Facts, state: _State) -> FloatArray:
    """The posterior of hypotheses and difficulties, [Q, H, Z]."""
    wrong_QKH = facts.answered_QK[:, :, None] - facts.votes_QKH
    log_QHZ = np.einsum("qkh,kz->qhz", facts.votes_QKH, np.log(state.right_KZ))
    log_QHZ += np.einsum("qkh,kz->qhz", wrong_QKH, np.log(1 - state.right_KZ))
    # Wrong answers one after another: each equals a certain earlier one with probability `meet`, or is new.
    most = int(facts.kinds_QH.max())
    new_B = np.log(np.maximum(1 - state.meet * np.arange(max(most, 1)), _NEVER))
    new_B = np.concatenate([[0.0], np.cumsum(new_B)])
    repeats_QH = facts.wrong_QH - facts.kinds_QH
    chance_QH = new_B[facts.kinds_QH.astype(int)] + repeats_QH * np.log(state.meet)
    log_QHZ += chance_QH[:, :, None] + np.log(state.common_Z)
    log_QHZ = np.where(facts.possible_QH[:, :, None] > 0, log_QHZ, -np.inf)
    weight_QHZ = np.exp(log_QHZ - log_QHZ.max(axis=(1, 2), keepdims=True))
    return weight_QHZ / weight_QHZ.sum(axis=(1, 2), keepdims=True)


def _maximise(facts: _Facts, posterior_QHZ: FloatArray) -> _State:
    """The parameters, each kept off its bounds by one imagined observation on either side."""
    right_KZ = np.einsum("qkh,qhz->kz", facts.votes_QKH, posterior_QHZ) + 1
    asked_KZ = np.einsum("qk,qz->kz", facts.answered_QK, posterior_QHZ.sum(axis=1)) + 2
    posterior_QH = posterior_QHZ.sum(axis=2)
    meet = ((posterior_QH * facts.meetings_QH).sum() + 1) / ((posterior_QH * facts.pairs_QH).sum() + 10)
    common_Z = posterior_QHZ.sum(axis=(0, 1)) + 1
    return _State(right_KZ / asked_KZ, float(min(meet, 1.0)), common_Z / common_Z.sum())
