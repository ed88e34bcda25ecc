"""A whole run with a teacher behind an API: its budget runs out, is raised, and nothing is paid twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse import stages
from stillhouse.checking.check import check
from stillhouse.errors import BudgetError, NeedsError
from stillhouse.recipe_file import load_recipe
from stillhouse.testing.server import Faults, Server, serve

NAME, KEY = "stillhouse:arithmetic", "key-that-must-stay-secret"


@pytest.fixture(scope="module")
def server() -> Any:
    with serve(NAME, name=NAME, key=KEY, faults=Faults(error=0.1, limited=0.1, strikes=2, retry_after=0)) as running:
        yield running


@pytest.fixture
def recipe_file(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THE_KEY", KEY)
    small = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    arithmetic = {"steps": [1, 2], "distractors": 0.0}
    recipe = {
        "teacher": {
            "server": {
                "url": server.url,
                "model": NAME,
                "key_env": "THE_KEY",
                "store": str(tmp_path / "requests.sqlite"),
                "budget": {"calls": 60, "cost": 1.0, "read_price": 2.5, "written_price": 10},
            }
        },
        "student": {"tokenizer": NAME, "config": small | {"num_attention_heads": 2, "max_position_embeddings": 384}},
        "data": {
            "train": {"arithmetic": {"count": 12, "seed": 1, **arithmetic}},
            "heldout": {"arithmetic": {"count": 6, "seed": 2, "split": "heldout", **arithmetic}},
            "steps": [{"rationales": {"max_new_tokens": 64}}],
        },
        "objective": ["cross_entropy"],
        "train": {"steps": 2, "lr": 1e-3, "tokens_per_step": 1024},
        "evaluate": ["likelihood", {"tasks": {"max_new_tokens": 4}}],
    }
    place = tmp_path / "r.yaml"
    place.write_text(yaml.safe_dump(recipe))
    return place


def test_a_budget_is_raised_and_the_same_command_goes_on(recipe_file: Path, tmp_path: Path, server: Server) -> None:
    few, out = load_recipe(str(recipe_file), ["teacher.server.budget.calls=7"]), tmp_path / "run"
    with pytest.raises(BudgetError, match=r"calls: 0 of 7 are left.*7 answers are kept.*the same command goes on"):
        stages.run(few, out)
    stages.run(load_recipe(str(recipe_file)), out)
    cost = json.loads((out / "manifest.json").read_text())["cost"]
    assert (cost["teacher_calls"], cost["teacher_answers_stored"]) == (5, 7)
    told = {c["name"]: c["value"] for c in json.loads((out / "stages" / "data.json").read_text())["choices"]}
    assert told["teacher, paid"].startswith("5 calls, ")
    assert "HTTP 500" in told["teacher, asked again"] or "HTTP 429" in told["teacher, asked again"]
    rows = [json.loads(line) for line in (out / "data" / "train.jsonl").read_text().splitlines()]
    assert all(row["rationale"] and row["meta"]["made_by"]["teacher"] == NAME for row in rows)
    evaluated = json.loads((out / "evaluation.json").read_text())["models"]
    assert set(evaluated) == {"student_before", "control", "student"}  # its own model is not here to be measured
    holding = [p for p in tmp_path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]
    assert holding == []
    asked = len(server.seen)
    stages.run(load_recipe(str(recipe_file), ["train.steps=3"]), tmp_path / "other")
    assert len(server.seen) == asked


def test_check_says_what_it_will_cost_and_refuses_what_it_cannot_pay(recipe_file: Path, server: Server) -> None:
    asked = len(server.seen)
    (asking,) = check(load_recipe(str(recipe_file)))["estimate"]["asking"]
    assert (asking["calls"], asking["tokens_written"]) == (12, 12 * 64)
    assert 0.007 < asking["cost"] < 0.02
    white = ["teacher.server.logprobs=5", f"teacher.server.tokenizer={NAME}", "objective=[forward_kl]"]
    (scored,) = check(load_recipe(str(recipe_file), white))["estimate"]["asking"]
    assert scored["calls"] == 24  # once for its text, once for what it says about it
    with pytest.raises(BudgetError, match=r"too small for this recipe.*Nothing was asked yet"):
        check(load_recipe(str(recipe_file), ["teacher.server.budget.calls=11"]))
    assert len(server.seen) == asked


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective=[forward_kl]", "forward_kl needs the teacher's distribution; server provides text"),
        ("evaluate=[fidelity]", "fidelity needs the teacher's distribution"),
        ("student.from_teacher={layers: 1}", "exactly one of"),
        ("student.tokenizer=null", "student.tokenizer"),
    ],
)
def test_what_a_closed_teacher_cannot_give(recipe_file: Path, override: str, message: str) -> None:
    with pytest.raises((NeedsError, ValueError), match=message):
        check(load_recipe(str(recipe_file), [override]))
