"""Which rows to keep: every selector against random at equal rows and equal bytes, with hard labels and a teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field, field_validator

from stillhouse import registry
from stillhouse.errors import DataError, NeedsError, RecipeError
from stillhouse.features._store import tabulate
from stillhouse.features.base import FeatureBench, Features
from stillhouse.recipe_parts import Component, Section
from stillhouse.records import fingerprint_file, whole
from stillhouse.report.findings import Findings
from stillhouse.runs import RunFolder
from stillhouse.studies._coreset_draw import GRADIENTS, RANDOM, TRUST, Plan, Pool, kept, measure, settings_of
from stillhouse.studies._coreset_page import page
from stillhouse.studies._coreset_summary import summarize
from stillhouse.studies._given import Given
from stillhouse.studies._labelled import LABEL, Labelled, LabelledData, read_labelled
from stillhouse.studies.base import Foresight, Study
from stillhouse.workshop import Progress

_HITS = "draws"


def _list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def row_name(component: Component) -> str:
    """What a component is called: its name, and its settings where it has any."""
    settings = ", ".join(f"{key} {value}" for key, value in component.settings.items())
    return f"{component.name} ({settings})" if settings else component.name


class Penalties(Section):
    """Of the linear student, by kind of labels: the L2 penalty against the sum of the rows' losses."""

    hard: float = Field(1.0, gt=0)
    soft: float = Field(0.1, gt=0)


