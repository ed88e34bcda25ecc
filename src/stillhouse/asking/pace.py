"""How many requests are under way at once, and how long to wait: what a server bears is found out, not configured."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

FIRST_WAIT, LONGEST_WAIT = 0.25, 30.0
"""Seconds: of a first retry at most, and of any."""
_TOO_MANY = 0.25  # share of refusals in a window


class Pace:
    """Turns to send, at most `limit` at a time.

    The limit starts at the bound. A window is as many outcomes as the limit; once more than a quarter of one are
    refusals for load (429, 503, no answer in time) the limit halves, otherwise it grows by one, never beyond the bound.
    A quarter, because one refusal in twenty is weather and no word about load: halving at each would leave a third of
    what the server bears. Outcomes of requests that were sent before the last halving do not count.

    Attributes:
        bound: the limit's own.
        limit: now.
        answered: requests that came to an answer.
    """

    def __init__(self, bound: int) -> None:
        self.bound = self.limit = bound
        self.answered = 0
        self._active = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._until = 0.0
        self._paused = self._stopped = False
        self._era = self._outcomes = self._refusals = 0

    @asynccontextmanager
    async def turn(self, *, first: bool = False) -> AsyncGenerator[int, None]:
        """Wait for a place, and for the end of a pause; gives the era that `heard` wants to know. A retry goes before
        those that wait already, so that none is left over in the end."""
        place = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if first else self._waiting.append)(place)
        self._grant()
        await place
        try:
            yield self._era
        finally:
            self._active -= 1
            self._grant()

    def _grant(self) -> None:
        while self._waiting and (self._stopped or (not self._paused and self._active < self.limit)):
            self._active += 1
            self._waiting.popleft().set_result(None)

    def heard(self, era: int, *, overload: bool) -> None:
        """What became of a request that was sent in an era."""
        if era != self._era:
            return
        self._outcomes += 1
        self._refusals += overload
        if self._refusals > _TOO_MANY * self.limit:
            self.limit = max(1, self.limit // 2)
            self._era += 1
        elif self._outcomes >= self.limit:
            self.limit = min(self.bound, self.limit + 1)
        else:
            return
        self._outcomes = self._refusals = 0
        self._grant()

    def pause(self, seconds: float) -> None:
        """Nobody sends for so long; what is under way goes on."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        if seconds > 0 and until > self._until:
            self._until, self._paused = until, True
            loop.call_at(until, self._end_pause, until)

    def _end_pause(self, until: float) -> None:
        if until == self._until:  # nobody asked for a longer one meanwhile
            self._paused = False
            self._grant()

    def stop(self) -> None:
        """Let everybody who waits go on, to see that there is nothing left to do."""
        self._stopped = True
        self._grant()


def backoff(alone: int, draws: random.Random) -> float:
    """Seconds before a retry, with full jitter, so that those refused together do not come back together
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter).

    Args:
        alone: how often in a row it failed while nobody else was answered; the wait doubles with each.
        draws: the jitter's.
    """
    return draws.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2**alone))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, said in seconds or as a date; None where it says nothing that is either.

    >>> retry_after({"retry-after": "2"})
    2.0
    """
    said = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(said)
    except ValueError:
        return None
    moment = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
