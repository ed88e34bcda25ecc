"""What condensing and the trainings on condensed sets will take: each piece is tried small, and what grows along a line
is carried on along it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch

from stillhouse import registry
from stillhouse.checking.metering import LiveBytes, Trial, measure, quickest
from stillhouse.classifiers.fitting import train
from stillhouse.condensation._matching import Rows
from stillhouse.condensation._projection import Fluency
from stillhouse.condensation.base import Condensed, Condenser, LearningCondenser
from stillhouse.recipe_parts import Component
from stillhouse.studies._condensing import TEACHER, Task, as_sets

_SECONDS = 0.3
"""What the tried steps of a condenser may take."""
_STEPS = 20
"""Updates of a student that are tried."""


def line(value: int, cheap: int) -> list[tuple[int, float]]:
    """Values to try, and by how much what they took counts: the value itself, or two small ones and the line through.

    >>> line(4, 10), line(20, 10)
    ([(4, 1.0)], [(5, -2.0), (10, 3.0)])
    """
    if value <= cheap:
        return [(value, 1.0)]
    low = max(1, cheap // 2)
    share = (value - low) / (cheap - low)
    return [(low, 1 - share), (cheap, share)]


class Piece(NamedTuple):
    """A piece of work: in words what it is, how often it is done, and what it takes each time."""

    what: str
    times: int
    each: Trial


@dataclasses.dataclass
class Costs:
    """Seconds and bytes of the pieces of a study of condensing.

    Attributes:
        task: what is condensed.
        judge: a language model's opinion of texts, and its weight.
    """

    task: Task
    judge: tuple[Fluency | None, float]
    _known: dict[tuple[Condenser, str], tuple[Trial, Condensed]] = dataclasses.field(default_factory=dict)
    _forms: dict[tuple[str, str, bool], Trial] = dataclasses.field(default_factory=dict)

    @property
    def judged(self) -> bool:
        """Whether a language model judges texts."""
        return self.judge[0] is not None

    def condensing(self, component: Component, learner: str, per_class: int, times: int) -> Piece:
        """Sets for one learner."""
        condenser = _built(component, per_class)
        corners: list[tuple[Condenser, float]] = [(condenser, 1.0)]
        for name, cheap in condenser.counts.items():
            corners = [
                (dataclasses.replace(corner, **{name: value}), weight * share)
                for corner, weight in corners
                for value, share in line(getattr(corner, name), cheap)
            ]
        trials = [self._tried(corner, learner)[0] for corner, _ in corners]
        settings = ", ".join(f"{name} {getattr(condenser, name)}" for name in condenser.counts)
        what = f"{component.name} for a {learner} learner ({settings})"
        return Piece(what, times, Trial.combine(trials, [weight for _, weight in corners]))

    def forms(self, component: Component, learner: str, per_class: int, times: int, *, judged: bool) -> Piece:
        """Bringing a set's vectors back to text, and what that lost; nothing where its rows are real ones."""
        key = (component.name, learner, judged)
        if key not in self._forms:
            one = _one_a_class(self._tried(self._small(component, per_class), learner)[1])
            fluency, weight = self.judge if judged else (None, 0.0)
            self._forms[key] = measure(
                partial(as_sets, self.task, component.name, TEACHER, one, learner, fluency, weight)
            )
        seconds, held = self._forms[key]
        return Piece(f"texts of {component.name}", times, Trial(seconds * per_class, held))

    def training(self, student: str, per_class: int | None, steps: int) -> Trial:
        """One student on a set of such a size, or on all rows."""
        real = self.task.real
        rows = slice(None) if per_class is None else slice(per_class * len(self.task.classes))
        given = Rows(real.inputs_NTD[rows], real.mask_NT[rows], real.labels_NC[rows])
        if student == "linear":  # goes to its optimum, however many steps
            return measure(lambda: train(self.task.make(student, 0), *given, steps=steps, seed=0))
        tried = [
            (measure(lambda n=count: train(self.task.make(student, 0), *given, steps=n, seed=0)), share)
            for count, share in line(steps, _STEPS)
        ]
        return Trial.combine([trial for trial, _ in tried], [share for _, share in tried])

    def _small(self, component: Component, per_class: int) -> Condenser:
        condenser = _built(component, per_class)
        return dataclasses.replace(
            condenser, **{name: line(getattr(condenser, name), cheap)[0][0] for name, cheap in condenser.counts.items()}
        )

    def _tried(self, condenser: Condenser, learner: str) -> tuple[Trial, Condensed]:
        """A set, what it holds in its first steps, and how long all of them take: one, then as many as pay,
        carried on."""
        key = (condenser, learner)
        if key in self._known:
            return self._known[key]
        real, make = self.task.labelled(TEACHER), partial(self.task.make, learner)
        if not isinstance(condenser, LearningCondenser):
            sets: list[Condensed] = []
            self._known[key] = measure(lambda: sets.append(condenser.condense(real, make))), sets[0]
            return self._known[key]

        def seconds(steps: int) -> float:
            few = dataclasses.replace(condenser, rounds=1, steps=steps)
            return quickest(lambda: few.condense(real, make))

        with LiveBytes() as live:
            made = condenser.shortest().condense(real, make)
        every = condenser.rounds * condenser.steps
        one = seconds(1)
        many = min(every, max(2, int(_SECONDS / one)))
        spent = seconds(many)
        if many < every:
            spent += (every - many) * max(0.0, spent - one) / (many - 1)
        self._known[key] = Trial(spent, live.peak), made
        return self._known[key]


def _one_a_class(made: Condensed) -> Condensed:
    """The first row of each class."""
    first = torch.tensor([int((made.classes_R == number).nonzero()[0]) for number in made.classes_R.unique()])
    names = ("inputs_RTD", "mask_RT", "labels_RC", "classes_R", "rows_R")
    return dataclasses.replace(made, **{name: getattr(made, name)[first] for name in names})


def _built(component: Component, per_class: int) -> Condenser:
    return registry.build("condenser", component.name, {**component.settings, "per_class": per_class})


def total(pieces: Sequence[Piece]) -> Trial:
    """One after another: seconds add up, of bytes the most count."""
    seconds = sum(piece.times * piece.each.seconds for piece in pieces)
    return Trial(seconds, max(piece.each.bytes for piece in pieces))


def heaviest(pieces: Sequence[Piece]) -> str:
    """Which piece holds the most bytes, and what makes it smaller."""
    return max(pieces, key=lambda piece: piece.each.bytes).what
