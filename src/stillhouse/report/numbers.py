"""How the report writes numbers: significant digits, thousands apart, units, a true minus sign."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeGuard

NBSP = "\u00a0"  # between a number and its unit: never broken over two lines
THIN = "\u202f"  # between thousands
ABSENT = "–"

SIZES = ("bytes", "kB", "MB", "GB", "TB")
COUNT_UNITS = ("parameters", "tokens", "count", "examples")


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether `value` is a finite number (a bool is not one).

    >>> is_number(1.5), is_number(float("nan")), is_number(None), is_number(True)
    (True, False, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def fixed(value: float, decimals: int, *, signed: bool = False) -> str:
    """A number with a fixed count of decimals, thousands apart; zero never carries a minus.

    >>> fixed(-12.345, 1)
    '−12.3'
    """
    if round(value, decimals) == 0:
        value = 0.0
    text = f"{value:{'+' if signed and value else ''},.{decimals}f}"
    return text.replace(",", THIN).replace("-", "−")


def decimals_for(spread: float | None, default: int = 3) -> int:
    """Decimals that show an uncertainty with two significant digits, and a value no finer than it is known.

    >>> decimals_for(2.2), decimals_for(0.0123), decimals_for(None)
    (1, 3, 3)
    """
    if not is_number(spread) or spread <= 0:
        return default
    return min(4, max(0, 1 - math.floor(math.log10(spread))))


def significant(value: object, digits: int = 3) -> str:
    """A number to some significant digits; whole thousands are kept, tiny numbers get an exponent.

    >>> significant(0.012345), significant(1234.5)
    ('0.0123', '1\u202f234')
    """
    if not is_number(value):
        return not_finite(value)
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    return fixed(value, max(0, digits - 1 - exponent))


def not_finite(value: object) -> str:
    """What stands in the place of a number that is absent or not finite."""
    if not isinstance(value, float):
        return ABSENT
    return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"


def count(value: object) -> str:
    """A count: exact below ten thousand, then with k, M, B.

    >>> count(1500), count(596_049_920)
    ('1\u202f500', '596\xa0M')
    """
    if not is_number(value):
        return not_finite(value)
    size = abs(value)
    for floor, suffix in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if size >= floor * 0.9995:
            return significant(value / (1e3 if suffix == "k" else floor)) + NBSP + suffix
    return fixed(value, 0) if float(value).is_integer() else significant(value)


def in_bytes(value: object) -> str:
    """An amount of bytes in decimal units.

    >>> in_bytes(4_720_000)
    '4.72\xa0MB'
    """
    if not is_number(value):
        return not_finite(value)
    power = 0
    while abs(value) >= 999.5 and power < len(SIZES) - 1:
        value, power = value / 1000, power + 1
    return (significant(value) if power else fixed(value, 0)) + NBSP + SIZES[power]


def duration(seconds: object) -> str:
    """A time span in the two units that matter.

    >>> duration(3.14159), duration(200), duration(7500)
    ('3.1\xa0s', '3\xa0min 20\xa0s', '2\xa0h 05\xa0min')
    """
    if not is_number(seconds):
        return not_finite(seconds)
    if seconds < 59.95:
        return f"{fixed(seconds, 1)}{NBSP}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{NBSP}min {whole % 60:02d}{NBSP}s"
    minutes = round(whole / 60)
    return f"{minutes // 60}{NBSP}h {minutes % 60:02d}{NBSP}min"


def percent(share: object, spread: float | None = None) -> str:
    """A share in percent; `spread` (a share too) sets the decimals.

    >>> percent(0.8421), percent(0.8421, 0.022)
    ('84\xa0%', '84.2\xa0%')
    """
    if not is_number(share):
        return not_finite(share)
    return fixed(100 * share, point_decimals(spread) if is_number(spread) else 0) + NBSP + "%"


def point_decimals(spread: float | None) -> int:
    """Decimals of percentages and points: one, or two where the spread (a share) is below a twentieth of a point."""
    return 2 if is_number(spread) and 0 < spread < 0.0005 else 1


@dataclass(frozen=True)
class Metric:
    """A metric's name, unit and direction, and how its values are written."""

    id: str
    title: str
    unit: str = ""
    better: Literal["higher", "lower", "none"] = "none"

    @property
    def dataset(self) -> str:
        """The additional data set it was measured on; empty for the main one."""
        return self.id.rpartition(":")[0]

    @property
    def family(self) -> str:
        """`likelihood` of `wizard_of_oz:likelihood.loss`."""
        return self.id.rpartition(":")[2].partition(".")[0]

    @property
    def name(self) -> str:
        """The title as it stands inside a sentence: `Accuracy` becomes `accuracy`, `KL` stays; other data is named."""
        name = self.title[:1].lower() + self.title[1:] if self.title[1:2].islower() else self.title
        return f"{name} on {self.dataset.replace('_', ' ')}" if self.dataset else name

    @property
    def arrow(self) -> str:
        """The direction that is better, as an arrow."""
        return {"higher": "↑", "lower": "↓"}.get(self.better, "")

    @property
    def label_unit(self) -> str:
        """The unit that belongs beside the title in a table, where cells carry none."""
        return "" if self.unit in ("share", "bytes", *COUNT_UNITS) else self.unit

    def value(self, value: object, stderr: float | None = None, *, unit: bool = False) -> str:
        """A value, no finer than its standard error allows; with its unit where a sentence needs one."""
        if not is_number(value):
            return not_finite(value)
        if self.unit == "share":
            return percent(value, stderr if is_number(stderr) else 0.0)
        if self.unit == "bytes":
            return in_bytes(value)
        if self.unit in COUNT_UNITS:
            return count(value) + (NBSP + self.unit if unit else "")
        known = is_number(stderr) and stderr > 0
        text = fixed(value, decimals_for(stderr)) if known else significant(value)
        return text + (NBSP + self.unit if unit and self.unit else "")

    def decimals(self, spread: float) -> int:
        """Decimals that suit an uncertainty in the metric's own unit."""
        return point_decimals(spread) if self.unit == "share" else decimals_for(spread)

    def stderr(self, stderr: object) -> str:
        """A standard error as it follows ±, without a unit; empty where there is none."""
        if not is_number(stderr) or stderr <= 0:
            return ""
        return fixed(stderr * self.factor, self.decimals(stderr))

    @property
    def factor(self) -> float:
        """What a raw difference is multiplied by: a share is compared in percentage points."""
        return 100.0 if self.unit == "share" else 1.0

    @property
    def difference_unit(self) -> str:
        """The unit of a difference of two values."""
        return "points" if self.unit == "share" else self.unit

    def difference(self, value: object, spread: float | None, *, unit: bool = False, signed: bool = True) -> str:
        """A signed difference; `spread` is half its interval."""
        if not is_number(value):
            return not_finite(value)
        known = is_number(spread) and spread > 0
        text = fixed(value * self.factor, self.decimals(spread if known else abs(value)), signed=signed)
        return text + (NBSP + self.difference_unit if unit and self.difference_unit else "")
