"""Best of n: the teacher answers several times, and the answer that agreement or a judge prefers is kept."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from stillhouse.answers import normalized, number
from stillhouse.errors import DataError
from stillhouse.models import Sampling
from stillhouse.records import Example
from stillhouse.synthesis.base import Request, Synthesizer, Workbench
from stillhouse.teachers.base import Answer

_GRADE = re.compile(r"\d+(?:\.\d+)?")
_GRADE_TOKENS = 8
_BLOCK = 64


@dataclass(frozen=True, kw_only=True)
class BestOfN(Synthesizer):
    """One answer a prompt, the best of several samples.

    `agreement` takes the answer whose final number most samples share, the shortest of those (Wang et al. 2022, arXiv
    2203.11171); `medoid` the one most like all the others, by the F1 of their words, for text without a final number
    (minimum Bayes risk: Kumar and Byrne 2004; Suzgun et al. 2022, arXiv 2211.07634); `judge` the one that the teacher
    itself grades highest (Zheng et al. 2023, arXiv 2306.05685). Equal ones go to the first. In a recipe:
    `data: {steps: [{best_of_n: {samples: 8, temperature: 0.7, by: medoid}}]}`

    Attributes:
        samples: answers to choose from, at least 2.
        by: what makes an answer the best.
        grading: how a judge is asked, with `{prompt}` and `{answer}`; the first number of its reply is the grade.
        max_new_tokens: of an answer; one that did not end by then is chosen only where none did.
        temperature: of the draws, above 0.
        top_p: smallest set of tokens whose mass reaches it.
        seed: of the draws.
        batch_size: answers written at once.
    """

    samples: int = 4
    by: Literal["agreement", "medoid", "judge"] = "agreement"
    grading: str = (
        "Question:\n{prompt}\n\nAnswer:\n{answer}\n\nHow good is this answer, from 1 (useless) to 10 (perfect)? Reply "
        "with the number alone."
    )
    max_new_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"samples is {self.samples}; the best of one needs no choice, use teacher_text")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; samples differ only above 0")
        if "{answer}" not in self.grading:
            raise ValueError("grading must show the judge the {answer}")

    def request(self, examples: Sequence[Example], count: int) -> Request:
        """Every sample, and its grade where there is a judge."""
        times = self.samples * (2 if self.by == "judge" else 1)
        return Request(examples, count * times, count, Sampling.of(self))

    def synthesize(self, examples: Sequence[Example], bench: Workbench) -> Iterator[Example]:
        """One example per prompt.

        Raises:
            DataError: running text or a conversation as prompt.
        """
        if wrong := next((e for e in examples if e.form != "prompt"), None):
            raise DataError(f"best_of_n answers prompts; example {wrong.id!r} is {wrong.form}. Map a prompt column.")
        asked = (dataclasses.replace(e, id=f"{e.id}~{n}") for e in examples for n in range(self.samples))
        answers = self.ask(asked, bench, Sampling.of(self))
        waiting = iter(examples)
        while block := list(islice(waiting, _BLOCK)):  # so that a judge is asked about many at once
            candidates = {e.id: _candidates([answer for _, answer in islice(answers, self.samples)]) for e in block}
            scores = self._scores(block, candidates, bench)
            for example in block:
                if candidates[example.id]:
                    yield self._best(example, candidates[example.id], scores[example.id], bench)
                else:
                    bench.notes["prompts without an answer left out"] += 1

    def _best(
        self, example: Example, candidates: Sequence[Answer], scores: Sequence[float], bench: Workbench
    ) -> Example:
        place = max(range(len(candidates)), key=lambda i: scores[i])
        made = self.made(bench, score=round(scores[place], 4), candidates=len(candidates))
        meta = {**example.meta, **made} | ({} if candidates[place].finished else {"unfinished": True})
        return dataclasses.replace(example, completion=candidates[place].text, rationale=None, meta=meta)

    def _scores(
        self, block: Sequence[Example], candidates: Mapping[str, Sequence[Answer]], bench: Workbench
    ) -> Mapping[str, list[float]]:
        """Of each example, by its id, what every candidate is worth."""
        texts = {name: [answer.text for answer in some] for name, some in candidates.items()}
        if self.by == "judge":
            return self._grades(block, texts, bench)
        rate = _agreement if self.by == "agreement" else _likeness
        return {name: rate(some) if some else [] for name, some in texts.items()}

    def _grades(
        self, block: Sequence[Example], texts: Mapping[str, Sequence[str]], bench: Workbench
    ) -> Mapping[str, list[float]]:
        """What the judge says of each; 0 for what it gives no grade."""
        asked = [
            Example(
                id=f"{example.id}~grade{n}",
                prompt=self.grading.replace("{prompt}", example.prompt or "").replace("{answer}", text),
            )
            for example in block
            for n, text in enumerate(texts[example.id])
        ]
        sampling = Sampling(max_new_tokens=_GRADE_TOKENS, seed=self.seed, batch_size=self.batch_size)
        found = [_GRADE.search(answer.text) for answer in bench.teacher.answer(asked, sampling)]
        if missing := sum(grade is None for grade in found):
            bench.notes["answers that the judge gave no grade"] += missing
        grades = iter([float(grade[0]) if grade else 0.0 for grade in found])
        return {example.id: [next(grades) for _ in texts[example.id]] for example in block}


def _candidates(answers: Sequence[Answer]) -> list[Answer]:
    """What can be chosen: answers that say something, and of these the finished ones if there are any."""
    usable = [answer for answer in answers if answer.text.strip()]
    return [answer for answer in usable if answer.finished] or usable


def _agreement(texts: Sequence[str]) -> list[float]:
    """How many end in the same number, and less than one for being short."""
    finals = [number(text) for text in texts]
    votes = [0 if value is None else finals.count(value) for value in finals]
    longest = 1 + max(map(len, texts))
    return [count - len(text) / longest for count, text in zip(votes, texts, strict=True)]


def _likeness(texts: Sequence[str]) -> list[float]:
    words = [Counter(normalized(text).split()) for text in texts]
    return [sum(_f1(a, b) for b in words) - 1 for a in words]


def _f1(a: Counter[str], b: Counter[str]) -> float:
    shared, total = (a & b).total(), a.total() + b.total()
    return 2 * shared / total if total else 0.0
