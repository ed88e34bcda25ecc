"""Gradient matching: rows that pull a learner the way the real data pull it, class by class, while it learns.

Shapes: N real rows, R condensed rows, T places, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.condensation._matching import (
    Distance,
    Rows,
    Weights,
    apart,
    class_batches,
    descend,
    gradients,
    matching_loss,
    weights_of,
)
from stillhouse.condensation._outer import Synthetic, Watch, step
from stillhouse.condensation._rows import rows_of_classes
from stillhouse.condensation.base import Condensed, Condenser, LearningCondenser, Real, above_zero, at_least_one


@dataclass(frozen=True, kw_only=True)
class GradientMatching(LearningCondenser):
    """Dataset condensation with gradient matching (Zhao, Mopuri and Bilen 2020, arXiv 2006.05929), algorithm 1.

    In each round a learner is drawn anew. Of each class the gradient of its loss on the condensed rows is held against
    that on a batch of real rows, the rows take a step that brings the two together, and the learner takes some steps on
    the condensed rows. With `unroll` above 1 the rows answer for the distances along so many steps of the learner, each
    of which is taken with a learned step size; with 1, as in the paper, no gradient flows through the learner's steps
    and none can be learned.

    Attributes:
        distance: of two gradients; `cosine` by output, as in the paper, or `l2`.
        vectors: whether biases and norms count; the paper's code leaves them out.
        learner_steps: steps that the learner takes on the condensed rows after each outer step.
        learner_lr: their size; where it is learned, where it starts.
        unroll: steps of the learner that an outer step looks through.
        lr_labels: of the labels' logits.
        batch: real rows of a class in a step.
    """

    distance: Distance = "cosine"
    vectors: bool = False
    learner_steps: int = 3
    learner_lr: float = 0.1
    unroll: int = 1
    lr_labels: float = 0.05
    batch: int = 64

    counts: ClassVar[Mapping[str, int]] = {**Condenser.counts, "unroll": 16}

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "unroll", "batch")
        above_zero(self, "learner_lr", "lr_labels")
        if self.learner_steps < 0:
            raise ValueError(f"learner_steps is {self.learner_steps}; it must be at least 0")

    def condense(self, real: Real, learner: Callable[[int], nn.Module]) -> Condensed:
        """Condense.

        Raises:
            DataError: no rows, or a class smaller than its budget.
        """
        learned_lr = self.learner_lr if self.unroll > 1 else None
        synthetic = Synthetic.begin(
            real, self.per_class, self.start, self.seed, learn_labels=self.learn_labels, lr=learned_lr
        )
        optimizer, watch = synthetic.optimizer(self.lr, self.lr_labels), Watch(synthetic, self.limit)
        rows, draw = rows_of_classes(real), np.random.default_rng([self.seed, 1])
        for number in range(self.rounds):
            module = learner(int(draw.integers(2**31)))
            weights = weights_of(module)
            for _ in range(self.steps):
                loss = self.loss(module, weights, synthetic, class_batches(real, rows, self.batch, draw))
                if watch.diverged(loss):
                    return watch.result()
                step(optimizer, loss, synthetic)
                lr = self.learner_lr if synthetic.lr is None else float(synthetic.lr.detach())
                weights = descend(module, weights, synthetic.fixed(), lr, self.learner_steps)
            watch.end_round(round=number + 1)
        return watch.result()

    def loss(self, module: nn.Module, weights: Weights, synthetic: Synthetic, batches: list[Rows]) -> Tensor:
        """The distance of the gradients at these weights and, where steps are looked through, along them: a mean."""
        compare = partial(apart, distance=self.distance, vectors=self.vectors)
        found = []
        for ahead in range(self.unroll):
            found.append(matching_loss(module, weights, synthetic.by_class(), batches, compare))
            if ahead + 1 < self.unroll:
                moved, lr = gradients(module, weights, synthetic.rows, graph=True), synthetic.lr
                assert lr is not None
                weights = {name: w - lr * moved[name] for name, w in weights.items()}
        return torch.stack(found).mean()
