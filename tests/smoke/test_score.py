"""Score once, train often: the signal store through the real stages and the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoTokenizer
from typer.testing import CliRunner

from stillhouse import stages
from stillhouse.cli import app
from stillhouse.data.batching import TokenBatch
from stillhouse.errors import NeedsError, RecipeError, SignalStoreError
from stillhouse.recipe_file import load_recipe
from stillhouse.runs import RunFolder
from stillhouse.signals.store import SignalStore
from stillhouse.teachers.stored import StoredTeacher
from stillhouse.testing import check_teacher


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: Any, make_student: Any, tiny_recipe: Any) -> Path:
    """A folder with a teacher, its recipe, and the scored run of it."""
    home = tmp_path_factory.mktemp("home")
    make_student(seed=7, using=chat_tokenizer, hidden_size=32, max_position_embeddings=512).save(home / "teacher")
    recipe = tiny_recipe(home / "teacher", objective=["forward_kl"], evaluate=["likelihood"], samples=2)
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    stages.score(load_recipe(str(home / "recipe.yaml"), ["score.k=32"]), home / "scored")
    return home


def stored(home: Path, *overrides: str, model: bool = True) -> Any:
    weights = f", model: {home / 'teacher'}" if model else ""
    teacher = f"teacher={{stored: {{path: {home / 'scored' / 'signals'}{weights}}}}}"
    return load_recipe(str(home / "recipe.yaml"), [teacher, *overrides])


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_scoring_is_done_once_and_comes_out_the_same(home: Path) -> None:
    result = CliRunner().invoke(
        app, ["score", str(home / "recipe.yaml"), "score.k=32", "--out", str(home / "scored"), "--json"]
    )
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["skipped"] == ["data", "score"]
    assert facts["examples"] == 8
    assert 0 < facts["kl_nats_per_token"] < 1
    assert facts["top1_agreement"] == 1
    assert facts["bytes_per_token"] == 32 * 6 + 4
    stages.score(load_recipe(str(home / "recipe.yaml"), ["score.k=32"]), home / "again")
    assert content(home / "again" / "signals") == content(home / "scored" / "signals")


def test_a_record_of_everything_is_the_teacher_itself(home: Path) -> None:
    vocabulary = SignalStore(home / "scored" / "signals").header.vocabulary
    stages.score(load_recipe(str(home / "recipe.yaml"), [f"score.k={vocabulary}"]), home / "whole")
    store = SignalStore(home / "whole" / "signals")
    assert store.fidelity["kl_nats_per_token"] == pytest.approx(0, abs=1e-6)
    stages.run(load_recipe(str(home / "recipe.yaml")), home / "live")
    replaced = f"teacher={{stored: {{path: {store.folder}, model: {home / 'teacher'}}}}}"
    stages.run(load_recipe(str(home / "recipe.yaml"), [replaced]), home / "from-record")
    live, recorded = (load_file(home / name / "student" / "model.safetensors") for name in ("live", "from-record"))
    for name, weight in live.items():
        torch.testing.assert_close(recorded[name], weight, rtol=1e-3, atol=2e-5)


def test_one_recipe_scores_and_trains_from_its_own_record(home: Path) -> None:
    recipe = load_recipe(str(home / "recipe.yaml"), ["score.k=32", "objective.0.forward_kl.temperature=1"])
    outcome = stages.run(recipe, home / "own-record")
    assert outcome.skipped == []
    assert content(home / "own-record" / "signals") == content(home / "scored" / "signals")
    cost = {p.stem: json.loads(p.read_text())["cost"] for p in (home / "own-record" / "stages").glob("*.json")}
    assert cost["train-student"]["teacher_tokens_read"] == 0
    assert cost["score"]["teacher_tokens_read"] > 0
    stages.run(stored(home), home / "others-record")
    own, others = (load_file(home / name / "student" / "model.safetensors") for name in ("own-record", "others-record"))
    assert all(torch.equal(own[name], others[name]) for name in own)


def test_the_record_takes_the_temperature_of_the_objectives(home: Path) -> None:
    stages.score(load_recipe(str(home / "recipe.yaml"), ["objective.forward_kl.temperature=2"]), home / "tempered")
    assert SignalStore(home / "tempered" / "signals").header.temperature == 2
    choices = RunFolder(home / "tempered").stage_record("score").choices
    assert {"name": "score temperature", "value": 2.0, "reason": "that of the objectives that will read it"} in choices


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["score.k=32", "score.temperature=1"], "asks for temperature 2, the teacher's record has 1"),
        (["score.k=32", "objective=[{forward_kl: {temperature: 2}}, reverse_kl]"], "One record has one temperature"),
    ],
)
def test_a_record_that_no_objective_can_read_is_refused_before_it_is_made(
    home: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    recipe = load_recipe(str(home / "recipe.yaml"), ["objective.forward_kl.temperature=2", *overrides])
    with pytest.raises(NeedsError, match=message):
        stages.run(recipe, tmp_path / "run")


def test_a_record_of_another_temperature_is_refused_before_training(home: Path, tmp_path: Path) -> None:
    with pytest.raises(NeedsError, match="asks for temperature 2, the teacher's record has 1"):
        stages.run(stored(home, "objective.forward_kl.temperature=2"), tmp_path / "run")
    assert not (tmp_path / "run" / "data").exists()


def test_a_run_from_the_record_measures_the_teacher_where_its_weights_are(home: Path) -> None:
    stages.run(stored(home, "evaluate=[likelihood, fidelity]"), home / "with-weights")
    evaluation = json.loads((home / "with-weights" / "evaluation.json").read_text())
    assert set(evaluation["models"]) == {"teacher", "student_before", "control", "student"}
    assert evaluation["models"]["teacher"]["fidelity.kl"]["value"] == 0


def test_a_run_from_the_record_alone(home: Path) -> None:
    stages.run(stored(home, model=False), home / "alone")
    evaluation = json.loads((home / "alone" / "evaluation.json").read_text())
    assert set(evaluation["models"]) == {"student_before", "control", "student"}
    assert "likelihood.loss" in evaluation["comparisons"]["student - control"]
    assert (home / "alone" / "report.html").exists()
    assert "teacher_tokens_read" not in json.loads((home / "alone" / "manifest.json").read_text())["cost"] or (
        json.loads((home / "alone" / "manifest.json").read_text())["cost"]["teacher_tokens_read"] == 0
    )


def test_what_asks_about_held_out_text_needs_the_weights(home: Path) -> None:
    with pytest.raises(NeedsError, match=r"fidelity asks the teacher .*\(stored: \{path: ..., model: ...\}\)"):
        stages.run(stored(home, "evaluate=[fidelity]", model=False), home / "refused")


def test_data_that_was_not_scored_is_refused_before_the_first_update(home: Path) -> None:
    with pytest.raises(SignalStoreError, match="stillhouse score"):
        stages.run(stored(home, "data.train.arithmetic.seed=5"), home / "other-data")
    assert not (home / "other-data" / "metrics.jsonl").exists()


def test_another_tokenizer_in_the_store_is_refused(home: Path) -> None:
    shutil.copytree(home / "scored" / "signals", home / "retokenized")
    tokenizer = AutoTokenizer.from_pretrained(home / "retokenized" / "tokenizer")
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(home / "retokenized" / "tokenizer")
    with pytest.raises(SignalStoreError, match="not the tokenizer that the store was scored with"):
        StoredTeacher(str(home / "retokenized")).open()


def test_more_entries_than_tokens_are_refused_before_anything_is_written(home: Path) -> None:
    with pytest.raises(RecipeError, match=r"score.k is 5000, the vocabulary has \d+ tokens"):
        stages.score(load_recipe(str(home / "recipe.yaml"), ["score.k=5000"]), home / "too-many")
    assert not (home / "too-many" / "data").exists()


def test_other_weights_than_those_recorded_are_refused(home: Path, make_student: Any, chat_tokenizer: Any) -> None:
    make_student(seed=7, using=chat_tokenizer, hidden_size=16, max_position_embeddings=512).save(home / "other")
    session = StoredTeacher(str(home / "scored" / "signals"), model=str(home / "other")).open()
    with pytest.raises(SignalStoreError, match="Give the weights that were recorded"):
        _ = session.lm


def test_the_record_keeps_the_contract_of_teachers(home: Path) -> None:
    from stillhouse.data.rendering import Renderer
    from stillhouse.records import read_examples

    session = StoredTeacher(str(home / "scored" / "signals")).open()
    examples = list(read_examples(home / "scored" / "data" / "train.jsonl"))[:3]
    batch = TokenBatch.of(Renderer(session.tokenizer, 512).render(examples))
    check_teacher(session, batch, StoredTeacher.provides, live=False)
    with pytest.raises(NeedsError, match="writes none"):
        session.answer([], None)  # ty: ignore[invalid-argument-type]
