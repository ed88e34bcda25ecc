"""Bring student and teacher onto one support, so that each divergence is written once (contract C3).

Shapes: N tokens (any leading dimensions), V vocabulary, K the common support.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stillhouse.errors import NeedsError
from stillhouse.signals.kinds import Dense, Signal, TopK, log_softmax, split_tail


class Aligned(NamedTuple):
    """Log-probabilities of both models over the same K outcomes; each row sums to one in probability.

    Dense signals give K = V. Sparse ones give the kept tokens and, last, one bucket for all others.
    """

    student_NK: Tensor
    teacher_NK: Tensor


def align(student_logits_NV: Tensor, signal: Signal, temperature: float = 1.0) -> Aligned:
    """Student logits and a teacher's signal as log-probabilities on one support.

    Args:
        student_logits_NV: raw logits; columns beyond the signal's vocabulary (a padded head) are dropped before the
        softmax.
        signal: `Dense` or `TopK`, about the same tokens.
        temperature: softens both sides alike.

    Raises:
        NeedsError: the signal holds no distribution, or was stored at another temperature.

    >>> logits = torch.tensor([[0.0, 1.0]])
    >>> pair = align(logits, Dense(logits))
    >>> torch.equal(pair.student_NK, pair.teacher_NK)
    True
    """
    if isinstance(signal, Dense):  # plain branches, which torch.compile follows into one kernel with the formula
        return _dense(signal, student_logits_NV, temperature)
    if isinstance(signal, TopK):
        return _top_k(signal, student_logits_NV, temperature)
    raise NeedsError(
        f"A divergence needs the teacher's distribution; {type(signal).__name__} provides "
        f"{', '.join(sorted(signal.provides)) or 'nothing'}. Use cross_entropy on the teacher's text instead."
    )


def _dense(signal: Dense, student_logits_NV: Tensor, temperature: float) -> Aligned:
    # Both heads may be padded, to different widths. The padding columns are no tokens: cut before the softmax, or mass
    # leaks.
    width = min(signal.logits_NV.shape[-1], student_logits_NV.shape[-1], signal.vocabulary or 2**62)
    student, teacher = student_logits_NV[..., :width], signal.logits_NV[..., :width]
    return Aligned(log_softmax(student, temperature), log_softmax(teacher, temperature))


def _top_k(signal: TopK, student_logits_NV: Tensor, temperature: float) -> Aligned:
    if temperature != signal.temperature:
        raise NeedsError(
            f"The objective asks for temperature {temperature:g}, the stored top-k signal was made at "
            f"{signal.temperature:g}, and a truncated distribution cannot be re-tempered. Set the objective's "
            f"temperature to {signal.temperature:g} or score again."
        )
    logprobs_NV = log_softmax(student_logits_NV[..., : signal.vocabulary], temperature)
    student_NK, student_tail_N = split_tail(logprobs_NV, signal.ids_NK)
    if signal.ids_NK.shape[-1] == signal.vocabulary:
        return Aligned(student_NK, signal.logprobs_NK)
    # The kept tokens and, last, one bucket for all others.
    return Aligned(
        torch.cat([student_NK, student_tail_N[..., None]], -1),
        torch.cat([signal.logprobs_NK, signal.tail_N[..., None]], -1),
    )
