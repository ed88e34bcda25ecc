"""A student cut out of its teacher, through all stages: made once, the same in every use, and said so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from stillhouse import stages
from stillhouse.checking.check import check
from stillhouse.errors import NeedsError
from stillhouse.models import CausalLM
from stillhouse.recipe_file import load_recipe
from stillhouse.runs import RunFolder
from stillhouse.workshop import Workshop


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: Any, make_student: Any) -> Path:
    folder = tmp_path_factory.mktemp("models") / "teacher"
    make_student(
        seed=7, using=chat_tokenizer, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3
    ).lm.save(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    return folder


def recipe_of(folder: Path, teacher: Path, tiny_recipe: Any) -> Any:
    kept = {"layers": 2, "num_attention_heads": 2, "intermediate_size": 12, "calibration": 4}
    return load(folder, tiny_recipe(teacher, student={"from_teacher": kept}))


def load(folder: Path, recipe: dict[str, Any]) -> Any:
    (folder / "cut.yaml").write_text(yaml.safe_dump(recipe))
    return load_recipe(str(folder / "cut.yaml"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, teacher: Path, tiny_recipe: Any) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    stages.run(recipe_of(folder, teacher, tiny_recipe), folder / "run")
    return folder / "run"


def test_student_and_control_start_from_the_teacher(finished: Path, teacher: Path) -> None:
    start = CausalLM.load(str(finished / "initial"))
    original = CausalLM.load(str(teacher))
    assert start.model.config.num_hidden_layers == 2
    assert torch.equal(start.model.get_input_embeddings().weight, original.model.get_input_embeddings().weight.detach())
    for role in ("student", "control"):
        trained = CausalLM.load(str(finished / role))
        assert trained.parameters() == start.parameters() < original.parameters()
    measured = json.loads((finished / "evaluation.json").read_text())["models"]
    assert measured["student_before"]["likelihood.loss"] != measured["teacher"]["likelihood.loss"]


def test_the_run_says_what_was_kept_and_what_it_cost(finished: Path) -> None:
    record = RunFolder(finished).stage_record("initial")
    assert record is not None
    assert record.cost["teacher_tokens_read"] > 0
    assert len(record.out["block_influence"]) == 3
    (choice,) = (c for c in record.choices if c["name"] == "layers of the teacher")
    assert choice["value"] == ", ".join(map(str, record.out["layers"]))
    assert "choose: importance; block influence" in choice["reason"]
    kept = "layers 2, num_attention_heads 2, intermediate_size 12"
    assert f"of which it kept: {kept}" in (finished / "student" / "README.md").read_text()
    assert "a cut of it (layers 2, num" in (finished / "report.html").read_text()
    assert not (finished / "initial.partial").exists()


def test_check_tells_the_size_of_the_student(finished: Path, teacher: Path) -> None:
    result = check(RunFolder(finished).recipe())
    assert result["student"]["parameters"] == CausalLM.load(str(finished / "initial")).parameters()
    assert 0 < result["student"]["share_of_teacher"] < 1


def test_a_killed_run_keeps_its_student_and_asks_no_teacher_for_it(
    tmp_path: Path, teacher: Path, tiny_recipe: Any
) -> None:
    recipe = recipe_of(tmp_path, teacher, tiny_recipe)

    class Killed(Exception):
        pass

    def kill(stage: str, done: int, total: int, note: str) -> None:
        if stage == "train student":
            raise Killed

    with pytest.raises(Killed):
        stages.run(recipe, tmp_path / "run", kill)
    weights = tmp_path / "run" / "initial" / "model.safetensors"
    made = weights.stat().st_mtime_ns
    with RunFolder.claim(tmp_path / "run", recipe) as folder:
        shop = Workshop(recipe, folder)
        one, two = shop.new_student(), shop.new_student()
        assert "teacher" not in vars(shop)  # not opened
    assert all(torch.equal(a, b) for a, b in zip(one.lm.model.parameters(), two.lm.model.parameters(), strict=True))
    stages.run(recipe, tmp_path / "run")
    assert weights.stat().st_mtime_ns == made


def test_another_run_of_the_same_recipe_cuts_the_same_student(
    finished: Path, tmp_path: Path, teacher: Path, tiny_recipe: Any
) -> None:
    stages.train_only(recipe_of(tmp_path, teacher, tiny_recipe), tmp_path / "run")
    one, two = (load_file(run / "initial" / "model.safetensors") for run in (finished, tmp_path / "run"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_another_teacher_in_the_same_place_is_cut_anew(tmp_path: Path, teacher: Path, tiny_recipe: Any) -> None:
    place = tmp_path / "teacher"
    shutil.copytree(teacher, place)
    recipe = recipe_of(tmp_path, place, tiny_recipe)
    stages.train_only(recipe, tmp_path / "run")
    before = load_file(tmp_path / "run" / "initial" / "model.safetensors")
    lm = CausalLM.load(str(place))
    with torch.no_grad():
        lm.model.get_input_embeddings().weight.mul_(2)
    lm.save(place)
    outcome = stages.train_only(recipe, tmp_path / "run")
    after = load_file(tmp_path / "run" / "initial" / "model.safetensors")
    name = "model.embed_tokens.weight"
    assert torch.equal(after[name], 2 * before[name])
    assert "train-student" not in outcome.skipped


def test_a_record_has_no_weights_to_cut_unless_they_are_given(tmp_path: Path, teacher: Path, tiny_recipe: Any) -> None:
    stages.score(recipe_of(tmp_path, teacher, tiny_recipe), tmp_path / "scored")
    signals = str(tmp_path / "scored" / "signals")
    student = {"from_teacher": {"layers": [0, 2], "calibration": 4}}
    sections = {"student": student, "evaluate": ["likelihood"], "control": False, "samples": 0}
    recipe = tiny_recipe(teacher, **sections)
    with pytest.raises(NeedsError, match=r"stored has none in this process.*hf"):
        check(load(tmp_path, recipe | {"teacher": {"stored": {"path": signals}}}))
    beside = {"stored": {"path": signals, "model": str(teacher)}}
    stages.train_only(load(tmp_path, recipe | {"teacher": beside}), tmp_path / "run")
    assert RunFolder(tmp_path / "run").read_json("stages/initial.json")["out"]["layers"] == [0, 2]
