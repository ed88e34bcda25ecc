"""Tasks: the share of questions a model answers right, by a final number, by choice, or by exact match."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from stillhouse.answers import first_paragraph, normalized, number
from stillhouse.data.questions import Question, choices_of, one_of, place_of, questions
from stillhouse.data.sources import read_source
from stillhouse.errors import DataError
from stillhouse.evaluation._logits import nats, renderer_for, sum_by_example
from stillhouse.evaluation.base import Evaluator, Heldout, Result
from stillhouse.models import CausalLM, Sampling
from stillhouse.recipe_data import PLACEHOLDER, Source
from stillhouse.statistics import Measurement, Metric


@dataclass(frozen=True, kw_only=True)
class Tasks(Evaluator):
    """Accuracy on questions with known answers, from the held-out data or from data of its own.

    `numeric` (GSM8K's form): the model writes, and the number after `####`, else the last, must equal the answer's
    exactly; no number is a wrong answer. `exact` (BIG-Bench Hard's): what it writes up to the first blank line must be
    the answer, apart from case, spacing and a final full stop. `choice` (MMLU's and PubMedQA's): of several
    continuations of the prompt the likeliest must be the right one (Brown et al. 2020, arXiv 2005.14165, section 2.4).
    In a recipe::

        evaluate:
          - tasks                                   # numeric, on data.heldout
          - tasks:
              name: gsm8k
              data: {path: gsm8k/test.jsonl, prompt: question, completion: answer}
              template: "Question: {question}\\nAnswer:"
          - tasks:
              name: svamp
              data: {path: svamp/test.jsonl, prompt: Body}
              template: "{Body}. {Question}"
              answer: Answer
          - tasks:
              name: boolean_expressions
              form: exact
              data: {path: bbh/boolean_expressions.jsonl, prompt: input, completion: target}
              template: "Q: {input}\\nA:"
              max_new_tokens: 16
          - tasks:
              name: pubmedqa
              form: choice                          # of yes, no and maybe: the answers that the data holds
              data: {path: pubmedqa/test.jsonl, prompt: question}
              template: "{contexts}\\n\\nQuestion: {question}\\nAnswer:"
              answer: final_decision
          - tasks:
              name: mmlu
              form: choice
              data: {path: mmlu/test.jsonl, prompt: question}
              choices: choices                      # a column that holds a list
              answer: answer                        # 2, or C, or the third choice itself

    Attributes:
        form: how an answer is found and judged.
        data: a source as in `data.heldout`; none takes the run's held-out examples. Measured once, beside the main
            data.
        limit: questions at most.
        template: of the prompt, `{column}` standing for a column of the row, lists joined by newlines; none takes the
            prompt.
        answer: column of the right answer; none takes `answer`, else `final`, else the completion. For a choice it is
            its text, its number from 0, or its letter.
        choices: column with each row's choices, or the choices of all rows (YAML reads a bare `yes` or `no` as true or
            false: quote them); none takes the distinct answers in the data.
        normalize: `bytes` divides the log-likelihood of a choice by its length, so that long choices are not at a
            disadvantage.
        samples: answers written to each question, whose accuracy is averaged; above 1 they must be sampled.
        max_new_tokens: of an answer.
        temperature: of the draws, 0 is greedy.
        top_p: smallest set of tokens whose mass reaches it.
        seed: of the draws.
        batch_size: answers written at once.
        name: of the metric.
    """

    form: Literal["numeric", "choice", "exact"] = "numeric"
    data: Source | None = None
    limit: int | None = None
    template: str | None = None
    answer: str | None = None
    choices: str | tuple[str, ...] | None = None
    normalize: Literal["none", "bytes"] = "none"
    samples: int = 1
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 64
    name: str = "accuracy"

    def __post_init__(self) -> None:
        for key in ("limit", "samples", "max_new_tokens", "batch_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key} is {value}; it must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it must be at least 0 (0 is greedy)")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1 (1 keeps all tokens)")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples is {self.samples} at temperature 0, which writes one answer over and over; raise it"
            )
        if not re.fullmatch(r"\w[\w-]*", self.name):
            raise ValueError(f"name is {self.name!r}; it must be letters, digits, _ and -, because it names the metric")
        if self.template is not None and not PLACEHOLDER.search(self.template):
            raise ValueError(f"template is {self.template!r}, the same for every row; use columns, such as {{prompt}}")
        if self.data is not None and self.data.synthesizer is not None:
            raise ValueError("data is written by a teacher; questions need answers that are known, so name a file")

    @property
    def once(self) -> bool:
        """Whether the questions are its own."""
        return self.data is not None

    def files(self) -> list[Path]:
        """Its own data, where it has some in a file."""
        return [Path(self.data.path)] if self.data is not None and self.data.path is not None else []

    def metrics(self) -> Mapping[str, Metric]:
        """One, under the task's name."""
        title = "Accuracy" if self.name == "accuracy" else f"Accuracy on {self.name.replace('_', ' ')}"
        return {self.name: Metric(title, "share", "higher")}

    def evaluate(self, model: CausalLM, data: Heldout, teacher: CausalLM | None) -> Result:
        """Put every question to the model; nothing where out-of-domain data is running text, which asks none.

        Raises:
            DataError: a row without a usable answer, a column that is not there, a prompt that exceeds the model's
                context.
        """
        if self.data is None and data.name and any(e.form == "text" for e in data.examples):
            return Result()
        examples = data.examples if self.data is None else read_source(self.data)
        if running := next((e for e in examples if e.form == "text"), None):
            raise DataError(
                f"Example {running.id!r} is running text, which asks no question. Leave tasks out of evaluate, or give "
                "it questions of its own under data."
            )
        asked = questions(examples, self.data, template=self.template, answer=self.answer, by="tasks")
        if self.form == "choice":
            return self._choose(model, data, asked)
        return self._write(model, data, asked[: self.limit])

    def _write(self, model: CausalLM, data: Heldout, asked: Sequence[Question]) -> Result:
        golds = [self._readable(question) for question in asked]
        renderer = renderer_for(model, data, fit=True)
        prompts = [ids for q in asked for ids in [renderer.prompt_ids(q.example)] * self.samples]
        sampling = Sampling.of(self)
        texts = [
            str(model.tokenizer.decode(ids, skip_special_tokens=True)) for ids in model.generate(prompts, sampling)
        ]
        read = number if self.form == "numeric" else _paragraph
        right_ES = np.array([read(text) == golds[i // self.samples] for i, text in enumerate(texts)])
        right_ES = right_ES.reshape(len(asked), self.samples)
        return self._result(asked, texts[:: self.samples], right_ES)

    def _readable(self, question: Question) -> object:
        """The right answer as answers are compared."""
        if self.form == "exact":
            return normalized(str(question.gold))
        value = number(str(question.gold))
        if value is None:
            raise DataError(
                f"Example {question.example.id!r} has the answer {str(question.gold)[-80:]!r}, which holds no number. "
                "Set tasks.answer to the column of the final number, or tasks.form to exact or choice."
            )
        return value

    def _choose(self, model: CausalLM, data: Heldout, everything: Sequence[Question]) -> Result:
        choices = self.choices or sorted({str(question.gold) for question in everything})
        asked = everything[: self.limit]
        offered = [choices_of(question, choices) for question in asked]
        places = [place_of(question, texts) for question, texts in zip(asked, offered, strict=True)]
        renderer = renderer_for(model, data, fit=True)
        spaced = renderer.tokenizer.chat_template is None
        rendered = renderer.render(
            [
                one_of(question.example, text, i, spaced=spaced)
                for question, texts in zip(asked, offered, strict=True)
                for i, text in enumerate(texts)
            ]
        )
        nats_C = sum_by_example(model, rendered, nats)[:, 0]
        if self.normalize == "bytes":
            nats_C = nats_C / np.array([r.size for r in rendered])
        ends = np.cumsum([len(texts) for texts in offered])
        taken = [int(scores.argmin()) for scores in np.split(nats_C, ends[:-1])]
        right_E1 = np.array([[mine == right] for mine, right in zip(taken, places, strict=True)])
        return self._result(asked, [texts[i] for texts, i in zip(offered, taken, strict=True)], right_E1)

    def _result(self, asked: Sequence[Question], texts: Sequence[str], right_ES: np.ndarray) -> Result:
        """Accuracy over all samples; text and verdict of the first."""
        ids = tuple(question.example.id for question in asked)
        sums_E2 = np.stack([right_ES.sum(1), np.full(len(ids), right_ES.shape[1])], axis=1).astype(np.float64)
        # Rows of other data may bear the ids of held-out examples.
        names = ids if self.data is None else [f"{self.name}/{name}" for name in ids]
        return Result(
            {self.name: Measurement(ids, sums_E2)},
            outputs=dict(zip(names, texts, strict=True)),
            correct=dict(zip(names, right_ES[:, 0].tolist(), strict=True)),
        )


def _paragraph(text: str) -> str:
    return normalized(first_paragraph(text))
