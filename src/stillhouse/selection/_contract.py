"""The contract of selectors as a check that anyone can call: `stillhouse.testing.check_selector`.

It makes the examples it needs and goes through the same code as any run. Raises `AssertionError` with the clause that
is broken and what was seen.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from stillhouse.contract import check_settings, demand
from stillhouse.errors import DataError
from stillhouse.records import Example
from stillhouse.registry import name_of
from stillhouse.selection.base import Selection, SelectionBench, Selector

_SUBJECTS = ("The ferry", "A gardener", "Our choir", "The old printer", "Every baker", "My neighbour")
_DOINGS = (
    "leaves the harbour long before the first bus of the morning has come down the hill with {} passengers",
    "counts the bottles in the cellar twice each spring and writes {} into the brown book by the door",
)
_ENDS = ("", " again", " at last", " and nobody minds")


class _OnDisk(Sequence[Example]):
    """Examples that can be read one at a time and nothing else, as those of a file."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._lines = [example.to_json() for example in examples]

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            raise AssertionError("the selector takes a slice of the examples, which may lie on disk: walk over them")
        return Example.from_json(self._lines[place])


def check_selector(
    selector: Selector, examples: Sequence[Example] | None = None, bench: SelectionBench | None = None
) -> None:
    """Hold a selector to its contract (C6, and what a choice must keep).

    Settings are a value. Rows are different ones of those given, exactly as many as the budget where it has one; each
    with a weight that is positive and finite, a score that is a number or none, and a reason. The same examples are
    chosen the second time, byte for byte. What is given may lie on disk, is only read, and is written on as it was,
    in its order, but for `meta["selected_by"]`, which says beside what earlier steps said how a row was chosen, and
    `meta["weight"]`. No examples, and fewer than the budget, are refused with a `DataError`; one alone is chosen or
    refused in the same way.

    Args:
        selector: with settings of your choice; a budget of at most half of the examples, and of one in each group by
            `completion`.
        examples: what it chooses from; none takes 48 rows of two labels, near-duplicates among them.
        bench: what it works with; none has an evaluation set and nothing else.

    Raises:
        AssertionError: a clause is broken.

    >>> from stillhouse.selection.random import Random
    >>> check_selector(Random(budget=5))
    """
    check_settings(selector)
    given = list(_examples() if examples is None else examples)
    bench = bench or SelectionBench(heldout=[Example(id="asked", prompt="Who keeps the key of the lighthouse?")])
    before = [example.to_json() for example in given]
    chosen = selector.choose(_OnDisk(given), _fresh(bench))
    _check_choice(selector, chosen, len(given))
    _check_examples(selector, given, chosen, bench)
    selector.choose(given, _fresh(bench))
    demand([example.to_json() for example in given] == before, f"{selector!r} changes the examples it is given")
    _check_too_few(selector, given, bench)


def _examples() -> list[Example]:
    """Two labels, twelve stories, and of each four versions that differ in a word or its end."""
    return [
        Example(
            id=f"story {subject}-{doing}-{end}",
            prompt=f"{_SUBJECTS[subject]} {_DOINGS[doing].format(subject + 3)}{_ENDS[end]}.",
            completion=("moving", "counting")[doing],
            meta={"label": doing, "selected_by": [{"selector": "earlier"}]} if end % 2 else {},
        )
        for end in range(len(_ENDS))
        for doing in range(len(_DOINGS))
        for subject in range(len(_SUBJECTS))
    ]


def _fresh(bench: SelectionBench) -> SelectionBench:
    return dataclasses.replace(bench, notes=Counter())


def _budget(selector: Selector) -> int | None:
    return getattr(selector, "budget", None)


def _check_choice(selector: Selector, chosen: Selection, count: int) -> None:
    rows, number = np.asarray(chosen.rows), len(chosen.rows)
    demand(rows.ndim == 1 and rows.dtype.kind == "i", f"{selector!r}: rows are {rows.dtype} {rows.shape}, not places")
    demand(len(set(rows.tolist())) == number, f"{selector!r} chooses a row twice")
    inside = all(0 <= row < count for row in rows.tolist())
    demand(inside, f"{selector!r} chooses row {rows.max()} of {count}, or a negative one")
    budget = _budget(selector)
    demand(budget is None or number == budget, f"{selector!r} chooses {number} rows, and its budget is {budget}")
    for name in ("weights", "scores", "reasons"):
        size = len(getattr(chosen, name))
        demand(size == number, f"{selector!r} gives {size} {name} for {number} rows")
    weights, scores = np.asarray(chosen.weights, float), np.asarray(chosen.scores, float)
    demand(bool((np.isfinite(weights) & (weights > 0)).all()), f"{selector!r}: a weight is not positive and finite")
    demand(not np.isinf(scores).any(), f"{selector!r}: a score is infinite")
    worded = all(isinstance(reason, str) and reason.strip() for reason in chosen.reasons)
    demand(worded, f"{selector!r}: a reason is not a text, or empty")
    if chosen.clusters is not None:
        size = len(chosen.clusters)
        demand(size == count, f"{selector!r} gives {size} clusters for {count} examples; each has one")


def _check_examples(selector: Selector, given: Sequence[Example], chosen: Selection, bench: SelectionBench) -> None:
    written = list(selector.select(_OnDisk(given), _fresh(bench)))
    again = list(dataclasses.replace(selector).select(_OnDisk(given), _fresh(bench)))
    same = [example.to_json() for example in written] == [example.to_json() for example in again]
    demand(same, f"{selector!r} chooses otherwise the second time")
    rows = sorted(np.asarray(chosen.rows).tolist())
    demand(
        [example.id for example in written] == [given[row].id for row in rows],
        f"{selector!r} does not write what it chooses, in the order in which it was given",
    )
    for row, example in zip(rows, written, strict=True):
        told, earlier = example.meta.get("selected_by", []), given[row].meta.get("selected_by", [])
        demand(
            told[:-1] == earlier and len(told) == len(earlier) + 1 and told[-1].get("selector") == name_of(selector),
            f'{selector!r} writes meta["selected_by"] = {told}, which was {earlier}; it adds what it chose by',
        )
        demand(bool(told[-1].get("reason")), f"{selector!r} writes no reason for {example.id!r}")
        demand(
            _without(example) == _without(given[row]),
            f"{selector!r} changes example {example.id!r}; only its meta may say more",
        )


def _without(example: Example) -> dict[str, Any]:
    """An example but for what choosing may write."""
    facts = json.loads(example.to_json())
    facts["meta"] = {k: v for k, v in facts.get("meta", {}).items() if k not in ("selected_by", "weight")}
    return facts


def _check_too_few(selector: Selector, given: Sequence[Example], bench: SelectionBench) -> None:
    demand(_chosen(selector, [], bench) is None, f"{selector!r} is given no examples and does not refuse")
    budget = _budget(selector)
    if budget is not None:
        fewer = _chosen(selector, given[: budget - 1], bench)
        demand(fewer is None, f"{selector!r} is given fewer examples than its budget and does not refuse")
    settings: dict[str, Any] = {} if budget is None else {"budget": 1}
    alone = dataclasses.replace(selector, **settings)
    written = _chosen(alone, given[:1], bench)
    demand(written is None or len(written) == 1, f"{alone!r} makes {len(written or [])} examples of a single one")


def _chosen(selector: Selector, given: Sequence[Example], bench: SelectionBench) -> list[Example] | None:
    """What is chosen; None where it is refused as it should be."""
    chosen: Iterator[Example] = selector.select(given, _fresh(bench))
    try:
        return list(chosen)
    except DataError:
        return None
