"""Read examples: JSONL, JSON, CSV, Parquet and text files, Arrow folders, Hugging Face data sets, and the built-in
generator.

Columns follow the ecosystem (`messages`; `prompt` + `completion`; `text`) or are mapped by the recipe. A broken row is
an error with its number, never a row silently left out.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import pickle
import random
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

from stillhouse.answers import MARKER, split_trace
from stillhouse.data import arithmetic
from stillhouse.data.templates import fill
from stillhouse.errors import DataError, did_you_mean
from stillhouse.recipe_data import Source
from stillhouse.records import Example

_ROWS = 1024
"""Of a Parquet file that are in memory at a time."""
_COLUMNS = ("messages", "prompt", "completion", "rationale", "text")


Row = tuple[int, Mapping[str, Any]]
"""A row with its number, counted from 1 as editors do."""


def read_source(source: Source) -> list[Example]:
    """All examples of a source, shuffled and limited as it says.

    Raises:
        DataError: missing or empty file, broken line, column that is not there, empty completion.
    """
    return list(iter_source(source))


def iter_source(source: Source) -> Iterator[Example]:
    """As `read_source`, one example in memory at a time (a .json file, being one list, is read whole); rows behind the
    limit are not read unless they are shuffled.

    Raises:
        DataError: as `read_source`, when the row is reached.
    """
    made = _arithmetic(source) if source.arithmetic is not None else _examples(source)
    return islice(made, source.limit)


def _examples(source: Source) -> Iterator[Example]:
    place = source.path or source.dataset or ""
    rows = _rows(source)
    if source.shuffle is not None:
        rows = _shuffled(rows, source.shuffle, place)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{place} holds no examples. A data set needs at least one row.")
    columns = _map_columns(source, first[1], place)
    if (named := source.id or ("id" if "id" in first[1] else None)) is not None:
        columns = {"id": named, **columns}
    for number, row in chain([first], rows):
        example = _example(number, row, columns, source.template, place)
        yield example if source.rationale_until is None else _worked(example, source.rationale_until, number, place)


def _shuffled(rows: Iterable[Row], seed: int, place: str) -> Iterator[Row]:
    """Rows in the order that shuffling a list of them gives. They wait in a temporary file; in memory there is but
    where each begins."""
    with tempfile.TemporaryFile() as waiting:
        starts = array("q")
        try:
            for row in rows:
                starts.append(waiting.tell())
                pickle.dump(row, waiting)
            waiting.flush()
        except OSError as error:
            raise DataError(
                f"{place} cannot be shuffled: its rows wait in {tempfile.gettempdir()}, and there: {error}. Point "
                "TMPDIR at a disk with room for a copy, or shuffle the file beforehand and leave shuffle out."
            ) from error
        random.Random(seed).shuffle(starts)
        for start in starts:
            waiting.seek(start)
            yield pickle.load(waiting)


def _arithmetic(source: Source) -> Iterator[Example]:
    assert source.arithmetic is not None
    made = source.arithmetic
    problems = arithmetic.generate(
        made.count, seed=made.seed, steps=made.steps, split=made.split, distractors=made.distractors
    )
    for number, problem in enumerate(problems):
        row = arithmetic.row(problem)
        meta = {"answer": str(row["final"]), "steps": row["steps"], "derivation": row["derivation"]}
        name = f"arithmetic-{made.split}-{made.seed}-{number}"
        rationale, answer = split_trace(row["answer"], MARKER) or ("", row["answer"])
        yield Example(id=name, prompt=row["question"], rationale=rationale, completion=answer, meta=meta)


def _rows(source: Source) -> Iterator[Row]:
    if source.dataset is not None:
        yield from enumerate(_hub(source), start=1)
        return
    path = Path(source.path or "").expanduser()
    if not path.exists():
        folder = path.parent
        known = did_you_mean(path.name, [p.name for p in folder.iterdir()]) if folder.is_dir() else ""
        raise DataError(f"There is no data file {path}. {known or f'The folder {folder} does not exist either.'}")
    if path.is_dir():
        yield from enumerate(_folder(path, source.split), start=1)
        return
    readers = {".jsonl": _jsonl, ".json": _json, ".txt": _text, ".csv": _csv, ".parquet": _parquet, ".arrow": _arrow}
    reader = readers.get(path.suffix)
    if reader is None:
        raise DataError(f"{path} has the ending {path.suffix!r}; readable are {', '.join(readers)} and Arrow folders.")
    try:
        yield from reader(path)
    except DataError:
        raise
    except (OSError, ValueError, csv.Error) as error:  # also not UTF-8, also Arrow's own errors
        raise DataError(f"{path} cannot be read as {path.suffix.removeprefix('.')}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _must_be_object(row: object, place: str) -> None:
    if not isinstance(row, dict):
        raise DataError(f"{place} is a JSON {type(row).__name__}; each row must be an object with named columns.")


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            if not raw.strip():
                continue
            try:
                row = json.loads(raw)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise DataError(
                    f"{path}:{number} is not valid JSON ({error}). The other lines were not touched; mend or remove "
                    f"this one: {raw[:80]!r}"
                ) from error
            _must_be_object(row, f"{path}:{number}")
            yield number, row


def _json(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON: {error}. One object a line? Then name it .jsonl.") from error
    if not isinstance(rows, list):
        raise DataError(f"{path} must hold a list of objects; one object a line goes into a .jsonl file.")
    for number, row in enumerate(rows, start=1):
        _must_be_object(row, f"{path}: row {number}")
        yield number, row


def _text(path: Path) -> Iterator[Row]:
    """Running text: one row a paragraph, paragraphs being what blank lines separate."""
    with path.open(encoding="utf-8-sig") as stream:
        paragraphs = ("".join(lines).strip() for blank, lines in groupby(stream, "\n".__eq__) if not blank)
        yield from enumerate(({"text": text} for text in paragraphs if text), start=1)


def _csv(path: Path) -> Iterator[Row]:
    """Every cell is text as it stands: guessing types would turn 007 into 7 and the word NA into nothing."""
    csv.field_size_limit(2**31 - 1)  # a cell may hold a whole document
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        for number, row in enumerate(reader, start=1):
            if None in row:
                columns = len(reader.fieldnames or ())
                raise DataError(f"{path}: row {number} has more cells than the {columns} columns of the first line.")
            yield number, row


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        yield from enumerate((row for batch in file.iter_batches(_ROWS) for row in batch.to_pylist()), start=1)


def _arrow(path: Path) -> Iterator[Row]:
    import datasets

    table: Any = datasets.Dataset.from_file(str(path))
    yield from enumerate(table, start=1)


def _folder(path: Path, split: str | None) -> Iterable[Mapping[str, Any]]:
    """A folder that `save_to_disk` wrote, or one of data files."""
    import datasets
    from datasets.exceptions import DatasetsError

    saved = any((path / name).exists() for name in ("dataset_info.json", "dataset_dict.json", "state.json"))
    try:
        loaded: Any = datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(str(path))
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(f"The folder {path} cannot be read: {_first_line(error.__cause__ or error)}") from error
    return _choose_split(loaded, split, str(path))


def _hub(source: Source) -> Iterable[Mapping[str, Any]]:
    import datasets
    from datasets.exceptions import DatasetsError

    name = source.dataset or ""
    try:
        loaded: Any = datasets.load_dataset(name, source.subset)
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(
            f"The data set {name!r} cannot be loaded: {_first_line(error)}. Is the name right, and is there a network? "
            "A local file goes under path."
        ) from error
    return _choose_split(loaded, source.split, name)


def _choose_split(loaded: Any, split: str | None, place: str) -> Iterable[Mapping[str, Any]]:
    if not isinstance(loaded, dict):
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        asked = f"no split {split!r}" if split else "several splits and the recipe names none"
        raise DataError(f"{place} has {asked}. Set split to one of: {', '.join(loaded)}.")
    return loaded[split]


def _map_columns(source: Source, row: Mapping[str, Any], place: str) -> dict[str, str]:
    """Which column of the file holds what: as the recipe says, or by the ecosystem's names."""
    named = {key: getattr(source, key) for key in _COLUMNS if getattr(source, key) is not None}
    for key, column in named.items():
        if column not in row:
            raise DataError(f"{place} has no column {column!r} (asked for as {key}). {did_you_mean(column, row)}")
    if named:
        return named
    found = {key: key for key in _COLUMNS if key in row}
    if source.template is not None:  # makes the prompt
        return {key: key for key in ("completion", "rationale") if key in found}
    if "messages" in found:
        return {"messages": "messages"}
    if "prompt" in found:
        found.pop("text", None)
        return found
    if "text" in found:
        return {"text": "text"}
    raise DataError(
        f"{place} has the columns {', '.join(row)}; none is messages, prompt or text. Map them in the recipe, for "
        "example prompt: question, completion: answer."
    )


