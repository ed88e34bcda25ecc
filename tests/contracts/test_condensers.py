"""Every condenser that the registry finds, held to the public contract, and broken ones it must catch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from stillhouse import registry
from stillhouse.condensation._contract import check_condenser
from stillhouse.condensation.base import Condensed, Condenser, Real
from stillhouse.condensation.select_and_relabel import SelectAndRelabel

SHORT = {"rounds": 2, "steps": 2, "experts": 1, "learner_steps": 2, "learners": 1}


def short(name: str, **settings: Any) -> Condenser:
    known = {field.name for field in dataclasses.fields(registry.component("condenser", name))}
    return registry.build("condenser", name, {k: v for k, v in SHORT.items() if k in known} | settings)


@pytest.mark.parametrize("name", registry.names("condenser"))
def test_condenser_keeps_its_contract(name: str) -> None:
    check_condenser(short(name, per_class=2))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gradient_matching", {"learn_labels": False, "distance": "l2", "vectors": True}),
        ("gradient_matching", {"unroll": 3, "start": "medoids"}),
        ("trajectory_matching", {"learn_labels": False}),
        ("select_and_relabel", {"distance": "l2"}),
        ("gradient_matching", {"lr": 1e30, "distance": "l2"}),
    ],
)
def test_condenser_keeps_its_contract_with_other_settings(name: str, settings: dict[str, Any]) -> None:
    check_condenser(short(name, per_class=3, **settings))


@pytest.mark.parametrize("name", registry.names("condenser"))
def test_every_condenser_has_a_summary_and_is_called_by_its_file(name: str) -> None:
    assert registry.summary("condenser", name).endswith(".")
    assert registry.name_of(short(name, per_class=1)) == name


@dataclass(frozen=True, kw_only=True)
class Changed(Condenser):
    """A sound condenser with one thing wrong."""

    learn_labels: bool = False

    def condense(self, real: Real, learner: Callable[[int], nn.Module]) -> Condensed:
        return dataclasses.replace(self.sound(real, learner), **self.wrong(self.sound(real, learner), real))

    def sound(self, real: Real, learner: Callable[[int], nn.Module]) -> Condensed:
        return SelectAndRelabel(per_class=self.per_class, learners=1, learner_steps=1).condense(real, learner)

    def wrong(self, made: Condensed, real: Real) -> dict[str, Any]:
        return {}


class Short(Changed):
    def wrong(self, made: Condensed, real: Real) -> dict[str, Any]:
        return {"inputs_RTD": made.inputs_RTD[:, :1]}


class Infinite(Changed):
    def wrong(self, made: Condensed, real: Real) -> dict[str, Any]:
        return {"inputs_RTD": made.inputs_RTD / 0}


class Unfair(Changed):
    def wrong(self, made: Condensed, real: Real) -> dict[str, Any]:
        return {"classes_R": made.classes_R * 0}


class Odds(Changed):
    def wrong(self, made: Condensed, real: Real) -> dict[str, Any]:
        return {"labels_RC": made.labels_RC * 2}


class Relabelling(Changed):
    def wrong(self, made: Condensed, real: Real) -> dict[str, Any]:
        return {"labels_RC": made.labels_RC.roll(1, 0)}


class Elsewhere(Changed):
    def wrong(self, made: Condensed, real: Real) -> dict[str, Any]:
        return {"rows_R": made.rows_R.roll(1)}


class Repeating(Changed):
    def wrong(self, made: Condensed, real: Real) -> dict[str, Any]:
        return {"rows_R": made.rows_R.view(-1, self.per_class)[:, :1].repeat_interleave(self.per_class, 1).flatten()}


class Attached(Changed):
    def wrong(self, made: Condensed, real: Real) -> dict[str, Any]:
        return {"inputs_RTD": made.inputs_RTD.clone().requires_grad_() * 1}


class Moody(Changed):
    calls = iter(range(1000))

    def wrong(self, made: Condensed, real: Real) -> dict[str, Any]:
        return {"inputs_RTD": made.inputs_RTD + next(self.calls)}


class Drawing(Changed):
    def wrong(self, made: Condensed, real: Real) -> dict[str, Any]:
        torch.rand(1)
        return {}


class Careless(Changed):
    def wrong(self, made: Condensed, real: Real) -> dict[str, Any]:
        real.inputs_NTD.add_(1)
        return {}


class Backwards(Changed):
    def wrong(self, made: Condensed, real: Real) -> dict[str, Any]:
        return {"lr": -0.1}


class Generous(Changed):
    def condense(self, real: Real, learner: Callable[[int], nn.Module]) -> Condensed:
        rows = min(self.per_class, int(torch.bincount(real.classes_N).min()))
        return SelectAndRelabel(per_class=rows, learners=1, learner_steps=1).condense(real, learner)


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (Short, "of the shapes"),
        (Infinite, "not finite"),
        (Unfair, "rows of the classes"),
        (Odds, "no distributions"),
        (Relabelling, "changed the labels"),
        (Elsewhere, "of another"),
        (Repeating, "the same real one"),
        (Attached, "on a graph"),
        (Moody, "the second time"),
        (Drawing, "own generator"),
        (Careless, "changed the real rows"),
        (Backwards, "above 0"),
        (Generous, "a class that has one"),
    ],
)
def test_contract_catches(broken: type[Changed], clause: str) -> None:
    with pytest.raises(AssertionError, match=clause):
        check_condenser(broken(per_class=2))
