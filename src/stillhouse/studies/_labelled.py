"""Texts with a class each, for training and held out, whose labels say the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from stillhouse.data.sources import iter_source
from stillhouse.errors import DataError
from stillhouse.recipe_data import Source
from stillhouse.recipe_parts import Section
from stillhouse.records import Example

LABEL = "label"
"""The column of the class in the examples that are read here."""
_SHOWN = 8
"""Labels that a message lists of each file."""
_LEAKED = 0.01
"""The share of held-out texts that may stand in the training data as well; they are left out."""


class LabelledSource(Section):
    """A file of texts with a label each."""

    path: str
    text: str = Field("text", description="the column of the text")
    label: str = Field("label", description="the column of its label")
    limit: int | None = Field(None, ge=1, description="rows")
    shuffle: int | None = Field(None, description="seed of a shuffle before the limit; none keeps the file's order")


def _as_text(value: Any) -> Any:
    return {str(key): str(name) for key, name in value.items()} if isinstance(value, dict) else value


class LabelledData(Section):
    """What is chosen from, and what is measured on."""

    train: LabelledSource
    heldout: LabelledSource
    labels: Annotated[dict[str, str], BeforeValidator(_as_text)] = Field(
        {}, description="what a label is called here, where a file calls it otherwise: {0: World, 1: Sports}"
    )


@dataclass(frozen=True)
class Labelled:
    """Both files, read. Examples hold the text, and the name of the class in the column `label`.

    Attributes:
        train: what is chosen from.
        heldout: what is measured on.
        classes: their names, sorted.
        leaked: held-out rows that were left out because the training data hold the same text.
    """

    train: Sequence[Example]
    heldout: Sequence[Example]
    classes: tuple[str, ...]
    leaked: int

    def numbers(self, examples: Sequence[Example]) -> NDArray[np.int64]:
        """The class of every example, counted from 0."""
        places = {name: place for place, name in enumerate(self.classes)}
        return np.array([places[class_of(example)] for example in examples], dtype=np.int64)


def read_labelled(data: LabelledData) -> Labelled:
    """Both files, checked against each other.

    Raises:
        DataError: a file that cannot be read, one class alone, a held-out label that the training data do not have,
            an id twice, held-out texts that stand in the training data.
    """
    train, heldout = _read(data.train, data.labels), _read(data.heldout, data.labels)
    return checked(train, heldout, (data.train.path, data.heldout.path))


def labelled(name: str, text: str, label: str) -> Example:
    """A text and its class. The class is a column and no completion: what looks at answers would look at it."""
    return Example(id=name, text=text, meta={LABEL: label})


def class_of(example: Example) -> str:
    """The name of its class."""
    return str(example.meta[LABEL])


def _read(source: LabelledSource, labels: Mapping[str, str]) -> list[Example]:
    columns = Source(
        path=source.path, prompt=source.text, completion=source.label, limit=source.limit, shuffle=source.shuffle
    )
    return [
        labelled(row.id, row.prompt or "", labels.get(row.completion or "", row.completion or ""))
        for row in iter_source(columns)
    ]


def checked(train: Sequence[Example], heldout: Sequence[Example], paths: tuple[str, str]) -> Labelled:
    """Examples that fit each other; `paths` are for the messages.

    Raises:
        DataError: as `read_labelled`.
    """
    for rows, path in zip((train, heldout), paths, strict=True):
        twice = [name for name, count in Counter(row.id for row in rows).items() if count > 1]
        if twice:
            raise DataError(f"{path} has two rows with the id {twice[0]!r}. Ids must differ; remove one of the two.")
    classes = sorted({class_of(row) for row in train})
    if len(classes) < 2:
        raise DataError(
            f"{paths[0]} has one label alone, {classes[0]!r}, so there is nothing to tell apart. Give rows of two "
            "classes or more; data.train.label names the column."
        )
    there = {class_of(row) for row in heldout}
    if there - set(classes):
        raise DataError(
            f"{paths[1]} has labels that {paths[0]} does not have. Training data: {_listed(classes)}. Held-out data: "
            f"{_listed(sorted(there))}. Where both mean the same, say which is which: "
            f"data.labels={{{sorted(there - set(classes))[0]}: {classes[0]}, ...}}."
        )
    texts = {(row.text or "").strip() for row in train}
    fresh = [row for row in heldout if (row.text or "").strip() not in texts]
    leaked = len(heldout) - len(fresh)
    if leaked > _LEAKED * len(heldout):
        raise DataError(
            f"{leaked} of {len(heldout)} held-out texts of {paths[1]} stand in the training data {paths[0]} as "
            "well, so that accuracy would measure memory. Give data.heldout other rows, or remove "
            "these from the training data."
        )
    return Labelled(train, fresh, tuple(classes), leaked)


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return ", ".join(labels[:_SHOWN]) + more
