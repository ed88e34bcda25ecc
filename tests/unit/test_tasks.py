"""Tasks: reading answers, judging them, and scoring choices, on real questions and real models' solutions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from building import CHAT_TEMPLATE, MakeStudent, build_tokenizer
from torch.nn import functional

from stillhouse import registry
from stillhouse.data.batching import TokenBatch
from stillhouse.data.questions import one_of, questions
from stillhouse.data.rendering import Renderer
from stillhouse.errors import DataError, ModelError, RecipeError
from stillhouse.evaluation.base import Heldout, Result
from stillhouse.evaluation.tasks import Tasks
from stillhouse.models import CausalLM
from stillhouse.records import Example
from stillhouse.statistics import estimate


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        yield from map(json.loads, stream)


def heldout(examples: list[Example], tokenizer: Any, name: str = "") -> Heldout:
    renderer = Renderer(tokenizer, 128)
    return Heldout(name, examples, [], renderer)


def task(**settings: Any) -> Tasks:
    """As a recipe builds it."""
    return registry.build("evaluator", "tasks", settings)


def accuracy(result: Result, name: str = "accuracy") -> float:
    return estimate(result.measurements[name]).value


QUESTIONS = [
    Example(id="a", prompt="2 + 2 =", completion=" so\n#### 4"),
    Example(id="b", prompt="2 + 3 =", completion="5", meta={"answer": "5"}),
    Example(id="c", prompt="a half?", completion="x", meta={"final": 0.5}),
    Example(id="d", prompt="none?", completion="1,000"),
]


TURNS = ({"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"})
LESSONS = {
    "2 + 2 =": " It is #### 4.0",
    "2 + 3 =": " 6",
    "a half?": " 1/2",
    "none?": " I do not know.",
    "first": " (b).\n\nQ: another",
    "second": " (B) because",
    "third": " maybe (b)",
    "Facts: one\ntwo. 2 + 2 = {x}": " 4",
    "<|user|>\n2 + 2?<eos>\n<|assistant|>\n": "four, that is 4",
    **{f"Ann has {n}. How many?": f" {min(n, 3)}" for n in range(5)},
}
"""What the pupil answers to what, right and wrong."""


@pytest.fixture(scope="module")
def pupil(make_student: MakeStudent, tokenizer: Any) -> CausalLM:
    """A small model that has learnt a few answers by heart, so that what is judged is known."""
    lm = make_student(hidden_size=64, intermediate_size=128, num_attention_heads=4, initializer_range=0.05).lm
    lessons = [Example(id=prompt, prompt=prompt, completion=answer) for prompt, answer in LESSONS.items()]
    batch = TokenBatch.of(Renderer(tokenizer, 128).render(lessons))
    targets = batch.targets_BT[batch.trained_BT]
    optimizer = torch.optim.AdamW(lm.model.parameters(), lr=5e-3)
    for _ in range(200):
        logits = lm.head(lm.hidden(batch.tokens_BT, batch.positions_BT)[batch.trained_BT])
        loss = functional.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 5e-3:
            break
    return lm


class TestWritten:
    def test_numbers_are_judged(self, pupil: CausalLM, tokenizer: Any) -> None:
        found = Tasks(max_new_tokens=40).evaluate(pupil, heldout(QUESTIONS, tokenizer), None)
        assert found.outputs == {e.id: LESSONS[e.prompt or ""] for e in QUESTIONS}
        assert found.correct == {"a": True, "b": False, "c": True, "d": False}
        assert accuracy(found) == 0.5

    def test_exact_answers_are_judged(self, pupil: CausalLM, tokenizer: Any) -> None:
        asked = [Example(id=prompt, prompt=prompt, completion="(B)") for prompt in ("first", "second", "third")]
        found = Tasks(form="exact", max_new_tokens=40).evaluate(pupil, heldout(asked, tokenizer), None)
        assert found.outputs["second"] == " (B) because"
        assert found.correct == {"first": True, "second": False, "third": False}

    def test_a_template_builds_the_prompt(self, pupil: CausalLM, tokenizer: Any) -> None:
        asked = Example(id="a", prompt="2 + 2 =", completion="4", meta={"facts": ["one", "two"], "x": "{x}"})
        templated = Tasks(template="Facts: {facts}. {prompt} {x}", max_new_tokens=40)
        assert accuracy(templated.evaluate(pupil, heldout([asked], tokenizer), None)) == 1
        without = dataclasses.replace(asked, meta={"facts": ["one", "two"]})
        with pytest.raises(DataError, match=r"\{x\}.*no such column"):
            templated.evaluate(pupil, heldout([without], tokenizer), None)

    def test_samples_are_averaged(self, make_student: MakeStudent, tokenizer: Any) -> None:
        lm = make_student(initializer_range=0.02).lm  # nearly uniform: every sample is another
        sampled = Tasks(temperature=1.0, samples=4, max_new_tokens=4, seed=3)
        found = sampled.evaluate(lm, heldout(QUESTIONS, tokenizer), None)
        assert found.measurements["accuracy"].sums_EM[:, 1].tolist() == [4, 4, 4, 4]
        assert found.outputs.keys() == {"a", "b", "c", "d"}
        assert sampled.evaluate(lm, heldout(QUESTIONS, tokenizer), None).outputs == found.outputs
        other = Tasks(temperature=1.0, samples=4, max_new_tokens=4, seed=4)
        assert other.evaluate(lm, heldout(QUESTIONS, tokenizer), None).outputs != found.outputs

    def test_greedy_writing_is_the_models_own(self, make_student: MakeStudent, tokenizer: Any) -> None:
        lm = make_student().lm
        found = Tasks(max_new_tokens=6).evaluate(lm, heldout(QUESTIONS, tokenizer), None)
        with torch.no_grad():
            ids = tokenizer(QUESTIONS[0].prompt)["input_ids"]
            start = len(ids)
            for _ in range(6):
                ids.append(int(lm.model.eval()(torch.tensor([ids])).logits[0, -1, : lm.vocabulary].argmax()))
        written = ids[start:]
        ended = written.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in written else None
        assert found.outputs["a"] == tokenizer.decode(written[:ended], skip_special_tokens=True)

    def test_a_conversation_is_asked_and_judged(self, pupil: CausalLM) -> None:
        tokenizer = build_tokenizer(chat_template=CHAT_TEMPLATE)
        chatting = CausalLM("pupil", pupil.model, tokenizer)
        data = heldout([Example(id="a", messages=TURNS)], tokenizer)
        found = Tasks(max_new_tokens=40).evaluate(chatting, data, None)
        assert found.outputs == {"a": "four, that is 4"}
        assert found.correct == {"a": True}

    def test_an_answer_without_a_number_is_the_datas_fault(self, make_student: MakeStudent, tokenizer: Any) -> None:
        asked = [*QUESTIONS, Example(id="row-5", prompt="why?", completion="because")]
        with pytest.raises(DataError, match="'row-5' has the answer 'because', which holds no number"):
            Tasks().evaluate(make_student().lm, heldout(asked, tokenizer), None)

    def test_no_answer_at_all(self, make_student: MakeStudent, tokenizer: Any) -> None:
        with pytest.raises(DataError, match=r"'a' holds no answer to judge by"):
            Tasks().evaluate(make_student().lm, heldout([Example(id="a", prompt="why?")], tokenizer), None)
        with pytest.raises(DataError, match=r"no column 'anwser'.*Did you mean 'answer'"):
            Tasks(answer="anwser").evaluate(make_student().lm, heldout(QUESTIONS[1:2], tokenizer), None)

    def test_a_prompt_beyond_the_context(self, make_student: MakeStudent, tokenizer: Any) -> None:
        asked = [Example(id="a", prompt="2 + 2 = " * 100, completion="4")]
        with pytest.raises(ModelError, match="leaves no room"):
            Tasks().evaluate(make_student().lm, heldout(asked, tokenizer), None)

    def test_running_text_asks_nothing(self, make_student: MakeStudent, tokenizer: Any) -> None:
        text = [Example(id="a", text="the cat sat")]
        assert Tasks().evaluate(make_student().lm, heldout(text, tokenizer, "other"), None) == Result()
        with pytest.raises(DataError, match="asks no question"):
            Tasks().evaluate(make_student().lm, heldout(text, tokenizer), None)


def score(lm: CausalLM, prompt: str, continuation: str) -> float:
    """Log-probability of a continuation, token by token, through the model's own forward."""
    start, ids = len(lm.tokenizer(prompt)["input_ids"]), lm.tokenizer(prompt + continuation)["input_ids"]
    with torch.no_grad():
        logq = lm.model.eval()(torch.tensor([ids])).logits[0, :, : lm.vocabulary].double().log_softmax(-1)
    return sum(float(logq[t - 1, ids[t]]) for t in range(start, len(ids)))


