"""What a condenser is: many rows become few vectors with learned labels, for a learner that is fed vectors.

Shapes: N real rows, R condensed rows, T places of a row, D width of a vector, C classes.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn

Start = Literal["random", "medoids"]
"""What condensed rows begin as: real rows of their class, at random or those nearest the centres of k-means."""


@dataclass(frozen=True)
class Real:
    """The data that is condensed.

    Attributes:
        inputs_NTD: vectors; one a row (T = 1) or one a token.
        mask_NT: which places hold a token.
        labels_NC: the distribution that each row is to be given; one-hot where labels are hard.
        classes_N: the class of each row by which budgets are shared.
    """

    inputs_NTD: Tensor
    mask_NT: Tensor
    labels_NC: Tensor
    classes_N: Tensor


@dataclass(frozen=True)
class Condensed:
    """What came out; a data set of its own.

    Attributes:
        inputs_RTD: vectors.
        mask_RT: which places count.
        labels_RC: the distribution of each row.
        classes_R: the class that each row began as.
        rows_R: the real row that each began as; -1 where it began as none.
        lr: the learned step size, where one was learned.
        history: the outer loss and what else was watched, a mapping for each time it was looked at.
        notes: what a user should know: that the loop diverged and the best so far was kept.
    """

    inputs_RTD: Tensor
    mask_RT: Tensor
    labels_RC: Tensor
    classes_R: Tensor
    rows_R: Tensor
    lr: float | None = None
    history: Sequence[Mapping[str, float]] = ()
    notes: Sequence[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Condenser(ABC):
    """Settings of one way to condense.

    Attributes:
        per_class: rows of each class.
        learn_labels: whether the labels are learned with the vectors.
        seed: of all that is drawn.
    """

    per_class: int
    learn_labels: bool = True
    seed: int = 0

    family: ClassVar[str] = "condenser"
    counts: ClassVar[Mapping[str, int]] = {"per_class": 64}
    """Settings in each of which time and memory grow along a line, and up to where, two or more, they are cheap to try:
    a rehearsal tries no larger value, and carries the line on."""

    def __post_init__(self) -> None:
        if self.per_class < 1:
            raise ValueError(f"per_class is {self.per_class}; it must be at least 1 row")

    @abstractmethod
    def condense(self, real: Real, learner: Callable[[int], nn.Module]) -> Condensed:
        """Condense for learners as `learner(seed)` makes them: modules of `(inputs_RTD, mask_RT) -> logits_RC`.

        Raises:
            DataError: no rows, or a class smaller than its budget.
        """


@dataclass(frozen=True, kw_only=True)
class LearningCondenser(Condenser):
    """A condenser whose vectors are learned by an outer loop over some loss.

    Attributes:
        start: what the rows begin as.
        rounds: of `steps` outer steps, after each of which the loss is looked at.
        steps: outer steps of a round.
        lr: of the vectors.
        limit: the loop has diverged where its loss is more than so many times that of the first round.
    """

    start: Start = "random"
    rounds: int = 20
    steps: int = 10
    lr: float = 0.05
    limit: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "rounds", "steps")
        above_zero(self, "lr")
        if not self.limit > 1:
            raise ValueError(f"limit is {self.limit}; it must be above 1, a multiple of the first round's loss")

    def shortest(self) -> Self:
        """The same with one outer step, and as little before it as leaves that step as large as it is."""
        return dataclasses.replace(self, rounds=1, steps=1)


def at_least_one(settings: Any, *names: str) -> None:
    """Refuse settings that count something and count none of it.

    Raises:
        ValueError: which one, and what it is.
    """
    for name in names:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} is {getattr(settings, name)}; it must be at least 1")


def above_zero(settings: Any, *names: str) -> None:
    """Refuse step sizes that lead nowhere.

    Raises:
        ValueError: which one, and what it is.
    """
    for name in names:
        if not getattr(settings, name) > 0:
            raise ValueError(f"{name} is {getattr(settings, name)}; it must be above 0")
