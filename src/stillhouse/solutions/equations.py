"""Equations as they are written in text, read and recomputed with exact fractions.

An equation has a calculation on its left: `2 + 3 = 5`, a chain `2 + 3 = 5 + 1 = 6`, GSM8K's annotation
`<<2*3=6>>` (Cobbe et al. 2021, arXiv 2110.14168). What cannot be read for certain, such as algebra or a calculation
that words continue (`half of 6 - 2 = 2`), is no equation here: an alarm must be an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from stillhouse.solutions.tokens import ANNOTATION, Token, tokens, without_annotations, word_set

_UNITS = 6
"""Words between a number and what follows it that may be its unit."""
_CONTINUES = word_set(
    "of half third quarter twice thrice double triple times plus minus by more less than hundred thousand "
    "million billion dozen dozens pair pairs percent squared cubed"
)
"""Words beside an expression that may be part of the calculation."""
_SUMS = word_set("total sum cost amount profit price area volume score age distance weight number length")
"""What a whole calculation may be named `of`: `a total of 2 + 3 = 5`; not `half of`."""
_LABELS = word_set("day days week weeks month months year years hour grade level step round quarter number page part")
"""Words that name the number behind them: `on day 1`."""
_COUNTS = word_set("a an each every per one the this that last next first second third")
"""Words that make a label an amount again: `each day 2 * 3 = 6`."""
_MEASURES = word_set(
    "second minute hour day week month year inch inche foot feet yard mile ounce pound gram cup pint quart gallon cent "
    "dollar dime nickel quarter"
)
"""What the same thing is measured in, one of them many of another; added up they are no plain sum."""


@dataclass(frozen=True)
class Equation:
    """A calculation and the result that is written behind it.

    Attributes:
        written: the equation without its units.
        text: the equation as it stands there.
        left: the calculation, its numbers exact and its signs and brackets plain.
        values: what the left side makes, exactly, first as the rules read it; then as `a / (b / c)`, and where percent
            signs or cents leave the scale open, at the others.
        result: what the right side makes.
        places: decimals to which a plain result is written.
        annotated: it stands in an annotation.
    """

    written: str
    text: str
    left: tuple[Fraction | str, ...]
    values: tuple[Fraction, ...]
    result: Fraction
    places: int
    annotated: bool

    @property
    def operands(self) -> tuple[Fraction, ...]:
        """The numbers of the calculation, in their order."""
        return tuple(part for part in self.left if isinstance(part, Fraction))

    @property
    def operators(self) -> tuple[str, ...]:
        """The signs behind its first number or bracket."""
        return tuple(part for part in self.left[1:] if isinstance(part, str) and part not in "()[]")

    @property
    def right(self) -> bool:
        """Whether the result is the value, or rounds it."""
        return any(_near(value, self.result, self.places) for value in self.values)


def equations(text: str) -> list[Equation]:
    """All equations of a text: those of its annotations, then those of the text around them.

    >>> [(e.written, e.right) for e in equations("He ate 3 apples + 2 pears = 5, then 7/2 = <<7/2=3.4>>3.5")]
    [('7/2=3.4', False), ('3+2=5', True), ('7/2=3.5', True)]
    """
    noted = [found for match in ANNOTATION.finditer(text) for found in _of_line(match[1], annotated=True)]
    return noted + [
        found for line in without_annotations(text).split("\n") for found in _of_line(line, annotated=False)
    ]


def _of_line(line: str, *, annotated: bool) -> Iterator[Equation]:
    found = tokens(line)
    for place, token in enumerate(found):
        if token.kind != "equals":
            continue
        left, right = _before(found, place), _after(found, place + 1)
        if left and right and not _converts(left, found[place - _width(found, place, left) : place]):
            text = line[left[0].span[0] : right[-1].span[1]]
            equation = _equation(left, right, found, text, annotated=annotated)
            if equation is not None:
                yield equation


def _width(line: Sequence[Token], end: int, left: Sequence[Token]) -> int:
    """Tokens of the line that a left side covers, its units counted."""
    return next(n for n in range(len(left), end + 1) if line[end - n] is left[0])


def _converts(left: Sequence[Token], written: Sequence[Token]) -> bool:
    """Whether a left side states an amount (`1/2 a cup`) or adds unlike measures (`4 pounds - 6 ounces`)."""
    words = {token.text.lower().removesuffix("s") for token in written if token.kind == "word"}
    adds = any(token.text in ("+", "-") for token in left[1:])
    amount = [token.text for token in left[1:-1]] == ["/"] and left[0].value < left[-1].value and left[2].glued
    return (adds and len(words & _MEASURES) > 1) or (amount and bool(words))


def _equation(
    left: Sequence[Token], right: Sequence[Token], line: Sequence[Token], text: str, *, annotated: bool
) -> Equation | None:
    values = [value for nested in (False, True) if (value := _evaluate(left, nested)) is not None]
    result = _evaluate(right, False)
    if not values or result is None or not any(token.kind == "operator" for token in left[1:]):
        return None
    first = next(token for token in right if token.kind == "number")
    places = first.places
    if any(token.kind == "operator" for token in right[1:]):
        places = 2
        if _near(values[0], first.value, first.places):  # `3 + 2 = 5 - 1 = 4` runs two steps together; each is right
            result, places = first.value, first.places
    if any("%" in token.text or token.text.lower() in ("¢", "cent", "cents") for token in line):
        values += [values[0] * 100, values[0] / 100]
    return Equation(
        written="".join(token.text for token in left) + "=" + "".join(token.text for token in right),
        text=text,
        left=tuple(token.value if token.kind == "number" else token.text for token in left),
        values=tuple(dict.fromkeys(values)),
        result=result,
        places=places,
        annotated=annotated,
    )


def _near(value: Fraction, written: Fraction, places: int) -> bool:
    """Equal, or rounded in the last place to the nearest, down or up; binary floats are exact to nine digits here."""
    return value == written or abs(value - written) < max(Fraction(1, 10**places), abs(value) / 10**9)


def _before(line: Sequence[Token], end: int) -> list[Token] | None:
    """The calculation that ends before a place, units left out; None where what stands there is no whole one."""
    found: list[Token] = []
    place, depth = end - 1, 0
    while True:
        place, closed = _skip_back(line, place, found)
        depth += closed
        if place < 0 or line[place].kind != "number":
            return None
        found.append(line[place])
        place -= 1
        while depth and place >= 0 and line[place].kind == "open":
            found.append(line[place])
            depth, place = depth - 1, place - 1
        if place < 0 or line[place].kind != "operator":
            break
        sign = line[place]
        unary = sign.text == "-" and line[place + 1].glued and not _ends_operand(line, place - 1)
        found.append(sign)
        place -= 1
        if unary and (place < 0 or line[place].kind != "operator"):
            break
        if unary:
            found.append(line[place])
            place -= 1
    if depth or (place >= 0 and _carries_on(line, place)):
        return None
    return found[::-1]


def _skip_back(line: Sequence[Token], place: int, found: list[Token]) -> tuple[int, int]:
    """Go back over units and closing brackets; where that ends, and how many were closed."""
    words = closed = 0
    while place >= 0 and words <= _UNITS:
        token = line[place]
        if token.kind == "close":
            found.append(token)
            closed += 1
        elif token.unit and token.text.lower() not in _CONTINUES:
            words += 1
        elif not (words and _joins(line, place)):
            break
        place -= 1
    return place, closed


def _joins(line: Sequence[Token], place: int) -> bool:
    """Whether an operator is the slash of `miles/hour` or the hyphen of `5-year`."""
    token = line[place]
    if token.kind != "operator" or token.text not in "/-" or place + 1 >= len(line) or not line[place + 1].unit:
        return False
    return token.text == "/" or (token.glued and line[place + 1].glued)


def _ends_operand(line: Sequence[Token], place: int) -> bool:
    return place >= 0 and (line[place].kind in ("number", "close") or line[place].unit)


def _carries_on(line: Sequence[Token], place: int) -> bool:
    """Whether what stands before a calculation may belong to it."""
    token, before = line[place], line[place - 1] if place else None
    if token.kind in ("number", "close", "open") or token.text in "^%<>√":
        return True
    if token.kind == "other":  # a malformed number: `. 5`, or the 400 of 14, 400
        return before is not None and (before.kind == "operator" or (token.text == "," and before.kind == "number"))
    words = []
    while place >= 0 and line[place].kind == "word" and len(words) <= _UNITS:
        words.append(line[place].text.lower())
        place -= 1
    if not words:
        return False
    labelled = words[0] in _LABELS and not (words[1:] and words[1] in _COUNTS)
    moved = words[0] == "the" and words[1:2] in (["to"], ["from"])
    part = words[0] in _CONTINUES and not (words[0] == "of" and words[1:2] and words[1] in _SUMS)
    variable = len(words[0]) == 1 and words[0] != "a"
    operated = place >= 0 and line[place].kind == "operator"
    mixed = words == ["and"] and place >= 0 and line[place].kind == "number"  # 1 and 1/4
    return bool(labelled or moved or variable or part or operated or mixed)


def _after(line: Sequence[Token], start: int) -> list[Token] | None:
    """The expression that begins at a place, units left out; None where what stands there is no whole one."""
    found: list[Token] = []
    place, depth = start, 0
    while True:
        while place < len(line) and (line[place].kind == "open" or line[place].text in ("+", "-")):
            depth += line[place].kind == "open"
            found.append(line[place])
            place += 1
        if place >= len(line) or line[place].kind != "number":
            return None
        found.append(line[place])
        place += 1
        while depth and place < len(line) and line[place].kind == "close":
            found.append(line[place])
            depth, place = depth - 1, place + 1
        further = _skip_units(line, place)
        if (
            further + 1 < len(line)
            and line[further].kind == "operator"
            and line[further + 1].kind in ("number", "open")
        ):
            found.append(line[further])
            place = further + 1
            continue
        return None if depth or _goes_on(line, place) else found


def _skip_units(line: Sequence[Token], place: int) -> int:
    for _ in range(_UNITS):
        if place >= len(line):
            break
        if not _joins(line, place) and (not line[place].unit or line[place].text.lower() in _CONTINUES):
            break
        place += 1
    return place


def _goes_on(line: Sequence[Token], place: int) -> bool:
    """Whether what stands behind an expression may belong to it."""
    if place >= len(line):
        return False
    token = line[place]
    if token.kind == "word":
        half = token.text == "and" and {"half", "quarter", "third"} & {t.text for t in line[place + 1 : place + 3]}
        return bool(half or (len(token.text) == 1 and token.text != "a") or token.text.lower() in _CONTINUES)
    if token.kind == "operator":
        dash = token.text == "-" and not token.glued and place + 1 < len(line) and line[place + 1].kind == "word"
        return not (dash or _joins(line, place))
    return token.text[0].isdigit() or token.text[0] in "$^<>" or (token.text == ":" and token.glued)


def _evaluate(expression: Sequence[Token], nested: bool) -> Fraction | None:
    """The value of an expression; None where it divides by zero or its brackets do not match.

    `10 / 1/2` is 5 by the rules and 20 to those who write it: `nested` reads a division by a fraction.
    """
    try:
        value, place = _sum(expression, 0, nested)
    except (ZeroDivisionError, IndexError):
        return None
    return value if place == len(expression) else None


def _sum(expression: Sequence[Token], place: int, nested: bool) -> tuple[Fraction, int]:
    value, place = _product(expression, place, nested)
    while place < len(expression) and expression[place].text in ("+", "-"):
        sign = expression[place].text
        term, place = _product(expression, place + 1, nested)
        value = value + term if sign == "+" else value - term
    return value, place


def _product(expression: Sequence[Token], place: int, nested: bool) -> tuple[Fraction, int]:
    value, place = _atom(expression, place, nested)
    while place < len(expression) and expression[place].text in ("*", "/"):
        sign = expression[place].text
        factor, place = _atom(expression, place + 1, nested)
        while nested and sign == "/" and place < len(expression) and expression[place].text == "/":
            under, place = _atom(expression, place + 1, nested)
            factor /= under
        value = value * factor if sign == "*" else value / factor
    return value, place


def _atom(expression: Sequence[Token], place: int, nested: bool) -> tuple[Fraction, int]:
    token = expression[place]
    if token.kind == "number":
        return token.value, place + 1
    if token.kind == "open":
        value, place = _sum(expression, place + 1, nested)
        if expression[place].kind != "close":
            raise IndexError("a bracket is not closed")
        return value, place + 1
    if token.text not in ("+", "-"):
        raise IndexError("a number is missing")
    value, place = _atom(expression, place + 1, nested)
    return (-value if token.text == "-" else value), place