class TestChoices:
    @pytest.mark.parametrize("normalize", ["none", "bytes"])
    def test_the_likeliest_continuation_is_taken(
        self, make_student: MakeStudent, tokenizer: Any, normalize: str
    ) -> None:
        choices = ["yes", "no", "maybe it is so"]
        asked = [Example(id=f"q{n}", prompt=f"Is {n} odd?", completion=choices[n % 3]) for n in range(8)]
        lm = make_student(seed=7).lm
        found = task(form="choice", choices=choices, normalize=normalize).evaluate(lm, heldout(asked, tokenizer), None)
        for n, example in enumerate(asked):
            by_hand = [
                score(lm, example.prompt or "", f" {c}") / (len(c) + 1 if normalize == "bytes" else 1) for c in choices
            ]
            assert found.outputs[example.id] == choices[int(np.argmax(by_hand))]
            assert found.correct[example.id] == (int(np.argmax(by_hand)) == n % 3)

    @pytest.mark.parametrize("answer", ["blue", 2, "C", "c", " blue "])
    def test_an_answer_is_text_number_or_letter(
        self, make_student: MakeStudent, tokenizer: Any, answer: str | int
    ) -> None:
        asked = [Example(id="a", prompt="The sky is", meta={"of": ["red", "green", "blue"], "right": answer})]
        settings: dict[str, Any] = {"form": "choice", "choices": "of", "answer": "right"}
        lm = make_student(seed=1).lm
        found = task(**settings).evaluate(lm, heldout(asked, tokenizer), None)
        assert found.correct["a"] == (found.outputs["a"] == "blue")

    @pytest.mark.parametrize("answer", ["purple", 3, -1, "D", "ab", "", True])
    def test_an_answer_that_is_no_choice(self, make_student: MakeStudent, tokenizer: Any, answer: str | int) -> None:
        asked = [Example(id="a", prompt="The sky is", meta={"of": ["red", "green", "blue"], "right": answer})]
        with pytest.raises(DataError, match="none of its choices"):
            task(form="choice", choices="of", answer="right").evaluate(
                make_student().lm, heldout(asked, tokenizer), None
            )

    def test_a_column_that_holds_no_list(self, make_student: MakeStudent, tokenizer: Any) -> None:
        with pytest.raises(DataError, match=r"'5' in the column 'answer'.*a list of at least two"):
            task(form="choice", choices="answer").evaluate(make_student().lm, heldout(QUESTIONS[1:2], tokenizer), None)

    def test_without_choices_they_are_the_answers_of_all_rows(self, make_student: MakeStudent, tokenizer: Any) -> None:
        asked = [Example(id=str(n), prompt=f"Is {n} odd?", completion=["no", "yes", "maybe"][n % 3]) for n in range(6)]
        lm = make_student(seed=2).lm
        found, named = (
            task(form="choice", limit=2, choices=choices).evaluate(lm, heldout(asked, tokenizer), None)
            for choices in (None, ["maybe", "no", "yes"])
        )
        assert len(found.outputs) == 2
        assert (found.outputs, found.correct) == (named.outputs, named.correct)

    def test_what_joins_prompt_and_choice(self) -> None:
        ask = Example(id="q", prompt="Answer:", completion="x", rationale="y")
        assert one_of(ask, "yes", 1, spaced=True).completion == " yes"
        assert one_of(ask, " yes", 1, spaced=True).completion == " yes"
        assert one_of(ask, "yes", 1, spaced=False).completion == "yes"
        assert one_of(Example(id="q", prompt="A:\n"), "yes", 1, spaced=True).completion == "yes"
        assert one_of(ask, "yes", 1, spaced=True).rationale is None

    def test_the_end_of_the_text_is_not_scored(self, make_student: MakeStudent, tokenizer: Any) -> None:
        rendered = Renderer(tokenizer, 128).render([one_of(Example(id="q", prompt="a"), "yes", 0, spaced=True)])
        assert (
            tokenizer.decode([t for t, on in zip(rendered[0].targets, rendered[0].trained, strict=True) if on])
            == " yes"
        )

    def test_a_chat_model_is_asked_by_its_template(self, make_student: MakeStudent) -> None:
        tokenizer = build_tokenizer(chat_template=CHAT_TEMPLATE)
        lm = make_student(using=tokenizer, seed=3).lm
        asked = [Example(id="q", prompt="odd?", completion="no"), Example(id="r", prompt="even?", completion="yes")]
        found = task(form="choice").evaluate(lm, heldout(asked, tokenizer), None)
        by_hand = [score(lm, "<|user|>\nodd?<eos>\n<|assistant|>\n", choice) for choice in ("no", "yes")]
        assert found.outputs["q"] == ("no", "yes")[int(np.argmax(by_hand))]

    def test_a_conversation_has_no_prompt_to_continue(self, make_student: MakeStudent) -> None:
        tokenizer = build_tokenizer(chat_template=CHAT_TEMPLATE)
        turns = ({"role": "user", "content": "odd?"}, {"role": "assistant", "content": "no"})
        asked = [Example(id="a", messages=turns)]
        with pytest.raises(DataError, match="is a conversation"):
            task(form="choice", choices=["no", "yes"]).evaluate(
                make_student(using=tokenizer).lm, heldout(asked, tokenizer), None
            )


