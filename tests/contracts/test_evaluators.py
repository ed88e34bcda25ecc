"""Every evaluator that the registry finds, held to the public contract; and the contract held to broken ones."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from building import COLOUR_ROWS, COLOURS, write_task

from stillhouse import registry
from stillhouse.evaluation._contract import check_evaluator
from stillhouse.evaluation.base import Evaluator, Heldout, Result
from stillhouse.evaluation.likelihood import Likelihood
from stillhouse.models import CausalLM
from stillhouse.statistics import Estimate, Measurement, Metric


@pytest.fixture
def needed(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Settings of those evaluators that have no default for all of theirs."""
    reading = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}],
    }
    write_task(tmp_path, "reading", reading, COLOUR_ROWS)
    folder = write_task(tmp_path, "colours", COLOURS, COLOUR_ROWS)
    return {"lm_eval": {"tasks": ["colours", "reading"], "include_path": folder}}


@pytest.mark.parametrize("name", registry.names("evaluator"))
def test_evaluator_keeps_its_contract(name: str, needed: dict[str, dict[str, Any]]) -> None:
    check_evaluator(registry.build("evaluator", name, needed.get(name, {})))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("fidelity", {"k": 1}),
        ("calibration", {"bins": 1}),
        ("tasks", {"form": "choice", "normalize": "bytes"}),
        ("tasks", {"form": "exact", "max_new_tokens": 3}),
        ("tasks", {"temperature": 1.0, "samples": 2, "top_p": 0.9, "max_new_tokens": 4}),
        ("efficiency", {"memory": False, "trials": 1}),
        ("diversity", {"samples": 2, "limit": 3, "max_new_tokens": 1, "unit": "characters"}),
        ("diversity", {"temperature": 0.1, "top_p": 0.5, "max_new_tokens": 8, "batch_size": 3}),
    ],
)
def test_evaluator_keeps_its_contract_with_other_settings(name: str, settings: dict[str, Any]) -> None:
    check_evaluator(registry.build("evaluator", name, settings))


@pytest.mark.parametrize("name", registry.names("evaluator"))
def test_every_evaluator_has_a_summary_and_is_called_by_its_file(name: str, needed: dict[str, dict[str, Any]]) -> None:
    cls = registry.component("evaluator", name)
    assert registry.summary("evaluator", name).endswith(".")
    assert registry.name_of(cls(**needed.get(name, {}))) == name
    assert cls.needs <= {"text", "token_logprobs", "distribution", "hidden_states", "attentions"}


@dataclass(frozen=True, kw_only=True)
class Broken(Evaluator):
    """Sound in itself; each child breaks one clause."""

    def metrics(self) -> Mapping[str, Metric]:
        return {"loss": Metric("Loss", "nats/token", "lower")}

    def evaluate(self, model: CausalLM, data: Heldout, teacher: CausalLM | None) -> Result:
        return Result({"loss": Likelihood().evaluate(model, data, teacher).measurements["loss"]})


def changed(m: Measurement, factor: float) -> Result:
    return Result({"loss": Measurement(m.ids, m.sums_EM * [factor, 1])})


@dataclass(frozen=True, kw_only=True)
class Unannounced(Broken):
    """Reports what it did not announce."""

    def evaluate(self, model: CausalLM, data: Heldout, teacher: CausalLM | None) -> Result:
        return Likelihood().evaluate(model, data, teacher)


@dataclass(frozen=True, kw_only=True)
class Infinite(Broken):
    """Contributes infinities."""

    def evaluate(self, model: CausalLM, data: Heldout, teacher: CausalLM | None) -> Result:
        return changed(super().evaluate(model, data, teacher).measurements["loss"], np.inf)


@dataclass(frozen=True, kw_only=True)
class Drawing(Broken):
    """Draws from Python's global generator."""

    def evaluate(self, model: CausalLM, data: Heldout, teacher: CausalLM | None) -> Result:
        random.random()
        return super().evaluate(model, data, teacher)


