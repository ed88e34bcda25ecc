"""A recipe's data: where examples come from, what is done to them, and how they become tokens."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from stillhouse import registry
from stillhouse.recipe_parts import Name, Section, StepName, SynthesizerName

PLACEHOLDER = re.compile(r"\{(\w+)\}")
"""What stands for the value of a column in the template of a prompt."""


class ArithmeticSource(Section):
    """Worded arithmetic problems made by the package itself: how many, how hard, from which half of all problems."""

    count: int = Field(1000, ge=1)
    seed: int = 0
    steps: tuple[int, int] = (2, 4)
    split: Literal["train", "heldout"] = "train"
    distractors: float = Field(0.5, ge=0, le=1)


class Source(Section):
    """Where examples come from (exactly one of `path`, `dataset`, `arithmetic`, or a synthesizer) and which columns
    hold what."""

    path: str | None = None
    dataset: str | None = None
    subset: str | None = None
    arithmetic: ArithmeticSource | None = None
    synthesizer: SynthesizerName | None = None
    split: str | None = None
    id: str | None = Field(None, description="column of the examples' ids; none takes `id` where there is one")
    messages: str | None = None
    prompt: str | None = None
    template: str | None = Field(
        None, description="makes the prompt, in place of a column: '{question}' stands for that column's value"
    )
    completion: str | None = None
    rationale: str | None = None
    rationale_until: str | None = Field(
        None, min_length=1, description="where the completion's worked steps end and its answer begins, such as '####'"
    )
    text: str | None = None
    limit: int | None = Field(None, ge=1)
    shuffle: int | None = Field(None, description="seed of a shuffle before the limit; none keeps the file's order")

    @model_validator(mode="before")
    @classmethod
    def _from_synthesizer(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"path": value}
        if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in registry.names("synthesizer"):
            return {"synthesizer": value}
        return value

    @model_validator(mode="after")
    def _exactly_one_origin(self) -> Source:
        origins = [key for key in ("path", "dataset", "arithmetic", "synthesizer") if getattr(self, key) is not None]
        if len(origins) != 1:
            raise ValueError(
                "a data source needs exactly one of path, dataset, arithmetic or a synthesizer "
                f"({', '.join(registry.names('synthesizer'))}); found {' and '.join(origins) or 'none'}"
            )
        return self

    @model_validator(mode="after")
    def _template_makes_the_prompt(self) -> Source:
        if self.template is None:
            return self
        if not PLACEHOLDER.search(self.template):
            raise ValueError(f"template is {self.template!r}, the same for every row; it needs {{column}}s to fill in")
        taken = [key for key in ("prompt", "messages", "text") if getattr(self, key) is not None]
        if taken:
            raise ValueError(f"template makes the prompt, and {taken[0]} names a column for it; leave one of them out")
        if self.path is None and self.dataset is None:
            raise ValueError("template makes the prompt of columns, which only the rows of a path or a dataset have")
        return self


RoleName = Literal["prompt", "rationale", "answer", "other"]
Trace = Literal["rationale_first", "answer_first", "answer_only", "two_tasks"]
"""How a row with a rationale is learned: the steps and then the answer, P(r, y | x); the answer and then the steps; the
answer alone; or two tasks told apart by their prompts (Hsieh et al. 2023, arXiv 2305.02301)."""


class DataSection(Section):
    """What is trained on, what is measured on, and how examples become tokens."""

    train: Source
    heldout: Source
    out_of_domain: dict[Name, Source] = Field({})
    steps: list[StepName] = Field([])
    decontaminate: bool = Field(
        True, description="leave out training rows that stand in an evaluation set, before any teacher is asked"
    )
    max_length: int | None = Field(None, ge=2, description="tokens; none takes the student's context")
    overflow: Literal["error", "drop", "truncate"] = "error"
    train_on: list[RoleName] = Field(["rationale", "answer"])
    trace: Trace = Field("rationale_first", description="what of a worked solution is learned, and in which order")

    def sources(self) -> dict[str, Source]:
        """Every split by its name: train, heldout, and those out of domain."""
        return {"train": self.train, "heldout": self.heldout, **self.out_of_domain}
