"""Signals: rows are cut right, top-k keeps what it says, both sides meet on one support.

Shapes: B sequences, T tokens, N rows, V vocabulary, K kept.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import NeedsError
from stillhouse.signals import Dense, Headed, Signal, TopK, align
from stillhouse.signals.vocabulary import require_same_vocabulary, tokenizer_fingerprint


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rows_are_those_of_the_flattened_batch() -> None:
    dense = logits(2, 3, 5)
    rows = torch.tensor([5, 0, 4])
    assert torch.equal(Dense(dense).select(rows).logits_NV, torch.stack([dense[1, 2], dense[0, 0], dense[1, 1]]))
    kept = TopK.of(Dense(dense), 2)
    assert torch.equal(kept.select(rows).ids_NK, kept.ids_NK.reshape(6, 2)[rows])
    assert torch.equal(kept.select(rows).logprobs_NK, kept.logprobs_NK.reshape(6, 2)[rows])


def test_headed_signal_makes_logits_of_the_chosen_rows_alone_and_without_a_gradient() -> None:
    seen: list[int] = []
    head = torch.nn.Linear(4, 9)

    def watched(hidden_ND: torch.Tensor) -> torch.Tensor:
        seen.append(hidden_ND.shape[0])
        return head(hidden_ND)

    hidden = torch.randn(2, 3, 4)
    dense = Headed(hidden, watched, 7).select(torch.tensor([1, 3]))
    assert seen == [2]
    assert dense.vocabulary == 7
    assert not dense.logits_NV.requires_grad
    assert torch.equal(dense.logits_NV, head(hidden.flatten(0, 1)[[1, 3]]).detach())


@given(st.integers(2, 20), st.integers(1, 20), st.sampled_from([0.5, 1.0, 4.0]))
def test_top_k_and_tail_are_a_distribution_of_the_largest_entries(width: int, k: int, temperature: float) -> None:
    k = min(k, width)
    teacher, student = logits(6, width, seed=width), logits(6, width, seed=k)
    pair = align(student, TopK.of(Dense(teacher), k, temperature), temperature)
    full = torch.softmax(teacher / temperature, -1).sort(-1, descending=True).values.numpy()
    assert pair.teacher_NK.shape == (6, width if k == width else k + 1)
    np.testing.assert_allclose(pair.teacher_NK[:, :k].exp(), full[:, :k], rtol=1e-5)
    np.testing.assert_allclose(pair.teacher_NK.exp().sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(pair.student_NK.exp().sum(-1), 1, rtol=1e-5)


def test_student_tail_is_exact_where_the_kept_mass_is_nearly_one() -> None:
    student = torch.tensor([[40.0, 0.0, 0.0, 0.0]])
    pair = align(student, TopK.of(Dense(student), 1))
    assert pair.student_NK[0, 1].item() == pytest.approx(np.log(3) - 40, rel=1e-5)  # 1 - kept would be 0 in float32


def test_top_k_looks_at_no_padding_column() -> None:
    padded = torch.cat([logits(3, 6), torch.full((3, 4), 50.0, dtype=torch.float64)], -1)
    signal = TopK.of(Dense(padded, 6), 3)
    assert int(signal.ids_NK.max()) < 6
    assert torch.equal(signal.ids_NK, TopK.of(Dense(padded[:, :6]), 3).ids_NK)


@pytest.mark.parametrize("k", [0, 7])
def test_impossible_k_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k is {k}; it must lie between 1 and the vocabulary, which has 6 tokens"):
        TopK.of(Dense(logits(3, 9), 6), k)


def test_alignment_is_at_least_float32_and_keeps_float64() -> None:
    half = torch.randn(2, 4, dtype=torch.bfloat16)
    assert align(half, Dense(half)).student_NK.dtype == torch.float32
    assert align(logits(2, 4), Dense(logits(2, 4))).teacher_NK.dtype == torch.float64


def test_temperature_softens_both_sides() -> None:
    student, teacher = logits(2, 4, seed=1), logits(2, 4, seed=2)
    pair = align(student, Dense(teacher), 2.0)
    assert torch.allclose(pair.student_NK, torch.log_softmax(student / 2, -1))
    assert torch.allclose(pair.teacher_NK, torch.log_softmax(teacher / 2, -1))


def test_signal_without_a_distribution_is_refused_with_the_way_out() -> None:
    class Text(Signal):
        provides: ClassVar[frozenset[str]] = frozenset({"text"})

        def select(self, rows_N: torch.Tensor) -> Text:
            return self

    with pytest.raises(NeedsError, match=r"Text provides text. Use cross_entropy on the teacher's text instead"):
        align(logits(2, 4), Text())


def test_same_vocabulary_whatever_else_differs(tokenizer: Any, bos_tokenizer: Any, chat_tokenizer: Any) -> None:
    require_same_vocabulary(tokenizer, bos_tokenizer)
    require_same_vocabulary(tokenizer, chat_tokenizer)
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(chat_tokenizer)


def test_different_vocabularies_are_refused_with_what_they_share(tokenizer: Any, stories: str) -> None:
    from stillhouse.models import load_tokenizer

    other = load_tokenizer(stories)
    with pytest.raises(NeedsError, match=r"512 and 300 tokens, \d+ in common.*teacher_text.*cross_entropy"):
        require_same_vocabulary(tokenizer, other)
    assert tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(other)


def test_one_more_token_is_another_vocabulary(tokenizer: Any) -> None:
    from copy import deepcopy

    larger = deepcopy(tokenizer)
    larger.add_tokens(["<one-more>"])
    with pytest.raises(NeedsError, match="301 and 300 tokens, 300 in common, 300 of them with the same id"):
        require_same_vocabulary(tokenizer, larger)
