"""The contract of condensers as a check that anyone can call: `stillhouse.testing.check_condenser`."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from stillhouse.classifiers.architectures import make_classifier
from stillhouse.condensation.base import Condensed, Condenser, Real
from stillhouse.contract import check_settings, demand
from stillhouse.errors import DataError

_ROWS, _PLACES, _WIDTH, _CLASSES = 40, 4, 6, 3


def check_condenser(condenser: Condenser) -> None:
    """Hold a condenser to its contract (C6, and what a condensed set must keep).

    Settings are a value: frozen, equal to their copy, hashable, printable. It makes `per_class` finite rows of each
    class, as wide and as long as the real ones, with labels that are distributions and stay as they were given where
    `learn_labels` is false; rows that began as real ones name a row of their class. The real rows are left alone, and
    so is everybody else's randomness. The same settings make the same rows, and a class
    smaller than its budget is refused.

    Args:
        condenser: with settings of your choice; few rows and few steps are enough.

    Raises:
        AssertionError: a clause is broken.

    >>> from stillhouse.condensation.gradient_matching import GradientMatching
    >>> check_condenser(GradientMatching(per_class=2, rounds=2, steps=2))
    """
    check_settings(condenser)
    real = _real()
    kept = [part.clone() for part in vars(real).values()]
    state = torch.get_rng_state()
    made = condenser.condense(real, _learner)
    demand(
        torch.equal(state, torch.get_rng_state()), f"{condenser!r} draws from torch's own generator; use one of yours"
    )
    same = all(torch.equal(one, other) for one, other in zip(kept, vars(real).values(), strict=True))
    demand(same, f"{condenser!r} changed the real rows it was given; work on copies")
    _check_shapes(condenser, real, made)
    _check_labels(condenser, made)
    _check_beginnings(condenser, real, made)
    again = condenser.condense(real, _learner)
    for name in ("inputs_RTD", "mask_RT", "labels_RC", "rows_R"):
        same = torch.equal(getattr(made, name), getattr(again, name))
        demand(same, f"{condenser!r} makes other {name} the second time")
    _check_refusal(condenser, real)


def _real() -> Real:
    draw = torch.Generator().manual_seed(0)
    classes_N = torch.arange(_ROWS) % _CLASSES
    inputs_NTD = torch.randn(_ROWS, _PLACES, _WIDTH, generator=draw)
    inputs_NTD[:, :, 0] += classes_N[:, None]
    mask_NT = (torch.arange(_PLACES)[None] <= torch.randint(_PLACES, (_ROWS, 1), generator=draw)).float()
    labels_NC = 0.7 * torch.eye(_CLASSES)[classes_N] + 0.1
    return Real(inputs_NTD * mask_NT[..., None], mask_NT, labels_NC, classes_N)


def _learner(seed: int) -> nn.Module:
    return make_classifier("mlp", _WIDTH, _CLASSES, seed=seed)


def _check_shapes(condenser: Condenser, real: Real, made: Condensed) -> None:
    rows = condenser.per_class * _CLASSES
    found = tuple(made.inputs_RTD.shape), tuple(made.mask_RT.shape), tuple(made.labels_RC.shape)
    wanted = (rows, _PLACES, _WIDTH), (rows, _PLACES), (rows, _CLASSES)
    demand(found == wanted, f"{condenser!r} makes vectors, mask and labels of the shapes {found}, expected {wanted}")
    counts = torch.bincount(made.classes_R, minlength=_CLASSES).tolist()
    demand(counts == [condenser.per_class] * _CLASSES, f"{condenser!r} makes {counts} rows of the classes")
    demand(bool(made.inputs_RTD.isfinite().all()), f"{condenser!r} makes vectors that are not finite")
    demand(bool((made.mask_RT.sum(1) > 0).all()), f"{condenser!r} makes a row without a place that counts")
    demand(
        not made.inputs_RTD.requires_grad, f"{condenser!r} hands out vectors that still hang on a graph; detach them"
    )
    demand(made.inputs_RTD.dtype == real.inputs_NTD.dtype, f"{condenser!r} makes vectors of {made.inputs_RTD.dtype}")
    demand(made.lr is None or made.lr > 0, f"{condenser!r} learned the step size {made.lr}; it must be above 0")


def _check_labels(condenser: Condenser, made: Condensed) -> None:
    total_R = made.labels_RC.sum(1)
    sound = bool((made.labels_RC >= 0).all()) and bool(torch.allclose(total_R, torch.ones_like(total_R), atol=1e-5))
    demand(sound, f"{condenser!r} makes labels that are no distributions")
    if not condenser.learn_labels:
        given = 0.7 * torch.eye(_CLASSES)[made.classes_R] + 0.1
        same = bool(torch.allclose(made.labels_RC, given, atol=1e-5))
        demand(same, f"{condenser!r} has learn_labels false and changed the labels it was given")


def _check_beginnings(condenser: Condenser, real: Real, made: Condensed) -> None:
    begun = made.rows_R >= 0
    inside = bool((made.rows_R < _ROWS).all()) and bool((made.rows_R >= -1).all())
    demand(inside, f"{condenser!r} says that rows began as {made.rows_R.tolist()}, and there are {_ROWS}")
    theirs = real.classes_N[made.rows_R[begun]]
    demand(torch.equal(theirs, made.classes_R[begun]), f"{condenser!r} began rows of a class as rows of another")
    distinct = len(set(made.rows_R[begun].tolist())) == int(begun.sum())
    demand(distinct, f"{condenser!r} began two rows as the same real one")


def _check_refusal(condenser: Condenser, real: Real) -> None:
    few = torch.cat([torch.arange(_ROWS)[real.classes_N != 0], torch.tensor([0])])
    small = Real(real.inputs_NTD[few], real.mask_NT[few], real.labels_NC[few], real.classes_N[few])
    more = dataclasses.replace(condenser, per_class=max(2, condenser.per_class))
    try:
        more.condense(small, _learner)
    except DataError:
        return
    raise AssertionError(f"{more!r} makes {more.per_class} rows of a class that has one; raise DataError")
