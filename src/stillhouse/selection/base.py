"""What a selector is: of the examples there are it chooses some, with weights, scores and reasons.

Shapes: N examples, D the width of a vector, B the budget (rows chosen).
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainValidator

from stillhouse.errors import DataError
from stillhouse.features._store import tabulate
from stillhouse.features.base import FeatureBench, Features, Matrix, as_features
from stillhouse.features.tfidf import Tfidf
from stillhouse.records import Example
from stillhouse.registry import name_of

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass
class SelectionBench:
    """What a selector works with; the default is enough for all that look at text alone.

    Attributes:
        features: what features are computed with.
        store: the folder where features are kept and found again; none keeps them in memory.
        heldout: the examples of all evaluation sets.
        notes: what a user should know of what happened, counted.
    """

    features: FeatureBench = field(default_factory=FeatureBench)
    store: Path | None = None
    heldout: Sequence[Example] = ()
    notes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Selection:
    """What was chosen.

    Attributes:
        rows: places of the chosen examples among those given, each once, in the order in which they were chosen.
        weights: how many of the given examples each stands for; all 1 where the method knows no weights.
        scores: what each was chosen by; larger is better, NaN where the method has none.
        reasons: of each in a few words why it was chosen, or why it was kept.
        clusters: of every given example the number of its cluster, where the method finds clusters.
    """

    rows: Rows
    weights: Floats
    scores: Floats
    reasons: Sequence[str]
    clusters: NDArray[np.int64] | None = None


class Budget(NamedTuple):
    """How many rows are chosen, and of which groups equally many (see `VectorSelector.by`)."""

    rows: int
    by: str | None


class Picked(NamedTuple):
    """The numbers of a choice among vectors: see `Selection`."""

    rows: Rows
    weights: Floats | None = None
    scores: Floats | None = None


@dataclass(frozen=True, kw_only=True)
class Selector(ABC):
    """Settings of one way to choose. The same settings and examples choose the same rows, on every machine."""

    family: ClassVar[str] = "selector"

    def looks_at(self) -> Features | None:
        """The vectors that it looks at; None where text and columns are enough."""
        return None

    @property
    def needs(self) -> frozenset[str]:
        """What it needs of the teacher, in the words of `Objective.needs`: what its vectors are computed with."""
        features = self.looks_at()
        return frozenset() if features is None else features.needs

    @abstractmethod
    def choose(self, examples: Sequence[Example], bench: SelectionBench) -> Selection:
        """Rows with their weights, scores and reasons. `examples` may lie on disk: walk over it, do not copy it.

        Raises:
            DataError: nothing to choose from, or less than the budget.
        """

    def budgeted(self) -> Budget | None:
        """What could as well be drawn at random, which runs then train on as well; None of what cleans, as duplicates
        are left out, and of what draws at random itself."""
        return None

    def select(self, examples: Sequence[Example], bench: SelectionBench | None = None) -> Iterator[Example]:
        """The chosen examples in the order in which they were given; `meta["selected_by"]` says how each was chosen,
        `meta["weight"]` how many it stands for where that is not 1.

        Raises:
            DataError: as `choose`.
        """
        if not len(examples):
            raise DataError(f"{name_of(self)} was given no examples to choose from. Look at the step before it.")
        chosen = self.choose(examples, bench or SelectionBench())
        for place in np.argsort(chosen.rows, kind="stable").tolist():
            row = int(chosen.rows[place])
            example = examples[row]
            yield dataclasses.replace(example, meta=self._meta(example.meta, chosen, place, row))

    def _meta(self, meta: Mapping[str, Any], chosen: Selection, place: int, row: int) -> dict[str, Any]:
        facts: dict[str, Any] = {"selector": name_of(self), "rank": place, "reason": chosen.reasons[place]}
        if not np.isnan(chosen.scores[place]):
            facts["score"] = round(float(chosen.scores[place]), 6)
        if chosen.clusters is not None:
            facts["cluster"] = int(chosen.clusters[row])
        weight = round(float(meta.get("weight", 1.0)) * float(chosen.weights[place]), 6)
        weighed = {"weight": weight} if weight != 1 or "weight" in meta else {}
        return {**meta, **weighed, "selected_by": [*meta.get("selected_by", ()), facts]}


_TFIDF = Tfidf()


@dataclass(frozen=True, kw_only=True)
class VectorSelector(Selector):
    """A selector that looks at vectors and has a budget.

    Attributes:
        budget: rows to choose.
        features: what vectors, by name; the TF-IDF of the text where nothing is said.
        by: choose equally many rows of each value of `completion`, or of a column of `meta`; none looks at all rows
            together.
        seed: of what is drawn; in a recipe the run's own where none is given.
    """

    budget: int
    features: Annotated[Features, PlainValidator(as_features)] = _TFIDF
    by: str | None = None
    seed: int = 0

    reason: ClassVar[str]
    """Why a row is chosen, in a few words."""

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"budget is {self.budget}; it must be at least 1 row")

    def looks_at(self) -> Features | None:
        """Its features."""
        return self.features

    def budgeted(self) -> Budget | None:
        """Its budget."""
        return Budget(self.budget, self.by)

    @abstractmethod
    def pick(self, vectors_ND: Matrix, count: int, rng: np.random.Generator) -> Picked:
        """`count` different rows of finite vectors, `1 <= count <= N`, in the order in which they are chosen."""

    def choose(self, examples: Sequence[Example], bench: SelectionBench) -> Selection:
        """Rows of all groups, one group after another.

        Raises:
            DataError: fewer examples than the budget, in all or in a group.
        """
        groups = split_by(examples, self.by, self.budget, name_of(self))
        vectors_ND = tabulate(self.features, examples, bench.features, bench.store)
        return join(
            [(rows, self._pick_of(vectors_ND[rows], count, number)) for number, (rows, count) in enumerate(groups)],
            self.reason,
        )

    def _pick_of(self, vectors_ND: Matrix, count: int, group: int) -> Picked:
        return self.pick(vectors_ND, count, np.random.default_rng([self.seed, group]))


def join(parts: Sequence[tuple[Rows, Picked]], reason: str) -> Selection:
    """One selection of what was picked in several groups, each given by its rows."""
    rows = np.concatenate([rows[picked.rows] for rows, picked in parts]).astype(np.int64)
    weights = [np.ones(len(p.rows)) if p.weights is None else p.weights for _, p in parts]
    scores = [np.full(len(p.rows), np.nan) if p.scores is None else p.scores for _, p in parts]
    return Selection(rows, np.concatenate(weights), np.concatenate(scores), [reason] * len(rows))


def column_of(example: Example, column: str, setting: str, who: str) -> str:
    """What an example holds in a column of `meta`, or as its `completion`; `setting` of `who` names the column.

    Raises:
        DataError: nothing.
    """
    value = example.completion if column == "completion" else example.meta.get(column)
    if value is None:
        raise DataError(
            f"{who} looks at {column!r}, and example {example.id!r} has none. Set {setting} to a column it has."
        )
    return str(value)


def split_by(examples: Sequence[Example], by: str | None, budget: int, who: str) -> list[tuple[Rows, int]]:
    """The rows of each group and how many to choose of it; what does not divide goes to the first groups.

    Raises:
        DataError: a group smaller than its share, or an example that belongs to none.
    """
    if len(examples) < budget:
        raise DataError(
            f"{who} should choose {budget} rows and was given {len(examples)}. Lower its budget, or give it more."
        )
    if by is None:
        return [(np.arange(len(examples)), budget)]
    places: dict[str, list[int]] = {}
    for place, example in enumerate(examples):
        places.setdefault(column_of(example, by, "by", who), []).append(place)
    if budget < len(places):
        raise DataError(
            f"{who} should choose {budget} rows of {len(places)} groups by {by!r}. Raise its budget to a row each, or "
            "leave by out."
        )
    share, rest = divmod(budget, len(places))
    groups = []
    for number, (value, rows) in enumerate(sorted(places.items())):
        count = share + (number < rest)
        if len(rows) < count:
            raise DataError(
                f"{who} should choose {count} rows of {by} {value!r}, which has {len(rows)}. Lower its budget to "
                f"{len(rows) * len(places)}, or leave by out."
            )
        groups.append((np.array(rows), count))
    return groups
