"""Builds one worded-arithmetic problem: the story, its exact steps and the lines of its solution."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from stillhouse.data.arithmetic_rules import (
    LARGEST,
    NAMES,
    OWNED,
    PARTS,
    PLACES,
    SENTENCES,
    STORY,
    UNITS,
    Category,
    Split,
    Step,
    combination_split,
    factors,
    products,
    shapes_of,
)

_TRIES = 48


@dataclass(frozen=True)
class Problem:
    """A worded problem; ``answer`` is the last step's result and ``shapes`` the ids of the sentence shapes used."""

    question: str
    solution: str
    answer: int
    steps: tuple[Step, ...]
    shapes: tuple[str, ...]


class DeadEndError(Exception):
    """The story cannot go on with the numbers drawn so far; it is started again."""


@dataclass
class _Story:
    """A problem under construction."""

    rng: random.Random
    split: Split
    value: int = 0
    sentences: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    words: dict[str, Any] = field(default_factory=dict)
    kind: str = "thing"

    def __post_init__(self) -> None:
        self.names = self.rng.sample(NAMES, 10)
        self.spare: dict[str, list[tuple[str, str]]] = {}
        self.words["who"] = self.names.pop()
        self.words["item"], self.words["items"] = self.new_unit(self._first_kind())

    def _first_kind(self) -> str:
        draw = self.rng.random()
        self.kind = "food" if draw < 0.35 else "thing" if draw < 0.7 else "box" if draw < 0.85 else "money"
        return self.kind

    def new_name(self) -> str:
        """A person that this story has not named yet."""
        if not self.names:
            raise DeadEndError
        return self.names.pop()

    def new_unit(self, kind: str) -> tuple[str, str]:
        """A unit of the kind that this story has not used yet."""
        if kind not in self.spare:
            self.spare[kind] = self.rng.sample(UNITS[kind], min(5, len(UNITS[kind])))
        if not self.spare[kind]:
            raise DeadEndError
        return self.spare[kind].pop()

    def say(self, category: str) -> None:
        """Append a sentence of the category, filled with the current words."""
        options = shapes_of(category, self.split)
        shape_id, text = options[int(self.rng.random() * len(options))]
        if "{place}" in text:
            self.words["place"] = self.rng.choice(PLACES)
        self.shapes.append(shape_id)
        self.sentences.append(text.format_map(self.words))

    def record(self, step: Step, owner: str | None, unit: tuple[str, str]) -> None:
        """Append the step and a line of the solution; ``owner`` is who holds the result, if it is a holding."""
        items = unit[step.result != 1]
        phrases = SENTENCES[step.op] + (OWNED if owner else ())
        phrase = phrases[int(self.rng.random() * len(phrases))]
        self.lines.append(phrase.format(who=owner, items=items, eq=_written(step)))
        self.steps.append(step)

    def draw(self, category: Category) -> Step | None:
        """A step of the split that continues from the current value, or ``None`` when the numbers do not allow one."""
        value, op = self.value, category.op
        if op in "*/":
            fits = factors(value, op, self.split)
            if not fits:
                return None
            right = self.rng.choice(fits)
            return Step(value, op, right, value * right if op == "*" else value // right)
        for _ in range(_TRIES):
            left, right = value, self.rng.randint(2, 60 if op == "+" else max(2, value - 1))
            result = left + right if op == "+" else left - right
            in_range = result > 0 and max(left, result) <= LARGEST
            if in_range and combination_split(left, op, right) == self.split:
                return Step(left, op, right, result)
        return None

    def fill(self, step: Step) -> None:
        """Put the step's own operand into the words, as a number and as number words."""
        operand = step.right
        self.words["n"] = self.words["k"] = operand
        if step.op in "*/":
            self.words["part"] = PARTS[operand]
            self.words["times"] = "twice" if operand == 2 and self.rng.random() < 0.7 else f"{operand} times"


def _written(step: Step) -> str:
    """The equation as a solution shows it: what has two digits on both sides goes through its tens.

    ``56 + 28 = 70 + 14 = 84``, ``84 - 28 = 64 - 8 = 56``, ``38 * 3 = 90 + 24 = 114``, ``66 / 6 = 10 + 1 = 11``.
    """
    left, right, ones = step.left, step.right, step.right % 10
    if step.op == "+" and min(left, right) > 10 and left % 10 and ones:
        between = f"{left + right - left % 10 - ones} + {left % 10 + ones}"
    elif step.op == "-" and right > 10 and ones:
        between = f"{left - right + ones} - {ones}"
    elif step.op == "*" and left > 10 and left % 10:
        between = f"{left // 10 * 10 * right} + {left % 10 * right}"
    elif step.op == "/" and step.result > 10 and step.result % 10:
        between = f"{step.result // 10 * 10} + {step.result % 10}"
    else:
        return str(step)
    return f"{left} {step.op} {right} = {between} = {step.result}"


def _open(story: _Story, steps: int) -> None:
    """Say the opening, which takes one of the steps in about a third of the stories."""
    draw, rng, words = story.rng.random(), story.rng, story.words
    if steps < 2 or draw < 0.62:
        story.value = rng.randint(4, 80)
        words["n"] = story.value
        story.say("open_money" if story.kind == "money" else "open")
        return
    if draw < 0.82 or story.kind in ("box", "money"):
        story.value = rng.randint(3, 60)
        step = story.draw(STORY["gain"])
        if step is None:
            raise DeadEndError
        words["n"], words["m"] = step.left, step.right
        story.say("open_sum")
    else:
        left, right = rng.choice(products(story.split))
        step = Step(left, "*", right, left * right)
        words["n"], words["k"] = left, right
        words["box"], words["boxes"] = story.new_unit("box")
        story.say("open_mul")
    story.value = step.result
    story.record(step, words["who"], (words["item"], words["items"]))


def _advance(story: _Story, name: str, category: Category) -> bool:
    """Say one sentence of the category; ``False`` leaves the story as it was."""
    step = story.draw(category)
    if step is None:
        return False
    words = story.words
    words["other"] = story.new_name()
    story.fill(step)
    kind = story.kind
    if category.becomes:
        kind = story.rng.choice(category.becomes.split())
        words["new1"], words["new"] = story.new_unit(kind)
    story.say(name)
    if category.becomes:
        words["item"], words["items"], story.kind = words["new1"], words["new"], kind
    story.value = step.result
    story.record(step, words["who"], (words["item"], words["items"]))
    return True


def _tell(story: _Story) -> None:
    """Say one more sentence that takes a step."""
    names = [name for name, category in STORY.items() if story.kind in category.kinds]
    for name in story.rng.choices(names, [STORY[name].weight for name in names], k=8):
        if len(story.names) > 2 and _advance(story, name, STORY[name]):
            return
    raise DeadEndError


def _distract(story: _Story, distractors: float) -> None:
    """Insert up to two irrelevant facts between the opening and the question."""
    for chance in (distractors, distractors / 3):
        if story.rng.random() >= chance:
            continue
        story.words["other"] = story.new_name()
        story.words["n"] = story.rng.randint(2, 99)
        _, story.words["stuff"] = story.new_unit(story.rng.choice(("food", "thing")))
        story.say("noise")
        story.sentences.insert(story.rng.randint(1, len(story.sentences) - 1), story.sentences.pop())


def tell_problem(rng: random.Random, count: int, split: Split, distractors: float) -> Problem:
    """A problem of ``count`` steps.

    Raises:
        DeadEndError: the draw leads nowhere; draw again.
    """
    story = _Story(rng, split)
    _open(story, count)
    while len(story.steps) < count:
        _tell(story)
    story.say("ask")
    question = story.sentences.pop()
    _distract(story, distractors)
    answer = story.steps[-1].result
    solution = " ".join([*story.lines, f"#### {answer}"])
    text = " ".join([*story.sentences, question])
    return Problem(text, solution, answer, tuple(story.steps), tuple(story.shapes))
