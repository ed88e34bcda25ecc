"""The committee study's first half: choosing among recorded solutions without right answers, held against hindsight.

Shapes: E questions, K teachers.
"""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stillhouse.answers import number
from stillhouse.consensus._differences import EQUATION, first_difference, pairs, plain
from stillhouse.consensus.base import ConsensusRule, Vote, encode, most_supported, one_hot
from stillhouse.errors import DataError
from stillhouse.recipe import Section
from stillhouse.statistics import Measurement, compare, estimate

_FOLDS = 10
_POWERS = (0, 1, 2, 3, 4, 6, 8)
_ANNOTATED = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
_WORDS = {
    word: Fraction(value)
    for value, words in {
        1: "one once a single", 2: "two twice double pair couple half", 3: "three third thrice triple",
        4: "four quarter fourth quadruple", 5: "five fifth", 6: "six", 7: "seven week", 8: "eight", 9: "nine",
        10: "ten", 11: "eleven", 12: "twelve dozen month year", 15: "fifteen", 20: "twenty", 24: "day", 30: "thirty",
        50: "fifty", 60: "hour minute", 100: "hundred percent cent dollar", 1000: "thousand",
    }.items()
    for word in words.split()
}  # fmt: skip
"""What a question may say about a number without digits."""


class TraceFile(Section):
    """A file of solutions: a question a row, and of each teacher a column that holds its solution."""

    path: str
    question: str = "question"
    reference: str = Field("ground_truth", description="the column with the right answer, which no rule sees")
    teachers: list[str] | None = Field(None, description="columns of solutions; none takes all that hold one")
    solution: str = Field("solution", description="key of the text in such a column")
    limit: int | None = Field(None, ge=1)


@dataclass(frozen=True)
class Solved:
    """Questions with several teachers' solutions.

    Attributes:
        teachers: their names.
        questions: as they are asked.
        right: the right answers, for measuring alone.
        texts: of each question every teacher's solution, empty where it is missing.
    """

    teachers: tuple[str, ...]
    questions: tuple[str, ...]
    right: tuple[Fraction, ...]
    texts: tuple[tuple[str, ...], ...]

    @cached_property
    def votes(self) -> list[list[Vote]]:
        """The final numbers; None where a solution is missing or holds none."""
        return [[number(text) for text in row] for row in self.texts]


def read_traces(source: TraceFile) -> Solved:
    """The questions of a trace file.

    Raises:
        DataError: no such file, a row that is no JSON object, a column that is not there, a right answer that is no
            number, or fewer than two teachers.
    """
    path = Path(source.path)
    if not path.is_file():
        raise DataError(
            f"data.traces.path is {source.path}, which is no file. Give a JSONL file with a question a row and a "
            "column of solutions for each teacher: data.traces.path=FILE"
        )
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()][: source.limit]
    rows = [_row(line, f"{path}, row {place}") for place, line in enumerate(lines, start=1)]
    columns = source.teachers or _columns(rows, source)
    if len(columns) < 2:
        raise DataError(
            f"{path} holds solutions of {', '.join(columns) or 'nobody'}; choosing needs at least two teachers. "
            "Name their columns with data.traces.teachers."
        )
    right = []
    for place, row in enumerate(rows, start=1):
        for column in (source.question, source.reference):
            if not isinstance(row.get(column), str):
                raise DataError(f"{path}, row {place} has no text in {column!r}; it has {', '.join(row)}.")
        answer = number(_final_line(row[source.reference]))
        if answer is None:
            raise DataError(f"{path}, row {place}: the right answer, {row[source.reference][-60:]!r}, holds no number.")
        right.append(answer)
    texts = tuple(tuple(_solution(row.get(column), source.solution) for column in columns) for row in rows)
    return Solved(tuple(columns), tuple(row[source.question] for row in rows), tuple(right), texts)


def _row(line: str, place: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place} is no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise DataError(f"{place} is no JSON object.")
    return found


def _columns(rows: Sequence[Mapping[str, Any]], source: TraceFile) -> list[str]:
    found: dict[str, None] = {}
    for row in rows:
        found |= dict.fromkeys(name for name, cell in row.items() if isinstance(cell, dict) and source.solution in cell)
    return list(found)


