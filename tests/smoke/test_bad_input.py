"""Bad input at the command line: exit code 2, one sentence that names the way out, no traceback, nothing started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.errors import StillhouseError


@pytest.fixture
def recipe(tmp_path: Path, make_student: Any) -> dict[str, Any]:
    make_student(seed=1, hidden_size=32).save(tmp_path / "teacher")
    (tmp_path / "train.jsonl").write_text('{"prompt": "1 + 1 =", "completion": "2"}\n' * 4)
    data = {"path": str(tmp_path / "train.jsonl")}
    return {
        "teacher": {"hf": {"model": str(tmp_path / "teacher")}},
        "student": {"model": str(tmp_path / "teacher")},
        "data": {"train": data, "heldout": dict(data)},
        "objective": ["forward_kl"],
        "train": {"steps": 1, "tokens_per_step": 256},
        "evaluate": ["likelihood"],
    }


def refusal(recipe: dict[str, Any], tmp_path: Path, verb: str = "check", *overrides: str) -> str:
    """What the user is told; fails if the recipe is accepted or the error is not one of ours."""
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(recipe))
    result = CliRunner().invoke(
        app, [verb, str(path), *overrides, *(["--out", str(tmp_path / "run")] if verb == "run" else [])]
    )
    assert isinstance(result.exception, StillhouseError), (result.output, result.exception)
    assert result.exception.exit_code == 2, result.exception
    return str(result.exception)


def test_the_recipe_itself_is_fine(recipe: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(yaml.safe_dump(recipe))
    result = CliRunner().invoke(app, ["check", str(path), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["student"]["share_of_teacher"] == 1.0


def test_unknown_key_with_its_line(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["train"]["setps"] = 3
    message = refusal(recipe, tmp_path)
    assert "bad.yaml:" in message
    assert "Did you mean 'steps'?" in message


def test_unknown_component(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["objective"] = ["foward_kl"]
    message = refusal(recipe, tmp_path)
    assert "bad.yaml:" in message
    assert "Did you mean 'forward_kl'?" in message


def test_missing_file(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["data"]["train"]["path"] = str(tmp_path / "trian.jsonl")
    assert "Did you mean 'train.jsonl'?" in refusal(recipe, tmp_path)


def test_empty_file(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("")
    assert "holds no examples" in refusal(recipe, tmp_path)


def test_a_broken_line_by_its_number(recipe: dict[str, Any], tmp_path: Path) -> None:
    before = '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "comp\n{"prompt": "c", "completion": "d"}\n'
    (tmp_path / "train.jsonl").write_text(before)
    assert "train.jsonl:2" in refusal(recipe, tmp_path)
    assert (tmp_path / "train.jsonl").read_text() == before


def test_a_column_that_is_not_there(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["data"]["train"] |= {"prompt": "prompt", "completion": "completions"}
    assert "Did you mean 'completion'?" in refusal(recipe, tmp_path)


def test_an_empty_completion(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": " "}\n')
    message = refusal(recipe, tmp_path)
    assert "row 2" in message
    assert "nothing to learn from" in message


def test_a_completion_longer_than_the_context(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"prompt": "a", "completion": "long " * 400}) + "\n")
    message = refusal(recipe, tmp_path)
    assert "the limit is 128" in message
    assert "data.overflow" in message


def test_messages_without_a_chat_template(recipe: dict[str, Any], tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    assert "no chat template" in refusal(recipe, tmp_path)


def test_different_tokenizers(recipe: dict[str, Any], tmp_path: Path, bos_tokenizer: Any, make_student: Any) -> None:
    from transformers import AutoTokenizer

    student = make_student(seed=2)
    student.save(tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "other")
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(tmp_path / "other")
    recipe["student"] = {"model": str(tmp_path / "other")}
    message = refusal(recipe, tmp_path)
    assert "different tokenizers" in message
    assert "cross_entropy" in message
    assert "teacher_text" in message


def test_a_pickled_model(recipe: dict[str, Any], tmp_path: Path) -> None:
    import torch

    (tmp_path / "teacher" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "teacher" / "pytorch_model.bin")
    message = refusal(recipe, tmp_path)
    assert "pickled" in message
    assert "save_pretrained" in message


def test_an_impossible_device(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["device"] = "cuda:17"
    assert "not there" in refusal(recipe, tmp_path)


def test_an_override_that_is_none(recipe: dict[str, Any], tmp_path: Path) -> None:
    assert "key.path=value" in refusal(recipe, tmp_path, "check", "train.steps")


def test_errors_reach_the_user_as_a_sentence(tmp_path: Path) -> None:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "stillhouse", "run", "quickstrat"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Did you mean 'quickstart'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_with_json_an_error_is_an_object_too(tmp_path: Path) -> None:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "stillhouse", "check", "quickstrat", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["kind"] == "RecipeError"


def test_a_key_that_stands_twice(recipe: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(yaml.safe_dump(recipe) + "train: {steps: 2}\n")
    result = CliRunner().invoke(app, ["check", str(path)])
    assert isinstance(result.exception, StillhouseError)
    assert "stands twice" in str(result.exception)


@pytest.mark.parametrize(
    ("student", "told"),
    [
        ({}, "exactly one of model"),
        ({"config": {"model_type": "llama"}, "from_teacher": {"layers": 1}}, "found config and from_teacher"),
        ({"from_teacher": {"layers": 1}, "tokenizer": "other"}, "leave tokenizer out"),
        ({"from_teacher": {"layers": 3}}, "layers is 3, the teacher has 2"),
        ({"from_teacher": {"layers": [1, 0]}}, "in their order"),
        ({"from_teacher": {"layers": []}}, "in their order"),
        ({"from_teacher": {"layers": [-1, 0]}}, "in their order"),
        ({"from_teacher": {"layers": 0}}, "at least 1, found 0"),
        ({"from_teacher": {"layers": [0], "choose": "evenly"}}, "needs a number of layers"),
        ({"from_teacher": {"layers": [0, 2]}}, "numbered 0 to 1"),
        ({"from_teacher": {"num_attention_heads": 1}}, "multiple of 2"),
        ({"from_teacher": {"intermediate_size": 25}}, "the teacher has 24"),
        ({"from_teacher": {"intermediate": 12}}, "Did you mean 'intermediate_size'?"),
    ],
    ids=str,
)
def test_an_impossible_cut_of_the_teacher(
    recipe: dict[str, Any], tmp_path: Path, student: dict[str, Any], told: str
) -> None:
    recipe["student"] = student
    assert told in refusal(recipe, tmp_path)
    assert told in refusal(recipe, tmp_path, "run")
    assert not (tmp_path / "run" / "initial").exists()


def test_a_cut_of_an_architecture_that_is_not_known(recipe: dict[str, Any], tmp_path: Path, tokenizer: Any) -> None:
    from stillhouse.student import Student

    config = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    Student.from_config(config, tokenizer).save(tmp_path / "gpt2")
    recipe |= {"teacher": {"hf": {"model": str(tmp_path / "gpt2")}}, "student": {"from_teacher": {"layers": 1}}}
    message = refusal(recipe, tmp_path)
    assert "'gpt2'" in message
    assert "llama, mistral" in message
