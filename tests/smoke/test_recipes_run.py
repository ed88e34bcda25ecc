"""The recipes on real tasks, three updates each, through the command line: their data in small, tiny models, and the
teacher in this process or behind a server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from building import TINY
from transformers import PreTrainedTokenizerBase

from stillhouse.data import arithmetic
from stillhouse.recipe import builtin_recipes
from stillhouse.testing.server import answering, serve

STUDENT = {**TINY, "num_hidden_layers": 1, "max_position_embeddings": 384}
SMALL = [
    f"student={json.dumps({'config': STUDENT})}",
    "data.max_length=384",
    *(f"train.{key}" for key in ("steps=3", "tokens_per_step=1024", "accumulate=2", "warmup=1", "evaluate_every=2")),
    "samples=2",
]
BUILT_IN = "teacher={hf: {model: 'stillhouse:arithmetic'}}"


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stillhouse", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def run(recipe: str, *overrides: str, out: Path) -> Path:
    done = cli("run", recipe, *SMALL, *overrides, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert (out / "report.html").stat().st_size > 10_000
    return out


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def measured(run: Path) -> dict[str, Any]:
    return json.loads((run / "evaluation.json").read_text())["models"]


@pytest.fixture(scope="module")
def teacher(
    tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: PreTrainedTokenizerBase, make_student: Any
) -> str:
    """Random, with a chat template: a recipe in `teacher.hf.model`."""
    folder = tmp_path_factory.mktemp("models") / "teacher"
    make_student(seed=7, using=chat_tokenizer, hidden_size=32, max_position_embeddings=384).save(folder)
    return f"teacher={{hf: {{model: {folder}}}}}"


@pytest.fixture(scope="module")
def pubmedqa(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Abstracts in PubMedQA's form, as overrides."""
    folder, decisions = tmp_path_factory.mktemp("pubmedqa"), ["yes", "no", "maybe"]
    rows = [
        {
            "pmid": str(n),
            "question": f"Does drug {n} help?",
            "contexts": [f"Drug {n} was given.", f"{n} of 9 got well."],
            "long_answer": f"Drug {n} did what it could.",
            "final_decision": decisions[n % 3],
        }
        for n in range(9)
    ]
    files = {"train": write(folder / "train.jsonl", rows[:6]), "heldout": write(folder / "test.jsonl", rows[6:])}
    return [f"data.{name}.path={path}" for name, path in files.items()]


