"""What signals ask of a trace and its question: the steps, the numbers that are given, whether two numbers are one."""

from __future__ import annotations

import re
from fractions import Fraction

from stillhouse.solutions.equations import Equation, equations
from stillhouse.solutions.tokens import tokens

_WORDS = """
1/4 quarter fourth, 1/3 third thirds, 1/2 half halves, 1 one once, 2 two twice double couple pair, 3 three thrice,
3 triple, 4 four, 5 five, 6 six, 7 seven, 8 eight, 9 nine, 10 ten, 11 eleven, 12 twelve dozen, 20 twenty, 30 thirty,
40 forty, 50 fifty, 100 hundred"""
_SPELLED = {word: Fraction(line.split()[0]) for line in _WORDS.split(",") for word in line.split()[1:]}
_CARRIED = re.compile(r"=([^<>=]*)>>[ ]?([$€£¥]?[ ]?[\d.,]*\d)?")
_ROUNDED = Fraction(1, 20)
"""What a number may lose where it is written again: 2.8571428 becomes 2.9."""


def calculation(text: str) -> list[Equation]:
    """The steps of a trace: its annotations where it has any, else the equations of its text."""
    found = equations(text)
    return [equation for equation in found if equation.annotated] or found


def spelled(question: str) -> list[Fraction]:
    """The numbers that a question gives in words.

    >>> spelled("Half of the twelve eggs")
    [Fraction(1, 2), Fraction(12, 1)]
    """
    return [_SPELLED[word] for word in re.findall(r"[a-z]+", question.lower()) if word in _SPELLED]


def given(question: str) -> tuple[list[set[Fraction]], set[Fraction]]:
    """Each number of a question in the forms in which a solution may use it (20 %: 0.2, 20, 0.8, 1.2), and all of them
    with those in words."""
    asked = [_forms(token.value, "%" in token.text) for token in tokens(question) if token.kind == "number"]
    return asked, set().union(*asked, spelled(question))


def _forms(value: Fraction, percent: bool) -> set[Fraction]:
    return {value, value * 100, 1 - value, 1 + value} if percent else {value, value / 100, value * 100}


def close(result: Fraction, written: Fraction) -> bool:
    """Whether a number may be a result that was carried on, rounded to a thousandth of itself.

    >>> close(Fraction(20, 3), Fraction("6.67")), close(Fraction(6), Fraction(7))
    (True, False)
    """
    return abs(result - written) <= abs(result) / 1000


def carried(text: str) -> int:
    """Annotations behind which another number is written than their result.

    >>> carried("5 * 2 = $<<5*2=10>>10 and 3 * 4 = <<3*4=12>>13")
    1
    """
    count = 0
    for match in _CARRIED.finditer(text):
        noted, again = ([t.value for t in tokens(part or "") if t.kind == "number"] for part in match.groups())
        count += bool(noted and again) and abs(noted[0] - again[0]) > abs(noted[0]) * _ROUNDED
    return count
