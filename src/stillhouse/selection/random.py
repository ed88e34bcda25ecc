"""Random: rows drawn at random, in all or equally many of each group; the baseline to fear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stillhouse.records import Example
from stillhouse.registry import name_of
from stillhouse.selection.base import Picked, Selection, SelectionBench, Selector, join, split_by


@dataclass(frozen=True, kw_only=True)
class Random(Selector):
    """Draws without replacement. Many methods lose to it once the pool is large (Ivison et al. 2025, arXiv
    2503.01807), so that it stands beside every other selector.

    Attributes:
        budget: rows to choose.
        by: draw equally many rows of each value of `completion`, or of a column of `meta`; none draws of all rows.
        seed: of the draws.

    >>> rows = [Example(id=str(n), text=str(n)) for n in range(100)]
    >>> len(list(Random(budget=5).select(rows)))
    5
    """

    budget: int
    by: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"budget is {self.budget}; it must be at least 1 row")

    def choose(self, examples: Sequence[Example], bench: SelectionBench) -> Selection:
        """Rows of all groups, one group after another.

        Raises:
            DataError: fewer examples than the budget, in all or in a group.
        """
        groups = split_by(examples, self.by, self.budget, name_of(self))
        drawn = [
            (rows, Picked(np.random.default_rng([self.seed, group]).choice(len(rows), count, replace=False)))
            for group, (rows, count) in enumerate(groups)
        ]
        return join(drawn, f"drawn at random among those of its {self.by}" if self.by else "drawn at random")
