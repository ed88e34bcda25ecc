"""Padding, and the plan of an epoch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.data.batching import Batches, TokenBatch, fill, in_order
from stillhouse.data.rendering import Rendered
from stillhouse.errors import DataError


def made(length: int, name: str = "a") -> Rendered:
    tokens = list(range(1, length + 2))
    return Rendered(name, tokens[:-1], tokens[1:], [t % 2 == 0 for t in tokens[1:]], [3] * length, length)


def test_padding_stands_on_the_right_and_counts_nowhere() -> None:
    batch = TokenBatch.of([made(2, "x"), made(4, "y")])
    assert batch.ids == ("x", "y")
    assert batch.tokens_BT.tolist() == [[1, 2, 0, 0], [1, 2, 3, 4]]
    assert batch.targets_BT.tolist() == [[2, 3, 0, 0], [2, 3, 4, 5]]
    assert batch.examples_BT().tolist() == [[0, 0, -1, -1], [1, 1, 1, 1]]
    assert batch.positions_BT.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert batch.trained_BT.tolist() == [[True, False, False, False], [True, False, True, False]]
    assert batch.trained_count() == 3
    assert batch.sizes == (2, 4)


def test_rows_are_flattened_positions() -> None:
    batch = TokenBatch.of([made(2), made(4)])
    rows = batch.trained_rows()
    assert rows.tolist() == [0, 4, 6]
    chosen = batch.select(rows)
    assert chosen.targets_N.tolist() == [2, 2, 4]
    assert chosen.role_N.tolist() == [3, 3, 3]


def test_moving_a_batch_keeps_it_whole() -> None:
    batch = TokenBatch.of([made(2), made(4)])
    moved = batch.to("meta")
    assert moved.tokens_BT.device.type == "meta"
    assert (moved.ids, moved.sizes) == (batch.ids, batch.sizes)
    assert torch.equal(batch.to("cpu").targets_BT, batch.targets_BT)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=50), st.integers(20, 70))
def test_fill_puts_everything_once_within_the_budget(lengths: list[int], budget: int) -> None:
    order = list(range(len(lengths)))[::-1]
    plan = fill(order, lengths, budget)
    assert [i for chosen in plan for i in chosen] == order
    for chosen in plan:
        assert chosen
        assert max(lengths[i] for i in chosen) * len(chosen) <= budget
    for chosen, following in pairwise(plan):  # no batch was closed early
        widened = [*chosen, following[0]]
        assert max(lengths[i] for i in widened) * len(widened) > budget


def test_epochs_differ_and_alike_lengths_go_together() -> None:
    rendered = [made(1 + n % 30, str(n)) for n in range(400)]
    stream = Batches(rendered, tokens_per_batch=300, seed=0)
    count = stream.batches_per_epoch()
    first = [next(stream) for _ in range(count)]
    second = [next(stream) for _ in range(count)]
    assert stream.state_dict()["epoch"] == 1
    assert [b.ids for b in first] != [b.ids for b in second]
    padding = 1 - sum(b.real_count() for b in first) / sum(b.tokens_BT.numel() for b in first)
    assert padding < 0.1
    widths = [b.tokens_BT.shape[1] for b in first]
    assert widths != sorted(widths)  # batches are shuffled, not short ones first


def test_same_seed_same_batches() -> None:
    rendered = [made(1 + n % 9, str(n)) for n in range(50)]
    one, two = (Batches(rendered, tokens_per_batch=40, seed=4) for _ in range(2))
    assert [next(one).ids for _ in range(30)] == [next(two).ids for _ in range(30)]


def test_nothing_to_make_batches_of() -> None:
    with pytest.raises(DataError, match="no examples to make batches of"):
        Batches([], tokens_per_batch=10)


def test_example_longer_than_a_batch_is_named_with_the_ways_out() -> None:
    with pytest.raises(DataError, match=r"'long' has 11 tokens, a batch holds 10\. Raise\s+train.tokens_per_step"):
        Batches([made(3, "short"), made(11, "long")], tokens_per_batch=10)
    assert Batches([made(10)], tokens_per_batch=10).batches_per_epoch() == 1


def test_one_pass_in_order_of_length() -> None:
    rendered = [made(n, str(n)) for n in (5, 1, 9, 3)]
    batches = list(in_order(rendered, tokens_per_batch=10))
    assert [name for b in batches for name in b.ids] == ["1", "3", "5", "9"]
    assert [b.tokens_BT.shape[1] for b in batches] == [3, 5, 9]


def test_one_pass_takes_an_example_longer_than_the_budget_alone() -> None:
    assert [b.ids for b in in_order([made(3, "a"), made(30, "b")], tokens_per_batch=10)] == [("a",), ("b",)]


def test_one_pass_over_nothing() -> None:
    assert list(in_order([])) == []


def test_real_examples_come_out_as_they_went_in(tokenizer: Any, render: Any, examples: Any) -> None:
    rendered = {r.id: r for r in render(examples)}
    for batch in in_order(list(rendered.values()), 100):
        for (row, start, stop), name in zip(batch.spans, batch.ids, strict=True):
            assert batch.tokens_BT[row, start:stop].tolist() == rendered[name].tokens
            assert batch.targets_BT[row, start:stop].tolist() == rendered[name].targets
