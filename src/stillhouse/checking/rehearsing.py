"""A run in miniature: its own code on a few examples, with random models of the real shapes, timed and weighed.

What is too deep to be built whole is built of one and two layers, and the line through the two is followed.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from stillhouse.checking.distant import Distant
from stillhouse.checking.metering import LiveBytes, Trial, Trials, measure, seconds_of, tensor_bytes
from stillhouse.checking.updates import rehearse_updates
from stillhouse.data.batching import in_order
from stillhouse.data.rendering import Rendered
from stillhouse.data.tokens import TokenFile, write_tokens
from stillhouse.evaluation.base import Evaluator
from stillhouse.models import CausalLM, Sampling
from stillhouse.objectives.cross_entropy import CrossEntropy
from stillhouse.pruning import importance
from stillhouse.records import Example, write_examples
from stillhouse.runs import RunFolder, StageRecord
from stillhouse.scoring import closeness, write_signals
from stillhouse.signals.kinds import Dense, TopK
from stillhouse.student import Student
from stillhouse.teachers.base import TeacherSession
from stillhouse.teachers.hf import HFSession
from stillhouse.workshop import CALIBRATION_BATCH, Workshop

_WRITTEN = 49
_QUESTIONS = 4
_CLOSENESS_ROWS = 128
"""Sizes of trials: tokens written, questions with choices, rows held against their stored signal."""


@dataclass(frozen=True)
class Sample:
    """A few examples of a split with their tokens."""

    examples: list[Example]
    rendered: list[Rendered]

    def tokens(self) -> int:
        """Inputs in all."""
        return sum(len(r.tokens) for r in self.rendered)

    def trained(self) -> int:
        """Predictions that count in the loss."""
        return sum(sum(r.trained) for r in self.rendered)

    def first(self, tokens: int) -> Sample:
        """As many examples from its beginning as make up so many tokens, at least one that has any."""
        ids = {example.id for example in self.examples}
        owned: dict[str, list[Rendered]] = {}
        for r in self.rendered:  # the windows of a long text are `id/0`, `id/1` and so on
            owned.setdefault(r.id if r.id in ids else r.id.rpartition("/")[0], []).append(r)
        taken = Sample([], [])
        for example in self.examples:
            if taken.tokens() >= tokens and taken.rendered:
                break
            taken.examples.append(example)
            taken.rendered.extend(owned.get(example.id, []))
        return taken


@dataclass(frozen=True)
class Asking:
    """What a teacher is asked in order to make data.

    Attributes:
        name: of the work, such as `teacher makes train 0`.
        count: prompts in all.
        prompts: a batch of them, as token ids.
        sampling: how they are answered.
        prompt_tokens: of a prompt, on average.
    """

    name: str
    count: int
    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    prompt_tokens: float

    @property
    def written(self) -> int:
        """Tokens of all answers at their longest."""
        return self.count * self.sampling.max_new_tokens

    def writing(self) -> Writing:
        """As work of a teacher in this process."""
        return Writing("teacher", self.prompts, self.sampling, self.sampling.max_new_tokens)


@dataclass(frozen=True)
class Writing:
    """Text that a model writes in a run.

    Attributes:
        role: who writes, `teacher` or `student`.
        prompts: at least one batch of them, as token ids.
        sampling: how.
        length: tokens until the longest answer of a batch ends, as is to be expected.
    """

    role: str
    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    length: int

    @property
    def counts(self) -> tuple[int, int, int]:
        """Tokens written in the trials from which the time of any number of them follows."""
        most = max(1, min(_WRITTEN, self.length))
        return 1, max(1, most // 3), most


class Rehearsal(Workshop):
    """A workshop in a scratch folder whose models are skeletons and whose data are samples."""

    student_lm: CausalLM
    teacher_lm: CausalLM | None

    def cast(
        self, folder: Path, student: CausalLM, teacher: CausalLM | None, samples: dict[str, Sample], tokens: int
    ) -> Rehearsal:
        """The same workshop with models and data to work with, and updates of so many tokens, in a folder of its
        own."""
        made = copy.copy(self)
        made.folder = RunFolder(folder)
        made.student_lm, made.teacher_lm = student, teacher
        smaller = self.recipe.train.model_copy(update={"tokens_per_step": tokens, "accumulate": 1})
        made.recipe = self.recipe.model_copy(update={"train": smaller})
        made._heldout = {name: (s.examples, s.rendered) for name, s in samples.items()}
        made._tokens = {}
        for name, sample in samples.items():
            write_examples(folder / "data" / f"{name}.jsonl", sample.examples)
            write_tokens(folder / "tokens" / name, sample.rendered, {}, {})
            made._tokens[name] = TokenFile(folder / "tokens" / name)
        return made

    @cached_property
    def teacher(self) -> TeacherSession:
        """A session of the skeleton; a record needs no weights and is opened as it is, and what is elsewhere is not
        asked."""
        real, tokenizer = self.plan.teacher, self.plan.teacher_tokenizer
        if real.live and not real.here and real.shows is not None and tokenizer is not None:
            return Distant(tokenizer, real.shows)
        if self.plan.teacher.recorded_at is not None or self.teacher_lm is None:
            return self.plan.teacher.open(self.device)
        return HFSession(self.teacher_lm)

    @cached_property
    def models_in_play(self) -> dict[str, Any]:
        """None: nothing is skipped a second time here, and the user's weights are not to be read."""
        return {}

    def new_student(self) -> Student:
        """The skeleton, a copy each time: training and adapters change it."""
        return Student(dataclasses.replace(self.student_lm, model=copy.deepcopy(self.student_lm.model)))

    def rehearse(self, writings: dict[str, Writing]) -> Trials:
        """Every piece of the run once or a few times."""
        plan, rendered = self.plan, self.rendered("train", StageRecord("", ""))
        found: Trials = self._carry(rendered)
        if plan.recorded:
            found["score"] = Trial(seconds_of(lambda: write_signals(self)), 0)
            found["closeness"] = self._closeness()
            found["prepare"] = Trial(seconds_of(lambda: self.signals().prepare(rendered)), 0)
        if plan.recipe.student.from_teacher is not None and self.teacher_lm is not None:
            found["calibrate"] = self._calibration(self.teacher_lm, rendered)
        asked = self.signals() if plan.white_box else None
        found |= rehearse_updates(self, "student", asked, plan.objectives)
        if plan.may_have_control:
            found |= rehearse_updates(self, "control", None, [CrossEntropy()])
        for role, lm in self._models().items():
            for place, evaluator in enumerate(plan.evaluators):
                if (short := shortened(evaluator)) is not None:
                    found[f"{role} evaluator {place}"] = self._evaluation(short, lm)
        for name, writing in writings.items():
            found |= {f"{name} {place}": trial for place, trial in enumerate(self._writing(writing))}
        return found

    def _models(self) -> dict[str, CausalLM]:
        return {"student": self.student_lm} | ({"teacher": self.teacher_lm} if self.teacher_lm is not None else {})

    def _carry(self, rendered: Sequence[Rendered]) -> Trials:
        """Bytes that each model's weights, its stack at work and its cache of one token take."""
        found: Trials = {}
        for role, lm in self._models().items():
            tokens_BT = torch.tensor([rendered[0].tokens[:64]], device=lm.device)
            with torch.no_grad():
                with LiveBytes() as live:
                    lm.hidden(tokens_BT)
                cache = lm.model(tokens_BT, use_cache=True).past_key_values
            kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
            found[f"{role} weights"] = Trial(0, tensor_bytes(lm.model.parameters()))
            found[f"{role} token"] = Trial(0, live.peak / tokens_BT.numel())
            found[f"{role} cache"] = Trial(0, kept / tokens_BT.numel())
        return found

    def _calibration(self, teacher: CausalLM, rendered: Sequence[Rendered]) -> Trial:
        """A pass over the sample that measures what of the teacher is important."""
        return Trial(seconds_of(lambda: importance.measure(teacher, in_order(rendered, CALIBRATION_BATCH))), 0)

    def _closeness(self) -> Trial:
        """Of one trained token, held against its stored signal; nothing where no whole distribution is known."""
        if self.plan.teacher.shows is not None:
            return Trial(0.0, 0.0)
        score, width = self.recipe.score, self.teacher.lm.vocabulary if self.teacher.lm else 0
        assert score is not None
        dense = Dense(torch.randn(_CLOSENESS_ROWS, width, device=self.device))
        kept = TopK.of(dense, score.k, self.plan.record_temperature)
        took = measure(lambda: closeness(dense, kept))
        return Trial(took.seconds / _CLOSENESS_ROWS, took.bytes / _CLOSENESS_ROWS)

    def _evaluation(self, evaluator: Evaluator, lm: CausalLM) -> Trial:
        return measure(lambda: evaluator.evaluate(lm, self.heldout(), self.teacher_lm))

    def _writing(self, writing: Writing) -> list[Trial]:
        lm = self._models()[writing.role]

        def write(count: int) -> Trial:
            sampling = dataclasses.replace(writing.sampling, max_new_tokens=count)
            return Trial(seconds_of(lambda: lm.generate(writing.prompts, sampling)), 0)

        write(2)  # warms up
        return [write(count) for count in writing.counts]


def shortened(evaluator: Evaluator) -> Evaluator | None:
    """An evaluator as it is rehearsed; None where it writes text, which is timed by token, or what it does cannot be
    told from a sample."""
    settings = {field.name for field in dataclasses.fields(evaluator)}
    if {"trials", "memory"} <= settings:
        return dataclasses.replace(evaluator, trials=1, memory=False)
    if getattr(evaluator, "form", None) == "choice":
        return dataclasses.replace(evaluator, limit=_QUESTIONS)
    return None if writes(evaluator) or evaluator.once else evaluator


def judges(evaluator: Evaluator) -> bool:
    """Whether it looks for answers of some form; those that it lets models write are the run's samples, beside which
    no other text is written."""
    return hasattr(evaluator, "form")


def writes(evaluator: Evaluator) -> bool:
    """Whether it lets models write as its own settings say, and reads their answers."""
    settings = {field.name for field in dataclasses.fields(evaluator)}
    sampling = {field.name for field in dataclasses.fields(Sampling)}
    return sampling <= settings and getattr(evaluator, "form", None) != "choice"
