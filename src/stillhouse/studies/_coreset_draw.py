"""One draw of the study of coresets: a part of the pool, a teacher, every choice of every selector, every student.

Shapes: N rows of a draw, R rows chosen, E held-out rows, D width of a vector, C classes, K cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stillhouse import registry
from stillhouse.classifiers.architectures import make_classifier
from stillhouse.classifiers.fitting import Floats, Labels, one_hot, softmax_regression, train
from stillhouse.classifiers.out_of_fold import out_of_fold
from stillhouse.features.base import Matrix
from stillhouse.recipe_parts import Component
from stillhouse.records import Example
from stillhouse.selection.base import SelectionBench
from stillhouse.studies._classifier_gradients import gradients
from stillhouse.studies._given import Given
from stillhouse.studies._labelled import LABEL

TRUST = "teacher"
"""The column in which selectors find how likely the teacher takes a row's label to be."""
RANDOM, FULL = "random", "full data"
GRADIENTS = {
    "gradient_match (CE)": ("gradient_match", "hard"),
    "gradient_match (KD)": ("gradient_match", "soft"),
    "herding on KD gradients": ("herding", "soft"),
}
"""Rows of the study that choose among a student's gradients: by which selector, from which labels."""
_STEPS, _EPOCHS, _BATCH = 100, 10, 256
"""Of the MLP: as many updates as ten walks over the data take, at least 100."""


class Chosen(NamedTuple):
    """Rows and what each counts; no weights where the selector knows none."""

    rows: NDArray[np.int64]
    weights: Floats | None


@dataclass(frozen=True)
class Pool:
    """What is chosen from and measured on, as vectors.

    Attributes:
        examples: texts with their class in a column.
        vectors_ND: theirs.
        labels_N: theirs.
        heldout_ED: vectors of what is measured on.
        heldout_E: its classes.
        classes: how many.
    """

    examples: Sequence[Example]
    vectors_ND: Matrix
    labels_N: Labels
    heldout_ED: Matrix
    heldout_E: Labels
    classes: int

    def part(self, rows: NDArray[np.int64]) -> Pool:
        """Some of its rows, measured on the same."""
        examples = [self.examples[row] for row in rows]
        vectors_ND, labels_N = np.asarray(self.vectors_ND[rows]), self.labels_N[rows]
        return Pool(examples, vectors_ND, labels_N, self.heldout_ED, self.heldout_E, self.classes)


@dataclass(frozen=True)
class Plan:
    """What is done with each draw.

    Attributes:
        selectors: components by the names of their rows, those of `GRADIENTS` among them.
        budgets: rows of a class.
        students: linear, mlp.
        share: of each class that a draw keeps.
        penalties: of the linear student, by kind of labels.
        store: where selectors that bring their own features keep them.
    """

    selectors: Mapping[str, Component]
    budgets: Sequence[int]
    students: Sequence[str]
    share: float
    penalties: Mapping[str, float]
    store: Path


def kept(rows: int, share: float) -> int:
    """Of a class's rows, how many a draw keeps."""
    return int(rows * share)


def draw(pool: Pool, share: float, seed: Sequence[int]) -> Pool:
    """A part of the pool, the same share of every class, in the pool's order."""
    rng = np.random.default_rng([*seed, 0])
    parts = [np.flatnonzero(pool.labels_N == label) for label in range(pool.classes)]
    return pool.part(
        np.sort(np.concatenate([rng.choice(rows, kept(len(rows), share), replace=False) for rows in parts]))
    )


def measure(pool: Pool, plan: Plan, seed: Sequence[int]) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """A draw of the pool: what was measured, and of each of its cells which held-out rows were right, [K, E]."""
    drawn = draw(pool, plan.share, seed)
    number = int(np.random.default_rng([*seed, 1]).integers(2**31))
    teacher = out_of_fold(drawn.vectors_ND, drawn.labels_N, seed=number, temperature=None)
    drawn = replace(drawn, examples=_trusted(drawn, teacher.probabilities_NC))
    targets = {"hard": one_hot(drawn.labels_N, drawn.classes), "soft": teacher.probabilities_NC}
    every = Chosen(np.arange(len(drawn.examples)), None)
    cells, hits = [], []
    for selector, budget, chosen in [(FULL, 0, every), *_choices(drawn, plan, targets, number)]:
        size = _text_bytes(drawn, chosen.rows)
        for labels, weighted, student in _variants(chosen, plan.students):
            weights = chosen.weights if weighted else None
            penalty = plan.penalties[labels]
            right_E = _student(student, penalty, number)(drawn, chosen.rows, targets[labels], weights)
            cells.append(
                {
                    "selector": selector,
                    "budget": budget,
                    "labels": labels,
                    "weighted": weighted,
                    "student": student,
                    "text_bytes": size,
                    "label_bytes": label_bytes(len(chosen.rows), drawn.classes, labels, weighted=weighted),
                }
            )
            hits.append(right_E)
    accuracy = float((teacher.probabilities_NC.argmax(axis=1) == drawn.labels_N).mean())
    facts = {"rows": len(drawn.examples), "teacher_accuracy": accuracy, "temperature": teacher.temperature}
    return {"cells": cells, **facts}, np.array(hits)


