"""Confident labels: leaves out rows that a teacher which never saw them takes for another class.

Shapes: N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainValidator

from stillhouse.classifiers.fitting import Floats, Labels
from stillhouse.classifiers.out_of_fold import out_of_fold
from stillhouse.features._store import tabulate
from stillhouse.features.base import Features, as_features
from stillhouse.features.tfidf import Tfidf
from stillhouse.records import Example
from stillhouse.registry import name_of
from stillhouse.selection.base import Selection, SelectionBench, Selector, column_of

_TFIDF = Tfidf()


@dataclass(frozen=True, kw_only=True)
class ConfidentLabels(Selector):
    """Confident learning (Northcutt et al. 2021, arXiv 1911.00068): labels that are likely wrong, without a clean set.

    A softmax regression says of each row, fitted to the other folds, how likely each class is. A class is taken to be
    confident of a row that it finds at least as likely as it finds its own rows on average, so that a class which the
    teacher is unsure of is not called wrong throughout. How often each class is confident of rows of each label, scaled
    to the rows there are, estimates how many of them are its own (the confident joint); as many are left out, those
    first of which it is most surer than their own class (pruning by noise rate). The rest is kept, scored by how likely
    the given label is.

    Attributes:
        label: the column of `meta` that holds the label, or `completion`.
        features: what the teacher sees, by name; the TF-IDF of the text where nothing is said.
        folds: parts of the examples, each judged by a teacher fitted to the others.
        seed: of the folds.
    """

    label: str = "completion"
    features: Annotated[Features, PlainValidator(as_features)] = _TFIDF
    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ValueError(f"folds is {self.folds}; it must be at least 2")

    def looks_at(self) -> Features | None:
        """What the teacher sees."""
        return self.features

    def choose(self, examples: Sequence[Example], bench: SelectionBench) -> Selection:
        """The rows whose labels stand, in their order; how many do not is counted in the notes.

        Raises:
            DataError: a row without a label, one class alone, a class of one row.
        """
        labels_N = self._labels(examples)
        vectors_ND = tabulate(self.features, examples, bench.features, bench.store)
        told_NC = out_of_fold(vectors_ND, labels_N, self.folds, self.seed).probabilities_NC
        wrong_N = mislabelled(told_NC, labels_N)
        bench.notes["confident_labels: likely mislabelled, left out"] += int(wrong_N.sum())
        kept = np.flatnonzero(~wrong_N)
        scores = told_NC[kept, labels_N[kept]]
        return Selection(kept, np.ones(len(kept)), scores, ["its label stands against the other rows"] * len(kept))

    def _labels(self, examples: Sequence[Example]) -> Labels:
        found = [column_of(example, self.label, "label", name_of(self)) for example in examples]
        names = {name: place for place, name in enumerate(sorted(set(found)))}
        return np.array([names[name] for name in found], dtype=np.int64)


def mislabelled(probabilities_NC: Floats, labels_N: Labels) -> NDArray[np.bool_]:
    """Which labels are likely wrong, from what a teacher that never saw the rows says of them.

    >>> told = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.1, 0.9], [0.1, 0.9]])
    >>> mislabelled(told, np.array([0, 0, 1, 1, 0])).tolist()
    [False, False, False, False, True]
    """
    joint_CC = confident_joint(probabilities_NC, labels_N)
    wrong_N = np.zeros(len(labels_N), dtype=np.bool_)
    for given, other in zip(*np.nonzero(joint_CC), strict=True):
        if given != other:
            rows = np.flatnonzero(labels_N == given)
            surer = probabilities_NC[rows, other] - probabilities_NC[rows, given]
            wrong_N[rows[np.argsort(-surer, kind="stable")[: round(joint_CC[given, other])]]] = True
    return wrong_N


def confident_joint(probabilities_NC: Floats, labels_N: Labels) -> Floats:
    """How many rows of each label are likely of each class, [C labels, C classes]; a label's row adds up to its rows,
    or to none where no class is confident of any."""
    classes = probabilities_NC.shape[1]
    counts_C = np.bincount(labels_N, minlength=classes)
    own_N = probabilities_NC[np.arange(len(labels_N)), labels_N]
    threshold_C = np.bincount(labels_N, own_N, minlength=classes) / np.maximum(counts_C, 1)
    confident_NC = np.where(probabilities_NC >= threshold_C, probabilities_NC, -1.0)
    sure_N = confident_NC.max(axis=1) >= 0
    joint_CC = np.zeros((classes, classes))
    np.add.at(joint_CC, (labels_N[sure_N], confident_NC.argmax(axis=1)[sure_N]), 1)
    return joint_CC * (counts_C / np.maximum(joint_CC.sum(axis=1), 1))[:, None]
