"""The condensing study's work: data sets made in every way, students trained on each, hits on held-out texts.

Shapes: N real rows, R rows of a set, T places, D width, C classes, E held-out texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse import registry
from stillhouse.classifiers.architectures import VectorClassifier, make_classifier
from stillhouse.classifiers.fitting import train
from stillhouse.classifiers.out_of_fold import out_of_fold
from stillhouse.condensation._matching import Rows, apart, matching_loss, weights_of
from stillhouse.condensation._projection import Fluency, project
from stillhouse.condensation._rows import rows_of_classes, start_rows
from stillhouse.condensation._tokens import Vocabulary
from stillhouse.condensation.base import Condensed, Condenser, Real, Start
from stillhouse.data.sources import read_source
from stillhouse.errors import DataError
from stillhouse.recipe_data import Source
from stillhouse.recipe_parts import Component

GOLD, TEACHER = "gold", "teacher"
TEXT, VECTORS, NEAREST, FLUENT = "text", "vectors", "nearest text", "fluent text"
"""Forms of a set: real texts; learned vectors; these as the nearest pieces; as pieces that a language model likes."""
BASELINES: tuple[Start, ...] = ("random", "medoids")
_LOOKS, _LOOK_ROWS = 2, 128
_CANDIDATES, _BEAMS = 4, 2


@dataclass(frozen=True)
class Task:
    """What is condensed and what it is judged by.

    Attributes:
        real: rows with gold labels.
        teacher: the same rows with the distributions of classifiers that were trained without them.
        texts: of the rows.
        ids: of the rows.
        heldout: vectors, mask and labels of held-out texts.
        classes: the labels' names.
        vocabulary: what the vectors mean.
        steps: updates of a student that has no closed form.
    """

    real: Real
    teacher: Real
    texts: Sequence[str]
    ids: Sequence[str]
    heldout: Rows
    classes: Sequence[str]
    vocabulary: Vocabulary
    steps: int

    def make(self, name: str, seed: int) -> VectorClassifier:
        """A student or learner with weights of its own."""
        return make_classifier(name, self.real.inputs_NTD.shape[2], len(self.classes), seed=seed)

    def labelled(self, labels: str) -> Real:
        """The rows with one kind of labels."""
        return self.real if labels == GOLD else self.teacher

    def hits(self, student: str, rows: Rows, seed: int) -> NDArray[np.bool_]:
        """Which held-out texts a student is right on that was trained on these rows, [E]."""
        module = train(self.make(student, seed), *rows, steps=self.steps, seed=seed)
        with torch.no_grad():
            logits_EC = module(self.heldout.inputs_RTD, self.heldout.mask_RT)
        return (logits_EC.argmax(1) == self.heldout.labels_RC.argmax(1)).numpy()


class Set(NamedTuple):
    """A set that students are trained on; of each row the real one that it began as, and its text where it has one."""

    method: str
    labels: str
    form: str
    rows: Rows
    origins_R: Tensor
    texts: Sequence[str] | None
    facts: dict[str, Any]


def read_task(train_source: Source, heldout: Source, vocabulary: Vocabulary, places: int, steps: int) -> Task:
    """Texts with their classes as vectors, and the teacher's distributions.

    Raises:
        DataError: a file that cannot be read, a row without prompt or completion, one class alone, a held-out class
            that is not trained on.
    """
    examples, others = read_source(train_source), read_source(heldout)
    for example in (*examples, *others):
        if not example.prompt or not example.completion:
            raise DataError(
                f"Example {example.id} has no text or no class. Name the columns: prompt: TEXT, completion: LABEL."
            )
    classes = sorted({str(example.completion) for example in examples})
    unknown = {str(example.completion) for example in others} - set(classes)
    if len(classes) < 2 or unknown:
        raise DataError(
            f"The training texts have the classes {classes}, the held-out ones also {sorted(unknown)}. There must be "
            "at least two, and none that is held out alone; is completion the column of the label?"
        )

    def real_of(rows: Sequence[Any]) -> Real:
        inputs_NTD, mask_NT = vocabulary.vectors([str(row.prompt) for row in rows], places)
        classes_N = torch.tensor([classes.index(str(row.completion)) for row in rows])
        return Real(inputs_NTD, mask_NT, torch.eye(len(classes), dtype=inputs_NTD.dtype)[classes_N], classes_N)

    real, held = real_of(examples), real_of(others)
    task = Task(
        real,
        real,
        [str(example.prompt) for example in examples],
        [example.id for example in examples],
        Rows(held.inputs_NTD, held.mask_NT, held.labels_NC),
        classes,
        vocabulary,
        steps,
    )
    return replace(task, teacher=replace(real, labels_NC=teacher_of(task)))


def teacher_of(task: Task) -> Tensor:
    """Of every row the distribution of a logistic regression that was fitted to the other folds, [N, C]."""
    real = task.real
    with torch.no_grad():
        features_ND = task.make("linear", 0).features(real.inputs_NTD, real.mask_NT)
    told = out_of_fold(features_ND, real.classes_N.numpy(), penalty=float(features_ND.shape[1]))
    return torch.as_tensor(told.probabilities_NC, dtype=real.labels_NC.dtype)


# Sets.


def rows_of(condensed: Condensed) -> Rows:
    """What students are trained on."""
    return Rows(condensed.inputs_RTD, condensed.mask_RT, condensed.labels_RC)


def baselines(task: Task, per_class: int, seed: int) -> list[Set]:
    """Real rows at random and medoids, each with both kinds of labels."""
    found = []
    for start in BASELINES:
        chosen = start_rows(task.real, per_class, start, seed)
        for labels in (GOLD, TEACHER):
            real = task.labelled(labels)
            rows = Rows(real.inputs_NTD[chosen], real.mask_NT[chosen], real.labels_NC[chosen])
            texts = [task.texts[row] for row in chosen.tolist()]
            found.append(Set(start, labels, TEXT, rows, chosen, texts, _billed(rows, texts)))
    return found


def condense(task: Task, component: Component, learner: str, per_class: int, labels: str, seed: int) -> Condensed:
    """One condenser's set for one learner."""
    settings = {**component.settings, "per_class": per_class, "seed": seed}
    condenser: Condenser = registry.build("condenser", component.name, settings)
    return condenser.condense(task.labelled(labels), partial(task.make, learner))