def _solution(cell: object, key: str) -> str:
    text = cell.get(key) if isinstance(cell, dict) else cell
    return text if isinstance(text, str) else ""


def _final_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


# What a solution says against itself.


def recomputes(question: str, text: str) -> bool:
    """Whether every written equation holds, within a hundredth, absolute or relative; results are rounded in words."""
    return all(_holds(left, right) for left, right in _equations(text))


def grounded(question: str, text: str) -> bool:
    """Whether every equation holds and computes with numbers that the question or an earlier result gives."""
    known = {_exact(found) for found in re.findall(r"\d[\d,]*\.?\d*|\.\d+", question)}
    known |= {value for word, value in _WORDS.items() if re.search(rf"\b{word}", question.casefold())}
    known |= {Fraction(1), Fraction(2), Fraction(100)}
    for left, right in _equations(text):
        terms = [_exact(found) for found in re.findall(r"\d+\.?\d*|\.\d+", left)]
        if not all(
            {term, 100 * term, term / 100, 1 - term, 100 - term, 1 / term if term else term} & known for term in terms
        ):
            return False
        known.add(right)
    return recomputes(question, text)


EVIDENCE: dict[str, Callable[[str, str], bool]] = {
    "all answers": lambda question, text: True,
    "recomputed": recomputes,
    "grounded": grounded,
}
"""Which answers vote: all, those whose equations hold, those that besides take no number from nowhere."""


def _exact(text: str) -> Fraction:
    return Fraction(text.replace(",", "").rstrip(".") or "0")


def _equations(text: str) -> list[tuple[str, Fraction]]:
    """Left sides and results: those written for a calculator where there are some, else those in the text."""
    found = _ANNOTATED.findall(text) or [(match["left"], match["right"]) for match in EQUATION.finditer(text)]
    read = [(plain(left), number(right)) for left, right in found]
    return [(left, right) for left, right in read if right is not None]


def _holds(left: str, right: Fraction) -> bool:
    try:
        value = _value(ast.parse(re.sub(r"(\d+(?:\.\d+)?|\.\d+)%", r"(\1/100)", left), mode="eval").body)
    except (SyntaxError, ZeroDivisionError, ValueError):
        return True  # nothing that can be recomputed, so nothing against it
    # A result in percent may or may not be written as one.
    return any(abs(value - one) <= max(Fraction(1, 100), abs(one) / 100) for one in (right, right / 100, right * 100))


_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Fraction(str(node.value))
    raise ValueError(ast.dump(node))


def heard(solved: Solved, evidence: str) -> list[list[Vote]]:
    """The votes that some evidence leaves; where it leaves none of a question, all of them."""
    keep, found = EVIDENCE[evidence], []
    for question, texts, votes in zip(solved.questions, solved.texts, solved.votes, strict=True):
        kept = [vote if keep(question, text) else None for vote, text in zip(votes, texts, strict=True)]
        found.append(kept if any(vote is not None for vote in kept) else votes)
    return found


# How often that is right.


def measured(chosen: Sequence[Vote], right: Sequence[Vote]) -> Measurement:
    """Choices against right answers; none is wrong."""
    hits = [[float(answer is not None and answer == wanted), 1.0] for answer, wanted in zip(chosen, right, strict=True)]
    return Measurement(tuple(f"{place:06}" for place in range(len(hits))), np.array(hits))


