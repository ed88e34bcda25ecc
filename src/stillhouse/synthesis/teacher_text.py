"""The teacher writes the text: answers to given prompts, or running text from nothing (data-free distillation)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from stillhouse.data.rendering import Renderer
from stillhouse.errors import DataError
from stillhouse.models import Sampling
from stillhouse.records import Example
from stillhouse.synthesis.base import Synthesizer
from stillhouse.teachers.base import TeacherSession


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

    def tokens_written(self, prompts: int) -> int:
        """One answer per prompt, or `count` texts, each at its longest."""
        return (prompts or self.count or 0) * self.max_new_tokens

    def synthesize(self, examples: Sequence[Example], teacher: TeacherSession, renderer: Renderer) -> list[Example]:
        """One example per prompt, or `count` texts where there is none.

        Raises:
            DataError: no prompts and no count, or running text as prompts.
        """
        if examples:
            return self._answers(examples, teacher, renderer)
        if self.count is None:
            raise DataError(
                "teacher_text has no prompts to answer; set count, so that the teacher writes that many texts from "
                "nothing."
            )
        start = renderer.prompt_ids(Example(id="start", prompt=""))
        if not start:
            raise DataError("The tokenizer has no beginning-of-sequence token to write from; give prompts instead.")
        written = self._write([start] * self.count, teacher)
        return [
            Example(id=f"teacher_text-{self.seed}-{i}", text=str(teacher.tokenizer.decode(ids)), meta=self._meta(ids))
            for i, ids in enumerate(written)
        ]

    def _answers(self, examples: Sequence[Example], teacher: TeacherSession, renderer: Renderer) -> list[Example]:
        if wrong := next((e for e in examples if e.form != "prompt"), None):
            raise DataError(f"teacher_text answers prompts; example {wrong.id!r} is {wrong.form}. Map a prompt column.")
        written = self._write([renderer.prompt_ids(e) for e in examples], teacher)
        return [
            dataclasses.replace(
                e, completion=str(teacher.tokenizer.decode(ids)), rationale=None, meta={**e.meta, **self._meta(ids)}
            )
            for e, ids in zip(examples, written, strict=True)
            if ids  # an empty answer teaches nothing; the data stage records how many were kept
        ]

    def _write(self, prompts: list[list[int]], teacher: TeacherSession) -> list[list[int]]:
        return teacher.write(prompts, Sampling.of(self))

    def _meta(self, ids: Sequence[int]) -> dict[str, object]:
        made = {
            "made_by": {"synthesizer": "teacher_text", **{k: v for k, v in asdict(self).items() if k != "batch_size"}}
        }
        return {**made, "unfinished": True} if len(ids) >= self.max_new_tokens else made
