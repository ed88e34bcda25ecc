"""Condensers: their gradients against finite differences, what they learn on a toy, and what they refuse."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from stillhouse.classifiers.architectures import ARCHITECTURES, make_classifier
from stillhouse.classifiers.fitting import train
from stillhouse.condensation._matching import (
    Rows,
    apart,
    class_batches,
    descend,
    gradients,
    learner_loss,
    matching_loss,
    weights_of,
)
from stillhouse.condensation._outer import Synthetic, Watch
from stillhouse.condensation._rows import rows_of_classes, start_rows
from stillhouse.condensation.base import Condensed, Condenser, Real
from stillhouse.condensation.distribution_matching import DistributionMatching, mean_distance
from stillhouse.condensation.gradient_matching import GradientMatching
from stillhouse.condensation.select_and_relabel import SelectAndRelabel, greedy
from stillhouse.condensation.trajectory_matching import TrajectoryMatching
from stillhouse.errors import DataError, NeedsError, RecipeError

WIDTH = 8


def toy(count: int = 200, *, places: int = 3, noise: float = 1.5, seed: int = 0, soft: bool = False) -> Real:
    """Two classes that differ in two of eight directions, in much noise."""
    draw = torch.Generator().manual_seed(seed)
    classes_N = torch.arange(count) % 2
    inputs_NTD = noise * torch.randn(count, places, WIDTH, generator=draw, dtype=torch.float64)
    inputs_NTD[:, :, :2] += (classes_N * 2 - 1)[:, None, None] * 0.8
    mask_NT = torch.ones(count, places, dtype=torch.float64)
    mask_NT[::3, -1] = 0
    labels_NC = torch.eye(2, dtype=torch.float64)[classes_N]
    if soft:
        labels_NC = 0.8 * labels_NC + 0.1
    return Real(inputs_NTD * mask_NT[..., None], mask_NT, labels_NC, classes_N)


def learner(name: str, seed: int) -> nn.Module:
    return make_classifier(name, WIDTH, 2, seed=seed).double()


LINEAR, MLP = (partial(learner, name) for name in ("linear", "mlp"))


def accuracy(inputs: Tensor, mask: Tensor, labels: Tensor, *, seed: int = 0) -> float:
    module = make_classifier("linear", WIDTH, 2, seed=seed).double()
    train(module, inputs, mask, labels, steps=1, seed=seed)
    held = toy(600, seed=99)
    with torch.no_grad():
        return float((module(held.inputs_NTD, held.mask_NT).argmax(1) == held.classes_N).double().mean())


def quality(made: Condensed) -> float:
    return accuracy(made.inputs_RTD, made.mask_RT, made.labels_RC)


# Learners.


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_places_outside_the_mask_change_nothing(name: str) -> None:
    real, module = toy(6), learner(name, 0)
    noise = real.inputs_NTD + 100 * (1 - real.mask_NT)[..., None]
    assert torch.equal(module(real.inputs_NTD, real.mask_NT), module(noise, real.mask_NT))
    shorter = module(real.inputs_NTD[:1, :2], real.mask_NT[:1, :2])  # the first row has two places
    assert torch.allclose(module(real.inputs_NTD[:1], real.mask_NT[:1]), shorter)


def test_learners_are_drawn_by_their_seed_alone() -> None:
    state = torch.get_rng_state()
    one, two, other = (make_classifier("cnn", 4, 2, seed=seed).head.weight for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    with pytest.raises(RecipeError, match="Did you mean 'transformer'"):
        make_classifier("transfomer", 4, 2, seed=0)


# Gradients.


def state_of(condenser: Condenser, real: Real, *, lr: float | None = None) -> Synthetic:
    return Synthetic.begin(real, condenser.per_class, "random", 0, learn_labels=True, lr=lr)


def agrees(loss: Callable[[Synthetic], Tensor], begun: Synthetic, *, along: bool = False) -> bool:
    """The gradient by all that is learned against finite differences: by each number, or along one drawn direction."""
    names = [name for name in ("inputs_RTD", "logits_RC", "raw_lr") if getattr(begun, name) is not None]

    def of(*leaves: Tensor) -> Tensor:
        return loss(dataclasses.replace(begun, **dict(zip(names, leaves, strict=True))))

    leaves = tuple(getattr(begun, name).detach().clone().requires_grad_() for name in names)
    return gradcheck(of, leaves, eps=1e-6, atol=1e-6, rtol=1e-4, fast_mode=along)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("settings", [{"distance": "cosine"}, {"distance": "l2", "vectors": True}])
def test_outer_gradient_is_that_of_finite_differences(name: str, settings: dict[str, Any]) -> None:
    real, condenser = toy(20, soft=True), GradientMatching(per_class=1, **settings)
    module = learner(name, 3)
    batches = class_batches(real, rows_of_classes(real), 4, np.random.default_rng(0))
    begun = dataclasses.replace(state_of(condenser, real), raw_lr=None)
    assert agrees(lambda s: condenser.loss(module, weights_of(module), s, batches), begun)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_outer_gradient_through_the_learners_steps(distance: Any) -> None:
    """The step size takes part, and the real gradient where the learner has moved."""
    real = toy(20)
    condenser = GradientMatching(per_class=2, distance=distance, unroll=3)
    module = MLP(0)
    batches = class_batches(real, rows_of_classes(real), 6, np.random.default_rng(0))
    begun = state_of(condenser, real, lr=0.4)
    assert agrees(lambda s: condenser.loss(module, weights_of(module), s, batches), begun, along=True)


@pytest.mark.parametrize("name", ["linear", "cnn"])
def test_trajectory_gradient_is_that_of_finite_differences(name: str) -> None:
    real, condenser = toy(20), TrajectoryMatching(per_class=2, student_steps=3)
    module = learner(name, 0)
    begin = weights_of(module)
    goal = descend(module, begin, Rows(real.inputs_NTD, real.mask_NT, real.labels_NC), 0.2, 5)
    assert agrees(lambda s: condenser.loss(module, begin, goal, s), state_of(condenser, real, lr=0.3))


def test_distribution_gradient_is_that_of_finite_differences() -> None:
    real, module = toy(20), learner("transformer", 0)
    batches = class_batches(real, rows_of_classes(real), 6, np.random.default_rng(0))
    begun = dataclasses.replace(state_of(DistributionMatching(per_class=2), real), logits_RC=None)
    assert agrees(lambda s: mean_distance(module, s.by_class(), batches), begun)


def test_the_real_rows_themselves_are_at_no_distance() -> None:
    real, module = toy(10), MLP(0)
    rows = [torch.as_tensor(of_class) for of_class in rows_of_classes(real)]
    batches = [Rows(real.inputs_NTD[at], real.mask_NT[at], real.labels_NC[at]) for at in rows]
    for distance in ("cosine", "l2"):
        compare = partial(apart, distance=distance, vectors=True)
        loss = matching_loss(module, weights_of(module), batches, batches, compare)
        assert loss.item() == pytest.approx(0, abs=1e-9)


def test_biases_count_only_where_they_are_asked_for() -> None:
    ours = {"weight": torch.tensor([[1.0, 0.0], [0.0, 2.0]]), "bias": torch.tensor([1.0, 0.0])}
    theirs = {"weight": torch.tensor([[0.0, 3.0], [0.0, 1.0]]), "bias": torch.tensor([-5.0, 0.0])}
    # The first row is at a right angle, the second points the same way; the biases are opposite.
    assert float(apart(ours, theirs, "cosine", vectors=False)) == pytest.approx(1)
    assert float(apart(ours, theirs, "cosine", vectors=True)) == pytest.approx(3)
    assert float(apart(ours, theirs, "l2", vectors=False)) == pytest.approx(1 + 9 + 1)
    assert float(apart(ours, theirs, "l2", vectors=True)) == pytest.approx(11 + 36)


def test_a_convolutions_row_is_all_that_leads_to_one_output() -> None:
    one = torch.arange(12.0).view(2, 3, 2) + 1
    flat = {"w": one.flatten(1)}, {"w": one.flip(1).flatten(1)}
    whole = {"w": one}, {"w": one.flip(1)}
    assert torch.equal(apart(*flat, "cosine", vectors=False), apart(*whole, "cosine", vectors=False))


# What is learned.

QUICK = [
    GradientMatching(per_class=2, rounds=10, steps=5, lr=0.1),
    GradientMatching(per_class=2, rounds=10, steps=3, lr=0.1, distance="l2", unroll=2),
    TrajectoryMatching(per_class=2, rounds=8, steps=5, lr=0.1, expert_lr=0.3),
    DistributionMatching(per_class=2, rounds=8, steps=5, lr=0.1),
]


@pytest.mark.parametrize("condenser", QUICK, ids=lambda c: type(c).__name__)
def test_the_loss_falls_and_the_rows_beat_random_ones(condenser: Condenser) -> None:
    real = toy(400)
    gains = []
    for seed in range(3):
        made = dataclasses.replace(condenser, seed=seed).condense(real, LINEAR)
        losses = [entry["loss"] for entry in made.history]
        assert losses[-1] < 0.8 * losses[0]
        assert not made.notes
        rows = start_rows(real, 2, "random", seed)
        assert torch.equal(rows, made.rows_R)  # it began as these
        random = accuracy(real.inputs_NTD[rows], real.mask_NT[rows], real.labels_NC[rows])
        gains.append(quality(made) - random)
    assert min(gains) > -0.05
    assert np.mean(gains) > 0.05


def test_a_step_size_is_learned_where_steps_are_looked_through() -> None:
    real = toy()
    learned = GradientMatching(per_class=2, rounds=3, unroll=2, learner_lr=0.2).condense(real, LINEAR)
    assert learned.lr is not None
    assert learned.lr != pytest.approx(0.2)
    assert GradientMatching(per_class=2, rounds=1).condense(real, LINEAR).lr is None
    assert TrajectoryMatching(per_class=2, rounds=2).condense(real, LINEAR).lr != pytest.approx(0.1)


@pytest.mark.parametrize("learn", [True, False])
def test_labels_move_only_where_they_are_learned(learn: bool) -> None:
    real = toy(soft=True)
    made = GradientMatching(per_class=2, rounds=2, learn_labels=learn).condense(real, LINEAR)
    assert torch.equal(made.labels_RC, real.labels_NC[made.rows_R]) != learn


def test_distribution_matching_gives_each_row_its_classes_mean_label() -> None:
    real = toy()
    real.labels_NC[0] = torch.tensor([0.5, 0.5])
    made = DistributionMatching(per_class=1, rounds=1).condense(real, LINEAR)
    assert made.labels_RC.tolist() == [[1 - 0.005, 0.005], [0, 1]]


def test_chosen_rows_are_real_ones_with_the_labels_they_came_with() -> None:
    real = toy(soft=True)
    made = SelectAndRelabel(per_class=5).condense(real, MLP)
    assert torch.equal(made.inputs_RTD, real.inputs_NTD[made.rows_R])
    assert torch.equal(made.labels_RC, real.labels_NC[made.rows_R])
    gains = []
    for seed in range(3):
        rows = start_rows(real, 5, "random", seed)
        random = accuracy(real.inputs_NTD[rows], real.mask_NT[rows], real.labels_NC[rows])
        gains.append(quality(SelectAndRelabel(per_class=5, seed=seed).condense(real, LINEAR)) - random)
    assert np.mean(gains) > 0


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_the_greedy_choice_is_the_best_next_row(distance: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    gradients_NKF = torch.randn(12, 2, 3, generator=draw, dtype=torch.float64)
    target = {"g": gradients_NKF.mean(0)}

    def of(rows: list[int]) -> float:
        return float(apart({"g": gradients_NKF[rows].mean(0)}, target, distance, vectors=False))

    picked, losses = greedy(gradients_NKF, 4, distance)
    chosen: list[int] = []
    for row, loss in zip(picked.tolist(), losses, strict=True):
        assert loss == pytest.approx(of([*chosen, row]))
        assert loss == pytest.approx(min(of([*chosen, other]) for other in range(12) if other not in chosen))
        chosen.append(row)


def test_the_last_layers_gradient_is_the_learners_own() -> None:
    from stillhouse.condensation.select_and_relabel import _head_gradients

    real, module = toy(3, soft=True), make_classifier("cnn", WIDTH, 2, seed=0).double()
    found = _head_gradients(real, module)
    for row in range(3):
        one = Rows(real.inputs_NTD[row : row + 1], real.mask_NT[row : row + 1], real.labels_NC[row : row + 1])
        assert torch.allclose(found[row], gradients(module, weights_of(module), one, graph=False)["head.weight"])


def test_medoids_are_nearest_to_the_means_of_clusters() -> None:
    real = toy(60, places=1, noise=0.01)
    real.inputs_NTD[::4, :, 5] += 9  # each class falls into two clusters
    real.inputs_NTD[1::4, :, 5] += 9
    rows = start_rows(real, 2, "medoids", 0)
    assert sorted((real.inputs_NTD[rows, 0, 5] > 4).tolist()) == [False, False, True, True]
    assert real.classes_N[rows].tolist() == [0, 0, 1, 1]


# What goes wrong.


def test_a_loop_that_diverges_keeps_the_best_rows_and_says_so() -> None:
    """One round is sound; in the next the real rows are infinite, and so is the loss."""
    real = toy()
    begun = state_of(GradientMatching(per_class=2), real)
    watch = Watch(begun, limit=10)
    assert not watch.diverged(torch.tensor(2.0))
    watch.end_round()
    best = begun.inputs_RTD.detach().clone()
    with torch.no_grad():
        begun.inputs_RTD.add_(1)
    assert not watch.diverged(torch.tensor(3.0))
    watch.end_round()
    assert watch.diverged(torch.tensor(20.5))
    made = watch.result()
    assert torch.equal(made.inputs_RTD, best)
    assert made.notes == (
        "The loop diverged in round 3: its loss rose to 20.5, from 2 in the first round; those of round 1 were kept.",
    )


@pytest.mark.parametrize(
    ("condenser", "note"),
    [
        (GradientMatching(per_class=2, lr=1e200, distance="l2"), "the rows it started from were kept"),
        (TrajectoryMatching(per_class=2, student_lr=1e200), "the rows it started from were kept"),
        (DistributionMatching(per_class=2, lr=1e200), "the rows it started from were kept"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_runaway_settings_end_with_finite_rows(condenser: Condenser, note: str) -> None:
    made = condenser.condense(toy(), partial(learner, "cnn"))
    assert any(note in told for told in made.notes)
    assert made.inputs_RTD.isfinite().all()
    assert made.labels_RC.isfinite().all()


@pytest.mark.parametrize("condenser", [*QUICK, SelectAndRelabel(per_class=2)], ids=lambda c: type(c).__name__)
def test_a_class_smaller_than_its_budget_is_refused(condenser: Condenser) -> None:
    real = toy(9)
    many = dataclasses.replace(condenser, per_class=5)
    with pytest.raises(DataError, match="Class 1 has 4 rows, and 5 a class were asked for"):
        many.condense(real, LINEAR)
    nothing = Real(real.inputs_NTD[:0], real.mask_NT[:0], real.labels_NC[:0], real.classes_N[:0])
    with pytest.raises(DataError, match="no rows to condense"):
        condenser.condense(nothing, LINEAR)


class Bare(nn.Module):
    """A learner that tells no features."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, WIDTH, dtype=torch.float64))

    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
        return inputs.mean(1) @ self.weight.T