def _example(
    number: int, row: Mapping[str, Any], columns: Mapping[str, str], template: str | None, place: str
) -> Example:
    values: dict[str, Any] = {}
    if template is not None:
        values["prompt"] = fill(template, row, "template", f"{place}: row {number}")
    for key, column in columns.items():
        if column not in row or row[column] is None:
            raise DataError(
                f"{place}: row {number} has no column {column!r} (used as {key}). Mend the row, or remove it."
            )
        where = f"{place}: row {number}"
        values[key] = _text_of(row[column], column, where) if key != "messages" else _turns(row[column], where)
    if "completion" in values and not values["completion"].strip():
        raise DataError(
            f"{place}: row {number} has an empty {columns['completion']!r} (used as completion), so there is nothing "
            "to learn from. Fill it, remove the row, or map no completion where the teacher is to write it."
        )
    meta = {key: value for key, value in row.items() if key not in columns.values()}
    name = values.pop("id", f"{Path(place).stem}-{number}")
    return Example(id=name, meta=meta, **values)


def _worked(example: Example, marker: str, number: int, place: str) -> Example:
    """A row whose completion holds worked steps and an answer, the two told apart."""
    parts = split_trace(example.completion or "", marker)
    if parts is None or not parts[0].strip() or example.rationale is not None:
        why = "has no worked steps before" if parts else "does not have"
        why = "has a rationale column besides" if example.rationale is not None else why
        raise DataError(
            f"{place}: row {number} {why} {marker!r} in its completion, where data.*.rationale_until looks for the end "
            "of the worked steps. Mend or remove the row, or leave rationale_until out."
        )
    return dataclasses.replace(example, rationale=parts[0], completion=parts[1])


def _text_of(value: Any, column: str, place: str) -> str:
    text = str(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place} holds half a surrogate pair in its column {column!r} (character {error.start + 1}), which is "
                "no text: it was cut in the middle of a character, or written by a broken encoder. Mend the row, or "
                "remove it."
            ) from error
    return text


def _turns(value: Any, place: str) -> tuple[Mapping[str, str], ...]:
    turns = value if isinstance(value, list) else []
    texts = [turn.get(key) for turn in turns if isinstance(turn, Mapping) for key in ("role", "content")]
    if not turns or len(texts) < 2 * len(turns) or not all(isinstance(text, str) for text in texts):
        raise DataError(
            f"{place} holds no conversation: messages must be a list of turns, each with a role and a content that is "
            f"text, and it is {str(value)[:80]!r}."
        )
    return tuple(turns)


def describe(source: Source) -> str:
    """A source in a few words, for messages and reports."""
    if source.arithmetic is not None:
        made = source.arithmetic
        easiest, hardest = made.steps
        return f"{made.count} arithmetic problems ({made.split}, {easiest} to {hardest} steps, seed {made.seed})"
    if source.synthesizer is not None:
        return f"written by {source.synthesizer.name}"
    return str(source.path or source.dataset)
