"""Rationales: the teacher works questions out step by step, and what a verifier or a majority confirms is kept."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, NamedTuple

from stillhouse.answers import choice, normalized, number, split_trace
from stillhouse.data.questions import prompted, questions
from stillhouse.errors import DataError
from stillhouse.models import Sampling
from stillhouse.records import Example
from stillhouse.synthesis.base import Request, Synthesizer, Workbench
from stillhouse.teachers.base import Answer


class _Trace(NamedTuple):
    """A worked answer: its steps, what it comes to as text, and as answers are compared."""

    steps: str
    answer: str
    value: Hashable


@dataclass(frozen=True, kw_only=True)
class Rationales(Synthesizer):
    """Step-by-step traces of the teacher, several a question where asked; each kept one becomes an example with its
    rationale and its answer.

    Zero- or few-shot chains of thought (Wei et al. 2022, arXiv 2201.11903; Kojima et al. 2022, arXiv 2205.11916), kept
    if their answer is right (Zelikman et al. 2022, arXiv 2203.14465; Ho et al. 2022, arXiv 2212.10071) or if most
    samples agree with it (Wang et al. 2022, arXiv 2203.11171; Huang et al. 2022, arXiv 2210.11610). In a recipe::

        data:
          steps:
            - rationales:
                samples: 4
                temperature: 0.7
                template: "{prompt}\\nThink step by step. End with #### and the final number."

    Attributes:
        samples: traces of each question; above 1 they must be sampled.
        keep: `verified` those whose answer is right, `majority` those that agree with more than half of the samples,
            `all` of them.
        verify: how answers are compared: `numeric` by their final number, `exact` as text, `choice` by which of the
            `choices` they name last.
        answer: column of the right answer; none takes `answer`, else `final`, else the completion.
        choices: of all questions, where answers are chosen; quote yes and no, which YAML reads as true and false.
        template: of what is asked, `{prompt}` and other `{column}`s standing for the row's; the example that is made
            keeps the bare prompt.
        shots: worked examples of the same data before every question, each as the template asks it and its own
            rationale and completion.
        until: where the steps end and the answer begins, such as `####` or `The answer is`. The answer keeps it, but
            for a choice, which is learned as it is evaluated: as the bare text of the choice.
        max_new_tokens: of a trace; one that did not end by then is left out.
        temperature: of the draws, 0 is greedy.
        top_p: smallest set of tokens whose mass reaches it.
        seed: of the draws and of the choice of shots.
        batch_size: traces written at once.
    """

    samples: int = 1
    keep: Literal["verified", "majority", "all"] = "verified"
    verify: Literal["numeric", "exact", "choice"] = "numeric"
    answer: str | None = None
    choices: tuple[str, ...] | None = None
    template: str = "{prompt}"
    shots: int = 0
    until: str = "####"
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.samples < 1 or self.shots < 0:
            raise ValueError(f"samples is {self.samples} and shots {self.shots}; at least 1 and 0 are needed")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples is {self.samples} at temperature 0, which writes one trace over and over; raise temperature"
            )
        if self.keep == "majority" and self.samples < 3:
            raise ValueError(f"keep is majority of {self.samples} samples; it takes at least 3 to outvote one")
        if (self.verify == "choice") != (self.choices is not None):
            raise ValueError("choices belong to verify: choice, and are needed there")
        if "{" not in self.template:
            raise ValueError(f"template is {self.template!r}, the same for every row; it needs {{prompt}}")
        if not self.until:
            raise ValueError("until is empty; it must name where the answer begins, such as ####")

    def request(self, examples: Sequence[Example], count: int) -> Request:
        """As many traces of each question as there are samples."""
        asked = [shown for shown, _ in self._asked(examples)][:: self.samples]
        return Request(asked, count * self.samples, count * self.samples, Sampling.of(self))

    def synthesize(self, examples: Sequence[Example], bench: Workbench) -> Iterator[Example]:
        """The kept traces, in the order of their questions.

        Raises:
            DataError: examples without a prompt; no known answer to verify by; too few worked examples for the shots.
        """
        golds = self._golds(examples)
        parents = {example.id: example for example in examples}
        asked, owners = zip(*self._asked(examples), strict=True) if examples else ((), ())
        answers = zip(owners, self.ask(asked, bench, Sampling.of(self)), strict=True)
        for owner, group in groupby(answers, key=lambda pair: pair[0]):
            traces = [self._read(answer, bench) for _, (_, answer) in group]
            for place, trace, verdict in self._kept(traces, golds.get(owner), bench):
                yield self._example(parents[owner], place, trace, self.made(bench, parent=owner, **verdict))

    def _asked(self, examples: Sequence[Example]) -> Iterator[tuple[Example, str]]:
        """What is asked, once for every sample, and the id of the question behind it."""
        shots = self._shots(examples)
        for example in examples:
            if example.form != "prompt":
                raise DataError(
                    f"rationales works out prompts; example {example.id!r} is {example.form}. Map a prompt column."
                )
            before = "".join([text for name, text in shots if name != example.id][: self.shots])
            shown = prompted(example, self.template, by="rationales")
            for sample in range(self.samples):
                name = example.id if self.samples == 1 else f"{example.id}~{sample}"
                yield Example(id=name, prompt=f"{before}{shown.prompt}"), example.id

    def _shots(self, examples: Sequence[Example]) -> list[tuple[str, str]]:
        """Worked examples to show, one more than asked for, so that no question is shown its own answer."""
        if not self.shots:
            return []
        worked = [e for e in examples if e.completion is not None and e.form == "prompt"]
        if len(worked) <= self.shots:
            raise DataError(
                f"rationales.shots is {self.shots}, and {len(worked)} examples have a completion to show; one more "
                "than shots is needed. Map completion (and rationale) columns, or lower it."
            )
        chosen = random.Random(self.seed).sample(worked, self.shots + 1)
        return [
            (e.id, f"{prompted(e, self.template, by='rationales').prompt}{e.rationale or ''}{e.completion}\n\n")
            for e in chosen
        ]

    def _golds(self, examples: Sequence[Example]) -> dict[str, Hashable]:
        """The right answers as answers are compared, where they are needed."""
        if self.keep != "verified":
            return {}
        found = {}
        for question in questions(examples, None, template=None, answer=self.answer, by="rationales"):
            value = self._value(str(question.gold))
            if value is None:
                raise DataError(
                    f"Example {question.example.id!r} has the answer {str(question.gold)[-80:]!r}, in which "
                    f"verify: {self.verify} finds none. Set rationales.answer to the column of the final answer, or "
                    "another verify."
                )
            found[question.example.id] = value
        return found

    def _value(self, text: str) -> Hashable | None:
        if self.verify == "numeric":
            return number(text)
        if self.verify == "choice":
            return choice(text, self.choices or ())
        return normalized(text.removeprefix(self.until).lstrip(" :")) or None

    def _read(self, answer: Answer, bench: Workbench) -> _Trace | None:
        """A trace in its parts; None, noted with the reason, for what is none."""
        parts = split_trace(answer.text, self.until)
        if not answer.finished:
            why = "traces that did not end within max_new_tokens"
        elif parts is None:
            why = f"traces without {self.until!r}"
        elif not parts[0].strip():
            why = "traces without steps"
        elif (value := self._value(parts[1])) is None:
            why = f"traces whose answer is no {self.verify} answer"
        else:
            return _Trace(parts[0], str(value) if self.verify == "choice" else parts[1].rstrip(), value)
        bench.notes[f"{why} left out"] += 1
        return None

    def _kept(
        self, traces: Sequence[_Trace | None], gold: Hashable | None, bench: Workbench
    ) -> Iterator[tuple[int, _Trace, dict[str, Any]]]:
        """Traces that are kept with the number of their sample and what was found out about them."""
        votes = Counter(trace.value for trace in traces if trace is not None)
        seen: set[tuple[str, str]] = set()
        for place, trace in enumerate(traces):
            if trace is None:
                continue
            verdict: dict[str, Any] = {"sample": place, "agreement": f"{votes[trace.value]} of {len(traces)}"}
            if self.keep == "verified" and trace.value != gold:
                bench.notes["traces with a wrong answer left out"] += 1
            elif self.keep == "majority" and 2 * votes[trace.value] <= len(traces):
                bench.notes["traces outside a majority left out"] += 1
            elif (trace.steps, trace.answer) in seen:
                bench.notes["traces that repeat another one left out"] += 1
            else:
                seen.add((trace.steps, trace.answer))
                yield place, trace, verdict | ({"verified": self.verify} if self.keep == "verified" else {})

    def _example(self, parent: Example, place: int, trace: _Trace, made: Any) -> Example:
        name = parent.id if self.samples == 1 else f"{parent.id}~{place}"
        return Example(
            id=name,
            prompt=parent.prompt,
            rationale=trace.steps,
            completion=trace.answer,
            meta={**parent.meta, **made},
        )
