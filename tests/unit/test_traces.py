"""Signals on traces made by hand, equations against a generator that knows their value, and combinations that never see
their own question's label."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from building import MakeStudent
from hypothesis import given
from hypothesis import strategies as st

from stillhouse import registry
from stillhouse.answers import number
from stillhouse.auroc import area, auroc, difference
from stillhouse.errors import DataError
from stillhouse.solutions.equations import equations
from stillhouse.traces._combine import cross_fitted, two_views
from stillhouse.traces._reading import beyond_context, logprobs
from stillhouse.traces.base import Trace

QUESTION = "Tom has 5 apples and buys 3 bags of 4. He eats 20% of them. How many are left?"


def trace(text: str, *, question: str = QUESTION, source: str = "a", name: str = "1") -> Trace:
    return Trace(id=name, question=question, group=question, text=text, answer=number(text), source=source)


def scores(signal: str, *traces: Trace, **settings: Any) -> dict[str, list[float]]:
    found = registry.build("trace_signal", signal, settings).score(traces, None)
    return {name: values.tolist() for name, values in found.items()}


def one(signal: str, text: str) -> dict[str, float]:
    return {name: values[0] for name, values in scores(signal, trace(text)).items()}


class TestEquations:
    @pytest.mark.parametrize(
        "text",
        [
            "2 + 3 = 5",
            "He pays $2.50 + $3 = $5.50.",
            "5 apples + 3 pears = 8 fruits",
            "4*$12,500=$50,000",
            "3 x 4 = 12 and 3x4=12",
            "3 × 4 = 12",
            "20% of them is 0.2 * 50 = 10",
            "50 * 20% = 10",
            "5/20 = 25%",
            "5/20*100 = 25%",
            "1/2 * 20 = 10",
            "10 / 1/2 = 20",
            "2 1/2 * 4 = 10",
            "10/3 = 3.33 and 20/3=6.66 and 20/3 = 6.67",
            "7/2 = 4 boxes",
            "200 miles / 50 miles/hour = 4 hours",
            "2 + 3 = 5 + 1 = 6",
            "4 + 1 = 2 + 3 = 5",
            "(2 + 3) * 4 = 20",
            "3 * -2 = -6",
            "5 - 8 = -3",
            "8 – 3 = 5",
            "3 quarters * 25 cents = $.75",
            "0.1 + 0.2 = 0.30000000000000004",
            "She has 48/2 = <<48/2=24>>24 clips",
        ],
    )
    def test_right(self, text: str) -> None:
        found = equations(text)
        assert found
        assert [e.written for e in found if not e.right] == []

    @pytest.mark.parametrize(
        ("text", "written"),
        [
            ("2 + 3 = 6", "2+3=6"),
            ("He pays 4 * $12 = $50 in all", "4*$12=$50"),
            ("3 * 4 = <<3*4=13>>13", "3*4=13"),
            ("2 + 3 = 5 + 1 = 7", "5+1=7"),
            ("10/3 = 3.5", "10/3=3.5"),
            ("5/20 = 26%", "5/20=26%"),
            ("a total of 2 + 2 = 5", "2+2=5"),
        ],
    )
    def test_wrong(self, text: str, written: str) -> None:
        assert written in [e.written for e in equations(text) if not e.right]

    @pytest.mark.parametrize(
        "text",
        [
            "x + 5 = 10",
            "2x + 5 = 15",
            "half of 6 - 2 = 2",
            "on day 1 * 2 = 20",
            "4 pounds - 6 ounces = 58 ounces",
            "1/2 a cup = 4 ounces",
            "0900 - 0130 = 0730",
            "She has 5 apples",
            "x = 5",
            "20 minutes = 20 * 60 seconds",
            "5 / 0 = 3",
            "21/7 = 90/x",
            "600 * 30 = 18 000",
            "12 x 1 and 1/4 = 15",
            "3 * 2 = 6 and a half",
            "the 3 + 2 twice = 7",
            "==== + = 3",
            "<<>> and <<=>> and <<3>>",
        ],
    )
    def test_what_is_not_read_for_certain_raises_no_alarm(self, text: str) -> None:
        assert [e.written for e in equations(text) if not e.right] == []

    @given(
        terms=st.lists(
            st.integers(0, 999).map(Fraction) | st.integers(1, 9999).map(lambda n: Fraction(n, 100)),
            min_size=2,
            max_size=4,
        ),
        signs=st.lists(st.sampled_from("+-*"), min_size=3, max_size=3),
        dress=st.sampled_from(["{}", "${}", "{} apples", "{} miles"]),
        spaced=st.booleans(),
        error=st.sampled_from([0, 0, 7, -3]),
    )
    def test_an_equation_is_right_exactly_where_its_result_is(
        self, terms: list[Fraction], signs: list[str], dress: str, spaced: bool, error: int
    ) -> None:
        """The generator writes equations whose value Python's own precedence gives."""
        value = eval("".join(f"Fraction('{t}'){s}" for t, s in zip(terms, [*signs[: len(terms) - 1], ""], strict=True)))
        gap = " " if spaced or "{} " in dress else ""
        parts = [dress.format(decimal(terms[0]))]
        for sign, term in zip(signs, terms[1:], strict=False):
            parts += [sign, dress.format(decimal(term))]
        (found,) = equations(f"So it is {gap.join(parts)} = {decimal(value + error)}.")
        assert found.values[0] == value
        assert found.right == (error == 0)

    @given(st.text("0123456789+-*/=()<>.,%$x ab\n", max_size=80))
    def test_no_text_breaks_it(self, text: str) -> None:
        for found in equations(text):
            assert found.right in (True, False)


