"""What asking may cost, in calls, tokens and money, and what it has cost so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

_MILLION = 1_000_000


@dataclass(frozen=True)
class Amount:
    """Calls, tokens read and tokens written; what was used, or at most will be.

    >>> Amount(1, 10, 5) + Amount(1, 2, 3)
    Amount(calls=2, read=12, written=8)
    """

    calls: int = 0
    read: int = 0
    written: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.calls + other.calls, self.read + other.read, self.written + other.written)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.calls - other.calls, self.read - other.read, self.written - other.written)

    @property
    def tokens(self) -> int:
        """Read and written."""
        return self.read + self.written


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Hard limits on what one teacher (a model at a url) may cost; what is None has no limit.

    It covers everything that the request store has paid for that teacher, over all runs that share the store, at the
    prices given now. A call is a request that the server answered, or may have answered (it timed out, the connection
    was lost, or this process was killed): such a one counts in full, because it may stand on the bill. One that it
    refused by an error status counts nothing.

    Attributes:
        calls: requests.
        tokens: read and written together.
        cost: in `currency`; needs both prices.
        currency: a name, for messages.
        read_price: of a million tokens read.
        written_price: of a million tokens written.
    """

    calls: int | None = None
    tokens: int | None = None
    cost: float | None = None
    currency: str = "USD"
    read_price: float | None = None
    written_price: float | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name in ("calls", "tokens", "cost", "read_price", "written_price"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"budget.{name} is {value}; it must be at least 0")
        if self.cost is not None and not self.priced:
            raise ValueError(
                "budget.cost needs budget.read_price and budget.written_price, the price of a million tokens read and "
                "of a million tokens written"
            )

    @property
    def priced(self) -> bool:
        """Whether amounts can be told in money."""
        return self.read_price is not None and self.written_price is not None

    def cost_of(self, amount: Amount) -> float:
        """In `currency`; 0 without prices."""
        read, written = self.read_price or 0.0, self.written_price or 0.0
        return (amount.read * read + amount.written * written) / _MILLION

    def shortfall(self, spent: Amount, wanted: Amount) -> str | None:
        """Which limit the next amount would pass, and what is left of it; None where it fits.

        >>> Budget(calls=3).shortfall(Amount(3), Amount(1))
        'calls: 0 of 3 are left, 1 more is needed'
        """
        after = spent + wanted
        if self.calls is not None and after.calls > self.calls:
            return _lack("calls", self.calls, spent.calls, wanted.calls)
        if self.tokens is not None and after.tokens > self.tokens:
            return _lack("tokens", self.tokens, spent.tokens, wanted.tokens)
        if self.cost is not None and self.cost_of(after) > self.cost:
            return _lack(f"cost in {self.currency}", self.cost, self.cost_of(spent), self.cost_of(wanted))
        return None

    def describe(self, amount: Amount) -> str:
        """An amount in words, with its price where there is one.

        >>> Budget(read_price=1.0, written_price=2.0).describe(Amount(2, 1000, 500))
        '2 calls, 1,000 tokens read, 500 written, USD 0.002'
        """
        words = f"{amount.calls:,} calls, {amount.read:,} tokens read, {amount.written:,} written"
        return f"{words}, {self.currency} {self.cost_of(amount):.4g}" if self.priced else words


def _lack(what: str, limit: float, spent: float, wanted: float) -> str:
    left, more, whole = _number(max(0, limit - spent)), _number(wanted), _number(limit)
    return f"{what}: {left} of {whole} are left, {more} more {'is' if more == '1' else 'are'} needed"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
