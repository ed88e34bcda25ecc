"""Distribution matching: rows whose features have the real rows' mean, class by class, whatever encoder looks at them.

Shapes: N real rows, R condensed rows, T places, D width, C classes, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.classifiers.architectures import VectorClassifier
from stillhouse.condensation._matching import Rows, class_batches
from stillhouse.condensation._outer import Synthetic, Watch, step
from stillhouse.condensation._rows import rows_of_classes
from stillhouse.condensation.base import Condensed, LearningCondenser, Real, at_least_one
from stillhouse.errors import NeedsError


@dataclass(frozen=True, kw_only=True)
class DistributionMatching(LearningCondenser):
    """Dataset condensation with distribution matching (Zhao and Bilen 2021, arXiv 2110.04181).

    In each step an encoder is drawn anew and never trained; the squared distance between the mean features of a class's
    real and condensed rows is brought down. There is no inner loop, and the loss sees no labels: each row is given the
    mean distribution of its class's real rows, which is its class where labels are hard.

    Attributes:
        batch: real rows of a class in a step.
    """

    learn_labels: bool = False
    batch: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learn_labels:
            raise ValueError("learn_labels is True; it must be False: this loss does not see labels")
        at_least_one(self, "batch")

    def condense(self, real: Real, learner: Callable[[int], nn.Module]) -> Condensed:
        """Condense.

        Raises:
            DataError: no rows, or a class smaller than its budget.
            NeedsError: the learner has no features apart from its head.
        """
        synthetic = Synthetic.begin(real, self.per_class, self.start, self.seed, learn_labels=False)
        rows = rows_of_classes(real)
        mean_CC = torch.stack([real.labels_NC[torch.as_tensor(of_class)].mean(0) for of_class in rows])
        synthetic.labels_RC = mean_CC[synthetic.classes_R]
        optimizer, watch = synthetic.optimizer(self.lr, self.lr), Watch(synthetic, self.limit)
        draw = np.random.default_rng([self.seed, 1])
        for number in range(self.rounds):
            for _ in range(self.steps):
                encoder = learner(int(draw.integers(2**31)))
                loss = mean_distance(encoder, synthetic.by_class(), class_batches(real, rows, self.batch, draw))
                if watch.diverged(loss):
                    return watch.result()
                step(optimizer, loss, synthetic)
            watch.end_round(round=number + 1)
        return watch.result()


def mean_distance(encoder: nn.Module, synthetic: list[Rows], batches: list[Rows]) -> Tensor:
    """The squared distance of mean features, summed over classes (the paper's equation 5).

    Raises:
        NeedsError: the learner has no features apart from its head.
    """
    if not isinstance(encoder, VectorClassifier):
        raise NeedsError(
            f"distribution_matching needs the features of the learner, and {type(encoder).__name__} tells none. Make "
            "it a VectorClassifier of stillhouse.classifiers, which keeps features and head apart, or use "
            "gradient_matching."
        )
    found = []
    for ours, theirs in zip(synthetic, batches, strict=True):
        with torch.no_grad():
            target_F = encoder.features(theirs.inputs_RTD, theirs.mask_RT).mean(0)
        found.append(((encoder.features(ours.inputs_RTD, ours.mask_RT).mean(0) - target_F) ** 2).sum())
    return torch.stack(found).sum()
