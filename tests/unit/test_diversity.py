"""Diversity against hand computations, and on models whose answers are known: one that repeats itself, one that draws
any token as likely as any other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from building import MakeStudent

from stillhouse.data.rendering import Renderer
from stillhouse.errors import DataError, MissingExtraError, ModelError
from stillhouse.evaluation import diversity
from stillhouse.evaluation.base import FIRST_TOKENS, Heldout, start
from stillhouse.evaluation.diversity import Diversity, distinct, self_bleu
from stillhouse.models import CausalLM, Sampling
from stillhouse.records import Example
from stillhouse.results import ModelResult, summarize
from stillhouse.statistics import estimate

BRIEF = Diversity(samples=3, limit=6, max_new_tokens=24)


@pytest.fixture
def data(examples: list[Example], tokenizer: Any) -> Heldout:
    renderer = Renderer(tokenizer, 128)
    return Heldout("", examples, renderer.render(examples), renderer)


@pytest.fixture
def parrot(make_student: MakeStudent) -> CausalLM:
    """Sure of every token, so that all answers to one prompt are the same."""
    lm = make_student(seed=1).lm
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.mul_(1e4)
    return lm


@pytest.fixture
def dice(make_student: MakeStudent) -> CausalLM:
    """Every token as likely as any other."""
    lm = make_student(seed=1).lm
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.zero_()
    return lm


def values(lm: CausalLM, data: Heldout, evaluator: Diversity = BRIEF) -> dict[str, float]:
    return {name: estimate(m).value for name, m in evaluator.evaluate(lm, data, None).measurements.items()}


class TestModels:
    def test_a_parrot_and_dice_are_the_two_ends(self, parrot: CausalLM, dice: CausalLM, data: Heldout) -> None:
        same, any_ = values(parrot, data), values(dice, data)
        assert same["self_bleu"] == pytest.approx(1.0)
        assert same["entropy"] == pytest.approx(0.0, abs=1e-6)
        assert any_["entropy"] == pytest.approx(math.log(dice.vocabulary), rel=1e-6)
        assert any_["self_bleu"] < 0.2
        for n in (1, 2, 3):
            assert same[f"distinct_{n}"] <= 1 / 3 + 1e-9
            assert any_[f"distinct_{n}"] > 0.45  # stray bytes are all one and the same character

    def test_padding_of_a_head_is_no_openness(
        self, dice: CausalLM, data: Heldout, pad_head: Callable[[CausalLM, int], None]
    ) -> None:
        pad_head(dice, 60)
        assert values(dice, data)["entropy"] == pytest.approx(math.log(dice.vocabulary), rel=1e-6)

    def test_entropy_along_its_own_text_by_hand(self, make_student: MakeStudent, data: Heldout) -> None:
        lm = make_student(seed=3).lm
        found = BRIEF.evaluate(lm, data, None).measurements["entropy"]
        prompts = [ids for e in data.examples[:6] for ids in [data.renderer.prompt_ids(e)] * 3]
        nats, places = [], []
        for prompt, ids in zip(prompts, lm.generate(prompts, Sampling.of(BRIEF)), strict=True):
            with torch.no_grad():
                logits = lm.model.eval()(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 :].double()
            q = logits[:, : lm.vocabulary].softmax(-1)
            nats.append(float(-(q * q.log()).sum()))
            places.append(len(ids) + 1)
        by_prompt = np.stack([nats, places], axis=1).reshape(6, 3, 2).sum(1)
        np.testing.assert_allclose(found.sums_EM, by_prompt, rtol=1e-5)

    def test_what_is_kept_of_an_answer_does_not_hang_on_the_other_prompts(
        self, parrot: CausalLM, data: Heldout
    ) -> None:
        few = Diversity(samples=3, limit=2, max_new_tokens=24).evaluate(parrot, data, None).measurements
        more = BRIEF.evaluate(parrot, data, None).measurements
        for name, m in few.items():
            assert m.ids == more[name].ids[:2]
            np.testing.assert_allclose(m.sums_EM, more[name].sums_EM[:2], atol=1e-5)

    def test_running_text_is_written_on_from_its_first_words(self, dice: CausalLM, tokenizer: Any) -> None:
        texts = [Example(id=f"t{i}", text=f"{i} the cat sat on the mat, the cat ate the rat. " * 3) for i in range(2)]
        renderer = Renderer(tokenizer, 128)
        data = Heldout("", texts, renderer.render(texts), renderer)
        assert len(start(renderer, texts[0])) == FIRST_TOKENS
        assert BRIEF.evaluate(dice, data, None).measurements["length"].ids == ("t0", "t1")

    def test_a_teacher_of_other_tokens_is_measured_on_the_same_prompts(
        self, make_student: MakeStudent, data: Heldout, stories: str
    ) -> None:
        ours = BRIEF.evaluate(make_student().lm, data, None).measurements
        theirs = BRIEF.evaluate(CausalLM.load(stories), data, None).measurements
        assert ours["distinct_1"].ids == theirs["distinct_1"].ids

    def test_a_prompt_without_room_is_refused(self, dice: CausalLM, tokenizer: Any) -> None:
        renderer = Renderer(tokenizer, 400)
        data = Heldout("", [Example(id="long", prompt="apples " * 200)], [], renderer)
        with pytest.raises(ModelError, match="leaves no room"):
            BRIEF.evaluate(dice, data, None)

    def test_no_prompt_is_an_error(self, dice: CausalLM, tokenizer: Any) -> None:
        with pytest.raises(DataError, match="no example to write from"):
            BRIEF.evaluate(dice, Heldout("", [], [], Renderer(tokenizer, 128)), None)

    def test_the_summary_says_how_much_of_the_teachers_was_kept(
        self, make_student: MakeStudent, dice: CausalLM, data: Heldout
    ) -> None:
        results = {}
        for role, lm in {"teacher": dice, "student": make_student(seed=2).lm}.items():
            found = BRIEF.evaluate(lm, data, None).measurements
            named = {f"diversity.{name}": m for name, m in found.items()}
            metrics = {f"diversity.{name}": m for name, m in BRIEF.metrics().items()}
            results[role] = ModelResult(metrics, named)
        kept = summarize(results, None)["recovery"]
        assert kept.keys() == {
            "diversity.distinct_1",
            "diversity.distinct_2",
            "diversity.distinct_3",
            "diversity.entropy",
        }
        assert 0 < kept["diversity.entropy"]["value"] < 1


class TestDefinitions:
    def test_distinct(self) -> None:
        answers = [["a", "b", "a"], ["a", "b", "c"], []]
        assert distinct(answers, 1) == 3 / 6
        assert distinct(answers, 2) == 3 / 4
        assert distinct(answers, 3) == 1.0
        assert distinct([["a"], ["b"]], 2) == 0.0

    def test_self_bleu_is_sacrebleus(self) -> None:
        import sacrebleu

        texts = ["the cat sat on the mat", "the cat sat on a mat", "a dog ran off"]
        each = [
            sacrebleu.sentence_bleu(text, texts[:i] + texts[i + 1 :], tokenize="none").score / 100
            for i, text in enumerate(texts)
        ]
        assert self_bleu([t.split() for t in texts], diversity._sentence_bleu()) == pytest.approx(np.mean(each))

    def test_answers_of_one_word_and_of_none(self) -> None:
        bleu = diversity._sentence_bleu()
        assert self_bleu([["yes"], ["yes"], ["yes"]], bleu) == 1.0
        assert self_bleu([["yes"], ["no"]], bleu) == 0.0
        assert self_bleu([[], []], bleu) == 1.0
        assert self_bleu([[], ["yes"]], bleu) == 0.0

    @pytest.mark.parametrize(
        ("unit", "count"), [("words", ["It", "'", "s", "5", ".", "5", "!"]), ("characters", list("It's5.5!"))]
    )
    def test_units(self, unit: Any, count: list[str]) -> None:
        assert Diversity(unit=unit)._words("It's 5.5!\n") == count


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"samples": 1}, "held against one another"),
        ({"temperature": 0.0}, "all answers are the same"),
        ({"top_p": 0.0}, "above 0 and at most 1"),
        ({"limit": 0}, "limit is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Diversity(**settings)


def test_without_sacrebleu_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diversity, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"sacrebleu.*stillhouse\[eval\]"):
        Diversity()
