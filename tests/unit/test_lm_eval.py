"""lm-eval's tasks in process: local YAML files on real tiny models, against our own tasks and sums by hand."""

from __future__ import annotations

import logging
import math
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from building import CHAT_TEMPLATE, COLOUR_ROWS, COLOURS, MakeStudent, build_tokenizer, write_task

from stillhouse import registry
from stillhouse.data.arithmetic import generate, row
from stillhouse.data.rendering import Renderer
from stillhouse.errors import DataError, MissingExtraError, ModelError, RecipeError
from stillhouse.evaluation.base import Heldout, Result
from stillhouse.evaluation.lm_eval import LmEval
from stillhouse.evaluation.tasks import Tasks
from stillhouse.models import CausalLM
from stillhouse.statistics import compare, estimate

WRITE = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
READ = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [
        {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
        {"metric": "byte_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
        {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
    ],
}
TEXTS = ["the cat sat on the mat", "Ann has 2 apples and buys 3 apples.", "abcabc abc", "the rat ate the cat"]

Define = Callable[..., str]


@pytest.fixture
def define(tmp_path: Path) -> Define:
    """`define("colours", COLOURS, rows)` writes a task; returns the folder for `include_path`."""
    return partial(write_task, tmp_path)


def harness(*tasks: str, **settings: Any) -> LmEval:
    """As a recipe builds it."""
    return registry.build("evaluator", "lm_eval", {"tasks": list(tasks), **settings})


def nothing(lm: CausalLM) -> Heldout:
    return Heldout("", [], [], Renderer(lm.tokenizer, 128))


def measure(evaluator: LmEval, lm: CausalLM) -> Result:
    return evaluator.evaluate(lm, nothing(lm), None)


def column(result: Result, name: str) -> list[float]:
    return result.measurements[name].sums_EM[:, 0].tolist()


def logprobs(lm: CausalLM, ids: list[int]) -> torch.Tensor:
    """Of each next token, through the model's own forward."""
    with torch.no_grad():
        logits = lm.model.eval()(torch.tensor([ids])).logits[0, :-1, : lm.vocabulary].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


class TestChoice:
    def test_is_what_our_own_tasks_say(self, make_student: MakeStudent, define: Define, tmp_path: Path) -> None:
        folder, lm = define("colours", COLOURS, COLOUR_ROWS), make_student(seed=7).lm
        found = measure(harness("colours", include_path=folder, batch_size=4), lm)
        source = {"path": str(tmp_path / "colours.jsonl"), "prompt": "question"}
        for metric, normalize in (("acc", "none"), ("acc_norm", "bytes")):
            settings = {"form": "choice", "data": source, "choices": "choices", "answer": "label"}
            if normalize == "bytes":  # ours counts the space before a choice, lm-eval's does not
                own = [self.by_hand(lm, row) for row in COLOUR_ROWS]
            else:
                own = column(registry.build("evaluator", "tasks", settings).evaluate(lm, nothing(lm), None), "accuracy")
            assert column(found, f"colours/{metric}") == own
        assert 0 < sum(column(found, "colours/acc")) < 9

    def by_hand(self, lm: CausalLM, row: dict[str, Any]) -> float:
        start = len(lm.tokenizer(row["question"])["input_ids"])
        scores = []
        for choice in row["choices"]:
            ids = lm.tokenizer(f"{row['question']} {choice}")["input_ids"]
            scores.append(float(logprobs(lm, ids)[start - 1 :].sum()) / len(choice))
        return float(int(np.argmax(scores)) == row["label"])

    def test_two_models_are_compared_by_example(self, make_student: MakeStudent, define: Define) -> None:
        asked = harness("colours", include_path=define("colours", COLOURS, COLOUR_ROWS))
        one, other = (measure(asked, make_student(seed=seed).lm).measurements["colours/acc"] for seed in (7, 8))
        found = compare(one, other)
        assert found.n == 9
        assert found.difference == pytest.approx(one.sums_EM[:, 0].mean() - other.sums_EM[:, 0].mean())
        assert not compare(one, one).resolved

    def test_other_data_is_no_pair(self, make_student: MakeStudent, define: Define) -> None:
        lm = make_student(seed=7).lm
        asked = harness("colours", include_path=define("colours", COLOURS, COLOUR_ROWS))
        before = measure(asked, lm).measurements["colours/acc"]
        define("colours", COLOURS, [{**COLOUR_ROWS[0], "question": "Another?"}, *COLOUR_ROWS[1:]])
        after = measure(asked, lm).measurements["colours/acc"]
        with pytest.raises(DataError, match="8 of them shared"):
            compare(before, after)

    def test_the_first_examples_alone(self, make_student: MakeStudent, define: Define) -> None:
        first = harness("colours", include_path=define("colours", COLOURS, COLOUR_ROWS), limit=4, name="first")
        found = measure(first, make_student(seed=7).lm)
        assert found.measurements.keys() == {"first/colours/acc", "first/colours/acc_norm"}
        assert [name.partition("-")[0] for name in found.measurements["first/colours/acc"].ids] == ["0", "1", "2", "3"]

    def test_columns_of_the_head_that_are_no_tokens(
        self, make_student: MakeStudent, define: Define, pad_head: Callable[[CausalLM, int], None]
    ) -> None:
        folder = define("colours", COLOURS, COLOUR_ROWS)
        define("words", WRITE, [{"question": row["question"], "answer": "red"} for row in COLOUR_ROWS])
        define("texts", READ, [{"text": text} for text in TEXTS])
        asked = harness("colours", "words", "texts", include_path=folder)
        plain, padded = make_student(seed=7).lm, make_student(seed=7).lm
        pad_head(padded, 64)
        one, other = measure(asked, plain), measure(asked, padded)
        assert one.outputs == other.outputs
        for name, measured in one.measurements.items():
            np.testing.assert_allclose(measured.sums_EM, other.measurements[name].sums_EM, rtol=1e-5)


class TestWriting:
    def test_the_built_in_teacher_solves_what_our_own_tasks_ask(self, define: Define, tmp_path: Path) -> None:
        teacher = CausalLM.load("stillhouse:arithmetic")
        problems = generate(count=6, seed=3, steps=(1, 2), split="heldout")
        rows = [{"question": r["question"], "answer": str(r["final"])} for r in map(row, problems)]
        read = {"function": "regex", "regex_pattern": r"#### (-?[0-9.,]+)"}
        config = {
            **WRITE,
            "generation_kwargs": {"until": ["\n\n\n"], "max_gen_toks": 160},
            "filter_list": [{"name": "number", "filter": [read, {"function": "take_first"}]}],
        }
        found = measure(harness("sums", include_path=define("sums", config, rows), chat=True), teacher)
        source = {"path": str(tmp_path / "sums.jsonl"), "prompt": "question"}
        own = registry.build("evaluator", "tasks", {"data": source, "answer": "answer", "max_new_tokens": 160})
        expected = own.evaluate(teacher, nothing(teacher), None)
        assert column(found, "sums/exact_match") == column(expected, "accuracy")
        assert sum(column(found, "sums/exact_match")) >= 4
        assert [text.strip() for text in found.outputs.values()] == [text.strip() for text in expected.outputs.values()]

    def test_every_model_sees_the_same_solved_examples(self, make_student: MakeStudent, define: Define) -> None:
        folder, lm = (
            define("w", WRITE, [{"question": f"{n} is", "answer": "abc"[n % 3]} for n in range(9)]),
            make_student(),
        )
        asked = harness("w", include_path=folder, num_fewshot=3)
        first, again = measure(asked, lm.lm), measure(asked, lm.lm)  # their sampler has moved on in between
        assert first.outputs == again.outputs
        assert first.outputs != measure(harness("w", include_path=folder, num_fewshot=3, seed=1), lm.lm).outputs
        assert first.outputs != measure(harness("w", include_path=folder), lm.lm).outputs

    def test_several_ways_of_reading_an_answer(self, make_student: MakeStudent, define: Define) -> None:
        filters = [
            {"name": "strict-match", "filter": [{"function": "take_first"}]},
            {"name": "any", "filter": [{"function": "regex", "regex_pattern": "(.?)"}, {"function": "take_first"}]},
        ]
        lm = make_student().lm
        rows = [{"question": row["question"], "answer": "x"} for row in COLOUR_ROWS]
        written = measure(harness("w", include_path=define("w", WRITE, rows)), lm).outputs
        rows = [{**row, "answer": text[:1]} for row, text in zip(rows, written.values(), strict=True)]
        asked = harness("w", include_path=define("w", {**WRITE, "filter_list": filters}, rows))
        found = measure(asked, lm)
        assert found.measurements.keys() == {"w/exact_match/strict-match", "w/exact_match/any"}
        assert found.measurements.keys() <= asked.metrics().keys()
        strict = [float(text == text[:1]) for text in written.values()]
        assert column(found, "w/exact_match/strict-match") == strict
        assert asked.metrics()["w/exact_match/any"].title == "Exact match on w (any)"

    def test_a_score_of_the_whole_corpus_is_an_estimate(self, make_student: MakeStudent, define: Define) -> None:
        config = {**WRITE, "metric_list": [{"metric": "chrf", "aggregation": "chrf", "higher_is_better": True}]}
        rows = [{"question": row["question"], "answer": "the cat sat on the mat"} for row in COLOUR_ROWS]
        found = measure(harness("w", include_path=define("w", config, rows)), make_student().lm)
        score = found.estimates["w/chrf"]
        assert score.n == 9
        assert score.stderr is not None
        assert 0 < score.stderr < 100

    def test_an_answer_longer_than_the_context(self, make_student: MakeStudent, define: Define) -> None:
        config = {**WRITE, "generation_kwargs": {"until": ["\n"]}}
        folder = define("w", config, [{"question": "a", "answer": "b"}] * 2)
        lm = make_student().lm
        with pytest.raises(ModelError, match=r"write 256 tokens.*is 128.*max_new_tokens"):
            measure(harness("w", include_path=folder), lm)
        assert measure(harness("w", include_path=folder, max_new_tokens=4), lm).outputs.keys()

    def test_prompts_that_are_cut_are_counted(self, make_student: MakeStudent, define: Define) -> None:
        rows = [{"question": "2 + 2 = " * (30 * (n == 1)) + "so", "answer": "4"} for n in range(3)]
        asked = harness("w", include_path=define("w", WRITE, rows))
        found = measure(asked, make_student().lm)
        assert column(found, "w/truncated") == [0, 1, 0]
        assert asked.metrics()["w/truncated"].better == "lower"

    def test_a_chat_template_is_applied_where_asked_for(self, make_student: MakeStudent, define: Define) -> None:
        folder = define("w", WRITE, [{"question": row["question"], "answer": "b"} for row in COLOUR_ROWS])
        chatting = make_student(using=build_tokenizer(chat_template=CHAT_TEMPLATE), seed=3).lm
        plain, templated = (measure(harness("w", include_path=folder, chat=chat), chatting) for chat in (False, True))
        own = Tasks(form="exact", max_new_tokens=8).evaluate(chatting, self.asked(chatting), None)
        assert [t.partition("\n\n")[0] for t in own.outputs.values()] == list(templated.outputs.values())
        assert plain.outputs != templated.outputs
        with pytest.raises(ModelError, match="no chat template"):
            measure(harness("w", include_path=folder, chat=True), make_student().lm)

    def asked(self, lm: CausalLM) -> Heldout:
        from stillhouse.records import Example

        examples = [Example(id=str(n), prompt=row["question"], completion="b") for n, row in enumerate(COLOUR_ROWS)]
        return Heldout("", examples, [], Renderer(lm.tokenizer, 128))


class TestReading:
    def test_perplexities_are_sums_by_hand(self, make_student: MakeStudent, define: Define) -> None:
        lm = make_student(seed=2, initializer_range=0.1).lm
        found = measure(harness("texts", include_path=define("texts", READ, [{"text": t} for t in TEXTS])), lm)
        start = lm.tokenizer.eos_token_id  # what lm-eval begins a text with, where there is no other token for it
        nats = [-float(logprobs(lm, [start, *lm.tokenizer(text)["input_ids"]]).sum()) for text in TEXTS]
        words, size = sum(len(t.split()) for t in TEXTS), sum(len(t.encode()) for t in TEXTS)
        assert column(found, "texts/log_word_perplexity") == pytest.approx(nats, rel=1e-4)
        assert estimate(found.measurements["texts/log_word_perplexity"]).value == pytest.approx(sum(nats) / words)
        assert estimate(found.measurements["texts/bits_per_byte"]).value == pytest.approx(
            sum(nats) / size / math.log(2), rel=1e-5
        )
        word, log = found.estimates["texts/word_perplexity"], estimate(found.measurements["texts/log_word_perplexity"])
        assert word.value == pytest.approx(math.exp(sum(nats) / words), rel=1e-3)
        assert word.stderr == pytest.approx(word.value * (log.stderr or 0))
        assert word.n == 4

    def test_beyond_what_a_float_holds_the_logarithm_remains(self, make_student: MakeStudent, define: Define) -> None:
        lm = make_student().lm
        with torch.no_grad():
            next(lm.model.get_output_embeddings().parameters()).mul_(20)
        rows = [{"text": "abcd" * 25}, {"text": "dcba" * 25}]
        found = measure(harness("texts", include_path=define("texts", READ, rows)), lm)
        assert estimate(found.measurements["texts/log_word_perplexity"]).value > 710
        assert "texts/word_perplexity" not in found.estimates
        assert "texts/byte_perplexity" in found.estimates


class TestGroups:
    @pytest.fixture
    def folder(self, define: Define) -> Callable[[bool], str]:
        def make(by_size: bool) -> str:
            folder = define("one", COLOURS, COLOUR_ROWS)
            define("two", COLOURS, [{**row, "question": f"And {row['question']}"} for row in COLOUR_ROWS[:4]])
            both = {
                "group": "both",
                "task": ["one", "two"],
                "aggregate_metric_list": [{"metric": "acc", "weight_by_size": by_size}],
            }
            Path(folder, "both.yaml").write_text(yaml.safe_dump(both))
            return folder

        return make

    @pytest.mark.parametrize("by_size", [True, False])
    def test_a_group_gives_its_tasks_and_their_mean(
        self, make_student: MakeStudent, folder: Callable[[bool], str], by_size: bool
    ) -> None:
        asked = harness("both", include_path=folder(by_size))
        found = measure(asked, make_student(seed=7).lm)
        one, two = (column(found, f"{name}/acc") for name in ("one", "two"))
        mean = np.mean([*one, *two]) if by_size else (np.mean(one) + np.mean(two)) / 2
        pooled = estimate(found.measurements["both/acc"])
        assert pooled.value == pytest.approx(mean)
        assert pooled.n == 13
        assert set(found.measurements) == set(asked.metrics()) - {"one/truncated", "two/truncated"}
        assert asked.metrics()["both/acc"].title == "Accuracy on both"

    def test_a_task_in_its_group_is_named_once(self, folder: Callable[[bool], str]) -> None:
        with pytest.raises(RecipeError, match="names one twice"):
            harness("both", "one", include_path=folder(True)).metrics()


CODE = """
def judge(doc, results):
    return {"listed": 1.0, "extra": float(len(results[0]) % 2)}
"""


def test_what_only_measuring_can_tell_defines_itself(make_student: MakeStudent, define: Define) -> None:
    listed = [{"metric": "listed", "aggregation": "mean", "higher_is_better": True}]
    folder = Path(define("w", {**WRITE, "metric_list": listed}, [{"question": "a", "answer": "b"}] * 3))
    (folder / "judging.py").write_text(CODE)
    with (folder / "w.yaml").open("a") as stream:
        stream.write("process_results: !function judging.judge\n")
    asked = harness("w", include_path=str(folder))
    found = measure(asked, make_student().lm)
    assert "w/extra" not in asked.metrics()
    assert found.metrics["w/extra"].title == "Extra on w"
    assert estimate(found.measurements["w/extra"]).n == 3
    assert column(found, "w/listed") == [1, 1, 1]


class TestLeavesNoTrace:
    @pytest.mark.parametrize("training", [True, False])
    def test_on_the_model_the_generators_and_the_screen(
        self, make_student: MakeStudent, define: Define, training: bool, capfd: pytest.CaptureFixture[str]
    ) -> None:
        folder = define("colours", COLOURS, COLOUR_ROWS)
        sampled = {**WRITE, "generation_kwargs": {"until": ["\n"], "do_sample": True, "temperature": 1.0}}
        define("w", sampled, [{"question": row["question"], "answer": "b"} for row in COLOUR_ROWS])
        lm = make_student(tied=True, attention_dropout=0.5).lm
        lm.tokenizer.pad_token = None
        lm.model.train(training).to(torch.float64)
        weights = {name: value.clone() for name, value in lm.model.state_dict().items()}
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        level = logging.getLogger("lm_eval").level
        asked = harness("colours", "w", include_path=folder, max_new_tokens=4)
        try:
            first, second = measure(asked, lm), measure(asked, lm)
            assert lm.tokenizer.pad_token is None
        finally:
            lm.tokenizer.pad_token = "<pad>"
        assert first.outputs == second.outputs
        assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
        assert lm.model.training is training
        assert all(torch.equal(value, weights[name]) for name, value in lm.model.state_dict().items())
        assert lm.model.dtype == torch.float64
        assert logging.getLogger("lm_eval").level == level
        assert capfd.readouterr() == ("", "")


class TestRefusals:
    """All of them before a model is looked at."""

    def test_the_package_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "lm_eval", None)
        with pytest.raises(MissingExtraError, match=r'pip install "stillhouse\[eval\]"'):
            harness("arc_easy")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"tasks": []}, "tasks is empty"),
            ({"tasks": ["a", "a"]}, "names a task twice"),
            ({"limit": 0}, "limit is 0"),
            ({"num_fewshot": -1}, "num_fewshot is -1"),
            ({"batch_size": 0}, "batch_size is 0"),
            ({"include_path": "nowhere/at/all"}, "no folder"),
            ({"taks": []}, "Did you mean 'tasks'"),
        ],
    )
    def test_wrong_settings(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(RecipeError, match=message):
            registry.build("evaluator", "lm_eval", {"tasks": ["a"], **settings})

    @pytest.mark.slow
    def test_an_unknown_task(self, define: Define) -> None:
        with pytest.raises(RecipeError, match=r"no task 'colurs' among .* Did you mean 'colours'"):
            harness("colurs", include_path=define("colours", COLOURS, COLOUR_ROWS)).metrics()

    @pytest.mark.slow
    def test_a_data_set_that_is_out_of_reach(self) -> None:
        with pytest.raises(DataError, match=r"'arc_easy' cannot be fetched \(allenai/ai2_arc\).*include_path"):
            harness("arc_easy").metrics()

    def test_a_file_that_is_no_yaml(self, define: Define) -> None:
        folder = define("colours", COLOURS, COLOUR_ROWS)
        Path(folder, "broken.yaml").write_text("task: [broken\n")
        with pytest.raises(RecipeError, match=r"broken\.yaml cannot be read as a task"):
            harness("broken", include_path=folder).metrics()
        assert harness("colours", include_path=folder).metrics()  # others do not mind

    def test_data_that_is_not_there(self, define: Define, tmp_path: Path) -> None:
        folder = define("colours", COLOURS, tmp_path / "gone.jsonl")
        with pytest.raises(DataError, match=r"'colours' of lm-eval cannot be set up.*gone\.jsonl"):
            harness("colours", include_path=folder).metrics()

    def test_data_that_does_not_fit(self, define: Define) -> None:
        folder = define("colours", COLOURS, [{"query": "a"}])
        with pytest.raises(DataError, match="'question' is undefined"):
            harness("colours", include_path=folder).metrics()

    def test_few_shots_that_a_task_forbids(self, define: Define) -> None:
        folder = define("colours", {**COLOURS, "num_fewshot": 0}, COLOUR_ROWS)
        with pytest.raises(RecipeError, match="does not let anyone change"):
            harness("colours", include_path=folder, num_fewshot=2).metrics()

    def test_code_that_a_model_writes(self, define: Define) -> None:
        folder = define("colours", {**COLOURS, "unsafe_code": True}, COLOUR_ROWS)
        with pytest.raises(RecipeError, match="runs code that the model writes"):
            harness("colours", include_path=folder).metrics()

    def test_two_tasks_whose_names_become_one(self, define: Define) -> None:
        define("a.b", COLOURS, COLOUR_ROWS)
        with pytest.raises(RecipeError, match="give the metric a_b/acc"):
            harness("a.b", "a_b", include_path=define("a_b", COLOURS, COLOUR_ROWS)).metrics()


def test_files_are_the_folder_and_the_data(define: Define, tmp_path: Path) -> None:
    folder = define("colours", COLOURS, COLOUR_ROWS)
    assert harness("colours", include_path=folder).files() == [
        tmp_path / "colours.jsonl",
        Path(folder, "colours.yaml"),
    ]
    assert harness("arc_easy").files() == []
    own = registry.build("evaluator", "tasks", {"data": {"path": "sums.jsonl"}})
    assert own.files() == [Path("sums.jsonl")]
    assert Tasks().files() == []


def test_metrics_announce_what_they_mean(define: Define) -> None:
    folder = define("colours", COLOURS, COLOUR_ROWS)
    define("texts", READ, [{"text": text} for text in TEXTS])
    metrics = harness("colours", "texts", include_path=folder).metrics()
    assert metrics["colours/acc_norm"].title == "Length-normalized accuracy on colours"
    assert (metrics["colours/acc"].unit, metrics["colours/acc"].better) == ("share", "higher")
    assert metrics["texts/log_word_perplexity"].unit == "nats/word"
    assert metrics["texts/word_perplexity"].better == metrics["texts/bits_per_byte"].better == "lower"


def test_real_reviews_on_a_real_model(shared: Path, stories: str, define: Define) -> None:
    """SST-2 as a choice, a few of it."""
    path = shared / "data" / "sst2" / "dev.jsonl"
    if not path.exists():
        pytest.skip("../shared/data/sst2 is not there")
    config = {**COLOURS, "doc_to_text": "{{text}}\nIt was", "doc_to_choice": ["terrible", "great"]}
    lm = CausalLM.load(stories)
    found = measure(harness("sst2", include_path=define("sst2", config, path), limit=24), lm)
    assert estimate(found.measurements["sst2/acc"]).n == 24
    assert 0 <= estimate(found.measurements["sst2/acc"]).value <= 1
