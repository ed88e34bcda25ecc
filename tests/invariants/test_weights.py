"""An example's weight, how many it stands for: from its meta through rendering and disk into the loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stillhouse.data.batching import Batches, TokenBatch
from stillhouse.data.rendering import Renderer
from stillhouse.data.tokens import open_tokens
from stillhouse.errors import DataError
from stillhouse.objectives.cross_entropy import CrossEntropy
from stillhouse.records import Example, ExampleFile, write_examples
from stillhouse.training.loop import Compute, train
from stillhouse.training.optim import Optim

SUMS = [Example(id=f"e{i}", prompt=f"{letter} +", completion=" = ok") for i, letter in enumerate("ghjkqv")]
WEIGHED = [replace(e, meta={"weight": float(1 + i)}) for i, e in enumerate(SUMS)]


def first_step(student: Any, rendered: Any, *, accumulate: int = 1, packing: bool = False) -> Any:
    stream = Batches(rendered, tokens_per_batch=10_000 if accumulate == 1 else 12, packing=packing)
    count = stream.batches_per_epoch()
    assert (count > 1) == (accumulate > 1)
    return next(
        train(student, stream, None, [CrossEntropy()], steps=9, optim=Optim(lr=0.1), compute=Compute(accumulate=count))
    )


@pytest.mark.parametrize("packing", [False, True])
def test_a_weighted_example_counts_as_often_as_copies_of_it(make_student: Any, tokenizer: Any, packing: bool) -> None:
    """Weights relative to their mean, and all examples equally long: the sum over copies, divided by their number."""
    copies = [replace(e, id=f"{e.id}-{k}") for i, e in enumerate(SUMS) for k in range(i + 1)]
    renderer = Renderer(tokenizer, 120)
    wanted = first_step(make_student(seed=1), renderer.render(copies))
    assert len({len(r.tokens) for r in renderer.render(SUMS)}) == 1
    for accumulate in (1, 3):
        found = first_step(
            make_student(seed=1), renderer.render(WEIGHED), accumulate=accumulate, packing=packing and accumulate > 1
        )
        assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
        assert found.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-5)
    plain = first_step(make_student(seed=1), renderer.render(SUMS))
    assert abs(plain.loss - wanted.loss) > 1e-3


def test_weights_of_one_size_are_no_weights(tokenizer: Any) -> None:
    alike = [replace(e, meta={"weight": 7}) for e in SUMS]
    assert next(Batches(Renderer(tokenizer, 120).render(alike), tokens_per_batch=1000)).weights_BT is None


def test_padding_counts_nothing_and_every_token_its_example(tokenizer: Any) -> None:
    longer = [replace(WEIGHED[0], prompt="and so on " * 3), *WEIGHED[1:]]
    rendered = Renderer(tokenizer, 120).render(longer)
    batch = TokenBatch.of(rendered).weighted([r.weight for r in rendered])
    assert batch.weights_BT is not None
    for example, (row, start, stop) in enumerate(batch.spans):
        assert set(batch.weights_BT[row, start:stop].tolist()) == {float(1 + example)}


def test_weights_lie_on_disk_with_the_tokens(tmp_path: Path, tokenizer: Any) -> None:
    write_examples(tmp_path / "data.jsonl", WEIGHED)
    tokens = open_tokens(tmp_path / "tokens", tmp_path / "data.jsonl", Renderer(tokenizer, 120))
    assert tokens.weights.tolist() == [1, 2, 3, 4, 5, 6]
    assert [r.weight for r in tokens] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "2", None])
def test_a_weight_that_is_no_positive_number_is_named(tokenizer: Any, weight: Any) -> None:
    with pytest.raises(DataError, match=r"'e0' has the weight .* leave the column `weight` out"):
        Renderer(tokenizer, 120).render([replace(SUMS[0], meta={"weight": weight})])


def test_a_file_of_examples_is_read_a_row_at_a_time(tmp_path: Path) -> None:
    odd = [Example(id="ü", text="ä\u2028b\nc"), *WEIGHED]
    write_examples(tmp_path / "data.jsonl", odd)
    file = ExampleFile(tmp_path / "data.jsonl")
    assert len(file) == 7
    assert list(file) == odd == [file[i] for i in range(7)]
    assert file[-1] == odd[-1]
    assert file[2:4] == odd[2:4]
    with pytest.raises(IndexError):
        file[7]
