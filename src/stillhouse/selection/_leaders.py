"""Near-duplicates as leaders and followers: who follows whom at a threshold, and at which threshold so many lead.

Rows come best first. A row leads when no better leader is alike, and else follows the better leader that it is most
alike. So no two leaders are alike, every follower is like its leader, and the order of the data decides nothing. The
connected components of alike pairs, the other usual clusters, promise neither: through a chain of small steps they
merge rows that have nothing in common, and only one of them would be kept.

Shapes: M rows, best first.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import DataError

Rows = NDArray[np.int64]

_HALVINGS = 14
"""Of the interval in which a threshold is looked for; the last one is 1/16384 of it."""


@dataclass(frozen=True)
class Found:
    """Who follows whom.

    Attributes:
        leaders_M: of each row the place of its leader, itself where it leads; a leader's place is the smaller one.
        notes: what was counted on the way.
    """

    leaders_M: Rows
    notes: Counter[str] = field(default_factory=Counter)

    @property
    def count(self) -> int:
        """How many lead."""
        return int((self.leaders_M == np.arange(len(self.leaders_M))).sum())


class Likeness(Protocol):
    """A way to tell how much alike rows are.

    Attributes:
        lowest: the smallest threshold that it can work with.
    """

    lowest: float

    def __len__(self) -> int:
        """The rows."""
        ...

    def at(self, threshold: float) -> Found:
        """Leaders and followers where alike means `threshold` or more."""
        ...


def down_to(budget: int, likeness: Likeness, who: str) -> tuple[Found, float]:
    """Exactly `budget` leaders, and the threshold that leaves so many.

    Several rows may go at one and the same threshold; of those the worst go, as many as it takes.

    Raises:
        DataError: there are fewer rows than that, or the lowest threshold leaves more.
    """
    if len(likeness) < budget:
        raise DataError(
            f"{who} should leave {budget} rows and was given {len(likeness)} different ones. Lower its budget, or give "
            "it more."
        )
    low, high = likeness.lowest, 1.0
    above = Found(np.arange(len(likeness)))
    below = likeness.at(low)
    if below.count > budget:
        raise DataError(
            f"{who} should leave {budget} rows; even at the threshold {low} it leaves {below.count}, because the "
            "others are not alike. Raise its budget, compare by how: semantic, or follow it by a selector that chooses "
            "among different rows, such as k_center."
        )
    for _ in range(_HALVINGS):
        if above.count == budget or below.count == budget:
            break
        middle = (low + high) / 2
        found = likeness.at(middle)
        if found.count >= budget:
            above, high = found, middle
        else:
            below, low = found, middle
    if below.count == budget:
        return below, low
    return _fewer(above, below, budget), high


def _fewer(above: Found, below: Found, budget: int) -> Found:
    """Leaders of `above`, the worst of those that follow somebody in `below` made followers."""
    places = np.arange(len(above.leaders_M))
    loose = np.flatnonzero((above.leaders_M == places) & (below.leaders_M != places))
    leaders = above.leaders_M.copy()
    surplus = loose[len(loose) - (above.count - budget) :]
    leaders[surplus] = below.leaders_M[surplus]
    # A leader in one of the two may follow in the other. Leaders come first, so that following ends.
    while not np.array_equal(onward := leaders[leaders], leaders):
        leaders = onward
    return Found(leaders, above.notes)
