"""Classifiers fitted to soft labels and weighted rows: against scikit-learn, against copies of rows, out of fold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from stillhouse.classifiers.architectures import make_classifier
from stillhouse.classifiers.fitting import fit, one_hot, softmax_regression, train
from stillhouse.classifiers.out_of_fold import likeliest_temperature, out_of_fold
from stillhouse.errors import DataError


def clouds(rows: int, classes: int, width: int = 6, seed: int = 0, spread: float = 1.0) -> tuple[Any, Any]:
    """Points around one centre a class."""
    rng = np.random.default_rng(seed)
    labels_N = np.arange(rows) % classes
    centres_CD = np.random.default_rng(99).normal(size=(classes, width))
    return centres_CD[labels_N] + spread * rng.normal(size=(rows, width)), labels_N


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("penalty", [0.1, 1.0])
def test_hard_labels_give_what_scikit_learn_gives(classes: int, penalty: float) -> None:
    inputs, labels = clouds(200, classes)
    weights = np.random.default_rng(1).uniform(0.2, 3, len(labels))
    ours = softmax_regression(inputs, one_hot(labels, classes), weights, penalty=penalty)
    # Of two classes scikit-learn keeps one vector where softmax has two opposite ones of half its length.
    theirs = LogisticRegression(C=(2 if classes == 2 else 1) / penalty, tol=1e-8, max_iter=10_000)
    theirs.fit(inputs, labels, sample_weight=weights)
    assert np.abs(ours.probabilities(inputs) - theirs.predict_proba(inputs)).max() < 5e-3


def test_soft_labels_are_rows_of_every_class_by_their_share() -> None:
    inputs, labels = clouds(60, 3)
    soft = np.random.default_rng(2).dirichlet(np.ones(3), len(labels))
    ours = softmax_regression(inputs, soft, penalty=0.5)
    repeated = LogisticRegression(C=2, tol=1e-8, max_iter=10_000)
    repeated.fit(np.repeat(inputs, 3, axis=0), np.tile(np.arange(3), 60), sample_weight=soft.ravel())
    assert np.abs(ours.probabilities(inputs) - repeated.predict_proba(inputs)).max() < 5e-3


def test_a_weight_of_two_is_a_row_that_comes_twice() -> None:
    inputs, labels = clouds(40, 2)
    targets = one_hot(labels, 2)
    twice = softmax_regression(np.concatenate([inputs, inputs[:5]]), np.concatenate([targets, targets[:5]]))
    weighed = softmax_regression(inputs, targets, np.array([2.0] * 5 + [1.0] * 35))
    assert np.allclose(twice.weights_DC, weighed.weights_DC, atol=1e-3)


def test_few_iterations_give_a_learner_that_has_hardly_begun() -> None:
    inputs, labels = clouds(200, 3)
    known = [softmax_regression(inputs, one_hot(labels, 3), iterations=n).probabilities(inputs).max() for n in (1, 50)]
    assert known[0] < known[1]


@pytest.mark.parametrize(
    ("inputs", "targets", "penalty", "word"),
    [
        (np.zeros((0, 2)), np.zeros((0, 2)), 1.0, "no rows"),
        (np.zeros((3, 2)), np.zeros((2, 2)), 1.0, "of as many rows"),
        (np.zeros((3, 2)), np.zeros(3), 1.0, "of as many rows"),
        (np.zeros((3, 2)), np.zeros((3, 2)), 0.0, "penalty is 0.0; it must be above 0"),
    ],
)
def test_what_cannot_be_fitted_is_said(inputs: Any, targets: Any, penalty: float, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        softmax_regression(inputs, targets, penalty=penalty)


def trained(weights: Any = None, *, rows: int = 80, steps: int = 60, seed: int = 0, part: slice = slice(None)) -> Any:
    inputs, labels = clouds(rows, 2, seed=3)
    tensors = torch.tensor(inputs[part], dtype=torch.float32)[:, None], torch.ones(len(inputs[part]), 1)
    module = make_classifier("mlp", 6, 2, seed=0)
    targets = torch.tensor(one_hot(labels[part], 2)).float()
    losses = fit(module, *tensors, targets, weights, steps=steps, lr=0.1, seed=seed)
    right = (module(*tensors).argmax(1).numpy() == labels[part]).mean()
    return losses, float(right), module


@pytest.mark.parametrize("rows", [80, 600])
def test_any_module_learns(rows: int) -> None:
    losses, right, module = trained(rows=rows)
    assert len(losses) == 60
    assert losses[-1] < losses[0]
    assert right > 0.75
    assert not module.training


def test_training_repeats_and_disturbs_no_other_draw() -> None:
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    one, other = trained(rows=600)[0], trained(rows=600)[0]
    assert one == other
    assert torch.rand(1) == before
    assert trained(rows=600, seed=1)[0] != one  # the order of rows is the seed's


def test_rows_without_weight_teach_nothing() -> None:
    half = trained(part=slice(30))[0]
    weighed = trained(torch.tensor([2.0] * 30 + [0.0] * 50))[0]  # only how weights stand to each other counts
    assert np.allclose(half, weighed, atol=1e-5)


def test_a_linear_classifier_goes_to_its_optimum_and_others_learn() -> None:
    inputs, labels = clouds(80, 2)
    rows = torch.tensor(inputs)[:, None], torch.ones(80, 1), torch.tensor(one_hot(labels, 2))
    linear = train(make_classifier("linear", 6, 2, seed=0).double(), *rows, steps=1, seed=0)
    features = linear.features(*rows[:2]).detach().numpy()
    peer = LogisticRegression(C=2 / 6, tol=1e-9, max_iter=1000).fit(features, labels)
    ours = (linear.head.weight[1] - linear.head.weight[0]).detach().numpy()
    assert np.allclose(ours, peer.coef_[0], atol=1e-3)
    other = train(make_classifier("transformer", 6, 2, seed=0).double(), *rows, steps=60, seed=0)
    assert (other(*rows[:2]).argmax(1).numpy() == labels).mean() > 0.75


def test_a_teacher_out_of_fold_never_saw_the_row() -> None:
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(90, 60)), np.arange(90) % 3  # noise: only memory could be right
    told = out_of_fold(inputs, labels, seed=1, penalty=1e-3).probabilities_NC
    seen = softmax_regression(inputs, one_hot(labels, 3), penalty=1e-3).probabilities(inputs)
    assert (seen.argmax(axis=1) == labels).mean() > 0.9
    assert (told.argmax(axis=1) == labels).mean() < 0.55
    assert np.allclose(told.sum(axis=1), 1)


def test_folds_follow_the_seed_alone() -> None:
    inputs, labels = clouds(60, 3)
    one, same, other = (out_of_fold(inputs, labels, seed=seed).probabilities_NC for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_the_likeliest_temperature_undoes_a_scaling() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3)) * 2
    odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(3, p=row) for row in odds])
    assert likeliest_temperature(logits * 3, labels) == pytest.approx(3, rel=0.1)
    inputs, classes = clouds(300, 3, spread=2.0)
    tuned, plain = (out_of_fold(inputs, classes, temperature=t, penalty=1e-4) for t in (None, 1.0))
    losses = [-np.log(found.probabilities_NC[np.arange(300), classes]).mean() for found in (tuned, plain)]
    assert tuned.temperature != 1
    assert losses[0] < losses[1]


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 2, 2]])
def test_a_class_that_no_teacher_could_know_is_refused(labels: list[int]) -> None:
    with pytest.raises(DataError, match="two classes or more with at least two rows each"):
        out_of_fold(np.zeros((4, 2)), np.array(labels))


def test_one_fold_is_none() -> None:
    with pytest.raises(ValueError, match="folds is 1; it must be at least 2"):
        out_of_fold(np.zeros((4, 2)), np.array([0, 0, 1, 1]), folds=1)