def decimal(value: Fraction) -> str:
    text = f"{value.numerator * 10**8 // value.denominator:d}".rjust(9, "0") if value >= 0 else ""
    if value < 0:
        return "-" + decimal(-value)
    return f"{text[:-8]}.{text[-8:]}".rstrip("0").rstrip(".")


class TestSignals:
    def test_agreement_leaves_the_trace_itself_out(self) -> None:
        answers = ["#### 7", "#### 7.0", "#### 8", "no idea", "nor I"]
        found = scores("agreement", *(trace(text, name=text) for text in answers), trace("#### 7", question="other"))
        assert found[""] == [0.25, 0.25, 0, 0, 0, 0]

    @given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.randoms())
    def test_agreement_and_reliability_do_not_depend_on_the_order(self, answers: list[int], random: Any) -> None:
        traces = [trace(f"#### {a}", source=str(i % 3), name=str(i)) for i, a in enumerate(answers)]
        order = list(range(len(traces)))
        random.shuffle(order)
        for signal in ("agreement", "reliability"):
            expected, found = scores(signal, *traces)[""], scores(signal, *(traces[i] for i in order))[""]
            assert found == pytest.approx([expected[i] for i in order], abs=1e-4)

    def test_reliability_learns_whom_to_believe(self) -> None:
        """b and c are right by agreeing with each other everywhere; where they differ from one another on the last
        question, c, who agreed more often, is believed."""
        traces = []
        for q in range(12):
            said = {"a": 100 + q, "b": q if q % 3 else 50 + q, "c": q, "d": q}
            said |= {"c": 1000, "d": 2000, "a": 3000, "b": 3000} if q == 11 else {}
            traces += [trace(f"#### {a}", question=f"q{q}", source=s, name=f"{q}{s}") for s, a in said.items()]
        belief = dict(zip([(t.group, t.source) for t in traces], scores("reliability", *traces)[""], strict=True))
        assert belief["q1", "c"] > 0.95
        assert belief["q0", "b"] < 0.05
        assert belief["q11", "c"] > belief["q11", "a"]  # two unreliable sources against a reliable one

    def test_recomputed(self) -> None:
        assert one("recomputed", "2 + 3 = 5, then 5 * 2 = 11") == {"": 0.5, "wrong": -1, "written": 1}
        assert one("recomputed", "no sums here") == {"": 1, "wrong": 0, "written": 0}

    def test_steps_and_repetition(self) -> None:
        found = one("steps", "2 + 3 = <<2+3=5>>5\n5 * 2 = <<5*2=10>>10\n#### 10")
        assert (found[""], found["operations"], found["lines"]) == (-2, -2, -3)
        assert one("repetition", "a b c d e f")[""] == 0
        assert one("repetition", "a b c d a b c d a b c d")[""] == pytest.approx(4 / 9 - 1)
        assert one("repetition", "1/3 = 0." + "3" * 90)["run"] < one("repetition", "1/3 = 0.33")["run"]

    def test_grounding(self) -> None:
        good = one("grounding", "3 * 4 = 12\n12 + 5 = 17\n17 * 0.8 = 13.6\n#### 13.6")
        bad = one("grounding", "3 * 4 = 12\n5 + 77 = 82\n#### 82")
        assert (good[""], good["nowhere"], good["dead"], good["chained"]) == (0, 0, 0, pytest.approx(2 / 6))
        assert (bad[""], bad["unmentioned"], bad["nowhere"], bad["dead"]) == (-1, -1, -1, -1)

    def test_plausibility(self) -> None:
        found = one("plausibility", "3 - 5 = -2\n-2 / 4 = -0.5\n#### -0.5")
        assert (found[""], found["answered"], found["whole"], found["negative"]) == (1, 1, 0, -1)
        assert (found["fractional"], found["below"]) == (-1, -2)
        assert one("plausibility", "3 - 5 = -2\n#### 4")[""] == 0
        assert one("plausibility", "#### " + "9" * 150)["size"] == -150

    def test_wording_difficulty_and_annotations(self) -> None:
        assert one("wording", "Tom has apples and oranges")[""] == -1
        assert one("difficulty", "whatever") == one("difficulty", "another")
        assert one("annotations", "3*4 = <<3*4=12>>12") == {"": 0, "line": 0}
        assert one("annotations", "3*4 = <<3*4=12>>13")[""] == -1
        assert one("annotations", "3+4 = <<3*4=12>>12")["line"] == -1

    @pytest.mark.parametrize(
        ("signal", "settings"),
        [("reliability", {"answers": 1}), ("repetition", {"n": 0}), ("likelihood", {"window": 0})],
    )
    def test_settings_are_checked(self, signal: str, settings: dict[str, int]) -> None:
        with pytest.raises(ValueError, match="at least"):
            registry.build("trace_signal", signal, settings)


