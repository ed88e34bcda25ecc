"""Trajectory matching: rows on which a few steps take a learner where many steps on the real data took an expert.

Shapes: N real rows, R condensed rows, T places, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.condensation._matching import Rows, Weights, descend, gradients, weights_of
from stillhouse.condensation._outer import Synthetic, Watch, step
from stillhouse.condensation.base import Condensed, Condenser, LearningCondenser, Real, above_zero, at_least_one


@dataclass(frozen=True, kw_only=True)
class TrajectoryMatching(LearningCondenser):
    """Dataset distillation by matching training trajectories (Cazenavette et al. 2022, arXiv 2203.11932).

    Experts are trained on the real rows by plain stochastic gradient steps, and their weights are kept now and then. In
    each outer step a student begins where an expert once was, takes `student_steps` steps on the condensed rows with a
    learned step size, and is held against where the expert was `span` snapshots later: the squared distance over the
    squared distance that the expert went. The graph of all student steps is in memory at once.

    Attributes:
        experts: trainings on the real rows.
        expert_steps: of each.
        expert_lr: of each.
        expert_batch: real rows in a step of theirs.
        every: expert steps between two snapshots.
        span: snapshots from a student's beginning to its goal.
        latest: the last snapshot that a student begins at; late ones teach what is hard.
        student_steps: steps on the condensed rows.
        student_lr: where the learned step size starts.
        lr_labels: of the labels' logits and of the step size.
    """

    experts: int = 2
    expert_steps: int = 80
    expert_lr: float = 0.1
    expert_batch: int = 128
    every: int = 10
    span: int = 2
    latest: int = 4
    student_steps: int = 8
    student_lr: float = 0.1
    rounds: int = 10
    lr_labels: float = 0.05

    counts: ClassVar[Mapping[str, int]] = {**Condenser.counts, "student_steps": 64}

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "experts", "expert_batch", "every", "span", "student_steps")
        above_zero(self, "expert_lr", "student_lr", "lr_labels")
        if not 0 <= self.latest <= self.expert_steps // self.every - self.span:
            raise ValueError(
                f"latest is {self.latest}; it must be at least 0 and leave {self.span} snapshots of the "
                f"{self.expert_steps // self.every} behind it"
            )

    def shortest(self) -> Self:
        """One expert, no longer than its snapshots need."""
        return replace(super().shortest(), experts=1, expert_steps=(self.latest + self.span) * self.every)

    def condense(self, real: Real, learner: Callable[[int], nn.Module]) -> Condensed:
        """Condense.

        Raises:
            DataError: no rows, or a class smaller than its budget.
        """
        synthetic = Synthetic.begin(
            real, self.per_class, self.start, self.seed, learn_labels=self.learn_labels, lr=self.student_lr
        )
        optimizer, watch = synthetic.optimizer(self.lr, self.lr_labels), Watch(synthetic, self.limit)
        draw = np.random.default_rng([self.seed, 1])
        experts = [self._expert(real, learner(int(draw.integers(2**31))), draw) for _ in range(self.experts)]
        for number in range(self.rounds):
            for _ in range(self.steps):
                module, snapshots = experts[int(draw.integers(self.experts))]
                begin = int(draw.integers(self.latest + 1))
                loss = self.loss(module, snapshots[begin], snapshots[begin + self.span], synthetic)
                if watch.diverged(loss):
                    return watch.result()
                step(optimizer, loss, synthetic)
            assert synthetic.lr is not None
            watch.end_round(round=number + 1, lr=float(synthetic.lr.detach()))
        return watch.result()

    def _expert(self, real: Real, module: nn.Module, draw: np.random.Generator) -> tuple[nn.Module, list[Weights]]:
        weights: Weights = weights_of(module)
        snapshots = [weights]
        for number in range(1, self.expert_steps + 1):
            rows = torch.as_tensor(draw.choice(len(real.classes_N), self.expert_batch))
            batch = Rows(real.inputs_NTD[rows], real.mask_NT[rows], real.labels_NC[rows])
            weights = descend(module, weights, batch, self.expert_lr, 1)
            if number % self.every == 0:
                snapshots.append(weights)
        return module, snapshots

    def loss(self, module: nn.Module, begin: Weights, goal: Weights, synthetic: Synthetic) -> Tensor:
        """How far a student ends from the expert's goal, as a share of the way that the expert went (equation 2)."""
        weights, lr = begin, synthetic.lr
        assert lr is not None
        for _ in range(self.student_steps):
            moved = gradients(module, weights, synthetic.rows, graph=True)
            weights = {name: w - lr * moved[name] for name, w in weights.items()}
        return _squared(weights, goal) / _squared(begin, goal).detach()


def _squared(ones: Weights, others: Weights) -> Tensor:
    return torch.stack([((one - others[name].detach()) ** 2).sum() for name, one in ones.items()]).sum()
