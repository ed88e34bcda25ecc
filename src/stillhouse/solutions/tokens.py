"""Text cut into what calculates and what does not: numbers, signs, brackets, words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

ANNOTATION = re.compile(r"<<([^<>]*)>>")
"""What GSM8K writes for its calculator: the expression, an equals sign, the result."""

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_LONGEST = 60
"""Digits of a number that is calculated with."""
_TOKEN = re.compile(
    rf"""
      (?P<number> (?:[$€£¥]\ ?)?
          (?: (?P<whole>\d+)\ (?P<over>\d+)/(?P<under>0*[1-9]\d*)(?![\d.,/]) | (?P<digits>{_NUMBER}) )
          (?P<percent>\ ?%)? )
    | (?P<times> (?<=[\d)%])[xX](?=[\d$(.]) | (?<=\s)[xX](?=\s) )
    | (?P<operator> [-−–+*×·/÷] )
    | (?P<open> [(\[] ) | (?P<close> [)\]] ) | (?P<equals> = )
    | (?P<word> [^\W\d_]+ (?: ['’.-] [^\W\d_]+ )* )
    | (?P<space> \s+ ) | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_SIGNS = {"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/"}


def word_set(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


_BREAKS = word_set("so then because since is are was were equals equal if which that it she he they")
"""Words that no unit contains: another sentence begins."""


@dataclass(frozen=True)
class Token:
    """A piece of text that calculates, or does not.

    Attributes:
        kind: number, operator, open or close (brackets), equals, word, other.
        text: as written, an operator in its plain form.
        value: of a number, its percent sign applied.
        places: decimals of a number.
        glued: no space stands before it.
        span: where it stands in the line.
    """

    kind: str
    text: str
    value: Fraction = Fraction(0)
    places: int = 0
    glued: bool = False
    span: tuple[int, int] = (0, 0)

    @property
    def unit(self) -> bool:
        """Whether it may name what a number counts; a single letter is a variable."""
        return (
            self.kind == "word"
            and (len(self.text) > 1 or (self.text == "a" and not self.glued))
            and self.text.lower() not in _BREAKS
        )


def without_annotations(text: str) -> str:
    """A text without what is written in it for a calculator.

    >>> without_annotations("2 + 3 = <<2+3=5>>5")
    '2 + 3 = 5'
    """
    return ANNOTATION.sub("", text)


def numbers(text: str) -> list[Fraction]:
    """All numbers of a text in their order, annotations left out; a percentage is a share (`50%` is 1/2)."""
    return [token.value for token in tokens(without_annotations(text)) if token.kind == "number"]


def tokens(line: str) -> list[Token]:
    """The tokens of a line, spaces left out."""
    found: list[Token] = []
    glued = False
    for match in _TOKEN.finditer(line):
        kind, text = match.lastgroup, match[0]
        if kind == "number":
            found.append(_number(match, glued))
        elif kind in ("times", "operator"):
            sign = "*" if text in "xX" else _SIGNS.get(text, text)
            found.append(Token("operator", sign, glued=glued, span=match.span()))
        elif kind != "space":
            found.append(Token(kind or "other", text, glued=glued, span=match.span()))
        glued = kind != "space"
    return found


def _number(match: re.Match[str], glued: bool) -> Token:
    text = match[0]
    if len(text) > _LONGEST or re.match(r"0\d", text):  # 0900 is a time
        return Token("other", text, glued=glued, span=match.span())
    if match["whole"] is not None:
        value, places = int(match["whole"]) + Fraction(int(match["over"]), int(match["under"])), 0
    else:
        digits = match["digits"].replace(",", "")
        value, places = Fraction(digits), len(digits.partition(".")[2])
    value, places = (value / 100, places + 2) if match["percent"] is not None else (value, places)
    return Token("number", text.replace(" ", ""), value, places, glued, match.span())
