"""Answers in text: the number it ends in, exactly, and the form in which two strings count as the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

MARKER = "####"
"""What GSM8K writes before the final answer (Cobbe et al. 2021, arXiv 2110.14168)."""
_LONGEST = 200
"""Characters of a number; a model that repeats one digit for ever has given no answer."""

_NUMBER = re.compile(
    r"""
    (?: (?P<before> (?<![\w)\]%]) [-−+] )? [$€£¥] \s? )?    # a currency sign, perhaps with a sign before it
    (?P<sign> (?<![\w)\]%]) [-−+] )?                        # not the minus of 10-5, nor a hyphen
    (?: (?P<whole> \d+ ) [ ] (?= \d+/ ) )?                  # the 1 of 1 1/2
    (?P<digits> \d{1,3} (?: ,\d{3} )+ (?![\d,]) (?: \.\d+ )? | \d+ (?: \.\d+ )? | \.\d+ )
    (?: / (?P<over> 0*[1-9]\d* ) (?![\d/]) )?
    """,
    re.VERBOSE,
)


def number(text: str) -> Fraction | None:
    """The final number of a text, exactly: the first after the marker `####` if there is one, else the last of all.

    Thousands separators, currency and percent signs, fractions, mixed numbers and a full stop after the number are
    understood; a percentage is its number (`50%` is 50). None where there is no number.

    >>> number("She pays $1,234.50."), number("so 3 + 4 = 7 #### -7 apples"), number("about 1 1/2 cups"), number("no")
    (Fraction(2469, 2), Fraction(-7, 1), Fraction(3, 2), None)
    """
    _, marked, after = text.partition(MARKER)
    found = list(_NUMBER.finditer(after.strip().partition("\n")[0] if marked else text))
    return _exact(found[0 if marked else -1]) if found else None


def _exact(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > _LONGEST:
        return None
    value = Fraction(match["digits"].replace(",", ""))
    if match["over"]:
        value /= int(match["over"])
    if match["whole"]:
        value += int(match["whole"])
    negative = (match["before"] or match["sign"] or "+") in "-−"
    return -value if negative else value


def split_trace(text: str, marker: str) -> tuple[str, str] | None:
    """The worked steps of a solution and its answer, which begins with the marker; None without it.

    >>> split_trace("2 + 3 = 5\\n#### 5", "####")
    ('2 + 3 = 5\\n', '#### 5')
    """
    place = text.rfind(marker)
    return None if place < 0 else (text[:place], text[place:])


def normalized(text: str) -> str:
    """A text as exact match sees it: lower case, single spaces, no full stop at the end.

    >>> normalized("  The  answer is\\n(A). ")
    'the answer is (a)'
    """
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def choice(text: str, choices: Sequence[str]) -> str | None:
    """Which of several choices a text settles on: the last that it names as a word of its own; None if it names none.

    >>> choice("Not yes: the answer is maybe.", ["yes", "no", "maybe"])
    'maybe'
    """
    words = normalized(text)
    last = {c: [m.end() for m in re.finditer(rf"(?<!\w){re.escape(normalized(c))}(?!\w)", words)] for c in choices}
    named = {c: ends[-1] for c, ends in last.items() if ends}
    return max(named, key=lambda c: (named[c], len(c))) if named else None


def first_paragraph(text: str) -> str:
    """What stands before the first blank line; a model that writes on has begun something else.

    >>> first_paragraph("\\n(A)\\n\\nQ: What is next?")
    '(A)'
    """
    return re.split(r"\n\s*\n", text.strip(), maxsplit=1)[0].strip()
