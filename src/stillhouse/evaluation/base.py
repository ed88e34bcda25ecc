"""What an evaluator is: a model and held-out data in, per-example measurements out.

Measurements keep what each example contributed, so that every number has a standard error and two models are compared
pairwise, example by example (contract C8). How contributions become a value is `stillhouse.statistics`' business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from stillhouse.data.rendering import Rendered, Renderer
from stillhouse.models import CausalLM
from stillhouse.records import Example
from stillhouse.statistics import Estimate, Measurement, Metric

FIRST_TOKENS = 16
"""Of a held-out text, what the models are given to continue."""


@dataclass(frozen=True)
class Heldout:
    """A held-out data set, read and rendered once, shared by all evaluators and all models.

    Attributes:
        name: empty for the recipe's main held-out data, else the name that prefixes its metrics.
        examples: the rows.
        rendered: their tokens, in the same order; overlong texts may give several windows, with ids `id/0`, `id/1`.
        renderer: to make prompts with, `renderer.prompt_ids(example)`.
        training: gives a sample of what the student was trained on, about as large as this and prepared alike; it is
            read when it is first asked for. None on out-of-domain data, and where nothing was trained.
    """

    name: str
    examples: Sequence[Example]
    rendered: Sequence[Rendered]
    renderer: Renderer
    training: Callable[[], Heldout] | None = None


@dataclass
class Result:
    """What one evaluator found out about one model.

    Attributes:
        measurements: metric name (without the evaluator's) to per-example contributions.
        estimates: metric name to a finished number, for what has no examples (speed, size).
        outputs: example id to what the model wrote.
        correct: example id to whether that was right.
        reliability: points of the calibration curve: mean confidence, accuracy, count.
        metrics: what names mean that could not be announced before measuring.
    """

    measurements: dict[str, Measurement] = field(default_factory=dict)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    correct: dict[str, bool] = field(default_factory=dict)
    reliability: list[dict[str, float]] = field(default_factory=list)
    metrics: dict[str, Metric] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluator(ABC):
    """Settings of one kind of measurement."""

    family: ClassVar[str] = "evaluator"
    needs: ClassVar[frozenset[str]] = frozenset()
    """What the teacher must provide (`distribution` where students are held against it), as for objectives."""

    @property
    def once(self) -> bool:
        """Whether it is measured once per model, beside the main held-out data: not on the out-of-domain sets, and not
        on the way through training. True for what looks at no held-out example."""
        return False

    def files(self) -> list[Path]:
        """Local files and folders that it reads besides the held-out data: a changed one is measured again."""
        return []

    @abstractmethod
    def metrics(self) -> Mapping[str, Metric]:
        """What is measured: name to title, unit and direction. Results hold some or all of these names; what only
        measuring can tell, they define themselves."""

    @abstractmethod
    def evaluate(self, model: CausalLM, data: Heldout, teacher: CausalLM | None) -> Result:
        """Measure one model. `teacher` is the same object as `model` when the teacher itself is measured."""


def start(renderer: Renderer, example: Example) -> list[int]:
    """What a model is given to write on from: a prompt, or the first words of running text."""
    if example.form != "text":
        return renderer.prompt_ids(example)
    return renderer.render([example])[0].tokens[:FIRST_TOKENS]
