"""How few rows train a student: condensers against random rows, medoids and all rows, and whether others gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BeforeValidator, Field, field_validator

from stillhouse import registry
from stillhouse.classifiers.architectures import ARCHITECTURES
from stillhouse.condensation._matching import Rows
from stillhouse.condensation._projection import Fluency, fluency_of
from stillhouse.condensation._tokens import load_vocabulary
from stillhouse.errors import DataError, did_you_mean
from stillhouse.locating import fingerprint_model
from stillhouse.models import CausalLM
from stillhouse.recipe_data import Source
from stillhouse.recipe_parts import Component, Section
from stillhouse.records import fingerprint_file
from stillhouse.report.findings import Findings
from stillhouse.runs import RunFolder
from stillhouse.studies._condensed_dataset import FOLDER, write_card, write_sets
from stillhouse.studies._condensed_numbers import summarize_budgets, summarize_crossing, summarize_matrix
from stillhouse.studies._condensed_page import page
from stillhouse.studies._condensing import Task, budgets_of_seed, matrix_of_seed, pack, read_task, unpack
from stillhouse.studies._condensing_costs import Costs, Piece, heaviest, total
from stillhouse.studies.base import Foresight, Study
from stillhouse.workshop import Progress


def _list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _known(names: list[str]) -> list[str]:
    for name in names:
        if name not in ARCHITECTURES:
            raise ValueError(f"there is no classifier named {name!r}. {did_you_mean(name, ARCHITECTURES)}")
    if len(set(names)) < len(names):
        raise ValueError(f"each classifier is named once, found {names}")
    return names


Condensers = Annotated[list[Component], BeforeValidator(_list)]


class CondenseData(Section):
    """Texts with their classes: `prompt` names the column of the text, `completion` that of the class."""

    train: Source
    heldout: Source


class MatrixSection(Section):
    """Sets condensed for one kind of learner train all kinds; none where `seeds` is 0."""

    learners: list[str] = Field(list(ARCHITECTURES), min_length=2, description="each condensed for, and trained")
    condensers: Condensers = Field([], description="none takes those of the study")
    per_class: int = Field(10, ge=1, description="rows of a class")
    seeds: int = Field(3, ge=0, description="draws")

    _names = field_validator("learners")(_known)


class CondenseText(Study):
    """How well a student does on few rows of a data set of texts, whichever way they are made.

    Sets are condensed for the first of the students, at each budget and seed, from rows with their gold labels and from
    rows with a teacher's distributions (a logistic regression's, each fitted without the row). Beside them stand random
    rows and medoids with both kinds of labels, and all rows. Learned vectors are also brought back to text, as the
    nearest pieces and, with a language model, as pieces that it finds likely; what that loses is measured. At one
    budget, sets condensed for each of several learners train all of them.

    Attributes:
        data: texts.
        embeddings: a static embedding model (Model2Vec), a folder or hub name: the vectors of words.
        language_model: a causal language model that judges texts at the first budget; null for none.
        fluency_weight: of its log-probability in a text's score.
        places: pieces of a text; what is longer is cut.
        per_class: rows of a class, one budget after another.
        seeds: draws of everything.
        condensers: which, as components; `per_class` and `seed` are set by the study.
        students: trained on every set; the first is the one that is condensed for.
        student_steps: updates of a student other than `linear`, which is fitted to its optimum.
        full_steps: the same on all rows.
        matrix: which learners cross.
    """

    result: ClassVar[str] = "condensation.json"

    data: CondenseData
    embeddings: str
    language_model: str | None = None
    fluency_weight: float = Field(0.05, ge=0)
    places: int = Field(24, ge=1)
    per_class: list[int] = Field([5, 10, 20], min_length=1)
    seeds: int = Field(5, ge=2)
    condensers: Condensers = Field(
        [
            Component(name=name)
            for name in ("gradient_matching", "trajectory_matching", "distribution_matching", "select_and_relabel")
        ],
        min_length=1,
    )
    students: list[str] = Field(["linear", "mlp"], min_length=1)
    student_steps: int = Field(100, ge=1)
    full_steps: int = Field(300, ge=1)
    matrix: MatrixSection = MatrixSection()

    _names = field_validator("students")(_known)

    def find(self, folder: RunFolder, progress: Progress) -> dict[str, Any]:
        """Accuracies, differences and the matrix.

        Raises:
            RecipeError: a condenser that does not exist or not with such settings.
            DataError: the texts cannot be used, or a class is smaller than a budget.
            MissingExtraError: model2vec is not installed.
            ModelError: a model cannot be loaded.
        """
        task, judge = self._given()
        held = len(task.heldout.labels_RC)
        full = self._full(folder, task)
        budgets = self._budgets(folder, task, judge, progress)
        crossed = self._matrix(folder, task, progress)
        answer = {
            "format": 1,
            "n": held,
            "rows": len(task.texts),
            "classes": list(task.classes),
            "full": full,
            "teacher_accuracy": float((task.teacher.labels_NC.argmax(1) == task.real.classes_N).double().mean()),
            "budgets": summarize_budgets(budgets, held),
            "matrix": summarize_matrix(crossed, held, full, 1 / len(task.classes)) if crossed else [],
            "crossing": summarize_crossing(crossed, held, full) if crossed else [],
            "settings": self.resolved(),
        }
        write_card(folder.path / FOLDER, self.name, answer)
        return answer

    def foresee(self) -> Foresight:
        """Each condenser is tried with few rows and steps, and carried on along the lines that its cost grows on.

        Raises:
            RecipeError, DataError, MissingExtraError, ModelError: as `find`.
        """
        task, judge = self._given()
        costs = Costs(task, (judge, self.fluency_weight))
        sections = {"full": self._cost_of_full(costs), "budgets": self._cost_of_budgets(costs)}
        if self.matrix.seeds:
            sections["matrix"] = self._cost_of_matrix(costs)
        facts = {
            "texts": f"{len(task.texts):,} in {len(task.classes)} classes, {len(task.heldout.labels_RC):,} held out",
            "condensers": ", ".join(item.name for item in self.condensers),
            "students": ", ".join(self.students),
        }
        stages = {name: total(pieces) for name, pieces in sections.items()}
        return Foresight(facts, stages, {name: heaviest(pieces) for name, pieces in sections.items()})

    def show(self, found: Mapping[str, Any]) -> Findings:
        """The claim is about the smallest budget's vectors; text and other students follow."""
        return page(found)

    def _given(self) -> tuple[Task, Fluency | None]:
        """The texts as vectors and the judge, once all that a run would stumble over was looked at."""
        for item in (*self.condensers, *self.matrix.condensers):
            registry.build("condenser", item.name, {**item.settings, "per_class": 1})
        task = read_task(
            self.data.train, self.data.heldout, load_vocabulary(self.embeddings), self.places, self.student_steps
        )
        most = max([*self.per_class, *([self.matrix.per_class] if self.matrix.seeds else [])])
        counts_C = torch.bincount(task.real.classes_N, minlength=len(task.classes)).tolist()
        for name, count in zip(task.classes, counts_C, strict=True):
            if count < most:
                raise DataError(
                    f"Class {name!r} has {count} rows, and {most} a class were asked for. Lower per_class, or give "
                    "more rows of that class."
                )
        return task, fluency_of(CausalLM.load(self.language_model)) if self.language_model else None

    def _kinds(self) -> list[str]:
        """All classifiers that are trained on something."""
        return list(dict.fromkeys([*self.students, *(self.matrix.learners if self.matrix.seeds else ())]))

    def _crossed(self) -> Sequence[Component]:
        return self.matrix.condensers or self.condensers

    def _cost_of_full(self, costs: Costs) -> list[Piece]:
        return [Piece(f"the {name} student", 1, costs.training(name, None, self.full_steps)) for name in self._kinds()]

    def _cost_of_budgets(self, costs: Costs) -> list[Piece]:
        pieces: list[Piece] = []
        first = self.students[0]
        for rows in self.per_class:
            for item in self.condensers:
                sets = 2 * self.seeds  # two kinds of labels
                pieces.append(costs.condensing(item, first, rows, sets))
                pieces.append(costs.forms(item, first, rows, sets, judged=False))
                if costs.judged and rows == self.per_class[0]:
                    pieces.append(costs.forms(item, first, rows, self.seeds, judged=True))
            trained = self.seeds * (4 + 2 * 3 * len(self.condensers))  # at most: real rows, then three forms of a set
            pieces += [
                Piece(f"the {name} student", trained, costs.training(name, rows, self.student_steps))
                for name in self.students
            ]
        return pieces

    def _cost_of_matrix(self, costs: Costs) -> list[Piece]:
        rows, learners, seeds = self.matrix.per_class, self.matrix.learners, self.matrix.seeds
        pieces = [costs.condensing(item, name, rows, seeds) for item in self._crossed() for name in learners]
        trained = seeds * (2 + len(self._crossed()) * len(learners))
        return pieces + [
            Piece(f"the {name} student", trained, costs.training(name, rows, self.student_steps)) for name in learners
        ]

    def _inputs(self, *keys: str) -> dict[str, Any]:
        """What decides a stage's cells."""
        kept = ("embeddings", "places", "student_steps", *keys)
        files = [
            [source.model_dump(mode="json"), source.path and fingerprint_file(Path(source.path).expanduser())]
            for source in (self.data.train, self.data.heldout)
        ]
        models = [name and fingerprint_model(name) for name in (self.embeddings, self.language_model)]
        dumped = self.model_dump(mode="json")
        return {"files": files, "models": models, **{key: dumped.get(key) for key in kept}}

    def _full(self, folder: RunFolder, task: Task) -> dict[str, float]:
        """Each kind of student on all rows with their gold labels, once."""
        names = self._kinds()
        count = len(task.heldout.labels_RC)
        with folder.stage("full", {**self._inputs("full_steps", "seed"), "names": names}) as (record, done):
            if not done:
                rows = Rows(task.real.inputs_NTD, task.real.mask_NT, task.real.labels_NC)
                longer = replace(task, steps=self.full_steps)
                record.out = {name: pack(longer.hits(name, rows, self.seed)) for name in names}
        return {name: float(unpack(hits, count).mean()) for name, hits in record.out.items()}

    def _budgets(
        self, folder: RunFolder, task: Task, judge: Fluency | None, progress: Progress
    ) -> list[dict[str, Any]]:
        cells: list[dict[str, Any]] = []
        inputs = self._inputs("per_class", "condensers", "students", "language_model", "fluency_weight")
        total = self.seeds * len(self.per_class) * len(self.condensers) * 2
        made = iter(range(1, total + 1))
        for place in range(self.seeds):
            seed = self.seed + place
            with folder.stage(f"budgets-{seed}", {**inputs, "seed": seed}) as (record, done):
                if not done or not (place or (folder.path / FOLDER).is_dir()):  # somebody may have moved the sets away
                    told, sets = budgets_of_seed(
                        task,
                        self.condensers,
                        self.students,
                        self.per_class,
                        seed,
                        (judge, self.fluency_weight),
                        lambda: progress("condense", next(made), total, ""),
                    )
                    if not place:
                        made_for = {"learner": self.students[0], "seed": seed, "embeddings": self.embeddings}
                        write_sets(folder.path / FOLDER, task, sets, made_for)
                    record.out = {"cells": told}
            cells += record.out["cells"]
        return cells

    def _matrix(self, folder: RunFolder, task: Task, progress: Progress) -> list[dict[str, Any]]:
        cells: list[dict[str, Any]] = []
        condensers = self._crossed()
        shown = [item.model_dump(mode="json") for item in condensers]
        of_matrix = {"learners": self.matrix.learners, "per_class": self.matrix.per_class, "condensers": shown}
        total = self.matrix.seeds * len(condensers) * len(self.matrix.learners)
        made = iter(range(1, total + 1))
        for place in range(self.matrix.seeds):
            seed = self.seed + place
            with folder.stage(f"matrix-{seed}", {**self._inputs(), **of_matrix, "seed": seed}) as (record, done):
                if not done:
                    told = matrix_of_seed(
                        task,
                        condensers,
                        self.matrix.learners,
                        self.matrix.per_class,
                        seed,
                        lambda: progress("cross", next(made), total, ""),
                    )
                    record.out = {"cells": told}
            cells += record.out["cells"]
        return cells
