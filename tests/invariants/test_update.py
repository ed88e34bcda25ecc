"""One update is one update, however it is cut: micro-batches, padding, the order of the rows.

Shapes: B sequences, T tokens, N trained tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.data.batching import TokenBatch
from stillhouse.data.rendering import Rendered
from stillhouse.objectives.base import Objective
from stillhouse.objectives.cross_entropy import CrossEntropy
from stillhouse.objectives.forward_kl import ForwardKL
from stillhouse.records import Example
from stillhouse.student import Student
from stillhouse.teachers.hf import HFSession
from stillhouse.training.chunking import batch_loss
from stillhouse.training.loop import Compute, Step, train
from stillhouse.training.optim import Optim

OBJECTIVES: list[Objective] = [ForwardKL(weight=0.7, temperature=2.0), CrossEntropy(weight=0.3)]


class Given:
    """A stream of batches chosen by the test, round and round."""

    def __init__(self, groups: Sequence[Sequence[Rendered]]) -> None:
        self._batches = cycle([TokenBatch.of(group) for group in groups])

    def __iter__(self) -> Iterator[TokenBatch]:
        return self

    def __next__(self) -> TokenBatch:
        return next(self._batches)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


def cut(rendered: Sequence[Rendered], size: int) -> list[Sequence[Rendered]]:
    return [rendered[i : i + size] for i in range(0, len(rendered), size)]


def run(
    student: Student, teacher: HFSession, groups: Sequence[Sequence[Rendered]], steps: int = 3, lr: float = 1e-2
) -> list[Step]:
    """Updates of all groups together: the weights of `student` move."""
    compute = Compute(accumulate=len(groups), chunk=16)
    optim = Optim(lr=lr, weight_decay=0.1, schedule="constant")
    return list(train(student, Given(groups), teacher, OBJECTIVES, steps=steps, optim=optim, compute=compute))


def weights(student: Student) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in student.lm.model.named_parameters()}


def assert_same_weights(one: dict[str, Tensor], two: dict[str, Tensor], atol: float) -> None:
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(scope="module")
def teacher(make_student: Any) -> HFSession:
    return HFSession(make_student(seed=9, double=True).lm)


@pytest.fixture(scope="module")
def rendered(render: Any, examples: list[Example]) -> list[Rendered]:
    return render(examples[:8])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_accumulation_changes_nothing(
    size: int, tied: bool, make_student: Any, teacher: HFSession, rendered: list[Rendered]
) -> None:
    """8 micro-batches of 1, 4 of 2, 2 of 4 and 1 of 8 are the same update, though their token counts all differ."""
    whole, parts = make_student(seed=1, tied=tied, double=True), make_student(seed=1, tied=tied, double=True)
    before = weights(whole)
    expected = run(whole, teacher, [rendered])
    actual = run(parts, teacher, cut(rendered, size))
    assert_same_weights(weights(whole), weights(parts), atol=1e-7)
    assert max((before[name] - weight).abs().max().item() for name, weight in weights(whole).items()) > 1e-3
    for one, two in zip(expected, actual, strict=True):
        assert two.loss == pytest.approx(one.loss, rel=1e-6)
        assert two.parts == pytest.approx(one.parts, rel=1e-5)
        assert two.grad_norm == pytest.approx(one.grad_norm, rel=1e-6)
        assert two.tokens == one.tokens


def test_accumulation_changes_nothing_in_float32(make_student: Any, rendered: list[Rendered]) -> None:
    session = HFSession(make_student(seed=9).lm)
    whole, parts = make_student(seed=1), make_student(seed=1)
    run(whole, session, [rendered], steps=1, lr=1e-4)
    run(parts, session, cut(rendered, 1), steps=1, lr=1e-4)
    assert_same_weights(
        weights(whole), weights(parts), atol=2e-6
    )  # AdamW's first step is lr * sign: noise where gradients vanish


def test_division_is_by_all_trained_tokens_and_not_a_mean_of_means(make_student: Any, render: Any) -> None:
    """The most repeated bug of the field (trap 13): 2 and 62 trained tokens are 64, not two equal halves."""
    short, long = render(
        [Example(id="s", prompt="2 + 3 =", completion=" 5"), Example(id="l", prompt="x", completion="z" * 61)]
    )
    student = make_student(seed=2)
    counts = [sum(r.trained) for r in (short, long)]
    assert counts == [2, 62]
    means = [per_token(student, r).mean().item() for r in (short, long)]
    step = next(
        train(student, Given([[short], [long]]), None, [CrossEntropy()], steps=1, compute=Compute(accumulate=2))
    )
    assert step.loss == pytest.approx((2 * means[0] + 62 * means[1]) / 64, rel=1e-5)
    assert step.loss != pytest.approx(sum(means) / 2, rel=1e-2)


@torch.no_grad()
def per_token(student: Student, rendered: Rendered) -> Tensor:
    """The oracle: the model's own logits, float64, no batch, no mask arithmetic."""
    logits_TV = student.lm.model.eval()(input_ids=torch.tensor([rendered.tokens])).logits[0].double()
    logprobs_TV = logits_TV[:, : student.lm.vocabulary].log_softmax(-1)
    return torch.stack([-logprobs_TV[t, y] for t, y in enumerate(rendered.targets) if rendered.trained[t]])


