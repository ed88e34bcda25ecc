"""The contract of evaluators as a check that anyone can call: `stillhouse.testing.check_evaluator`.

It makes what it needs, a tokenizer of bytes and two random models of a few thousand weights, and goes through the same
code as any run. Raises `AssertionError` with the clause that is broken and what was seen.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stillhouse.contract import check_settings, demand
from stillhouse.data.rendering import Renderer
from stillhouse.evaluation.base import Evaluator, Heldout, Result
from stillhouse.models import CausalLM
from stillhouse.records import Example
from stillhouse.statistics import Metric, compare, estimate
from stillhouse.student import Student

_CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 96,
    "initializer_range": 0.4,
    "attention_dropout": 0.5,  # so that a model measured in training mode gives itself away
}


def check_evaluator(evaluator: Evaluator) -> None:
    """Hold an evaluator to its contract (C6, C8).

    Settings are a value: frozen, equal to their copy, hashable, printable. Every number it reports is announced in
    `metrics()`, finite, and kept by example, with unique ids that are the same for every model, so that two models
    can be compared pairwise; measuring again gives the same. It leaves the model as it was, weights, gradients and
    training mode, and does not touch the global random generators. What needs a teacher's distribution stays silent
    where there is no teacher.

    Args:
        evaluator: with settings of your choice; it must be able to measure sums such as `2 + 3 =`, answered by ` 5`.

    Raises:
        AssertionError: a clause is broken.

    >>> from stillhouse.evaluation.likelihood import Likelihood
    >>> check_evaluator(Likelihood())
    """
    check_settings(evaluator)
    data = _heldout()
    model, teacher = (_model(data.renderer.tokenizer, seed) for seed in (1, 2))
    metrics = evaluator.metrics()
    _check_metrics(metrics)
    with _untouched(model, teacher):
        first, second = (evaluator.evaluate(model, data, teacher) for _ in range(2))
        of_teacher = evaluator.evaluate(teacher, data, teacher)
        alone = evaluator.evaluate(model, data, None)
    demand(bool(first.measurements or first.estimates), f"{evaluator!r} measured nothing")
    for result in (first, of_teacher, alone):
        _check_result(result, metrics, evaluator)
    _check_same(first, second, evaluator)
    _check_pairs(first, of_teacher, evaluator)
    if "distribution" in evaluator.needs:
        said = ", ".join([*alone.measurements, *alone.estimates])
        demand(not said, f"{evaluator!r} needs a teacher's distribution and reported {said} without a teacher")


def _check_metrics(metrics: Mapping[str, Metric]) -> None:
    demand(bool(metrics), "metrics() is empty; it announces what will be measured")
    for name, metric in metrics.items():
        demand(
            name == name.strip() != "" and not set(name) & set(":. "),
            f"the metric name {name!r} holds a dot, colon or space",
        )
        demand(bool(metric.title), f"the metric {name!r} has no title")
        demand(metric.better in ("higher", "lower", "none"), f"the metric {name!r} has better={metric.better!r}")


def _check_result(result: Result, metrics: Mapping[str, Metric], evaluator: Evaluator) -> None:
    unknown = {*result.measurements, *result.estimates} - {*metrics, *result.metrics}
    demand(not unknown, f"{evaluator!r} measured {sorted(unknown)}, which metrics() does not announce")
    for name, m in result.measurements.items():
        demand(len(set(m.ids)) == len(m.ids) > 0, f"{name}: ids are missing or not unique: {m.ids}")
        demand(len(m.sums_EM) == len(m.ids), f"{name}: {len(m.sums_EM)} rows for {len(m.ids)} ids")
        demand(bool(np.isfinite(m.sums_EM).all()), f"{name}: contributions are not all finite: {m.sums_EM}")
        found = estimate(m)
        demand(found.stderr is not None and np.isfinite(found.stderr), f"{name}: has no standard error: {found}")
    for name, found in result.estimates.items():
        demand(bool(np.isfinite(found.value)) and found.n >= 1, f"{name}: is no finite estimate: {found}")
    demand(result.correct.keys() <= result.outputs.keys(), "correct judges answers that outputs does not hold")
    for point in result.reliability:
        demand({"confidence", "accuracy", "count"} <= point.keys(), f"a point of the calibration curve is {point}")


def _check_same(first: Result, second: Result, evaluator: Evaluator) -> None:
    """Contributions and texts repeat to the bit; times need not."""
    demand(
        first.measurements.keys() == second.measurements.keys(), f"{evaluator!r} measured other things the second time"
    )
    for name, m in first.measurements.items():
        again = second.measurements[name]
        same = m.ids == again.ids and np.array_equal(m.sums_EM, again.sums_EM)
        demand(same, f"{name}: measuring again gives other contributions; is dropout off, and is every draw seeded?")
    demand(first.outputs == second.outputs, f"{evaluator!r} wrote other texts the second time; seed every draw")


def _check_pairs(one: Result, other: Result, evaluator: Evaluator) -> None:
    for name in one.measurements.keys() & other.measurements.keys():
        a, b = one.measurements[name], other.measurements[name]
        demand(set(a.ids) == set(b.ids), f"{name}: two models have measurements of different examples")
        difference = compare(a, b, resamples=50).difference
        demand(bool(np.isfinite(difference)), f"{name}: two models differ by {difference}")
        demand(not compare(a, a, resamples=50).resolved, f"{name}: {evaluator!r} sees a model differ from itself")


@contextmanager
def _untouched(*lms: CausalLM) -> Generator[None]:
    """Models, and the process's random generators, are after the block as they were before it."""
    for lm, training in zip(lms, (True, False), strict=True):
        lm.model.train(training)  # one in each mode, so that both have to come back
    before = [_state(lm) for lm in lms]
    generators = _generators()
    yield
    for lm, state in zip(lms, before, strict=True):
        for what, value in _state(lm).items():
            same = all(torch.equal(a, b) for a, b in zip(value, state[what], strict=True))
            demand(same, f"evaluating changed the {what} of a model")
    demand(
        generators == _generators(), "evaluating drew from a global random generator; use one of your own, or fork it"
    )
    demand(torch.is_grad_enabled(), "evaluating left gradients switched off")


def _state(lm: CausalLM) -> dict[str, list[torch.Tensor]]:
    parameters = list(lm.model.parameters())
    return {
        "weights": [tensor.clone() for tensor in lm.model.state_dict().values()],
        "training mode": [torch.tensor([module.training for module in lm.model.modules()])],
        "gradients": [torch.tensor([p.grad is not None for p in parameters])],
        "frozen weights": [torch.tensor([p.requires_grad for p in parameters])],
    }


def _generators() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), name, np.asarray(keys).tolist(), tuple(rest)


def _heldout() -> Heldout:
    """Sums of different lengths, which every form of question can use; others were trained on."""
    renderer = Renderer(_byte_tokenizer(), 96)
    examples = [
        Example(id=f"sum-{n}", prompt=f"{'Well, ' * (n % 3)}{n} + {n + 1} =", completion=f" {2 * n + 1}", meta={"n": n})
        for n in range(16)
    ]
    asked, taught = examples[:8], examples[8:]
    training = Heldout("train", taught, renderer.render(taught), renderer)
    return Heldout("", asked, renderer.render(asked), renderer, lambda: training)


def _byte_tokenizer() -> PreTrainedTokenizerBase:
    symbols = ["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<eos>")


def _model(tokenizer: PreTrainedTokenizerBase, seed: int) -> CausalLM:
    return Student.from_config(_CONFIG, tokenizer, seed=seed).lm
