"""The outer loop that condensers share: the rows that are learned, their optimiser, and the watch over its loss.

Shapes: R condensed rows, T places, D width, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stillhouse.condensation._matching import Rows
from stillhouse.condensation._rows import start_rows
from stillhouse.condensation.base import Condensed, Real, Start

_SMOOTHING = 0.1
"""Share of a learned label that is spread over all classes at the start: the logits of a certain one are infinite."""


@dataclass
class Synthetic:
    """Condensed rows while they are learned.

    Attributes:
        inputs_RTD: the vectors, a leaf.
        mask_RT: which places count.
        logits_RC: of the labels, a leaf; None where labels are fixed.
        labels_RC: the fixed labels.
        classes_R: the class of each row; rows of a class stand together.
        rows_R: the real row that each began as.
        raw_lr: the step size before softplus, a leaf; None where none is learned.
    """

    inputs_RTD: Tensor
    mask_RT: Tensor
    logits_RC: Tensor | None
    labels_RC: Tensor
    classes_R: Tensor
    rows_R: Tensor
    raw_lr: Tensor | None = None

    @classmethod
    def begin(
        cls, real: Real, per_class: int, start: Start, seed: int, *, learn_labels: bool, lr: float | None = None
    ) -> Synthetic:
        """Real rows with their labels, and a step size to start from where one is learned.

        Raises:
            DataError: no rows, or a class smaller than its budget.
        """
        rows_R = start_rows(real, per_class, start, seed)
        raw_lr = None if lr is None else lr + math.log(-math.expm1(-lr))  # softplus, backwards
        labels_RC = real.labels_NC[rows_R].clone()
        smooth_RC = (1 - _SMOOTHING) * labels_RC + _SMOOTHING / labels_RC.shape[1]
        return cls(
            (real.inputs_NTD[rows_R] * real.mask_NT[rows_R][..., None]).requires_grad_(),
            real.mask_NT[rows_R],
            smooth_RC.log().requires_grad_() if learn_labels else None,
            labels_RC,
            real.classes_N[rows_R],
            rows_R,
            None if raw_lr is None else torch.tensor(raw_lr, dtype=labels_RC.dtype).requires_grad_(),
        )

    @property
    def labels(self) -> Tensor:
        """The distributions, as a function of what is learned."""
        return self.labels_RC if self.logits_RC is None else self.logits_RC.softmax(-1)

    @property
    def lr(self) -> Tensor | None:
        """The learned step size; always positive."""
        return None if self.raw_lr is None else functional.softplus(self.raw_lr)

    @property
    def rows(self) -> Rows:
        """All rows, with a graph."""
        return Rows(self.inputs_RTD, self.mask_RT, self.labels)

    def by_class(self) -> list[Rows]:
        """The rows of each class, with a graph."""
        counts = torch.bincount(self.classes_R, minlength=self.labels_RC.shape[1]).tolist()
        parts = [part.split(counts) for part in self.rows]
        return [Rows(*of_class) for of_class in zip(*parts, strict=True)]

    def fixed(self) -> Rows:
        """All rows as they are now, without a graph."""
        return Rows(*(part.detach() for part in self.rows))

    def learned(self) -> list[Tensor]:
        """The leaves: vectors, then labels and step size where they are learned."""
        return [leaf for leaf in (self.inputs_RTD, self.logits_RC, self.raw_lr) if leaf is not None]

    def optimizer(self, lr: float, lr_labels: float) -> torch.optim.Optimizer:
        """Adam on all that is learned; the step size at the labels' rate."""
        groups: list[dict[str, Any]] = [{"params": [self.inputs_RTD], "lr": lr}]
        groups += [{"params": [self.logits_RC], "lr": lr_labels}] if self.logits_RC is not None else []
        groups += [{"params": [self.raw_lr], "lr": lr_labels}] if self.raw_lr is not None else []
        return torch.optim.Adam(groups)


@dataclass
class Watch:
    """Looks at the outer loss, keeps the rows of the best round, and says when the loop runs away.

    Attributes:
        synthetic: what is learned.
        limit: the loop has diverged where a loss is more than so many times the mean of the first round.
        history: the mean loss of each round.
        notes: what a user should know.
    """

    synthetic: Synthetic
    limit: float
    history: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _losses: list[float] = field(default_factory=list)
    _best: tuple[float, Sequence[Tensor]] = (math.inf, ())

    def __post_init__(self) -> None:
        self._best = (math.inf, self._copy())

    def diverged(self, loss: Tensor) -> bool:
        """Look at a step's loss, before the step; True ends the loop, with the best rows put back."""
        value = float(loss.detach())
        first = self.history[0]["loss"] if self.history else math.inf
        learned = all(bool(leaf.isfinite().all()) for leaf in self.synthetic.learned())
        if learned and math.isfinite(value) and value <= self.limit * first:
            self._losses.append(value)
            return False
        found = f"rose to {value:.3g}, from {first:.3g} in the first round" if math.isfinite(value) else f"is {value}"
        kept = f"those of round {self._kept()} were kept" if self.history else "the rows it started from were kept"
        self.notes.append(f"The loop diverged in round {len(self.history) + 1}: its loss {found}; {kept}.")
        self._put_back()
        return True

    def end_round(self, **watched: float) -> None:
        """A round is over: its mean loss is noted, and its rows are kept if it is the lowest so far."""
        mean = sum(self._losses) / len(self._losses)
        self._losses.clear()
        self.history.append({"loss": mean, **watched})
        if mean < self._best[0]:
            self._best = (mean, self._copy())

    def result(self) -> Condensed:
        """What was learned."""
        rows, lr = self.synthetic.fixed(), self.synthetic.lr
        return Condensed(
            rows.inputs_RTD.clone(),
            rows.mask_RT,
            rows.labels_RC.clone(),
            self.synthetic.classes_R,
            self.synthetic.rows_R,
            None if lr is None else float(lr.detach()),
            tuple(self.history),
            tuple(self.notes),
        )

    def _kept(self) -> int:
        return 1 + min(range(len(self.history)), key=lambda place: self.history[place]["loss"])

    def _copy(self) -> list[Tensor]:
        return [leaf.detach().clone() for leaf in self.synthetic.learned()]

    def _put_back(self) -> None:
        with torch.no_grad():
            for leaf, kept in zip(self.synthetic.learned(), self._best[1], strict=True):
                leaf.copy_(kept)


def step(optimizer: torch.optim.Optimizer, loss: Tensor, synthetic: Synthetic) -> None:
    """One update of all that is learned."""
    optimizer.zero_grad()
    for leaf, gradient in zip(
        synthetic.learned(), torch.autograd.grad(loss, synthetic.learned(), allow_unused=True), strict=True
    ):
        leaf.grad = gradient
    optimizer.step()
