"""Select and relabel: real rows whose gradients together point where all rows' do, with the labels they are given.

Shapes: N real rows, R condensed rows, C classes, F features, K gradient rows (an output at a checkpoint).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.classifiers.architectures import VectorClassifier
from stillhouse.condensation._matching import Distance, Rows, descend, weights_of
from stillhouse.condensation._rows import rows_of_classes, start_rows
from stillhouse.condensation.base import Condensed, Condenser, Real, above_zero, at_least_one
from stillhouse.errors import NeedsError

_BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class SelectAndRelabel(Condenser):
    """Rows that stay readable: the matching objective of gradient matching (Zhao 2020, arXiv 2006.05929), minimised
    over real rows instead of vectors, one row after another as in herding (Welling 2009) on gradients.

    Gradients are those of the learner's last layer, at learners as they are drawn and after some steps on real rows.
    Of each class the row is added that brings the mean gradient of those chosen nearest to that of all. Labels are the
    distributions that the real rows came with: a teacher's, where a teacher gave them.

    Attributes:
        distance: of two gradients, as of `gradient_matching`.
        learners: how many are drawn.
        learner_steps: on batches of real rows, before the second look.
        learner_lr: of these steps.
        batch: real rows in each.
    """

    learn_labels: bool = False
    distance: Distance = "cosine"
    learners: int = 3
    learner_steps: int = 20
    learner_lr: float = 0.1
    batch: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learn_labels:
            raise ValueError("learn_labels is True; it must be False: labels are those that the real rows came with")
        at_least_one(self, "learners", "learner_steps", "batch")
        above_zero(self, "learner_lr")

    def condense(self, real: Real, learner: Callable[[int], nn.Module]) -> Condensed:
        """Choose.

        Raises:
            DataError: no rows, or a class smaller than its budget.
            NeedsError: the learner has no features apart from its head.
        """
        start_rows(real, self.per_class, "random", self.seed)  # refuses what cannot be condensed
        draw = np.random.default_rng([self.seed, 1])
        gradients_NKF = torch.cat(
            [self._looks(real, learner(int(draw.integers(2**31))), draw) for _ in range(self.learners)], 1
        )
        chosen, history = [], []
        for number, rows in enumerate(rows_of_classes(real)):
            places = torch.as_tensor(rows)
            picked, losses = greedy(gradients_NKF[places], self.per_class, self.distance)
            chosen.append(places[picked])
            history += [{"class": number, "rows": taken + 1, "loss": loss} for taken, loss in enumerate(losses)]
        rows_R = torch.cat(chosen)
        return Condensed(
            real.inputs_NTD[rows_R],
            real.mask_NT[rows_R],
            real.labels_NC[rows_R],
            real.classes_N[rows_R],
            rows_R,
            history=tuple(history),
            notes=(),
        )

    def _looks(self, real: Real, module: nn.Module, draw: np.random.Generator) -> Tensor:
        """Of every row the head's gradients before and after some steps, [N, K, F]."""
        if not isinstance(module, VectorClassifier):
            raise NeedsError(
                f"select_and_relabel needs the features of the learner, and {type(module).__name__} tells none. Make "
                "it a VectorClassifier of stillhouse.classifiers, which keeps features and head apart."
            )
        before = _head_gradients(real, module)
        weights = weights_of(module)
        for _ in range(self.learner_steps):
            rows = torch.as_tensor(draw.choice(len(real.classes_N), self.batch))
            batch = Rows(real.inputs_NTD[rows], real.mask_NT[rows], real.labels_NC[rows])
            weights = descend(module, weights, batch, self.learner_lr, 1)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])
        return torch.cat([before, _head_gradients(real, module)], 1)


@torch.no_grad()
def _head_gradients(real: Real, module: VectorClassifier) -> Tensor:
    """Of every row the gradient of its loss by the head's matrix: residual times features, [N, C, F]."""
    found = []
    for start in range(0, len(real.classes_N), _BLOCK):
        block = slice(start, start + _BLOCK)
        features_BF = module.features(real.inputs_NTD[block], real.mask_NT[block])
        residual_BC = module.head(features_BF).softmax(-1) - real.labels_NC[block]
        found.append(residual_BC[:, :, None] * features_BF[:, None])
    return torch.cat(found)


def greedy(gradients_NKF: Tensor, count: int, distance: Distance) -> tuple[Tensor, list[float]]:
    """Rows whose mean gradient is near that of all rows, one added after another.

    Returns:
        The rows in the order in which they are added, and the distance after each.
    """
    target_KF = gradients_NKF.mean(0)
    toward_NK = torch.einsum("nkf,kf->nk", gradients_NKF, target_KF)
    square_NK = gradients_NKF.square().sum(2)
    wanted_K = target_KF.square().sum(1)
    total_KF = torch.zeros_like(target_KF)
    picked: list[int] = []
    losses: list[float] = []
    for taken in range(1, count + 1):
        along_NK = (toward_NK + (total_KF * target_KF).sum(1)) / taken
        norm_NK = (square_NK + 2 * torch.einsum("nkf,kf->nk", gradients_NKF, total_KF) + total_KF.square().sum(1)) / (
            taken**2
        )
        if distance == "cosine":
            apart_N = (1 - along_NK / (norm_NK * wanted_K).clamp(min=1e-24).sqrt()).sum(1)
        else:
            apart_N = (norm_NK - 2 * along_NK + wanted_K).sum(1)
        apart_N[picked] = torch.inf
        best = int(apart_N.argmin())
        picked.append(best)
        losses.append(float(apart_N[best]))
        total_KF = total_KF + gradients_NKF[best]
    return torch.tensor(picked), losses