class TestReading:
    def test_logprobs_are_the_models_own(self, make_student: MakeStudent) -> None:
        lm = make_student().lm
        (found,) = logprobs(lm, ["2 + 2 ="], [" 4 and more"])
        prompt, rest = (
            list(lm.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in ("2 + 2 =", " 4 and more")
        )
        logits = lm.model(input_ids=torch.tensor([prompt + rest])).logits[0, len(prompt) - 1 : -1]
        expected = logits[:, : lm.vocabulary].log_softmax(-1)[range(len(rest)), rest]
        assert found == pytest.approx(expected.detach().numpy(), abs=1e-4)

    def test_utility_is_what_the_steps_add(self, make_student: MakeStudent) -> None:
        lm = make_student().lm
        signal = registry.build("trace_signal", "utility", {})
        empty, stepless = signal.score([trace("I do not know"), trace("#### 7")], lm)[""]
        assert (empty, stepless) == (0, pytest.approx(0, abs=1e-5))
        (with_steps,) = signal.score([trace("3 + 4 = 7\n#### 7")], lm)[""]
        behind = logprobs(lm, [QUESTION], ["#### 7"], ["3 + 4 = 7\n"])[0].sum()
        assert with_steps == pytest.approx(behind - logprobs(lm, [QUESTION], ["#### 7"])[0].sum(), abs=1e-4)

    def test_a_text_beyond_the_context_is_cut_in_front(self, make_student: MakeStudent) -> None:
        lm = make_student(max_position_embeddings=16).lm
        long, short = logprobs(lm, ["2 + 2 =", "2 + 2 ="], ["4 " * 60, "4"])
        assert len(long) == 15
        assert len(short) == 1
        assert beyond_context(lm, ["2 + 2 =", "2 + 2 ="], ["4 " * 60, "4"]) == 1


class TestCombining:
    def data(self, questions: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
        draw = np.random.default_rng(seed)
        columns = draw.normal(size=(questions * 4, 3))
        right = (columns[:, 0] + draw.normal(size=len(columns)) > 0).astype(np.float64)
        return columns, right, [f"q{i // 4}" for i in range(len(columns))]

    def test_a_question_is_never_judged_by_its_own_label(self) -> None:
        columns, right, group = self.data()
        before = cross_fitted(columns, right, group, folds=5, seed=0)
        mine = np.array([g == "q7" for g in group])
        after = cross_fitted(columns, np.where(mine, 1 - right, right), group, folds=5, seed=0)
        assert (before[mine] == after[mine]).all()
        assert (before[~mine] != after[~mine]).any()  # the label does count for others

    def test_it_finds_the_column_that_counts_and_scores_the_unlabelled(self) -> None:
        columns, right, group = self.data(100)
        odds = cross_fitted(columns, np.where(np.arange(len(right)) % 3 == 0, np.nan, right), group, folds=5, seed=0)
        assert np.isfinite(odds).all()
        assert area(odds, right, group, resamples=100, seed=0).low > 0.75

    def test_the_order_of_the_traces_does_not_count(self) -> None:
        columns, right, group = self.data()
        order = np.random.default_rng(1).permutation(len(right))
        odds = cross_fitted(columns, right, group, folds=5, seed=0)
        again = cross_fitted(columns[order], right[order], [group[i] for i in order], folds=5, seed=0)
        assert again == pytest.approx(odds[order], abs=1e-9)

    def test_constant_and_extreme_columns_do_no_harm(self) -> None:
        columns, right, group = self.data()
        columns = np.column_stack([columns, np.ones(len(right)), np.full(len(right), 1e100) * (right - 0.5)])
        assert np.isfinite(cross_fitted(columns, right, group, folds=5, seed=0)).all()

    def test_what_cannot_be_combined_is_said(self) -> None:
        columns, right, _ = self.data()
        with pytest.raises(DataError, match="by question"):
            cross_fitted(columns, right, ["q"] * len(right), folds=5, seed=0)
        with pytest.raises(DataError, match="correctness is known"):
            cross_fitted(columns, np.full(len(right), np.nan), self.data()[2], folds=5, seed=0)

    def test_two_views_add_up_where_both_know_something(self) -> None:
        joined = two_views(np.array([0.9, 0.9, 0.1, 0.1]), np.array([1.0, -1.0, 1.0, -1.0]))
        assert (np.diff(joined) < 0).all()


class TestArea:
    @given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=20))
    def test_it_is_the_share_of_pairs_in_order(self, rows: list[tuple[int, bool]]) -> None:
        score, right = np.array([s for s, _ in rows], float), np.array([float(r) for _, r in rows])
        group = [str(i // 2) for i in range(len(rows))]
        if right.min() == right.max():
            assert auroc(score, right) is None
            with pytest.raises(DataError, match="right traces with wrong ones"):
                area(score, right, group, resamples=10, seed=0)
            return
        gaps = score[right == 1][:, None] - score[right == 0][None, :]
        expected = ((gaps > 0) + (gaps == 0) / 2).mean()
        assert area(score, right, group, resamples=10, seed=0).value == auroc(score, right) == pytest.approx(expected)

    def test_within_looks_at_one_question_at_a_time(self) -> None:
        """A score that knows hard questions alone: good over all, blind within each."""
        right = np.array([1.0, 1, 1, 0] * 10 + [0.0, 0, 0, 1] * 10)
        score = np.array([1.0] * 40 + [0.0] * 40)
        found = area(score, right, [str(i // 4) for i in range(80)], resamples=200, seed=0)
        assert found.value > 0.7
        assert found.within == 0.5
        assert 0.5 < found.low < found.value <= found.high
        assert difference(found, found) == (0, 0, 0)


def gold(folder: Path) -> Iterator[tuple[str, str]]:
    for name, file, column in (("train", "train.jsonl", "answer"), ("test", "model_solutions.jsonl", "ground_truth")):
        with (folder / file).open(encoding="utf-8") as stream:
            yield from ((f"{name}-{n}", json.loads(line)[column]) for n, line in enumerate(stream, start=1))


def test_gsm8ks_own_solutions_raise_no_alarm_but_where_they_are_wrong(shared: Path) -> None:
    known = json.loads((Path(__file__).parent / "gsm8k_equations.json").read_text())["equations"]
    read, wrong = 0, {}
    for name, text in gold(shared / "data" / "gsm8k"):
        found = equations(text)
        read += len(found)
        if bad := [{"written": e.written, "exact": str(e.values[0])} for e in found if not e.right]:
            wrong[name] = bad
            assert not any(e.annotated for e in found if not e.right)
    assert wrong == known
    assert read > 50_000
