"""Packed is padded: several examples in a row give the loss and the gradients that each gives alone.

Shapes: B rows, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.data.batching import Batches, TokenBatch, in_order
from stillhouse.data.rendering import Rendered
from stillhouse.objectives.base import Objective
from stillhouse.objectives.cross_entropy import CrossEntropy
from stillhouse.objectives.forward_kl import ForwardKL
from stillhouse.student import Student
from stillhouse.teachers.hf import HFSession
from stillhouse.training.chunking import batch_loss

OBJECTIVES: list[Objective] = [ForwardKL(weight=0.7, temperature=2.0), CrossEntropy(weight=0.3)]
# Rotary positions, learned positions, a window that is shorter than a row, and attention without rotary scaling.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"model_type": "qwen3", "head_dim": 8},
    "mistral with a window": {"model_type": "mistral", "sliding_window": 7},
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 128,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
}


def family(make_student: Any, kind: str, seed: int) -> Student:
    student = make_student(seed=seed, double=True, **FAMILIES[kind])
    assert student.lm.model.config.model_type in kind
    return student


def gradients(student: Student, teacher: HFSession, batches: Sequence[TokenBatch]) -> tuple[float, dict[str, Tensor]]:
    student.lm.model.zero_grad()
    total = 0.0
    for batch in batches:
        hidden = student.lm.hidden(batch.tokens_BT, batch.positions_BT)
        loss = batch_loss(student.lm, hidden, batch, teacher.score(batch), OBJECTIVES, 8)
        loss.total.backward()
        total += loss.total.item()
    return total, {n: p.grad.clone() for n, p in student.lm.model.named_parameters() if p.grad is not None}


def assert_alike(one: tuple[float, dict[str, Tensor]], other: tuple[float, dict[str, Tensor]]) -> None:
    assert other[0] == pytest.approx(one[0], rel=1e-6)  # sums are kept in float32
    for name, gradient in one[1].items():
        torch.testing.assert_close(other[1][name], gradient, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", FAMILIES)
def test_packed_is_padded(kind: str, make_student: Any, render: Any, examples: Any) -> None:
    student, teacher = family(make_student, kind, 1), HFSession(family(make_student, kind, 2).lm)
    rendered = render(examples[:7])
    alone = gradients(student, teacher, [TokenBatch.of([r]) for r in rendered])
    packed = TokenBatch.packed([rendered[:4], rendered[4:5], rendered[5:]])
    assert len(packed.tokens_BT) == 3
    assert packed.real_count() < packed.tokens_BT.numel()
    assert_alike(alone, gradients(student, teacher, [packed]))
    assert_alike(alone, gradients(student, teacher, [TokenBatch.of(rendered)]))


def test_the_test_would_see_attention_across_examples(make_student: Any, render: Any, examples: Any) -> None:
    student = make_student(seed=1, double=True)
    packed = TokenBatch.packed([render(examples[:4])])
    right = student.lm.hidden(packed.tokens_BT, packed.positions_BT)
    wrong = student.lm.hidden(packed.tokens_BT)
    assert not torch.allclose(right, wrong, atol=1e-3)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(30, 150), st.integers(0, 5))
def test_every_epoch_holds_every_example_once(sizes: list[int], budget: int, seed: int) -> None:
    rendered = [
        Rendered(str(n), [1] * size, [2] * size, [True] * size, [3] * size, size) for n, size in enumerate(sizes)
    ]
    stream = Batches(rendered, tokens_per_batch=budget, seed=seed, packing=True)
    for _ in range(2):
        seen: list[str] = []
        while len(seen) < len(sizes):
            batch = next(stream)
            seen += batch.ids
            assert batch.tokens_BT.numel() <= budget
            assert batch.trained_count() == batch.real_count()
        assert sorted(seen, key=int) == [str(n) for n in range(len(sizes))]


def test_packing_leaves_little_room_unused() -> None:
    sizes = [90, *range(1, 60)]
    rendered = [Rendered(str(n), [1] * s, [2] * s, [True] * s, [3] * s, s) for n, s in enumerate(sizes)]
    stream = Batches(rendered, tokens_per_batch=360, packing=True)
    batches = [next(stream) for _ in range(stream.batches_per_epoch())]
    assert sum(sizes) > 0.95 * sum(batch.tokens_BT.numel() for batch in batches)


def test_a_packed_example_is_the_same_example(render: Any, examples: Any) -> None:
    """Digests, by which stored signals are found and held against the text, do not know of rows."""
    rendered = render(examples)
    padded = {n: b.digest(i) for b in in_order(rendered, 200) for i, n in enumerate(b.ids)}
    packed = TokenBatch.packed([rendered])
    assert {n: packed.digest(i) for i, n in enumerate(packed.ids)} == padded
    for example, r in enumerate(rendered):
        chosen = packed.select(packed.trained_rows_of(example)).targets_N.tolist()
        assert chosen == [y for y, counts in zip(r.targets, r.trained, strict=True) if counts]


@given(st.integers(1, 4), st.integers(0, 9))
def test_processes_share_one_stream_by_turns(processes: int, seed: int) -> None:
    rendered = [Rendered(str(n), [1] * 5, [2] * 5, [True] * 5, [3] * 5, 5) for n in range(11)]
    alone = Batches(rendered, tokens_per_batch=10, seed=seed)
    shared = [Batches(rendered, tokens_per_batch=10, seed=seed, turn=(rank, processes)) for rank in range(processes)]
    for _ in range(8):  # beyond the end of an epoch
        assert [next(alone).ids for _ in range(processes)] == [next(stream).ids for stream in shared]
        assert all(stream.state_dict() == alone.state_dict() for stream in shared)