@pytest.mark.parametrize("condenser", [DistributionMatching(per_class=1), SelectAndRelabel(per_class=1)])
def test_features_are_needed_where_they_are_looked_at(condenser: Condenser) -> None:
    with pytest.raises(NeedsError, match="needs the features of the learner, and Bare tells none"):
        condenser.condense(toy(), lambda seed: Bare())
    assert GradientMatching(per_class=1, rounds=1).condense(toy(), lambda seed: Bare()).history


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: GradientMatching(per_class=0), "per_class is 0"),
        (lambda: GradientMatching(per_class=1, rounds=0), "rounds is 0"),
        (lambda: GradientMatching(per_class=1, lr=0), "lr is 0"),
        (lambda: GradientMatching(per_class=1, learner_steps=-1), "learner_steps is -1"),
        (lambda: GradientMatching(per_class=1, limit=1), "limit is 1"),
        (lambda: TrajectoryMatching(per_class=1, latest=7), "latest is 7"),
        (lambda: TrajectoryMatching(per_class=1, student_steps=0), "student_steps is 0"),
        (lambda: TrajectoryMatching(per_class=1, expert_lr=-1), "expert_lr is -1"),
        (lambda: DistributionMatching(per_class=1, learn_labels=True), "does not see labels"),
        (lambda: DistributionMatching(per_class=1, batch=0), "batch is 0"),
        (lambda: SelectAndRelabel(per_class=1, learn_labels=True), "learn_labels is True"),
        (lambda: SelectAndRelabel(per_class=1, learners=0), "learners is 0"),
    ],
)
def test_settings_that_are_wrong(make: Callable[[], Condenser], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


def test_the_loss_of_soft_labels_is_their_cross_entropy() -> None:
    real, module = toy(5, soft=True), MLP(0)
    rows = Rows(real.inputs_NTD, real.mask_NT, real.labels_NC)
    logits = module(real.inputs_NTD, real.mask_NT)
    expected = nn.functional.cross_entropy(logits, real.labels_NC)
    assert torch.allclose(learner_loss(module, weights_of(module), rows), expected)
