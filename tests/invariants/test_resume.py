"""The same seed gives the same run, bit for bit, and a stream continues at any batch as if it had never stopped."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.data.batching import Batches, TokenBatch
from stillhouse.data.rendering import Rendered
from stillhouse.objectives.cross_entropy import CrossEntropy
from stillhouse.objectives.forward_kl import ForwardKL
from stillhouse.student import Student
from stillhouse.teachers.hf import HFSession
from stillhouse.training.loop import TrainState, train
from stillhouse.training.optim import Optim

lengths = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def made(length: int, name: str) -> Rendered:
    return Rendered(name, [1] * length, [2] * length, [True] * length, [3] * length, length)


def same(one: TokenBatch, two: TokenBatch) -> bool:
    return (
        one.ids == two.ids and torch.equal(one.tokens_BT, two.tokens_BT) and torch.equal(one.trained_BT, two.trained_BT)
    )


@given(lengths, st.integers(30, 90), st.integers(0, 5), st.integers(0, 60))
def test_stream_continues_at_any_batch(sizes: list[int], budget: int, seed: int, stop: int) -> None:
    rendered = [made(length, str(n)) for n, length in enumerate(sizes)]
    whole = Batches(rendered, tokens_per_batch=budget, seed=seed)
    for _ in range(stop):
        next(whole)
    state = dict(whole.state_dict())
    resumed = Batches(rendered, tokens_per_batch=budget, seed=seed)
    resumed.load_state_dict(state)
    for _ in range(2 * len(sizes) + 3):  # beyond the end of the epoch
        assert same(next(whole), next(resumed))
        assert whole.state_dict() == resumed.state_dict()


@given(lengths, st.integers(30, 90), st.integers(0, 5))
def test_every_epoch_holds_every_example_once_within_the_budget(sizes: list[int], budget: int, seed: int) -> None:
    rendered = [made(length, str(n)) for n, length in enumerate(sizes)]
    stream = Batches(rendered, tokens_per_batch=budget, seed=seed)
    for _ in range(3):
        seen: list[str] = []
        while len(seen) < len(sizes):
            batch = next(stream)
            seen += batch.ids
            assert batch.tokens_BT.numel() <= budget
        assert sorted(seen, key=int) == [str(n) for n in range(len(sizes))]


def run(student: Student, teacher: HFSession, rendered: Any, steps: int, state: TrainState | None = None) -> Any:
    batches = state.batches if state else Batches(rendered, tokens_per_batch=200, seed=5)
    objectives = [0.5 * ForwardKL(), 0.5 * CrossEntropy()]
    return train(student, batches, teacher, objectives, steps=steps, optim=Optim(lr=1e-2, warmup=2), state=state)


def facts(steps: Any) -> list[tuple[Any, ...]]:
    return [(s.number, s.loss, tuple(s.parts.items()), s.lr, s.grad_norm, s.tokens) for s in steps]


def test_same_seed_same_trajectory_bit_for_bit(make_student: Any, render: Any, examples: Any) -> None:
    rendered = render(examples)
    students = [make_student(seed=7) for _ in range(2)]
    one, two = (facts(run(s, HFSession(make_student(seed=8).lm), rendered, 8)) for s in students)
    assert one == two
    for a, b in zip(*(s.lm.model.parameters() for s in students), strict=True):
        assert torch.equal(a, b)


def test_another_seed_is_another_student_and_another_order(make_student: Any, render: Any, examples: Any) -> None:
    one, two = make_student(seed=7), make_student(seed=8)
    assert not torch.equal(one.lm.model.get_input_embeddings().weight, two.lm.model.get_input_embeddings().weight)
    first, second = (Batches(render(examples), tokens_per_batch=100, seed=seed) for seed in (0, 1))
    assert [next(first).ids for _ in range(4)] != [next(second).ids for _ in range(4)]


def test_making_a_student_or_a_batch_leaves_the_global_generator_alone(
    make_student: Any, render: Any, examples: Any
) -> None:
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    make_student(seed=4)
    next(Batches(render(examples), tokens_per_batch=100))
    assert torch.equal(torch.rand(3), expected)


def test_loop_continues_from_a_state_as_if_it_had_never_stopped(make_student: Any, render: Any, examples: Any) -> None:
    rendered, teacher = render(examples), HFSession(make_student(seed=8).lm)
    whole, broken = make_student(seed=7), make_student(seed=7)
    expected = facts(run(whole, teacher, rendered, 8))
    first = []
    for step in run(broken, teacher, rendered, 8):
        first.append(step)
        if step.number == 3:
            break
    rest = list(run(broken, teacher, rendered, 8, state=first[-1].state))
    assert facts(first) + facts(rest) == expected
    for a, b in zip(whole.lm.model.parameters(), broken.lm.model.parameters(), strict=True):
        assert torch.equal(a, b)