class TestOwnData:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "sums.jsonl"
        lines = [json.dumps({"Body": f"Ann has {n}", "Question": "How many?", "Answer": float(n)}) for n in range(5)]
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    def test_is_read_as_a_source(self, pupil: CausalLM, tokenizer: Any, file: Path) -> None:
        source = {"path": str(file), "prompt": "Body"}
        own = task(name="sums", data=source, template="{Body}. {Question}", answer="Answer", max_new_tokens=40)
        found = own.evaluate(pupil, heldout(QUESTIONS, tokenizer), None)
        assert accuracy(found, "sums") == 0.8
        assert found.measurements["sums"].ids[0] == "sums-1"
        assert found.correct["sums/sums-5"] is False
        assert own.metrics()["sums"].title == "Accuracy on sums"

    def test_is_measured_beside_the_main_data_alone(
        self, make_student: MakeStudent, tokenizer: Any, file: Path
    ) -> None:
        own = task(data={"path": str(file), "prompt": "Body"}, answer="Answer")
        assert own.once
        assert not task().once
        assert own.evaluate(make_student().lm, heldout(QUESTIONS, tokenizer), None).measurements.keys() == {"accuracy"}

    def test_settings_are_a_value(self, file: Path) -> None:
        made = [task(data={"path": str(file), "prompt": "Body"}, form="choice", choices=["a", "b"]) for _ in range(2)]
        assert made[0] == made[1]
        assert hash(made[0]) == hash(made[1])
        assert str(file) in repr(made[0])

    @pytest.mark.parametrize(
        ("data", "settings"),
        [
            ({"path": "gsm8k/test.jsonl", "prompt": "question", "completion": "answer"}, {}),
            ({"path": "svamp/test.jsonl", "prompt": "Body"}, {"template": "{Body}. {Question}", "answer": "Answer"}),
            (
                {"path": "bbh/boolean_expressions.jsonl", "prompt": "input", "completion": "target"},
                {"form": "exact", "template": "Q: {input}\nA:"},
            ),
            (
                {"path": "pubmedqa/test.jsonl", "prompt": "question"},
                {"form": "choice", "template": "Question: {question}\nAnswer:", "answer": "final_decision"},
            ),
        ],
    )
    def test_real_benchmarks_on_a_real_model(
        self, shared: Path, stories: str, data: dict[str, Any], settings: dict[str, Any]
    ) -> None:
        lm = CausalLM.load(stories)
        own = task(
            name="t",
            data={**data, "path": str(shared / "data" / data["path"])},
            limit=12,
            max_new_tokens=12,
            **settings,
        )
        found = own.evaluate(lm, Heldout("", [], [], Renderer(lm.tokenizer, lm.context)), None)
        assert estimate(found.measurements["t"]).n == 12
        assert 0 <= accuracy(found, "t") <= 1
        assert all(isinstance(text, str) for text in found.outputs.values())

    def test_the_abstract_of_pubmedqa_fills_the_template(self, shared: Path) -> None:
        row = next(rows(shared / "data" / "pubmedqa" / "test.jsonl"))
        example = Example(id="a", prompt=row.pop("question"), meta=row)
        (asked,) = questions(
            [example], None, template="{contexts}\n\nQuestion: {prompt}\nAnswer:", answer="final_decision", by="tasks"
        )
        assert asked.example.prompt is not None
        assert asked.example.prompt.startswith(row["contexts"][0] + "\n" + row["contexts"][1])
        assert asked.gold == row["final_decision"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "samples is 0"),
        ({"samples": 3}, "samples is 3 at temperature 0"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"limit": 0}, "limit is 0"),
        ({"name": "my task"}, "name is 'my task'"),
        ({"template": "Answer:"}, "the same for every row"),
        ({"form": "chioce"}, "'numeric', 'choice' or 'exact'"),
        ({"data": {"teacher_text": {"count": 3}}}, "answers that are known"),
        ({"data": {"pth": "x"}}, "pth"),
        ({"choices": [True, False]}, "valid string"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        task(**settings)
