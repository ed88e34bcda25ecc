"""Reading answers: numbers in every dress, against GSM8K's own verdicts on real solutions; and when two texts are the
same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.answers import first_paragraph, normalized, number


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        yield from map(json.loads, stream)


class TestNumbers:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("#### 18", "18"),
            ("so 3 + 4 = 7 eggs.\n#### 7", "7"),
            ("#### 7\nQuestion: what is 2 + 2? #### 4", "7"),
            ("#### 1,234,567", "1234567"),
            ("#### -5", "-5"),
            ("#### −5", "-5"),
            ("#### $1,450.50 in all", "2901/2"),
            ("She makes $18.", "18"),
            ("She makes 18.00", "18"),
            ("-$3.50", "-7/2"),
            ("$-3.50", "-7/2"),
            ("$ 3 left", "3"),
            ("16-3-4=9", "9"),
            ("She has 10-5", "5"),
            ("from 2 to -3", "-3"),
            ("x = +4", "4"),
            ("50%", "50"),
            ("a third is 1/3", "1/3"),
            ("about 1 1/2 cups", "3/2"),
            (".5", "1/2"),
            ("7/0", "0"),
            ("3 apples and 12 pears", "12"),
            ("1,2,3", "3"),
            ("1,0000", "0"),
            ("a 7-year-old", "7"),
        ],
    )
    def test_read(self, text: str, expected: str) -> None:
        assert number(text) == Fraction(expected)

    @pytest.mark.parametrize("text", ["", "none", "####", "#### eighteen\n5", "7" * 5000])
    def test_no_number(self, text: str) -> None:
        assert number(text) is None

    @given(st.integers(-(10**12), 10**12), st.integers(0, 6))
    def test_every_decimal_in_every_dress(self, digits: int, places: int) -> None:
        value = Fraction(digits, 10**places)
        plain = f"{digits / 10**places:,.{places}f}" if abs(digits) < 10**9 else f"{digits:,}"
        value = value if abs(digits) < 10**9 else Fraction(digits)
        for text in (plain, f"It is {plain}.", f"#### {plain} apples", plain.replace(",", "")):
            assert number(text) == value

    @given(st.text(max_size=200))
    def test_any_text_can_be_read(self, text: str) -> None:
        assert number(text) is None or isinstance(number(text), Fraction)

    def test_every_answer_of_gsm8k(self, shared: Path) -> None:
        for name in ("train", "test"):
            for row in rows(shared / "data" / "gsm8k" / f"{name}.jsonl"):
                after = row["answer"].rpartition("####")[2].strip().replace(",", "").replace("$", "")
                assert number(row["answer"]) == Fraction(after)

    def test_agrees_with_gsm8ks_own_verdicts_on_real_solutions(self, shared: Path) -> None:
        seen = 0
        for row in rows(shared / "data" / "gsm8k" / "model_solutions.jsonl"):
            gold = number(row["ground_truth"])
            for model in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
                assert (number(row[model]["solution"]) == gold) == row[model]["is_correct"], row[model]["solution"]
                seen += 1
        assert seen == 2640


class TestExactForm:
    @pytest.mark.parametrize(("text", "same"), [("(A)", " (a). "), ("yes", "YES\n"), ("a  b\tc", "a b c")])
    def test_same(self, text: str, same: str) -> None:
        assert normalized(text) == normalized(same)

    @pytest.mark.parametrize(("text", "other"), [("(A)", "(B)"), ("(A)", "A"), ("a b", "ab"), ("[ ]", "]")])
    def test_different(self, text: str, other: str) -> None:
        assert normalized(text) != normalized(other)

    def test_a_blank_line_ends_the_answer(self) -> None:
        assert first_paragraph("\n\n True\n \nQ: not True is\nA: False") == "True"
        assert first_paragraph("one\ntwo") == "one\ntwo"
        assert first_paragraph("") == ""