def auroc(scores: Sequence[float], positive: Sequence[bool] | NDArray[np.bool_]) -> float | None:
    """How often a positive scores higher than a negative, ties as half; None where one kind is missing.

    >>> auroc([0.9, 0.4, 0.4, 0.1], [True, True, False, False])
    0.875
    """
    score_N, positive_N = np.asarray(scores), np.asarray(positive, dtype=bool)
    many = int(positive_N.sum())
    if many in (0, len(positive_N)):
        return None
    _, place_N, count = np.unique(score_N, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2
    above = rank[place_N[positive_N]].sum() - many * (many + 1) / 2
    return float(above / (many * (len(positive_N) - many)))


def fitted_with_gold(solved: Solved, seed: int) -> list[Vote]:
    """A ceiling for weighted votes: weights fitted to the right answers of nine tenths, used on the last tenth.

    The weight of a vote is a power of its teacher's accuracy; the power is the best of a few on the same nine tenths.
    """
    votes = solved.votes
    codes_EK = encode(votes)
    right_EK = np.array([[v == a for v in row] for row, a in zip(votes, solved.right, strict=True)])
    right_E = np.where(right_EK.any(axis=1), codes_EK[np.arange(len(votes)), right_EK.argmax(axis=1)], -2)
    fold_E = np.random.default_rng(seed).permutation(len(votes)) % _FOLDS
    chosen: list[Vote] = [None] * len(votes)
    for fold in range(_FOLDS):
        apart_E = fold_E == fold
        accuracy_K = right_EK[~apart_E].mean(axis=0)
        best = max(_POWERS, key=lambda p: (_weighed(codes_EK[~apart_E], accuracy_K**p) == right_E[~apart_E]).mean())
        for place, code in zip(np.flatnonzero(apart_E), _weighed(codes_EK[apart_E], accuracy_K**best), strict=True):
            chosen[place] = next((v for v, c in zip(votes[place], codes_EK[place], strict=True) if c == code), None)
    return chosen


def _weighed(codes_EK: NDArray[np.int64], weight_K: NDArray[np.float64]) -> NDArray[np.int64]:
    return most_supported(np.einsum("eka,k->ea", one_hot(codes_EK), weight_K), codes_EK)


def choose(solved: Solved, rules: Mapping[str, ConsensusRule], seed: int) -> dict[str, Any]:
    """Every rule on the recorded solutions, against the best single teacher, as plain data."""
    votes, right = solved.votes, solved.right
    single = {name: measured([row[k] for row in votes], right) for k, name in enumerate(solved.teachers)}
    accuracy = {name: estimate(m) for name, m in single.items()}
    best = max(accuracy, key=lambda name: accuracy[name].value)
    oracle = [a if a in row else None for row, a in zip(votes, right, strict=True)]
    ceiling = measured(fitted_with_gold(solved, seed), right)
    found = []
    for evidence in EVIDENCE:
        left = heard(solved, evidence)
        for name, rule in rules.items():
            decided = rule.decide(left)
            hits = measured(decided.chosen, right)
            found.append(
                {
                    "rule": name,
                    "evidence": evidence,
                    "accuracy": asdict(estimate(hits)),
                    "against_best_single": asdict(compare(hits, single[best], seed=seed)),
                    "auroc": auroc(decided.confidence, hits.sums_EM[:, 0] > 0),
                    "reliability": dict(zip(solved.teachers, decided.reliability, strict=True)),
                }
            )
    return {
        "n": len(right),
        "teachers": {name: asdict(one) for name, one in accuracy.items()},
        "best_single": best,
        "oracle": asdict(estimate(measured(oracle, right))),
        "fitted_with_gold": {
            "accuracy": asdict(estimate(ceiling)),
            "against_best_single": asdict(compare(ceiling, single[best], seed=seed)),
        },
        "rules": found,
        "withheld": {kind: _withheld(solved, kind) for kind in EVIDENCE},
        "no_answer": {name: sum(row[k] is None for row in votes) for k, name in enumerate(solved.teachers)},
        "disagreement": _disagreement(solved, votes),
    }


def _withheld(solved: Solved, evidence: str) -> int:
    keep = EVIDENCE[evidence]
    return sum(
        not keep(question, text)
        for question, texts in zip(solved.questions, solved.texts, strict=True)
        for text in texts
    )


def _disagreement(solved: Solved, votes: Sequence[Sequence[Vote]]) -> dict[str, Any]:
    """How often teachers differ, and at which step the solutions of each two that do."""
    names, first = solved.teachers, {}
    for pair in pairs(votes):
        at = [
            found.step
            for row, texts in zip(votes, solved.texts, strict=True)
            if None not in (row[pair.one], row[pair.other]) and row[pair.one] != row[pair.other]
            if (found := first_difference(texts[pair.one], texts[pair.other]))
        ]
        first[f"{names[pair.one]} | {names[pair.other]}"] = {
            "both": pair.both,
            "differ": pair.differ,
            "at_step": {str(step): at.count(step) for step in sorted(set(at))},
        }
    unanimous = sum(len(set(row)) == 1 for row in votes)
    return {"unanimous": unanimous, "pairs": first}
