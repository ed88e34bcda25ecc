"""`check` estimates by rehearsal: the parts are there, they grow as the work grows, and no weights are loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from building import MakeStudent

from stillhouse.checking.check import check
from stillhouse.checking.metering import LiveBytes, Trial
from stillhouse.checking.rehearsing import Sample, judges, writes
from stillhouse.checking.seconds import Split, Work
from stillhouse.checking.skeletons import choose_depths, measure_size
from stillhouse.evaluation.base import Evaluator
from stillhouse.evaluation.diversity import Diversity
from stillhouse.evaluation.tasks import Tasks
from stillhouse.models import CausalLM
from stillhouse.recipe import Recipe
from stillhouse.recipe_data import Source
from stillhouse.records import Example

CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
}
Estimate = Callable[..., dict[str, Any]]


@pytest.fixture
def estimate(monkeypatch: pytest.MonkeyPatch) -> Estimate:
    """A check of the built-in teacher's recipe, with sections replaced; loading a model fails."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("check loaded weights")

    monkeypatch.setattr(CausalLM, "load", refuse)

    def run(**sections: Any) -> dict[str, Any]:
        source = {"arithmetic": {"count": 8, "steps": [2, 2], "distractors": 0.0}}
        recipe = {
            "teacher": "stillhouse:arithmetic",
            "student": {"config": CONFIG},
            "data": {"train": source, "heldout": source},
            "objective": "forward_kl",
            "train": {"steps": 3, "tokens_per_step": 512, "evaluate_every": 2, "precision": "float32"},
            "evaluate": ["likelihood", "fidelity"],
            "samples": 0,
        }
        return check(Recipe.model_validate(recipe | sections))

    return run


def test_every_stage_has_its_seconds_and_its_bytes(estimate: Estimate) -> None:
    found = estimate(score={"k": 4}, evaluate=["likelihood", {"tasks": {"max_new_tokens": 4, "batch_size": 4}}])
    cost = found["estimate"]
    trained = ["score", "train-student", "train-control"]
    evaluated = [f"evaluate-{role}" for role in ("teacher", "student_before", "control", "student")]
    assert list(cost["stages"]) == ["start", "data", *trained, *evaluated]
    assert list(cost["memory"]) == ["data", *trained, *evaluated]
    assert all(value > 0 for value in [*cost["memory"].values(), *cost["disk"].values()])
    assert cost["seconds"] == pytest.approx(sum(cost["stages"].values()), abs=0.1)
    assert cost["peak_memory_bytes"] == max(cost["memory"].values()) == cost["memory"][cost["peak_memory_stage"]]
    assert cost["disk_bytes"] == pytest.approx(sum(cost["disk"].values()), abs=10)
    assert cost["rehearsed"]
    assert "a batch of answers is taken to end after 4 tokens (student)" in cost["note"]


def test_work_that_is_left_out_costs_nothing(estimate: Estimate) -> None:
    cost = estimate(control=False)["estimate"]
    assert "train-control" not in cost["stages"]
    assert "signals" not in cost["disk"]
    assert cost["steps"] == 3


def test_what_does_not_depend_on_the_clock_grows_with_the_work(estimate: Estimate) -> None:
    short = estimate()["estimate"]
    settings = {"steps": 30, "tokens_per_step": 512, "evaluate_every": 2, "precision": "float32"}
    long = estimate(train=settings)["estimate"]
    wider = estimate(train={**settings, "tokens_per_step": 2048})["estimate"]
    assert long["student_tokens"] == 10 * short["student_tokens"]
    assert long["epochs"] == pytest.approx(10 * short["epochs"], rel=0.01)
    assert long["disk"]["log"] == 10 * short["disk"]["log"]
    assert wider["memory"]["train-student"] > long["memory"]["train-student"]


def test_what_diversity_writes_and_generalisation_reads_is_part_of_the_estimate(estimate: Estimate) -> None:
    settings = {"samples": 3, "max_new_tokens": 4, "batch_size": 6}
    found = estimate(evaluate=["generalisation", {"diversity": settings}])
    assert "a batch of answers is taken to end after 4 tokens (student)" in found["estimate"]["note"]
    assert "whose work is not known" not in found["estimate"]["note"]
    assert all(found["estimate"]["stages"][f"evaluate-{role}"] > 0 for role in ("teacher", "control", "student"))