def test_loss_is_that_of_the_models_own_logits(make_student: Any, rendered: list[Rendered]) -> None:
    student = make_student(seed=2)
    expected = torch.cat([per_token(student, r) for r in rendered]).mean().item()
    step = next(train(student, Given([rendered]), None, [CrossEntropy()], steps=1))
    assert step.loss == pytest.approx(expected, rel=1e-5)
    assert step.tokens == sum(sum(r.trained) for r in rendered)


def gradients(student: Student, teacher: HFSession, batch: TokenBatch) -> dict[str, Tensor]:
    student.lm.model.zero_grad()
    hidden = student.lm.hidden(batch.tokens_BT, batch.positions_BT)
    loss = batch_loss(student.lm, hidden, batch, teacher.score(batch), OBJECTIVES, 8)
    loss.total.backward()
    return {n: p.grad.clone() for n, p in student.lm.model.named_parameters() if p.grad is not None}


def test_padding_changes_nothing(make_student: Any, teacher: HFSession, rendered: list[Rendered]) -> None:
    """A batch of unequal lengths gives the summed gradient of its examples, each alone and without padding."""
    student = make_student(seed=4, double=True)
    batch = TokenBatch.of(rendered)
    assert batch.real_count() < batch.tokens_BT.numel()
    together = gradients(student, teacher, batch)
    alone = [gradients(student, teacher, TokenBatch.of([r])) for r in rendered]
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, sum(g[name] for g in alone), rtol=1e-7, atol=1e-9)


def test_what_stands_in_the_padding_changes_nothing(
    make_student: Any, teacher: HFSession, rendered: list[Rendered]
) -> None:
    student = make_student(seed=4, double=True)
    batch = TokenBatch.of(rendered)
    real_BT = batch.examples_BT() >= 0
    noise = dataclasses.replace(
        batch,
        tokens_BT=torch.where(real_BT, batch.tokens_BT, 77),
        targets_BT=torch.where(real_BT, batch.targets_BT, 78),
    )
    one, two = gradients(student, teacher, batch), gradients(student, teacher, noise)
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-10, atol=1e-12)


def test_one_token_completion_is_trained_exactly_once(make_student: Any, render: Any) -> None:
    """The off-by-one trap: the loss is that of the answer after the prompt and of the end after it, of nothing else."""
    (rendered,) = render([Example(id="a", prompt="Ann has 2 + 3 =", completion=" 5")])
    student = make_student(seed=5)
    tokenizer = student.tokenizer
    answer = tokenizer.convert_tokens_to_ids("Ġ5")
    prompt = tokenizer("Ann has 2 + 3 =")["input_ids"]
    assert [y for y, counts in zip(rendered.targets, rendered.trained, strict=True) if counts] == [
        answer,
        tokenizer.eos_token_id,
    ]
    with torch.no_grad():
        model = student.lm.model.eval()
        first = model(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)[answer]
        second = (
            model(input_ids=torch.tensor([[*prompt, answer]])).logits[0, -1].log_softmax(-1)[tokenizer.eos_token_id]
        )
    step = next(train(student, Given([[rendered]]), None, [CrossEntropy()], steps=1))
    assert step.tokens == 2
    assert step.loss == pytest.approx(-(first + second).item() / 2, rel=1e-5)


def test_untrained_prompt_moves_no_gradient_but_is_read(make_student: Any, render: Any) -> None:
    """Another prompt changes the loss (it is attended to); another target at an untrained place does not."""
    student = make_student(seed=6)
    (rendered,) = render([Example(id="a", prompt="Ann has 2 + 3 =", completion=" 5")])
    other = copy.deepcopy(rendered)
    other.targets[0] = 7
    changed = copy.deepcopy(rendered)
    changed.tokens[0] = 7
    losses = []
    for r in (rendered, other, changed):
        step = next(train(make_student(seed=6), Given([[r]]), None, [CrossEntropy()], steps=1))
        losses.append(step.loss)
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    assert per_token(student, rendered).mean().item() == pytest.approx(losses[0], rel=1e-5)


def test_batch_without_a_trained_token_is_no_update_and_no_crash(make_student: Any, rendered: list[Rendered]) -> None:
    student = make_student(seed=6)
    before = weights(student)
    blank = [Rendered(r.id, r.tokens, r.targets, [False] * len(r.trained), r.role, 0) for r in rendered]
    step = next(train(student, Given([blank]), None, [CrossEntropy()], steps=1))
    assert (step.loss, step.grad_norm, step.tokens) == (0.0, 0.0, 0)
    assert_same_weights(before, weights(student), atol=0)