@pytest.fixture(scope="module")
def gsm8k(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Problems that the built-in teacher solves, in GSM8K's form, as overrides."""
    folder = tmp_path_factory.mktemp("gsm8k")
    problems = arithmetic.generate(10, seed=1, steps=(2, 2), distractors=0.0)
    rows = [{key: arithmetic.row(problem)[key] for key in ("question", "answer")} for problem in problems]
    files = {"train": write(folder / "train.jsonl", rows[:7]), "heldout": write(folder / "test.jsonl", rows[7:])}
    return [f"data.{name}.path={path}" for name, path in files.items()]


@pytest.fixture(scope="module")
def traces(gsm8k: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What `gsm8k-rationales` is given here: beside the problems SVAMP's form, and one greedy trace of each."""
    rows = [{"Body": f"Ann has {n} pens.", "Question": "How many?", "Equation": f"{n}.0", "Answer": n} for n in (3, 4)]
    svamp = write(tmp_path_factory.mktemp("svamp") / "test.jsonl", rows)
    making = {"samples": 1, "temperature": 0, "template": '"{prompt}"', "max_new_tokens": 96}
    return [
        *gsm8k,
        f"data.out_of_domain.svamp.path={svamp}",
        *(f"data.steps.rationales.{key}={value}" for key, value in making.items()),
        "evaluate.tasks.max_new_tokens=4",
        "evaluate.diversity.max_new_tokens=4",
    ]


def test_pubmedqa_learns_decision_and_reason_of_abstracts(teacher: str, pubmedqa: list[str], tmp_path: Path) -> None:
    out = run("pubmedqa", teacher, *pubmedqa, out=tmp_path / "run")
    example = read(out / "data" / "train.jsonl")[2]
    assert example["prompt"].startswith("Drug 2 was given.\n2 of 9 got well.\n\nQuestion: Does drug 2 help?\n")
    assert (example["rationale"], example["completion"]) == ("Drug 2 did what it could.", "maybe")
    for role, metrics in measured(out).items():
        assert metrics["tasks.accuracy"]["n"] == 3, role
        assert {"likelihood.loss", "fidelity.kl", "calibration.ece", "generalisation.train_loss"} <= set(metrics), role
    for row in read(out / "samples.jsonl"):
        assert re.fullmatch(r"(yes|no|maybe)\nDrug \d did what it could\.", row["reference"])
        assert set(row["outputs"].values()) <= {"yes", "no", "maybe"}


def test_pubmedqa_with_a_closed_teacher_is_what_the_recipe_says_in_its_comments(
    pubmedqa: list[str], tmp_path: Path
) -> None:
    commented = re.findall(
        r"^  # (- rationales:|    \w+: .*)$", builtin_recipes()["pubmedqa"].read_text(), re.MULTILINE
    )
    steps = yaml.safe_load("\n".join(commented))

    def reason(asked: Any) -> str:
        text = asked[-1]["content"]
        assert "was given.\n" in text
        assert text.endswith("End with: The answer is yes, no or maybe.")
        return "One might say maybe. Some got well. The answer is yes."

    with serve(answering(reason)) as server:
        behind = {"url": server.url, "model": "teacher", "store": str(tmp_path / "requests.sqlite")}
        out = run(
            "pubmedqa",
            f"teacher={json.dumps({'server': behind})}",
            f"student={json.dumps({'config': STUDENT, 'tokenizer': 'stillhouse:arithmetic'})}",
            *pubmedqa,
            f"data.steps={json.dumps(steps)}",
            "objective=[cross_entropy]",
            "evaluate=[likelihood, {tasks: {form: choice, choices: ['yes', 'no', 'maybe']}}]",
            out=tmp_path / "run",
        )
        assert len(server.seen) == 6
    kept = read(out / "data" / "train.jsonl")
    assert [(e["rationale"], e["completion"]) for e in kept] == [("One might say maybe. Some got well. ", "yes")] * 2
    assert set(measured(out)) == {"student_before", "control", "student"}


def test_gsm8k_tells_steps_from_answers(teacher: str, gsm8k: list[str], tmp_path: Path) -> None:
    out = run("gsm8k", teacher, *gsm8k, "evaluate.tasks.max_new_tokens=4", out=tmp_path / "run")
    for example in read(out / "data" / "heldout.jsonl"):
        assert example["completion"].startswith("#### ")
        assert "=" in example["rationale"]
    for role, metrics in measured(out).items():
        assert metrics["tasks.accuracy"]["n"] == 3, role


def test_gsm8k_rationales_are_the_same_in_process_and_behind_a_server(traces: list[str], tmp_path: Path) -> None:
    here = run("gsm8k-rationales", BUILT_IN, *traces, out=tmp_path / "here")
    with serve("stillhouse:arithmetic") as server:
        behind = {"url": server.url, "model": "teacher", "api": "completions", "tokenizer": "stillhouse:arithmetic"}
        behind["store"] = str(tmp_path / "requests.sqlite")
        there = run("gsm8k-rationales", f"teacher={json.dumps({'server': behind})}", *traces, out=tmp_path / "there")
        assert len(server.seen) == 7
    made = {out: read(out / "data" / "train.jsonl") for out in (here, there)}
    for rows in made.values():
        for row in rows:
            row["meta"]["made_by"].pop("teacher")
    assert made[here] == made[there]
    assert {row["meta"]["made_by"]["verified"] for row in made[here]} == {"numeric"}
    assert all(row["rationale"] and row["completion"].startswith("#### ") for row in made[here])
    assert set(measured(here)) == {"teacher", *measured(there)}
    for role, metrics in measured(there).items():
        assert metrics["tasks.accuracy"]["n"] == 3, role
        assert metrics["svamp:tasks.accuracy"]["n"] == 2, role
        assert {"diversity.distinct_2", "generalisation.train_loss", "svamp:likelihood.loss"} <= set(metrics), role


def test_a_budget_too_small_for_gsm8k_rationales_is_refused_before_the_first_call(
    traces: list[str], tmp_path: Path
) -> None:
    with serve(answering(lambda _: "nothing")) as server:
        behind = {"url": server.url, "model": "teacher", "tokenizer": "stillhouse:arithmetic", "budget": {"calls": 6}}
        behind["store"] = str(tmp_path / "requests.sqlite")
        done = cli("check", "gsm8k-rationales", f"teacher={json.dumps({'server': behind})}", *SMALL, *traces)
        assert done.returncode == 1
        assert "calls: 6 of 6 are left, 7 more are needed" in done.stderr
        assert "Nothing was asked yet." in done.stderr
        assert not server.seen
