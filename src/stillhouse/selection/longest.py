"""Longest: the rows with the longest answers, a baseline that is hard to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stillhouse.records import Example
from stillhouse.registry import name_of
from stillhouse.selection._text import best_first
from stillhouse.selection.base import Budget, Picked, Selection, SelectionBench, Selector, join, split_by


@dataclass(frozen=True, kw_only=True)
class Longest(Selector):
    """The thousand longest responses outdid elaborate selections of instructions (Zhao et al. 2024, arXiv 2402.04833).

    Length is counted in words of the answer: rationale and completion, or what the assistant said; where a row has no
    answer, in words of its text. Of equally long ones the smaller id goes first.

    Attributes:
        budget: rows to choose.
        by: choose equally many rows of each value of `completion`, or of a column of `meta`; none chooses of all rows.

    >>> rows = [Example(id="a", prompt="?", completion="so"), Example(id="b", prompt="?", completion="so and so")]
    >>> [row.id for row in Longest(budget=1).select(rows)]
    ['b']
    """

    budget: int
    by: str | None = None

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"budget is {self.budget}; it must be at least 1 row")

    def budgeted(self) -> Budget | None:
        """Its budget."""
        return Budget(self.budget, self.by)

    def choose(self, examples: Sequence[Example], bench: SelectionBench) -> Selection:
        """Rows of all groups, one group after another, the longest of each first.

        Raises:
            DataError: two examples with one id, or fewer than the budget, in all or in a group.
        """
        groups = split_by(examples, self.by, self.budget, name_of(self))
        lengths_N, order_N = best_first(examples, name_of(self))
        rank_N = np.empty_like(order_N)
        rank_N[order_N] = np.arange(len(order_N))
        picked = []
        for rows, count in groups:
            places = np.argsort(rank_N[rows], kind="stable")[:count]
            picked.append((rows, Picked(places, scores=lengths_N[rows[places]])))
        return join(picked, "among the longest answers")