@dataclass(frozen=True, kw_only=True)
class Unseeded(Broken):
    """Adds noise of its own that no seed fixes."""

    def evaluate(self, model: CausalLM, data: Heldout, teacher: CausalLM | None) -> Result:
        noise = 1 + np.random.default_rng().random()
        return changed(super().evaluate(model, data, teacher).measurements["loss"], noise)


@dataclass(frozen=True, kw_only=True)
class Switching(Broken):
    """Leaves the model in evaluation mode."""

    def evaluate(self, model: CausalLM, data: Heldout, teacher: CausalLM | None) -> Result:
        model.model.eval()
        return super().evaluate(model, data, teacher)


@dataclass(frozen=True, kw_only=True)
class Training(Broken):
    """Changes a weight."""

    def evaluate(self, model: CausalLM, data: Heldout, teacher: CausalLM | None) -> Result:
        with torch.no_grad():
            next(model.model.parameters()).add_(1e-3)
        return super().evaluate(model, data, teacher)


@dataclass(frozen=True, kw_only=True)
class WithDropout(Broken):
    """Measures a model that is in training mode as it is."""

    def evaluate(self, model: CausalLM, data: Heldout, teacher: CausalLM | None) -> Result:
        tokens = torch.tensor([data.rendered[0].tokens])
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.seed()
            total = float(model.hidden(tokens).sum())
        return Result({"loss": Measurement(("a", "b"), np.array([[total, 1.0], [total, 1.0]]))})


@dataclass(frozen=True, kw_only=True)
class OwnIds(Broken):
    """Names examples after the model, so that no two models can be paired."""

    def evaluate(self, model: CausalLM, data: Heldout, teacher: CausalLM | None) -> Result:
        m = super().evaluate(model, data, teacher).measurements["loss"]
        mark = next(model.model.parameters()).sum().item()
        return Result({"loss": Measurement(tuple(f"{mark}/{i}" for i in m.ids), m.sums_EM)})


@dataclass(frozen=True, kw_only=True)
class Twice(Broken):
    """Counts every example under one id."""

    def evaluate(self, model: CausalLM, data: Heldout, teacher: CausalLM | None) -> Result:
        m = super().evaluate(model, data, teacher).measurements["loss"]
        return Result({"loss": Measurement(("same",) * len(m.ids), m.sums_EM)})


@dataclass(frozen=True, kw_only=True)
class Silent(Broken):
    """Measures nothing."""

    def evaluate(self, model: CausalLM, data: Heldout, teacher: CausalLM | None) -> Result:
        return Result()


@dataclass(frozen=True, kw_only=True)
class SelfPraising(Broken):
    """Needs a teacher's distribution, and reports without one."""

    needs: ClassVar[frozenset[str]] = frozenset({"distribution"})


@dataclass(frozen=True, kw_only=True)
class Dotted(Broken):
    """Names a metric as if it belonged to another evaluator."""

    def metrics(self) -> Mapping[str, Metric]:
        return {"likelihood.loss": Metric("Loss", "nats/token", "lower")}


@dataclass(frozen=True, kw_only=True)
class NotANumber(Broken):
    """Estimates what it could not measure."""

    def evaluate(self, model: CausalLM, data: Heldout, teacher: CausalLM | None) -> Result:
        return Result(estimates={"loss": Estimate(float("nan"), None, 1)})


class Changeable(Broken):
    """Forgets to say that it is a frozen dataclass."""


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (Changeable, "can be changed"),
        (Unannounced, "does not announce"),
        (Infinite, "not all finite"),
        (Drawing, "global random generator"),
        (Unseeded, "measuring again gives other contributions"),
        (Switching, "changed the training mode"),
        (Training, "changed the weights"),
        (WithDropout, "measuring again gives other contributions"),
        (OwnIds, "different examples"),
        (Twice, "not unique"),
        (Silent, "measured nothing"),
        (SelfPraising, "reported loss without a teacher"),
        (Dotted, "holds a dot"),
        (NotANumber, "no finite estimate"),
    ],
)
def test_a_broken_evaluator_is_caught(broken: type[Broken], clause: str) -> None:
    with pytest.raises(AssertionError, match=clause):
        check_evaluator(broken())


def test_a_sound_one_passes() -> None:
    check_evaluator(Broken())
