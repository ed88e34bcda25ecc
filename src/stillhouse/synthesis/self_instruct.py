"""Self-instruct: the teacher writes new prompts in the manner of seeds, and those too like any other are dropped."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from stillhouse.answers import normalized
from stillhouse.errors import DataError, MissingExtraError
from stillhouse.models import Sampling
from stillhouse.records import Example
from stillhouse.synthesis.base import Request, Synthesizer, Workbench

_AT_ONCE = 16
"""Requests between two looks at what came of them: the next ones may show what these brought."""
_NUMBERED = re.compile(r"^\s*(?:task\s*)?\d+\s*[.:)]\s*", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class SelfInstruct(Synthesizer):
    """New prompts from seeds (Wang et al. 2022, arXiv 2212.10560): the teacher is shown a numbered list of prompts,
    seeds and some of its own, and continues it; what resembles a seed, an evaluation set or an earlier prompt is
    dropped.

    What is made is added to the seeds and has no answer yet: let another step write it, as in
    `data: {steps: [self_instruct: {count: 500}, teacher_text]}`.

    Attributes:
        count: new prompts wanted; fewer come where `requests` run out.
        requests: of the teacher at most; none takes as many as prompts are wanted.
        shown: prompts in the list, of which a quarter are its own as soon as there are some.
        heading: what stands before the list.
        likeness: ROUGE-L at which two prompts are the same; 1 drops exact repetitions alone.
        shortest: words of a prompt at least.
        longest: words of a prompt at most.
        max_new_tokens: of the continued list.
        temperature: of the draws.
        top_p: smallest set of tokens whose mass reaches it.
        seed: of the draws and of which prompts are shown.
        batch_size: lists written at once.
    """

    count: int = 100
    requests: int | None = None
    shown: int = 8
    heading: str = "Come up with a series of different tasks:"
    likeness: float = 0.7
    shortest: int = 3
    longest: int = 150
    max_new_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        for key in ("count", "shown", "shortest"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; it must be at least 1")
        if self.requests is not None and self.requests < 1:
            raise ValueError(f"requests is {self.requests}; it must be at least 1")
        if not 0 < self.likeness <= 1:
            raise ValueError(f"likeness is {self.likeness}; it must be above 0 and at most 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; above 0 the same list is continued in different ways")

    def request(self, examples: Sequence[Example], count: int) -> Request:
        """Lists to continue."""
        shown = self._ask(list(examples), [], 0)
        return Request([shown], self.requests or self.count, count + self.count, Sampling.of(self))

    def synthesize(self, examples: Sequence[Example], bench: Workbench) -> Iterator[Example]:
        """The seeds, then new prompts.

        Raises:
            DataError: no seeds, or seeds without a prompt.
            MissingExtraError: rouge-score is not installed.
        """
        if not examples or any(e.form != "prompt" for e in examples):
            raise DataError("self_instruct needs seeds that are prompts. Map a prompt column in data.train.")
        pool = _Pool(self.likeness)
        for known in (*examples, *bench.heldout):
            pool.add(_prompt(known))
        yield from examples
        made: list[Example] = []
        for start in range(0, self.requests or self.count, _AT_ONCE):
            if len(made) >= self.count:
                return
            stop = min(start + _AT_ONCE, self.requests or self.count)
            asked = [self._ask(examples, made, n) for n in range(start, stop)]
            for question, answer in self.ask(asked, bench, Sampling.of(self)):
                for text in self._tasks(answer.text, finished=answer.finished):
                    if len(made) < self.count and self._wanted(text, pool, bench):
                        name = f"self_instruct-{self.seed}-{len(made)}"
                        made.append(Example(id=name, prompt=text, meta=self.made(bench, parent=question.id)))
                        yield made[-1]
        if len(made) < self.count:
            bench.notes["prompts fewer than data.steps.self_instruct.count asks for"] += self.count - len(made)

    def _ask(self, seeds: Sequence[Example], made: Sequence[Example], number: int) -> Example:
        """A numbered list to be continued, drawn anew for every request."""
        draw = random.Random(f"{self.seed}/{number}")
        own = draw.sample(made, min(len(made), self.shown // 4))
        listed = [*draw.sample(seeds, min(len(seeds), self.shown - len(own))), *own]
        draw.shuffle(listed)
        lines = [f"Task {i}: {' '.join(_prompt(e).split())}" for i, e in enumerate(listed, start=1)]
        text = "\n".join([self.heading, *lines, f"Task {len(lines) + 1}:"])
        return Example(id=f"self_instruct-{self.seed}-request-{number}", prompt=text)

    def _tasks(self, text: str, *, finished: bool) -> list[str]:
        """The prompts of a continued list; its last one may be cut off."""
        found = [" ".join(part.split()) for part in _NUMBERED.split(text)]
        return [task for task in (found if finished else found[:-1]) if task]

    def _wanted(self, text: str, pool: _Pool, bench: Workbench) -> bool:
        words = len(text.split())
        if not self.shortest <= words <= self.longest:
            bench.notes[f"prompts shorter than {self.shortest} or longer than {self.longest} words left out"] += 1
        elif pool.holds(text):
            bench.notes["prompts too like a seed, an evaluation set or an earlier one left out"] += 1
        else:
            pool.add(text)
            return True
        return False


def _prompt(example: Example) -> str:
    """The question of any example."""
    if example.messages:
        return next((m["content"] for m in example.messages if m["role"] == "user"), "")
    return example.prompt or example.text or ""


class _Pool:
    """Texts that a new one is held against, by ROUGE-L's F1 of their words."""

    def __init__(self, likeness: float) -> None:
        self.likeness = likeness
        self._texts: list[tuple[str, Counter[str], int]] = []
        self._exact: set[str] = set()
        self._scorer = _scorer()

    def add(self, text: str) -> None:
        words = normalized(text).split()
        self._texts.append((text, Counter(words), len(words)))
        self._exact.add(normalized(text))

    def holds(self, text: str) -> bool:
        """Whether a text is as good as in the pool.

        A longest common subsequence is no longer than the words that two texts share, which is quickly counted, so that
        few pairs have to be scored.
        """
        if normalized(text) in self._exact:
            return True
        words = Counter(normalized(text).split())
        size = words.total()
        for other, counted, length in self._texts:
            most = 2 * (words & counted).total() / max(1, size + length)
            if most >= self.likeness and self._scorer.score(other, text)["rougeL"].fmeasure >= self.likeness:
                return True
        return False


class _Words:
    """How rouge-score is to cut texts: as the rest of this file does, in any alphabet."""

    def tokenize(self, text: str) -> list[str]:
        return normalized(text).split()


def _scorer() -> Any:
    try:
        rouge = import_module("rouge_score.rouge_scorer")
    except ImportError as error:
        raise MissingExtraError(
            'self_instruct compares prompts by ROUGE-L, which needs rouge-score: pip install "stillhouse[eval]"'
        ) from error
    return rouge.RougeScorer(["rougeL"], tokenizer=_Words())
