"""The teacher writes the text: answers to given prompts, or running text from nothing (data-free distillation)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.errors import DataError
from stillhouse.models import Sampling
from stillhouse.records import Example
from stillhouse.synthesis.base import Request, Synthesizer, Workbench
from stillhouse.teachers.base import Answer


@dataclass(frozen=True, kw_only=True)
class TeacherText(Synthesizer):
    """Sampled (or greedy) text of the teacher; with cross_entropy it is sequence-level distillation (Kim and Rush 2016,
    arXiv 1606.07947).

    As a step it replaces each example's completion; as a source (`train: {teacher_text: {count: 2000}}`) it writes
    `count` texts from the beginning-of-sequence token.

    Attributes:
        count: texts to write where there are no prompts.
        max_new_tokens: at most this many tokens a text; one that did not end by then is marked `unfinished` in its meta
            and is not taught to end there.
        temperature: of the draws, 0 is greedy.
        top_p: smallest set of tokens whose mass reaches it.
        seed: of the draws.
        batch_size: texts written at once.
    """

    count: int | None = None
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it must be at least 0 (0 is greedy)")
        if self.count is not None and self.count < 1:
            raise ValueError(f"count is {self.count}; it must be at least 1")

    def request(self, examples: Sequence[Example], count: int) -> Request:
        """One answer a prompt, or `count` texts."""
        if not examples:
            return Request([self._start(0)], self._count(), self._count(), Sampling.of(self))
        return Request(examples, count, count, Sampling.of(self))

    def synthesize(self, examples: Sequence[Example], bench: Workbench) -> Iterator[Example]:
        """One example per prompt, or `count` texts where there is none.

        Raises:
            DataError: no prompts and no count, or running text as prompts.
        """
        if not examples:
            starts = map(self._start, range(self._count()))
            for start, answer in self._usable(starts, bench):
                yield Example(id=start.id, text=answer.text, meta=self._meta(answer, bench))
            return
        if wrong := next((e for e in examples if e.form != "prompt"), None):
            raise DataError(f"teacher_text answers prompts; example {wrong.id!r} is {wrong.form}. Map a prompt column.")
        for example, answer in self._usable(examples, bench):
            meta = {**example.meta, **self._meta(answer, bench)}
            yield dataclasses.replace(example, completion=answer.text, rationale=None, meta=meta)

    def _usable(self, asked: Iterable[Example], bench: Workbench) -> Iterator[tuple[Example, Answer]]:
        for example, answer in self.ask(asked, bench, Sampling.of(self)):
            if answer.text.strip():
                yield example, answer
            else:
                bench.notes["empty answers left out: they teach nothing"] += 1

    def _start(self, number: int) -> Example:
        return Example(id=f"teacher_text-{self.seed}-{number}", prompt="")

    def _count(self) -> int:
        if self.count is None:
            raise DataError(
                "teacher_text has no prompts to answer; set count, so that the teacher writes that many texts from "
                "nothing."
            )
        return self.count

    def _meta(self, answer: Answer, bench: Workbench) -> dict[str, Any]:
        made = dict(self.made(bench))
        return made if answer.finished else {**made, "unfinished": True}
