"""How a server misbehaves: rates and behaviours as one value, and the draws that make a run of faults repeatable."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from itertools import cycle, islice
from threading import Lock
from typing import Literal, TypeVar, get_args

from stillhouse.errors import SettingError, did_you_mean
from stillhouse.records import fingerprint

Lie = Literal["honest", "shifted", "tempered", "missing"]
T = TypeVar("T")

INSTEAD = ("error", "unavailable", "limited", "stall", "disconnect", "truncate", "garbage", "choiceless")
"""What may happen in place of an answer."""
SPOILT = ("empty", "foreign", "refusal", "cut", "endless")
"""What may be wrong with an answer's text."""
RATES = (*INSTEAD, *SPOILT, "slow")

FOREIGN = "很抱歉，我只能用中文回答这个问题。"
REFUSAL = "I'm sorry, but I can't help with that."


@dataclass(frozen=True, kw_only=True)
class Faults:
    """How a server misbehaves; the plain value is a server that does not.

    A rate is the share of requests that something happens to, drawn from `seed` and the request's content: whatever
    the order in which requests arrive, the same ones are struck. What happens instead of an answer is drawn anew for
    every attempt at a request; what is wrong with a text is not, so that asking again helps against the former alone.
    Requests that are no use anyway, such as one for an unknown model, may be struck too; the list of models is not.

    Attributes:
        error: 500.
        unavailable: 503.
        limited: 429 with Retry-After.
        stall: no answer ever.
        disconnect: the connection is closed before any byte.
        truncate: the body ends in the middle of its JSON, and the connection with it.
        garbage: 200 with a page of HTML.
        choiceless: 200 with JSON that has no choices.
        empty: a text of no tokens.
        foreign: a text in another language than asked.
        refusal: the model refuses, in `message.refusal` where it is a chat.
        cut: half the text, and the finish reason `length`.
        endless: the text over and over, up to the limit of tokens.
        slow: the answer takes `slow_seconds` more.
        slow_seconds: as said.
        latency: seconds that everything takes at least.
        per_second: requests answered in any second; the others are told 429. 0 answers none.
        retry_after: seconds that a 429 asks to wait, where no `per_second` knows better.
        retry_after_form: as a number of seconds, or as a date of HTTP, which is rounded up to a whole second.
        strikes: attempts at one request that may fail; None for all.
        die_after: the server stops once it has given so many answers.
        logprobs: what is said of written tokens. `shifted` is off by one: of each token is told how likely it would be
            to follow itself. `tempered` divides the logits by `logprob_temperature`, `missing` ignores the request.
        prompt_logprobs: likewise of the prompt's tokens.
        logprob_temperature: as said.
        text_keys: tokens are named by their text, though ids were asked for, so that tokens that are no whole character
            collide.
        seed: of the draws.

    Raises:
        SettingError: a rate beyond 0 to 1, rates that exclude one another of more than 1 together, or an unknown lie.

    >>> Faults(error=0.2).instead("what was asked", 0) == Faults(error=0.2).instead("what was asked", 0)
    True
    """

    error: float = 0.0
    unavailable: float = 0.0
    limited: float = 0.0
    stall: float = 0.0
    disconnect: float = 0.0
    truncate: float = 0.0
    garbage: float = 0.0
    choiceless: float = 0.0
    empty: float = 0.0
    foreign: float = 0.0
    refusal: float = 0.0
    cut: float = 0.0
    endless: float = 0.0
    slow: float = 0.0
    slow_seconds: float = 1.0
    latency: float = 0.0
    per_second: int | None = None
    retry_after: float = 1.0
    retry_after_form: Literal["seconds", "date"] = "seconds"
    strikes: int | None = None
    die_after: int | None = None
    logprobs: Lie = "honest"
    prompt_logprobs: Lie = "honest"
    logprob_temperature: float = 2.0
    text_keys: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in RATES:
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(f"{name} is a rate, from 0 to 1, and was {getattr(self, name)}.", name)
        for group in (INSTEAD, SPOILT):
            total = sum(getattr(self, name) for name in group)
            if total > 1 + 1e-9:
                raise SettingError(f"One request meets one of {', '.join(group)}; their rates sum to {total:g}.")
        for name in ("logprobs", "prompt_logprobs"):
            if (lie := getattr(self, name)) not in get_args(Lie):
                raise SettingError(f"{name} knows no {lie!r}. {did_you_mean(lie, get_args(Lie))}", name)
        if self.die_after is not None and self.die_after < 1:
            raise SettingError(f"die_after is a number of answers, at least 1, and was {self.die_after}.", "die_after")

    def instead(self, asked: str, attempt: int) -> str | None:
        """What happens in place of an answer to this attempt at a request, one of `INSTEAD`."""
        spared = self.strikes is not None and attempt >= self.strikes
        return None if spared else self._drawn(INSTEAD, asked, attempt)

    def spoils(self, asked: str) -> str | None:
        """What is wrong with the text that answers a request, one of `SPOILT`."""
        return self._drawn(SPOILT, asked, 0)

    def delay(self, asked: str, attempt: int) -> float:
        """Seconds that it takes besides the work."""
        return self.latency + (self.slow_seconds if self._draw("slow", asked, attempt) < self.slow else 0.0)

    def retry(self, seconds: float) -> str:
        """A Retry-After header that asks to wait so long."""
        if self.retry_after_form == "seconds":
            return f"{seconds:.3f}".rstrip("0").rstrip(".")
        return formatdate(-(-(time.time() + seconds) // 1), usegmt=True)

    def _drawn(self, names: tuple[str, ...], asked: str, attempt: int) -> str | None:
        at = self._draw(names[0], asked, attempt)
        for name in names:
            at -= getattr(self, name)
            if at < 0:
                return name
        return None

    def _draw(self, what: str, asked: str, attempt: int) -> float:
        return int(fingerprint([self.seed, what, asked, attempt]), 16) / 2**64


class RateLimit:
    """At most so many in any second, however many threads ask."""

    def __init__(self, per_second: int | None) -> None:
        self.per_second = per_second
        self._admitted: deque[float] = deque()
        self._lock = Lock()

    def wait(self, otherwise: float) -> float | None:
        """Seconds until another is admitted, None where this one is; `otherwise` where none ever will be."""
        if self.per_second is None:
            return None
        with self._lock:
            now = time.monotonic()
            while self._admitted and self._admitted[0] <= now - 1:
                self._admitted.popleft()
            if len(self._admitted) < self.per_second:
                self._admitted.append(now)
                return None
            return self._admitted[0] + 1 - now if self._admitted else otherwise


def spoil(fault: str, tokens: list[T], limit: int, encode: Callable[[str], list[T]]) -> tuple[list[T], bool]:
    """What a fault makes of the tokens of a text, and whether the text ends there of itself."""
    if fault == "cut":
        return tokens[: len(tokens) // 2], False
    if fault == "endless":
        return list(islice(cycle(tokens or encode(FOREIGN)), limit)), False
    said = encode({"empty": "", "foreign": FOREIGN, "refusal": REFUSAL}[fault])
    return said[:limit], len(said) < limit
