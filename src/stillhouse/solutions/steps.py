"""Where worked solutions part: their steps in a form in which the same step is equal, and the first that is not."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import zip_longest
from typing import NamedTuple

from stillhouse.answers import normalized, number
from stillhouse.solutions.equations import Equation, equations
from stillhouse.solutions.tokens import without_annotations


class Step(NamedTuple):
    """A step of a solution: the form in which equal steps are equal, and its text."""

    form: Hashable
    text: str


class Difference(NamedTuple):
    """The first step at which two solutions differ.

    Attributes:
        step: its number, from 1.
        one: the first solution's step as it is written; empty where that solution has ended.
        other: the second's.
    """

    step: int
    one: str
    other: str


def steps(solution: str) -> list[Step]:
    """The steps of a worked solution: its equations, or where there are none its lines; then the final number.

    Equations are equal whatever the spaces, units, currency signs, separators of thousands, and the order of a sum's or
    a product's terms.

    >>> [step.text for step in steps("She has 2 + 3 = <<2+3=5>>5 eggs, so 5 x $2 = $10.\\nA: 10")]
    ['2 + 3 = 5', '5 x $2 = $10', 'the answer 10']
    """
    text = without_annotations(solution)
    found = [Step(_form(equation), " ".join(equation.text.split())) for equation in equations(text)]
    if not found:
        lines = [line for line in text.splitlines() if line.strip()]
        return [Step(normalized(line), " ".join(line.split())) for line in lines]
    final = number(solution)
    return [*found, Step(("answer", final), f"the answer {final}")]


def _form(equation: Equation) -> Hashable:
    signs = set(map(str, equation.operators))
    if len(signs) == 1 and signs < {"+", "*"} and len(equation.left) == 2 * len(equation.operands) - 1:
        return signs.pop(), tuple(sorted(equation.operands)), equation.result
    return equation.left, equation.result


def first_difference(one: str, other: str) -> Difference | None:
    """The first step at which two solutions differ, compared in order; None where none does.

    >>> first_difference("2 + 3 = 5. 5 * 2 = 10. A: 10", "3+2=5. 5*3=15. A: 15")
    Difference(step=2, one='5 * 2 = 10', other='5*3=15')
    """
    pairs = zip_longest(steps(one), steps(other), fillvalue=Step(None, ""))
    for place, (a, b) in enumerate(pairs, start=1):
        if a.form != b.form:
            return Difference(place, a.text, b.text)
    return None