def as_sets(
    task: Task, name: str, labels: str, condensed: Condensed, learner: str, fluency: Fluency | None, weight: float
) -> list[Set]:
    """A condensed set as it is and, where its rows are no real ones, as text in each way; with what projecting lost."""
    rows, origins_R = rows_of(condensed), condensed.rows_R
    real = task.real.inputs_NTD[condensed.rows_R] * condensed.mask_RT[..., None]
    notes = {"notes": list(condensed.notes), "lr": condensed.lr}
    if torch.equal(real, condensed.inputs_RTD):
        texts = [task.texts[row] for row in condensed.rows_R.tolist()]
        return [Set(name, labels, TEXT, rows, origins_R, texts, _billed(rows, texts) | notes)]
    look = partial(objective, task, labels, learner, classes_R=condensed.classes_R)
    facts = _billed(rows, None) | notes | {"objective": look(rows)}
    found = [Set(name, labels, VECTORS, rows, origins_R, None, facts)]
    ways: list[tuple[str, Fluency | None]] = [(NEAREST, None)]
    ways += [(FLUENT, fluency)] if fluency else []
    for form, judge in ways:
        projected = project(condensed, task.vocabulary, judge, weight=weight, candidates=_CANDIDATES, beams=_BEAMS)
        again = Rows(*task.vocabulary.vectors(projected.texts, rows.mask_RT.shape[1]), rows.labels_RC)
        facts = {
            "objective": look(again),
            "moved": float(projected.moved_R.mean()),
            "log_prob": None if judge is None else float(projected.log_probs_R.mean()),
            "texts": projected.texts[: 2 * len(task.classes)],
        }
        found.append(
            Set(name, labels, form, again, origins_R, projected.texts, _billed(again, projected.texts) | facts)
        )
    return found


