"""The contract of features as a check that anyone can call: `stillhouse.testing.check_features`.

Shapes: N examples, D the width of a vector.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import overload

import numpy as np

from stillhouse.contract import check_settings, demand
from stillhouse.errors import DataError
from stillhouse.features.base import FeatureBench, Features, Matrix
from stillhouse.records import Example

_QUESTIONS = [
    "Ann has 2 apples and buys 3 more. How many apples has Ann?",
    "Which city is the capital of France?",
    "Write a line about rain on a tin roof.",
    "2 + 2 =",
    "Der Zug fährt um acht Uhr nach Köln. Wann kommt er an?",
    "List three uses of an old brick.\nOne a line.",
    "The market fell on Monday; why?",
    "天气怎么样?",
    "Say hello.",
    "Ann had 9 pears and gave 4 of them away. How many pears has Ann?",
]
_AGAIN = [3 * place % len(_QUESTIONS) for place in range(len(_QUESTIONS))]
"""The order in which they are asked again: no question has a neighbour that it had before."""
_TOLERANCE = 1e-4
"""Of the largest number among the vectors: what batches that are padded in other ways may differ by."""


class _Lazy(Sequence[Example]):
    """A data set that is read from afar: a sequence, and no list."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = tuple(examples)

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> list[Example]: ...
    def __getitem__(self, place: int | slice) -> Example | list[Example]:
        return list(self._examples[place]) if isinstance(place, slice) else self._examples[place]


def check_features(features: Features, bench: FeatureBench | None = None, *, fitted: bool = False) -> None:
    """Hold features to their contract (C6, and what selectors rely on).

    Settings are a value: frozen, equal to their copy, hashable, printable. Of N examples, read from a sequence that is
    no list, come N vectors of one width, float32 and finite; the blocks together are what `compute` gives, and a second
    call gives the same bytes. The examples are left as they are. Different questions get different vectors, and the
    same question the same one wherever it stands and whatever block it is in. No example, one example and examples that
    are all alike are data as well. What is computed from text alone does not look at the answer.

    Args:
        features: with settings of your choice; a small batch size makes many blocks.
        bench: what they are computed with; features of text need none. Its context must hold 100 tokens.
        fitted: something in them is fitted on all examples, as the weights of TF-IDF are. Otherwise an example alone
            must get the vector that it gets among others.

    Raises:
        AssertionError: a clause is broken.

    >>> from stillhouse.features.tfidf import Tfidf
    >>> check_features(Tfidf(dimensions=4), fitted=True)
    """
    check_settings(features)
    bench = bench or FeatureBench()
    examples = _examples()
    vectors_ND = _compute(features, examples, bench)
    near = _TOLERANCE * float(np.abs(vectors_ND).max())
    _check_repeatable(features, examples, bench, vectors_ND)
    _check_alike(features, vectors_ND, near)
    _check_few(features, examples, bench)
    if features.of_text:
        _check_answer_unseen(features, examples, bench, vectors_ND)
    if not fitted:
        alone_ND = np.concatenate([_compute(features, [example], bench) for example in examples[: len(_QUESTIONS)]])
        demand(
            alone_ND.shape[1] == vectors_ND.shape[1] and _same(alone_ND, vectors_ND[: len(_QUESTIONS)], near),
            f"{features!r} gives an example alone another vector than among others. If something in it is fitted on "
            "all examples, say fitted=True; else padding or a mean over a block gets in",
        )


def _examples() -> list[Example]:
    """Every question twice, the second time among other neighbours."""
    twice = [*_QUESTIONS, *(_QUESTIONS[place] for place in _AGAIN)]
    return [
        Example(id=f"question-{n}", prompt=text, completion=" It is so.", meta={"seen": [n]})
        for n, text in enumerate(twice)
    ]


def _compute(features: Features, examples: Sequence[Example], bench: FeatureBench) -> Matrix:
    kept = [example.to_json() for example in examples]
    try:
        vectors_ND = features.compute(_Lazy(examples), bench)
    except DataError as error:
        raise AssertionError(f"{features!r} cannot do {len(examples)} sound examples: {error}") from error
    demand([example.to_json() for example in examples] == kept, f"{features!r} changed the examples it was given")
    demand(
        vectors_ND.shape[:1] == (len(examples),) and vectors_ND.ndim == 2 and vectors_ND.shape[1] > 0,
        f"{features!r} gives vectors of shape {vectors_ND.shape} for {len(examples)} examples, expected "
        f"({len(examples)}, D) with D of at least 1",
    )
    demand(vectors_ND.dtype == np.float32, f"{features!r} gives {vectors_ND.dtype}, expected float32")
    demand(bool(np.isfinite(vectors_ND).all()), f"{features!r} gives vectors that are not finite")
    return vectors_ND


def _same(some_ND: Matrix, others_ND: Matrix, near: float) -> bool:
    return bool(np.abs(some_ND - others_ND).max() <= near)


def _check_repeatable(features: Features, examples: list[Example], bench: FeatureBench, vectors_ND: Matrix) -> None:
    again_ND = _compute(dataclasses.replace(features), examples, bench)
    demand(np.array_equal(again_ND, vectors_ND), f"{features!r} gives other vectors the second time")
    together_ND = np.concatenate(list(features.blocks(_Lazy(examples), bench)))
    demand(np.array_equal(together_ND, vectors_ND), f"the blocks of {features!r} together are not what compute() gives")


def _check_alike(features: Features, vectors_ND: Matrix, near: float) -> None:
    first_ND, second_ND = vectors_ND[: len(_QUESTIONS)], vectors_ND[len(_QUESTIONS) :][np.argsort(_AGAIN)]
    demand(
        _same(first_ND, second_ND, near),
        f"{features!r} gives the same question two vectors; only what an example says may decide, not its id, its "
        "place or its block",
    )
    different = [not _same(first_ND[row], first_ND[0], near) for row in range(1, len(first_ND))]
    demand(any(different), f"{features!r} gives all questions the same vector")


def _check_few(features: Features, examples: list[Example], bench: FeatureBench) -> None:
    empty = features.compute(_Lazy([]), bench)
    demand(empty.shape == (0, 0), f"{features!r} gives {empty.shape} of no examples, expected (0, 0)")
    _compute(features, examples[:1], bench)
    alike = [dataclasses.replace(example, prompt=examples[0].prompt) for example in examples[:5]]
    vectors_ND = _compute(features, alike, bench)
    near = _TOLERANCE * float(np.abs(vectors_ND).max())
    demand(_same(vectors_ND, vectors_ND[:1], near), f"{features!r} gives five times the same question unlike vectors")


def _check_answer_unseen(features: Features, examples: list[Example], bench: FeatureBench, vectors_ND: Matrix) -> None:
    answered = [
        dataclasses.replace(example, completion=f" Answer {n}.", rationale="Because. ")
        for n, example in enumerate(examples)
    ]
    demand(
        np.array_equal(_compute(features, answered, bench), vectors_ND),
        f"{features!r} looks at the answer, so that a selector would choose by the label; use `text_of`",
    )
