"""How models fare when the data changes: from what the student was trained on to held-out data, and out of the domain.

A function of what evaluation kept by example; numpy only. A change is always the value on the less familiar data minus
that on the more familiar, in the metric's own unit and sign. Data sets differ in difficulty, which moves all models
alike, so what says something about a student is how much more it moves than its teacher and its control do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stillhouse.statistics import Comparison, Measurement, changes

Measured = Mapping[str, Mapping[str, Measurement]]
"""Of each model, by its role, the measurements by their full names."""

TRAIN, HELDOUT = "train", "heldout"
ON_TRAINING_DATA = {
    "likelihood.loss": "generalisation.train_loss",
    "likelihood.bits_per_byte": "generalisation.train_bits_per_byte",
}
"""Metrics of held-out data, and under which name the same is measured on training data."""
REFERENCES = ("teacher", "control")


@dataclass(frozen=True)
class Shift:
    """One metric from one data set to another.

    Attributes:
        metric: under its name on the held-out data.
        home: the more familiar data set: `train` or `heldout`.
        away: the less familiar: `heldout`, or the name of one out of domain.
        changes: of each model that was measured on both, away minus home.
        excess: how much more the student's changes than another's: `student - teacher`, `student - control`.
    """

    metric: str
    home: str
    away: str
    changes: dict[str, Comparison]
    excess: dict[str, Comparison]


def shifts(measured: Measured) -> list[Shift]:
    """Every metric that was measured on two data sets, first from training to held-out data, then out of the domain.

    Raises:
        DataError: models were measured on different examples.
    """
    return [_shift(measured, *names) for names in _pairs(measured.get("student", {}))]


def _pairs(student: Mapping[str, Measurement]) -> Iterator[tuple[str, str, str, str, str]]:
    """Metric, its home and what it is called there, and the same of its away."""
    for metric, seen in ON_TRAINING_DATA.items():
        if metric in student and seen in student:
            yield metric, TRAIN, seen, HELDOUT, metric
    for name in student:
        domain, _, metric = name.rpartition(":")
        if domain and metric in student:
            yield metric, HELDOUT, metric, domain, name


def _shift(measured: Measured, metric: str, home: str, at_home: str, away: str, abroad: str) -> Shift:
    roles = [role for role, found in measured.items() if at_home in found and abroad in found]
    others = [role for role in REFERENCES if role in roles]
    alone = [[float(role == one) for role in roles] for one in roles]
    against = [[float(role == "student") - float(role == other) for role in roles] for other in others]
    found = changes(
        [measured[role][at_home] for role in roles], [measured[role][abroad] for role in roles], [*alone, *against]
    )
    names = [f"student - {other}" for other in others]
    by_role, excess = found[: len(roles)], found[len(roles) :]
    return Shift(metric, home, away, dict(zip(roles, by_role, strict=True)), dict(zip(names, excess, strict=True)))