def objective(task: Task, labels: str, learner: str, rows: Rows, *, classes_R: Tensor) -> float:
    """The gradient matching distance of a set at learners that no condenser has seen, the same ones for every set."""
    real, compare = task.labelled(labels), partial(apart, distance="cosine", vectors=False)
    counts = torch.bincount(classes_R, minlength=len(task.classes)).tolist()
    sets = [Rows(*parts) for parts in zip(*(part.split(counts) for part in rows), strict=True)]
    draw = np.random.default_rng(10**6)
    chosen = [
        torch.as_tensor(draw.choice(of_class, min(_LOOK_ROWS, len(of_class)), replace=False))
        for of_class in rows_of_classes(real)
    ]
    batches = [Rows(real.inputs_NTD[at], real.mask_NT[at], real.labels_NC[at]) for at in chosen]
    found = []
    for look in range(_LOOKS):
        module = task.make(learner, 10**6 + look)
        found.append(float(matching_loss(module, weights_of(module), sets, batches, compare).detach()))
    return float(np.mean(found))


def _billed(rows: Rows, texts: Sequence[str] | None) -> dict[str, Any]:
    """What a set weighs: its texts in UTF-8 or its vectors in float32, and a float32 a class for each row's label."""
    data = (
        sum(len(text.encode()) for text in texts)
        if texts is not None
        else 4 * int(rows.mask_RT.sum()) * (rows.inputs_RTD.shape[2])
    )
    return {"bytes": data + 4 * rows.labels_RC.numel(), "rows": len(rows.labels_RC)}


# Cells: a set, a student, a seed, and the student's hits.


def cell(task: Task, made: Set, student: str, seed: int, **where: Any) -> dict[str, Any]:
    """A student's hits on one set as plain data."""
    hits = task.hits(student, made.rows, seed)
    known = {"method": made.method, "labels": made.labels, "form": made.form, "student": student, "seed": seed}
    return {**known, **where, "hits": pack(hits), "facts": made.facts}


def pack(hits_E: NDArray[np.bool_]) -> str:
    """Hits as text, a digit for four.

    >>> unpack(pack(np.array([True, False, True])), 3).tolist()
    [True, False, True]
    """
    return np.packbits(hits_E).tobytes().hex()


def unpack(text: str, count: int) -> NDArray[np.bool_]:
    """The hits that `pack` wrote."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count).astype(bool)


def budgets_of_seed(
    task: Task,
    condensers: Sequence[Component],
    students: Sequence[str],
    budgets: Sequence[int],
    seed: int,
    judge: tuple[Fluency | None, float],
    report: Callable[[], None],
) -> tuple[list[dict[str, Any]], dict[int, list[Set]]]:
    """Every way to make a set at every budget, condensed for the first student, and every student trained on it; the
    cells, and the sets by budget."""
    found, every = [], {}
    for per_class in budgets:
        sets = baselines(task, per_class, seed)
        for component in condensers:
            for labels in (GOLD, TEACHER):
                made = condense(task, component, students[0], per_class, labels, seed)
                # A language model reads every beginning of every text: once a condenser and seed is enough.
                fluency = judge[0] if labels == TEACHER and per_class == budgets[0] else None
                sets += as_sets(task, component.name, labels, made, students[0], fluency, judge[1])
                report()
        found += [cell(task, made, student, seed, per_class=per_class) for made in sets for student in students]
        every[per_class] = sets
    return found, every


def matrix_of_seed(
    task: Task,
    condensers: Sequence[Component],
    learners: Sequence[str],
    per_class: int,
    seed: int,
    report: Callable[[], None],
) -> list[dict[str, Any]]:
    """Sets condensed for each learner, with the teacher's labels, and every learner trained on each."""
    found = [
        cell(task, made, student, seed, learner=None)
        for made in baselines(task, per_class, seed)
        if made.labels == TEACHER
        for student in learners
    ]
    for component in condensers:
        for learner in learners:
            condensed = condense(task, component, learner, per_class, TEACHER, seed)
            facts = {"notes": list(condensed.notes)}
            made = Set(component.name, TEACHER, VECTORS, rows_of(condensed), condensed.rows_R, None, facts)
            found += [cell(task, made, student, seed, learner=learner) for student in learners]
            report()
    return found
