"""Gradients: of each example the gradient of any objective by the student's weights, as a sketch of a few numbers.

Shapes: N examples, E examples of a batch, W the sketch's width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PlainValidator
from torch import Tensor, nn
from torch.nn import functional

from stillhouse.data.batching import TokenBatch, fill
from stillhouse.data.rendering import Rendered, Renderer
from stillhouse.errors import DataError, NeedsError
from stillhouse.features._adam import Moments, warm_up
from stillhouse.features._layers import Layers, check_layers, choose_parameters
from stillhouse.features._perexample import Gradient, batch_gradients, weighted_loss
from stillhouse.features._sketch import Sketch
from stillhouse.features.base import FeatureBench, Features, Matrix, require_student
from stillhouse.models import CausalLM
from stillhouse.objectives.base import Objective
from stillhouse.objectives.cross_entropy import CrossEntropy
from stillhouse.recipe import LoRA
from stillhouse.recipe_parts import Component
from stillhouse.records import Example
from stillhouse.registry import name_of
from stillhouse.signals.kinds import Signal
from stillhouse.teachers.base import TeacherSession

_WINDOW = 256
"""Examples that are batched by their lengths together, and make one block of vectors."""
_LOGITS = 2**26
"""Of one batch at once: 256 MiB in float32."""
_WARM_UP_EXAMPLES = 16
"""Of one update."""


def as_objectives(value: Any) -> tuple[Objective, ...]:
    """Objectives from their short form in a recipe, one or a list, or as they are."""
    several = value if isinstance(value, list | tuple) else [value]
    return tuple(v if isinstance(v, Objective) else Component.model_validate(v).build("objective") for v in several)


@dataclass(frozen=True, kw_only=True)
class Gradients(Features):
    """What each example would change in the student: the gradient of its mean loss per trained token.

    Gradients of cross-entropy say what the text itself teaches; those of a divergence what the teacher has to add, for
    selection by the loss that distillation then trains on. One backward pass of a batch gives the gradient of each of
    its examples, made a few rows of a weight at a time and added to a sketch, whose inner products are those of the
    gradients on average, with an error of about the norms' product over the root of `width`.

    With `precondition: adam` a vector is what PyTorch's Adam would step along next, bias correction and all, after a
    warm-up as in LESS (Xia et al. 2024, arXiv 2402.04333).

    Attributes:
        objective: whose gradient, one or several whose weighted sum counts.
        layers: by which weights: `all`, `all-linear` (all linear layers but the head), `last:K` (those of the last K
            blocks), or patterns of parameters' names.
        lora: rank of adapters that are put on the student, whose factors alone then count; none takes its weights. The
            second factor of fresh adapters is zero, and so is the first one's gradient without a warm-up.
        width: numbers of a vector.
        precondition: `adam` or none.
        warmup: updates of Adam on a sample of the examples before gradients are taken, dropout off.
        lr: of the warm-up.
        normalize: make unit vectors, so that long and loud examples count like others; zero stays zero.
        tokens_per_batch: padded tokens at once; changes nothing beyond rounding.
        seed: of the sketch, the adapters and the sample.

    >>> from stillhouse.objectives.forward_kl import ForwardKL
    >>> sorted(Gradients(objective=(ForwardKL(temperature=2.0), CrossEntropy(weight=0.1))).needs)
    ['distribution']
    """

    objective: Annotated[tuple[Objective, ...], PlainValidator(as_objectives)] = (CrossEntropy(),)
    layers: Layers = "all-linear"
    lora: int | None = None
    width: int = 2048
    precondition: Literal["none", "adam"] = "none"
    warmup: int = 0
    lr: float = 1e-4
    normalize: bool = True
    tokens_per_batch: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        several = isinstance(self.objective, tuple) and self.objective
        if not several or not all(isinstance(o, Objective) for o in self.objective):
            raise ValueError(
                f"objective is {self.objective!r}; it must be a tuple of objectives, such as (ForwardKL(),)"
            )
        for name, least in {"width": 1, "tokens_per_batch": 1, "warmup": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.precondition == "adam" and self.warmup < 1:
            raise ValueError(
                f"warmup is {self.warmup}; it must be at least 1 update with precondition adam, whose moments come of "
                "it, such as 20"
            )
        if self.lora is not None and self.lora < 1:
            raise ValueError(f"lora is {self.lora}; it must be a rank of at least 1")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; it must be positive")
        check_layers(self.layers)

    @property
    def of_text(self) -> bool:
        """Of the run's student."""
        return False

    @property
    def needs(self) -> frozenset[str]:
        """What the objectives need."""
        return frozenset().union(*(objective.needs for objective in self.objective))

    def blocks(self, examples: Sequence[Example], bench: FeatureBench) -> Iterator[Matrix]:
        """Sketches of the gradients, of unit length where `normalize` says so.

        Raises:
            NeedsError: no student, or no teacher that says what the objectives need.
            DataError: an example without a token to train on.
            RecipeError: layers that the student does not have.
            ModelError: a layer whose gradients cannot be told apart by example.
            MissingExtraError: `lora` without peft.
        """
        work = self._begin(examples, bench)
        sketch = Sketch(width=self.width, seed=self.seed)
        for window in _windows(examples):
            sketches_EW = torch.zeros(len(window), self.width, device=work.lm.device)
            for part in work.parts(window):
                sketches_EW[part.places] = self._sketched(sketch, part, work.moments)
            if self.normalize:
                sketches_EW = functional.normalize(sketches_EW, dim=1, eps=torch.finfo(torch.float32).tiny)
            yield sketches_EW.cpu().numpy()

    def norms(self, examples: Sequence[Example], bench: FeatureBench) -> NDArray[np.float64]:
        """The length of each example's gradient, [N], exact, not preconditioned: GraNd (Paul et al. 2021, arXiv
        2107.07075) of the student after the warm-up.

        Raises:
            StillhouseError: as `blocks`.
        """
        work = self._begin(examples, bench)
        norms_N = np.zeros(len(examples))
        for number, window in enumerate(_windows(examples)):
            for part in work.parts(window):
                found = [g.squares(part.owners_B, len(part.places)).double() for g in part.gradients.values()]
                places = np.array(part.places) + number * _WINDOW
                norms_N[places] = torch.stack(found).sum(0).sqrt().cpu().numpy()
        return norms_N

    def _sketched(self, sketch: Sketch, part: _Part, moments: Moments | None) -> Tensor:
        count, offset = len(part.places), 0
        sketches_EW = torch.zeros(count, self.width, device=part.owners_B.device)
        for name, gradient in part.gradients.items():
            for start, values_EN in gradient.blocks(part.owners_B, count, whole=moments is not None):
                values_EN = values_EN.float()
                if moments is not None:
                    values_EN = moments.direction(name, start, values_EN)
                sketch.add(sketches_EW, offset + start, values_EN)
            offset += gradient.parameter.numel()
        return sketches_EW

    def _begin(self, examples: Sequence[Example], bench: FeatureBench) -> _Work:
        student, renderer = require_student(bench, "gradients")
        if self.needs and bench.teacher is None:
            needy = ", ".join(name_of(objective) for objective in self.objective if objective.needs)
            raise NeedsError(
                f"gradients of {needy} need a teacher, and none was given. Give one, or take those of cross_entropy."
            )
        if self.lora is not None:
            student.adapt(LoRA(r=self.lora, alpha=2 * self.lora), seed=self.seed)
        teacher = bench.teacher if self.needs else None
        parameters = choose_parameters(student.lm, self.layers)
        tokens = min(self.tokens_per_batch, _LOGITS // student.lm.vocabulary)
        work = _Work(student.lm, renderer, teacher, self.objective, parameters, tokens)
        if not self.warmup:
            return work
        moments = warm_up(parameters, work.updates(self._sample(examples)), self.lr)
        return work._replace(moments=moments if self.precondition == "adam" else None)

    def _sample(self, examples: Sequence[Example]) -> Iterator[list[Example]]:
        """The examples of each update of the warm-up: every example once before any comes again."""
        rng, left = np.random.default_rng(self.seed), np.zeros(0, np.int64)
        for _ in range(self.warmup):
            if len(left) < min(_WARM_UP_EXAMPLES, len(examples)):
                left = rng.permutation(len(examples))
            now, left = left[:_WARM_UP_EXAMPLES], left[_WARM_UP_EXAMPLES:]
            yield [examples[row] for row in now.tolist()]


def _windows(examples: Sequence[Example]) -> Iterator[list[Example]]:
    for start in range(0, len(examples), _WINDOW):
        yield [examples[row] for row in range(start, min(start + _WINDOW, len(examples)))]


class _Cut(NamedTuple):
    """A batch of whole examples: their places among those given, of each row of the batch the example it belongs to,
    and the trained tokens of each row."""

    places: list[int]
    owners_B: Tensor
    batch: TokenBatch
    counts_B: Tensor


class _Part(NamedTuple):
    """The gradients of one batch's examples, by the parameters' names."""

    places: list[int]
    owners_B: Tensor
    gradients: dict[str, Gradient]


class _Work(NamedTuple):
    """A student that is ready: who says what about which examples, and by what gradients are taken."""

    lm: CausalLM
    renderer: Renderer
    teacher: TeacherSession | None
    objectives: Sequence[Objective]
    parameters: dict[str, nn.Parameter]
    tokens: int
    moments: Moments | None = None

    def parts(self, examples: Sequence[Example]) -> Iterator[_Part]:
        """Gradients of the mean loss of each example, a batch at a time."""
        for places, owners_B, batch, counts_B in self._cut(examples):
            totals_E = counts_B.new_zeros(len(places)).index_add_(0, owners_B, counts_B)
            weights_B = 1 / totals_E[owners_B].double()
            signal = self._signal(batch)
            found = batch_gradients(self.lm, self.parameters, batch, signal, self.objectives, weights_B)
            yield _Part(places, owners_B, found)

    def updates(self, samples: Iterable[Sequence[Example]]) -> Iterator[Iterator[Tensor]]:
        """Of each sample the losses of its batches, which sum to the mean over all its trained tokens."""
        for sample in samples:
            cuts = list(self._cut(sample))
            total = sum(cut.batch.trained_count() for cut in cuts)
            yield (self._loss(cut, total) for cut in cuts)

    def _loss(self, cut: _Cut, total: int) -> Tensor:
        weights_B = torch.full_like(cut.counts_B, 1 / total, dtype=torch.float64)
        with self.lm.inference():
            return weighted_loss(self.lm, cut.batch, self._signal(cut.batch), self.objectives, weights_B)

    def _cut(self, examples: Sequence[Example]) -> Iterator[_Cut]:
        """Batches of examples of alike lengths."""
        groups = [self._rendered(example) for example in examples]
        sizes = [sum(len(r.tokens) for r in group) for group in groups]
        if self.teacher is not None:
            self.teacher.prepare([r for group in groups for r in group])
        for places in fill(sorted(range(len(groups)), key=sizes.__getitem__), sizes, self.tokens):
            batch = TokenBatch.of([r for place in places for r in groups[place]], self.lm.device)
            owners = [number for number, place in enumerate(places) for _ in groups[place]]
            owners_B = torch.tensor(owners, device=self.lm.device)
            yield _Cut(places, owners_B, batch, batch.trained_BT.sum(1))

    def _rendered(self, example: Example) -> list[Rendered]:
        rendered = self.renderer.render([example])
        if not rendered:
            raise DataError(
                f"Example {example.id!r} has no gradient: it is longer than {self.renderer.max_length} tokens, or has "
                "none to train on, and was dropped. Remove it first, or choose data.overflow: truncate."
            )
        return rendered

    def _signal(self, batch: TokenBatch) -> Signal | None:
        if self.teacher is None:
            return None
        with torch.no_grad():
            signal = self.teacher.score(batch)
        for objective in self.objectives:
            if missing := objective.needs - signal.provides:
                raise NeedsError(
                    f"gradients of {name_of(objective)} need the teacher's {', '.join(sorted(missing))}, and it says "
                    f"{', '.join(sorted(signal.provides))} only. Use another teacher or objective."
                )
        return signal
