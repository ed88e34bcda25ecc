"""What a consensus rule is: several teachers' answers to the same questions in, one answer a question out.

A rule sees which answers are equal and nothing else: no right answer, no text, no order among answers. Answers of one
question become codes, 0 for the first that was given, 1 for the next that differs from it, and -1 for none.
Shapes: Q questions, K teachers, A codes (K of them, as many as there can be).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import DataError

Vote = Hashable | None
"""A teacher's answer to a question, of any kind that can be compared; None where it gave none."""
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

_EQUAL = 1e-9
"""Supports that differ by less are tied."""


@dataclass(frozen=True)
class Consensus:
    """What a rule made of the votes.

    Attributes:
        chosen: of each question the answer; None where nobody gave one, or the rule abstains.
        confidence: of each question how sure the rule is of its choice, 0 to 1; also where it abstains.
        reliability: of each teacher the share of its answers that the rule takes to be right, 0 to 1; 0 for one that
            never answered.
    """

    chosen: tuple[Vote, ...]
    confidence: tuple[float, ...]
    reliability: tuple[float, ...]


class Choice(NamedTuple):
    """What a rule makes of codes: of each question a code (-1 for none) and a confidence, of each teacher a
    reliability."""

    chosen_Q: IntArray
    confidence_Q: FloatArray
    reliability_K: FloatArray


@dataclass(frozen=True, kw_only=True)
class ConsensusRule(ABC):
    """Settings of a way to choose among answers.

    Attributes:
        abstain_below: no answer is chosen where the confidence is less; 0 always chooses.
    """

    family: ClassVar[str] = "consensus_rule"

    abstain_below: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.abstain_below <= 1:
            raise ValueError(f"abstain_below is {self.abstain_below}; it is a confidence, from 0 to 1")

    @abstractmethod
    def choose(self, codes_QK: IntArray) -> Choice:
        """The choice among coded answers; every question has at least one."""

    def decide(self, votes: Sequence[Sequence[Vote]]) -> Consensus:
        """Choose one answer a question.

        Args:
            votes: of each question the answers of all teachers, always in the same order.

        Raises:
            DataError: fewer than two teachers, or questions with different numbers of them.

        >>> from stillhouse.consensus.majority import Majority
        >>> Majority().decide([["7", "7", "8"], ["1", None, "1"], [None, None, None]]).chosen
        ('7', '1', None)
        """
        codes_QK = encode(votes)
        asked = (codes_QK >= 0).any(axis=1)
        chosen_Q = np.full(len(votes), -1)
        confidence_Q = np.zeros(len(votes))
        reliability_K = np.zeros(codes_QK.shape[1])
        if asked.any():
            chosen_Q[asked], confidence_Q[asked], reliability_K = self.choose(codes_QK[asked])
        chosen_Q[confidence_Q < self.abstain_below] = -1
        picked = [
            row[int(np.argmax(codes == code))] if code >= 0 else None
            for row, codes, code in zip(votes, codes_QK, chosen_Q, strict=True)
        ]
        return Consensus(tuple(picked), tuple(confidence_Q.tolist()), tuple(reliability_K.tolist()))


def encode(votes: Sequence[Sequence[Vote]]) -> IntArray:
    """Answers as codes.

    Raises:
        DataError: fewer than two teachers, or questions with different numbers of them.

    >>> encode([["7", "8", "7"], [None, "x", "y"]]).tolist()
    [[0, 1, 0], [-1, 0, 1]]
    """
    counts = sorted({len(row) for row in votes})
    if len(counts) > 1:
        raise DataError(
            f"Questions have votes of {counts[0]} up to {counts[-1]} teachers; every question needs one vote of each "
            "teacher, in the same order, and None where one gave no answer."
        )
    if counts and counts[0] < 2:
        raise DataError(f"A consensus needs at least two teachers; there are votes of {counts[0]}.")
    codes = []
    for row in votes:
        seen: dict[Vote, int] = {}
        codes.append([-1 if vote is None else seen.setdefault(vote, len(seen)) for vote in row])
    return np.array(codes, dtype=np.int64).reshape(len(votes), counts[0] if counts else 2)


def one_hot(codes_QK: IntArray) -> FloatArray:
    """Who voted for what: [Q, K, A] of zeros and ones."""
    return (codes_QK[:, :, None] == np.arange(codes_QK.shape[1])).astype(np.float64)


def agreement(codes_QK: IntArray) -> FloatArray:
    """Of each teacher the share of the others' answers that equal its own; 0 for one that never met another."""
    answered_QK = codes_QK >= 0
    both_QKK = answered_QK[:, :, None] & answered_QK[:, None, :]
    both_QKK &= ~np.eye(codes_QK.shape[1], dtype=bool)
    same_QKK = both_QKK & (codes_QK[:, :, None] == codes_QK[:, None, :])
    met_K = both_QKK.sum(axis=(0, 2))
    return np.divide(same_QKK.sum(axis=(0, 2)), met_K, where=met_K > 0, out=np.zeros(len(met_K)))


def most_supported(support_QA: FloatArray, codes_QK: IntArray) -> IntArray:
    """Of each question the code with the largest support.

    Ties go to the answer whose voters agree more with the other teachers over all questions, summed over the voters;
    what is tied even then, to the answer of the teacher that is named first.
    """
    second_QA = np.einsum("qka,k->qa", one_hot(codes_QK), agreement(codes_QK))
    tied_QA = support_QA >= support_QA.max(axis=1, keepdims=True) - _EQUAL
    second_QA = np.where(tied_QA, second_QA, -np.inf)
    return (second_QA >= second_QA.max(axis=1, keepdims=True) - _EQUAL).argmax(axis=1)


def share_chosen(codes_QK: IntArray, chosen_Q: IntArray) -> FloatArray:
    """Of each teacher the share of its answers that were chosen; 0 for one that never answered."""
    answered_K = (codes_QK >= 0).sum(axis=0)
    chosen_K = ((codes_QK == chosen_Q[:, None]) & (codes_QK >= 0)).sum(axis=0)
    return np.divide(chosen_K, answered_K, where=answered_K > 0, out=np.zeros(len(answered_K)))