class CoresetStudy(Study):
    """How good is a student that learns from few rows, by who chose them and what labels they bear?

    Every selector chooses equally many rows of each class of a draw of the pool. Students learn from them with the
    given labels (hard) and with the distributions of a teacher that never saw the row (soft), and are measured on
    held-out rows. Class-balanced random choice with the same labels always stands beside, and all rows of the draw.
    Seeds draw anew which part of the pool there is to choose from, the same part for all selectors, because some
    selectors draw nothing; the teacher is fitted to each draw. Vectors are made once, of the texts of all rows, the
    held-out ones among them; no held-out label is seen by any.

    Attributes:
        data: two files of texts with labels.
        budgets: rows of a class.
        seeds: draws of the pool.
        share: of each class that a draw keeps.
        features: vectors that selectors look at and students learn from; each is a study of its own.
        students: who learns.
        selectors: as components; none takes all that have a budget and look at text alone.
        gradients: whether selectors also choose among the gradients of a linear student, of its cross-entropy (CE) and
            of its distance to the teacher (KD).
        penalty: of the linear student.
    """

    result: ClassVar[str] = "coresets.json"

    data: LabelledData
    budgets: list[int] = Field([5, 10, 20, 50], min_length=1)
    seeds: int = Field(10, ge=2)
    share: float = Field(0.8, gt=0, lt=1)
    features: Annotated[list[Component], BeforeValidator(_list)] = Field(
        [Component(name="tfidf", settings={"dimensions": 300})], min_length=1
    )
    students: list[Literal["linear", "mlp"]] = Field(["linear", "mlp"], min_length=1)
    selectors: Annotated[list[Component], BeforeValidator(_list)] = Field([])
    gradients: bool = True
    penalty: Penalties = Penalties()

    @field_validator("budgets")
    @classmethod
    def _rising(cls, budgets: list[int]) -> list[int]:
        if sorted(set(budgets)) != budgets or budgets[0] < 1:
            raise ValueError(f"budgets must rise from 1 or more, each once, found {budgets}")
        return budgets

    def find(self, folder: RunFolder, progress: Progress) -> dict[str, Any]:
        """Every cell: selector, labels, budget, student.

        Raises:
            RecipeError: no such selector or features, a wrong setting, or one twice.
            NeedsError: a selector or features that need a student or a teacher model.
            DataError: files that cannot be read or do not fit each other; a class smaller than the largest budget.
        """
        selectors, left_out = self._selectors()
        features = self._features()
        data = read_labelled(self.data)
        counts = self._counts(data)
        found = []
        for name, made in features.items():
            rows = [*data.train, *data.heldout]
            progress("vectors", 0, 1, name)
            vectors_ND = tabulate(made, rows, FeatureBench(), folder.path / "features")
            progress("vectors", 1, 1, name)
            cut = len(data.train)
            labels_N, heldout_E = data.numbers(data.train), data.numbers(data.heldout)
            pool = Pool(data.train, vectors_ND[:cut], labels_N, vectors_ND[cut:], heldout_E, len(data.classes))
            found.append({"features": name, **self._draws(folder, progress, pool, selectors, data, name)})
        return {
            "format": 1,
            "classes": list(data.classes),
            "counts": counts,
            "heldout": len(data.heldout),
            "leaked": data.leaked,
            "left_out": left_out,
            "features": found,
            "settings": self.resolved(),
        }

    def foresee(self) -> Foresight:
        """Names and data; what choosing will take is not told, because it depends on every selector in its own way.

        Raises:
            RecipeError, NeedsError, DataError: as `find`.
        """
        selectors, left_out = self._selectors()
        self._features()
        data = read_labelled(self.data)
        counts = self._counts(data)
        facts = {
            "texts": f"{len(data.train):,} in {len(counts)} classes, {len(data.heldout):,} held out",
            "selectors": ", ".join((RANDOM, *selectors)),
            **{f"without {name}": why for name, why in left_out.items()},
        }
        return Foresight(facts)

    def show(self, found: Mapping[str, Any]) -> Findings:
        """Who beats random, by how much, and what it takes."""
        return page(found)

    def _draws(
        self,
        folder: RunFolder,
        progress: Progress,
        pool: Pool,
        selectors: Mapping[str, Component],
        data: Labelled,
        name: str,
    ) -> dict[str, Any]:
        plan = Plan(
            selectors, self.budgets, self.students, self.share, self.penalty.model_dump(), folder.path / "features"
        )
        inputs = {
            "files": [fingerprint_file(Path(s.path).expanduser()) for s in (self.data.train, self.data.heldout)],
            "settings": {**self.resolved(), "seeds": None, "name": None},
            "selectors": {name: item.model_dump(mode="json") for name, item in selectors.items()},
        }
        number = [row_name(item) for item in self.features].index(name)
        draws, hits = [], []
        for seed in range(self.seeds):
            place = folder.path / _HITS / f"{number}-{seed}.npz"
            with folder.stage(f"draw-{number}-{seed}", inputs) as (record, done):
                if not done:
                    progress("draws", seed, self.seeds, name)
                    record.out, right_KE = measure(pool, plan, (self.seed, seed))
                    with whole(place) as partial, partial.open("wb") as stream:
                        np.savez_compressed(stream, right_KE=right_KE)
                    progress("draws", seed + 1, self.seeds, name)
            with np.load(place) as kept_hits:
                hits.append(kept_hits["right_KE"])
            draws.append(record.out)
        progress("compare", 0, 1, name)
        cells = summarize(draws, hits, [example.id for example in data.heldout])
        progress("compare", 1, 1, name)
        return {
            "rows_of_a_draw": draws[0]["rows"],
            "teacher": {
                "accuracy": fmean(draw["teacher_accuracy"] for draw in draws),
                "temperature": fmean(draw["temperature"] for draw in draws),
            },
            "cells": cells,
        }

    def _counts(self, data: Labelled) -> dict[str, int]:
        labels_N, most = data.numbers(data.train), max(self.budgets)
        counts = {name: int((labels_N == place).sum()) for place, name in enumerate(data.classes)}
        for name, count in counts.items():
            left = kept(count, self.share)
            if left < most:
                raise DataError(
                    f"{self.data.train.path} has {count} rows of class {name!r}, of which a draw keeps {left} (share "
                    f"{self.share:g}), and budgets asks for {most} of each class. Set budgets to at most {left}, add "
                    "rows, or raise share."
                )
        return counts

    def _features(self) -> dict[str, Features]:
        found: dict[str, Features] = {}
        for item in self.features:
            name, made = row_name(item), item.build("feature")
            if name in found:
                raise RecipeError(f"features names {name} twice. Keep one.")
            if not made.of_text:
                raise NeedsError(f"features names {name}, which a student takes part in; this study has texts alone.")
            found[name] = made
        return found

    def _selectors(self) -> tuple[dict[str, Component], dict[str, str]]:
        """Components by the names of their rows, and why some of those that exist are left out."""
        left_out: dict[str, str] = {}
        found: dict[str, Component] = {}
        for item in self.selectors or _every():
            name, why = row_name(item), self._objection(item)
            if name in found:
                raise RecipeError(f"selectors names {name} twice. Keep one.")
            if why and self.selectors:
                raise NeedsError(f"selectors names {name}, which {why}. Leave it out.")
            if why:
                left_out[name] = why
            elif name != RANDOM:  # always there
                found[name] = item
        for name, (selector, _) in GRADIENTS.items() if self.gradients else ():
            if selector in registry.names("selector"):
                found[name] = Component(name=selector)
            else:
                left_out[name] = f"needs the selector {selector}, which is not there"
        if not found:
            raise RecipeError("selectors names random alone, which always stands beside. Name one to hold against it.")
        return found, left_out

    def _objection(self, item: Component) -> str | None:
        """Why a selector cannot take part, after its settings were checked."""
        if not {"budget", "by"} <= set(registry.component("selector", item.name).__dataclass_fields__):
            return "does not choose a number of rows of each class"
        given = {"budget": 1, "by": LABEL, "features": Given(ids=(), vectors_ND=np.zeros((0, 1), np.float32))}
        try:
            made = registry.build("selector", item.name, settings_of(item, given))
        except RecipeError as error:
            if self.selectors:
                raise
            return f"needs settings ({error})"  # which only a recipe can give
        looked_at = made.looks_at()
        of_student = looked_at is not None and not looked_at.of_text
        return "looks at a student, and this study has texts alone" if of_student else None


def _every() -> list[Component]:
    """All selectors, and once more those that can ask whether the teacher trusts a label."""
    found = []
    for name in registry.names("selector"):
        found.append(Component(name=name))
        if "trust" in registry.component("selector", name).__dataclass_fields__:
            found.append(Component(name=name, settings={"trust": TRUST}))
    return found