def test_answers_are_counted_by_sample_and_on_every_data_set_that_is_asked() -> None:
    def split(count: int, **form: str) -> Split:
        return Split(count, Sample([Example(id="a", **form)], []), 0.0, 0.0, 0.0, 0.0)

    asked = {"prompt": "2 + 3 =", "completion": " 5"}
    splits = {
        "train": split(1000, **asked),
        "heldout": split(250, **asked),
        "puzzles": split(30, **asked),
        "novel": split(80, text="Once upon a time"),
    }
    work = Work(plan=None, roles=(), sizes={}, splits=splits, trials={}, writings={}, rehearsed={}, start=0, resident=0)  # ty: ignore[invalid-argument-type]

    def answers(evaluator: Evaluator, limit: int | None = None) -> int:
        return sum(work.prompts(evaluator, name, limit) for name in work.evaluated(evaluator, limit))

    assert answers(Diversity(samples=4)) == 4 * (100 + 30 + 80)
    assert answers(Diversity(samples=4, limit=None)) == 4 * (250 + 30 + 80)
    assert answers(Diversity(samples=4, limit=None), limit=100) == 4 * 100  # on the way through training
    assert answers(Tasks(samples=2, temperature=1.0)) == 2 * (250 + 30)  # running text asks no question
    assert answers(Tasks(data=Source(path="other.jsonl"), limit=7)) == 7
    assert writes(Diversity())
    assert not judges(Diversity())


def test_warnings_say_what_is_out_of_proportion(estimate: Estimate) -> None:
    settings = {"steps": 1, "tokens_per_step": 256, "precision": "float32"}
    data = {"arithmetic": {"count": 200, "steps": [2, 2]}}
    few = estimate(train=settings, data={"train": data, "heldout": data}, control=False)
    assert any("of its data" in warning for warning in few["warnings"])
    many = estimate(train={**settings, "steps": 10**8}, control=False)
    assert any("times" in warning for warning in many["warnings"])
    assert any("days" in warning for warning in many["warnings"])


def test_a_model_too_large_to_rehearse_is_reckoned_and_says_so(estimate: Estimate) -> None:
    huge = {**CONFIG, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 40}
    found = estimate(student={"config": huge})
    assert not found["estimate"]["rehearsed"]
    assert "too large" in found["estimate"]["note"]
    assert found["estimate"]["peak_memory_bytes"] > 16 * found["student"]["parameters"]
    assert any("of memory" in warning for warning in found["warnings"])


def test_live_bytes_counts_what_lives_and_not_what_has_gone() -> None:
    given = torch.zeros(1000)
    with LiveBytes() as live:
        first = given + 1
        view = first.view(10, 100)
        del first
        second = view * 2
        del view
        third = second * 2
    assert live.peak == 2 * 4000
    del second, third
    assert live.now == 0


def test_a_line_through_thin_models_reaches_the_deep_one() -> None:
    one, two = Trial(3.0, 30), Trial(5.0, 50)
    assert Trial.combine([one, two], [1 - 4, 4]) == Trial(11.0, 110)


def test_depths_follow_room_and_time(make_student: MakeStudent) -> None:
    size = measure_size(make_student(num_hidden_layers=6).lm.model.config)
    assert size.parameters == make_student(num_hidden_layers=6).lm.parameters()
    assert size.at(2) == make_student(num_hidden_layers=2).lm.parameters()

    def depths(room: int, seconds: float) -> tuple[int, ...]:
        return choose_depths(size, bytes_per_parameter=16, room=room, seconds=seconds, limit=1.0)

    assert depths(2**30, 0.5) == (6,)
    assert depths(2**30, 2.0) == (1, 2)
    assert depths(16 * size.at(2), 0.5) == (1, 2)
    assert depths(16 * size.at(1), 0.5) == ()