def _trusted(drawn: Pool, told_NC: Floats) -> list[Example]:
    own_N = told_NC[np.arange(len(drawn.labels_N)), drawn.labels_N].round(6).tolist()
    return [replace(e, meta={**e.meta, TRUST: own}) for e, own in zip(drawn.examples, own_N, strict=True)]


def _variants(chosen: Chosen, students: Sequence[str]) -> Iterator[tuple[str, bool, str]]:
    """Hard and soft labels, without the weights and with them where there are any, every student."""
    for labels in ("hard", "soft"):
        for weighted in (False, True) if chosen.weights is not None else (False,):
            for student in students:
                yield labels, weighted, student


# What is chosen.


def _choices(drawn: Pool, plan: Plan, targets: Mapping[str, Floats], seed: int) -> Iterator[tuple[str, int, Chosen]]:
    """Of every selector and budget the rows; random first, whether asked for or not."""
    for budget in plan.budgets:
        yield RANDOM, budget, _at_random(drawn, budget, seed)
    ids = [example.id for example in drawn.examples]
    plain = Given(ids=ids, vectors_ND=drawn.vectors_ND)
    by_gradient: dict[str, Given] = {}
    for name, component in plan.selectors.items():
        vectors = plain
        if name in GRADIENTS:
            labels = GRADIENTS[name][1]
            if labels not in by_gradient:
                found_NG = gradients(drawn.vectors_ND, targets[labels], penalty=plan.penalties[labels], seed=seed)
                by_gradient[labels] = Given(ids=ids, vectors_ND=found_NG)
            vectors = by_gradient[labels]
        for budget in plan.budgets:
            yield name, budget, _chosen(drawn, component, budget, (vectors, plan.store), seed)


def _at_random(drawn: Pool, budget: int, seed: int) -> Chosen:
    """Equally many rows of each class. Written out here, because the control must not hang on any component."""
    rng = np.random.default_rng([seed, budget])
    parts = [np.flatnonzero(drawn.labels_N == label) for label in range(drawn.classes)]
    return Chosen(np.concatenate([rng.choice(rows, budget, replace=False) for rows in parts]), None)


def settings_of(component: Component, given: Mapping[str, Any]) -> dict[str, Any]:
    """A selector's settings: what the study gives where it has such a setting, and what its recipe says over it."""
    known = registry.component("selector", component.name).__dataclass_fields__
    return {**{key: value for key, value in given.items() if key in known}, **component.settings}


def _chosen(drawn: Pool, component: Component, budget: int, sources: tuple[Given, Path], seed: int) -> Chosen:
    vectors, store = sources
    given = {"budget": budget * drawn.classes, "by": LABEL, "features": vectors, "seed": seed}
    selector = registry.build("selector", component.name, settings_of(component, given))
    # What is given is in memory; a selector's own features are computed once for all budgets.
    own = "features" in component.settings
    found = selector.choose(drawn.examples, SelectionBench(store=store if own else None))
    even = np.ptp(found.weights) <= 1e-9 * found.weights.max()
    return Chosen(found.rows, None if even else found.weights / found.weights.mean())


def _text_bytes(drawn: Pool, rows: NDArray[np.int64]) -> int:
    return sum(len((drawn.examples[row].text or "").encode()) for row in rows)


def label_bytes(rows: int, classes: int, labels: str, *, weighted: bool) -> int:
    """What labels and weights take: a hard label one byte (two beyond 256 classes), a soft one a float16 a class, a
    weight a float16.

    >>> label_bytes(10, 4, "hard", weighted=False), label_bytes(10, 4, "soft", weighted=True)
    (10, 100)
    """
    one = 2 * classes if labels == "soft" else 1 if classes <= 256 else 2
    return rows * (one + 2 * weighted)


# What is learned from it.

Learn = Callable[[Pool, NDArray[np.int64], Floats, Floats | None], NDArray[np.bool_]]


def _student(name: str, penalty: float, seed: int) -> Learn:
    def linear(drawn: Pool, rows: NDArray[np.int64], targets_NC: Floats, weights: Floats | None) -> NDArray[np.bool_]:
        learned = softmax_regression(drawn.vectors_ND[rows], targets_NC[rows], weights, penalty=penalty)
        return learned.logits(drawn.heldout_ED).argmax(axis=1) == drawn.heldout_E

    def mlp(drawn: Pool, rows: NDArray[np.int64], targets_NC: Floats, weights: Floats | None) -> NDArray[np.bool_]:
        inputs, heldout = (_as_tokens(vectors) for vectors in (drawn.vectors_ND[rows], drawn.heldout_ED))
        module = make_classifier("mlp", inputs.shape[2], drawn.classes, seed=seed)
        targets = torch.tensor(targets_NC[rows], dtype=torch.float32)
        weighing = None if weights is None else torch.tensor(weights, dtype=torch.float32)
        steps = max(_STEPS, _EPOCHS * len(rows) // _BATCH)
        train(module, inputs, torch.ones(inputs.shape[:2]), targets, weighing, steps=steps, seed=seed)
        with torch.inference_mode():
            told = module(heldout, torch.ones(heldout.shape[:2])).argmax(dim=1)
        return told.numpy() == drawn.heldout_E

    return {"linear": linear, "mlp": mlp}[name]


def _as_tokens(vectors_ND: Matrix) -> torch.Tensor:
    """Each vector a row of one place, [N, 1, D]."""
    return torch.from_numpy(np.array(vectors_ND, dtype=np.float32))[:, None]
