"""A file of traces read: a row a question with several solutions, or a row a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Literal

from pydantic import Field

from stillhouse.answers import number
from stillhouse.data.sources import iter_source
from stillhouse.errors import DataError, did_you_mean
from stillhouse.recipe_data import Source
from stillhouse.recipe_parts import Section
from stillhouse.records import Example
from stillhouse.traces.base import Trace

_TRUE, _FALSE = {"true", "1", "1.0"}, {"false", "0", "0.0"}


class TraceSource(Section):
    """Where traces come from and which columns hold what.

    A file has one of two forms. Wide, as the `model_solutions.jsonl` of GSM8K: a row a question, and in each column
    of `solutions` what one source wrote, as `{solution, is_correct}` or as text. Flat: a row a trace, in the columns
    `text`, `source`, `correct`. What is right is said of each trace, or is the number of the row's `reference`.
    """

    path: str
    question: str = "question"
    solutions: list[str] | None = Field(
        None, description="columns, one a source; none takes every column that holds a mapping with a solution"
    )
    solution: str = Field("solution", description="the text in such a mapping")
    is_correct: str = Field("is_correct", description="whether it is right, in such a mapping")
    reference: str | None = Field(
        None,
        description="right answer of a row, the number in its last line; none reads whether a trace is right",
    )
    text: str = Field("text", description="of a row a trace: steps and answer")
    answer: str = Field("answer", description="of a row a trace: the final answer; without one the text's last number")
    source: str = Field("source", description="of a row a trace: who wrote it")
    correct: str = Field("correct", description="of a row a trace: whether it is right")
    id: str = Field("id", description="of a row")
    missing: Literal["error", "drop"] = Field("error", description="what to do with a solution that is not there")
    limit: int | None = Field(None, ge=1, description="rows")


def read_traces(source: TraceSource) -> tuple[list[Trace], int]:
    """All traces of a file, and how many were left out because there was no text.

    A trace whose answer is no number is kept: it agrees with none.

    Raises:
        DataError: missing file, broken row, column that is not there, a solution missing, correctness that is neither
            true nor false, a right answer without a number, an id twice.
    """
    rows = list(iter_source(Source(path=source.path, prompt=source.question, limit=source.limit)))
    wide = source.solutions or _held(rows, source)
    for column in wide:
        if not any(column in row.meta for row in rows):
            raise DataError(
                f"{source.path} has no column {column!r} (data.traces.solutions). {did_you_mean(column, rows[0].meta)}"
            )
    read = [trace for row in rows for trace in (_solutions(row, source, wide) if wide else [_flat(row, source)])]
    traces = [trace for trace in read if trace is not None]
    if not traces:
        raise DataError(f"{source.path} holds no traces: every solution is missing.")
    twice = [name for name, count in Counter(trace.id for trace in traces).items() if count > 1]
    if twice:
        raise DataError(f"{source.path} has two traces with the id {twice[0]!r}. Ids must differ; see data.traces.id.")
    return traces, len(read) - len(traces)


def _solutions(row: Example, source: TraceSource, wide: Sequence[str]) -> Iterator[Trace | None]:
    """The traces of a row that is a question."""
    name = str(row.meta.get(source.id, row.id))
    for column in wide:
        place = f"{source.path}, {row.id}, {column}"
        held = row.meta.get(column)
        given = held if isinstance(held, Mapping) else {source.solution: held}
        said = None, given.get(source.is_correct)
        yield _trace(row, source, (f"{name}/{column}", column), given.get(source.solution), said, place)


def _flat(row: Example, source: TraceSource) -> Trace | None:
    """The trace of a row that is one."""
    place = f"{source.path}, {row.id}"
    if source.text not in row.meta:
        raise DataError(
            f"{place} has the columns {', '.join(row.meta) or 'none'} beside the question; none holds a mapping with "
            f"{source.solution!r}, and none is {source.text!r}. Map them: data.traces.solutions where a row is a "
            "question with several solutions, data.traces.text where it is one trace."
        )
    names = str(row.meta.get(source.id, row.id)), str(row.meta.get(source.source) or "")
    said = row.meta.get(source.answer), row.meta.get(source.correct)
    return _trace(row, source, names, row.meta[source.text], said, place)


def _held(rows: Sequence[Example], source: TraceSource) -> list[str]:
    """Columns that hold a mapping with a solution, in any row: one source may have left out the first."""
    found: dict[str, None] = {}
    for row in rows:
        cells = row.meta.items()
        found |= dict.fromkeys(key for key, cell in cells if isinstance(cell, Mapping) and source.solution in cell)
    return list(found)


def _trace(
    row: Example, source: TraceSource, names: tuple[str, str], text: object, said: tuple[object, object], place: str
) -> Trace | None:
    """A trace from its id and source, its text, and what the row says of its answer and correctness."""
    if text is None or not str(text).strip():
        if source.missing == "drop":
            return None
        raise DataError(f"{place}: the solution is missing. Fill it, remove the row, or set data.traces.missing: drop.")
    question, (answer, correct) = (row.prompt or "").strip(), said
    value = number(str(text) if answer is None else str(answer))
    return Trace(
        id=names[0],
        question=question,
        group=question,
        text=str(text),
        answer=value,
        source=names[1],
        correct=_truth(correct, place) if source.reference is None else value == _right(row, source.reference, place),
    )


def _right(row: Example, column: str, place: str) -> Fraction:
    if not isinstance(row.meta.get(column), str | int | float):
        raise DataError(
            f"{place}: there is no right answer in {column!r} (data.traces.reference). {did_you_mean(column, row.meta)}"
        )
    last = str(row.meta[column]).strip().rpartition("\n")[2]
    value = number(last)
    if value is None:
        raise DataError(f"{place}: the right answer, {last[-60:]!r}, holds no number.")
    return value


def _truth(value: object, place: str) -> bool | None:
    said = str(value).strip().lower()
    if value is None or not said:
        return None
    if said not in _TRUE | _FALSE:
        raise DataError(f"{place}: correctness is {value!r}; it must be true or false (or 1 or 0), or left out.")
    return said in _TRUE
