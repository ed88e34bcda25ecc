"""Worded arithmetic problems with written-out steps and an exactly checkable answer.

A problem is a short story: an opening that sets a quantity, sentences that each change or compare it, irrelevant facts,
and a question. The generator keeps the exact derivation, so the answer never has to be parsed back out of prose.

The two splits never meet. A ``heldout`` problem uses only sentence shapes that no ``train`` problem uses, and each of
its number combinations ``(left, op, right)`` is one that no ``train`` problem contains.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, get_args

from stillhouse.data.arithmetic_rules import Op, Split, Step, combination_split, shape_ids
from stillhouse.data.arithmetic_story import DeadEndError, Problem, tell_problem

__all__ = ["MAX_STEPS", "Op", "Problem", "Split", "Step", "combination_split", "generate", "row", "shape_ids"]

MAX_STEPS = 6


def _check(count: int, steps: tuple[int, int], split: str, distractors: float) -> None:
    if count < 0:
        raise ValueError(f"count is {count}; expected 0 or more problems: pass a non-negative count")
    if len(steps) != 2 or not 1 <= steps[0] <= steps[1] <= MAX_STEPS:
        raise ValueError(
            f"steps is {steps!r}; expected (fewest, most) with 1 <= fewest <= most <= {MAX_STEPS}: pass for example "
            "(2, 4)"
        )
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}; expected 'train' or 'heldout': pass one of these two")
    if not 0.0 <= distractors <= 1.0:
        raise ValueError(f"distractors is {distractors!r}; expected a probability: pass a value from 0.0 to 1.0")


def generate(
    count: int,
    *,
    seed: int = 0,
    steps: tuple[int, int] = (2, 4),
    split: Split = "train",
    distractors: float = 0.5,
) -> Iterator[Problem]:
    """Yield ``count`` distinct problems; the same arguments always give the same problems in the same order.

    Args:
        count: number of problems; a longer run begins with the problems of a shorter one.
        seed: any integer; other seeds give other problems.
        steps: fewest and most steps of a problem, drawn evenly (1 to 6).
        split: ``"train"`` or ``"heldout"``; the two share neither sentence shapes nor number combinations.
        distractors: probability from 0 to 1 that a problem holds an irrelevant fact (a third of that for a second one).

    Raises:
        ValueError: an argument is out of range.

    Example: ``next(generate(1, seed=7)).solution``.
    """
    _check(count, steps, split, distractors)
    return _generate(count, seed, steps, split, distractors)


def _generate(count: int, seed: int, steps: tuple[int, int], split: Split, distractors: float) -> Iterator[Problem]:
    rng = random.Random(f"{seed} {split}")
    seen: set[str] = set()
    while len(seen) < count:
        try:
            problem = tell_problem(rng, rng.randint(*steps), split, distractors)
        except DeadEndError:
            continue
        if problem.question not in seen:
            seen.add(problem.question)
            yield problem


def row(problem: Problem) -> dict[str, Any]:
    """The problem as a data row in the GSM8K form: ``answer`` is the solution text, which ends in ``#### N``.

    The other keys are ``question``, ``final`` (int), ``derivation`` (one ``"12 + 7 = 19"`` a step) and ``steps`` (int).

    Example: ``row(next(generate(1)))["final"]``.
    """
    return {
        "question": problem.question,
        "answer": problem.solution,
        "final": problem.answer,
        "derivation": [str(step) for step in problem.steps],
        "steps": len(problem.steps),
    }
