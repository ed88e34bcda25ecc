"""The record that flows through data stages: one example, and where it came from."""

from __future__ import annotations

import hashlib
import json
import shutil
from array import array
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, overload

from stillhouse.errors import DataError

Form = Literal["messages", "prompt", "text"]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row of data, in exactly one of three forms.

    `messages` (a conversation), `prompt` with an optional `completion` and `rationale` (what is asked, the worked
    steps, the answer), or `text` (running text). `id` is unique within a data set and stable across runs; `meta` says
    how the row came to be and carries the columns that evaluators read, such as the final answer.

    >>> Example(id="a", prompt="2 + 2 =", completion="4").form
    'prompt'
    """

    id: str
    prompt: str | None = None
    completion: str | None = None
    rationale: str | None = None
    messages: tuple[Mapping[str, str], ...] | None = None
    text: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [form for form in ("messages", "prompt", "text") if getattr(self, form) is not None]
        if len(given) != 1:
            raise DataError(
                f"Example {self.id!r} has {given or 'none'} of messages, prompt, text; exactly one of them must be "
                "given."
            )

    @property
    def form(self) -> Form:
        """Which of the three forms this example has."""
        if self.messages is not None:
            return "messages"
        return "prompt" if self.prompt is not None else "text"

    def to_json(self) -> str:
        """One line of JSON without absent fields; what JSON does not know in `meta` (a date) becomes text."""
        return json.dumps(
            {k: v for k, v in asdict(self).items() if v not in (None, {})}, ensure_ascii=False, default=str
        )

    @classmethod
    def from_json(cls, line: str) -> Example:
        """The inverse of `to_json`."""
        row = json.loads(line)
        if row.get("messages") is not None:
            row["messages"] = tuple(row["messages"])
        return cls(**row)


@contextmanager
def whole(place: Path) -> Generator[Path, None, None]:
    """A file or folder that appears at its place complete or not at all: what is written to the path that is given
    takes the old one's place when the block ends without an error.

    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp()) / "facts.json"
    >>> with whole(place) as partial:
    ...     _ = partial.write_text("{}")
    >>> place.read_text()
    '{}'
    """
    partial = place.with_name(f".{place.name}.partial")
    _remove(partial)  # of a process that was killed
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
    except BaseException:
        _remove(partial)
        raise
    if partial.is_dir():
        _remove(place)  # a folder replaces an empty one alone
    partial.replace(place)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Write examples as JSONL, whole or not at all; returns how many."""
    count = 0
    with whole(path) as partial, partial.open("w", encoding="utf-8") as stream:
        for example in examples:
            stream.write(example.to_json() + "\n")
            count += 1
    return count


def read_examples(path: Path) -> Iterator[Example]:
    """Read examples that `write_examples` wrote."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield Example.from_json(line)


class ExampleFile(Sequence[Example]):
    """The examples of a file that `write_examples` wrote, each read from disk when it is asked for: of a million rows
    there is in memory but where each begins.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "examples.jsonl"
    >>> write_examples(path, [Example(id="a", text="one"), Example(id="b", text="two")])
    2
    >>> ExampleFile(path)[1].text
    'two'
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = array("q")
        with path.open("rb") as stream:
            start = 0
            for line in stream:
                self._starts.append(start)
                start += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Example]:
        return read_examples(self.path)

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> list[Example]: ...
    def __getitem__(self, place: int | slice) -> Example | list[Example]:
        chosen = range(len(self))[place]
        with self.path.open("rb") as stream:
            read = [self._read(stream, row) for row in ([chosen] if isinstance(chosen, int) else chosen)]
        return read[0] if isinstance(chosen, int) else read

    def _read(self, stream: BinaryIO, row: int) -> Example:
        stream.seek(self._starts[row])
        return Example.from_json(stream.readline().decode("utf-8"))


def fingerprint(value: object) -> str:
    """A short stable hash of anything JSON can say; equal values give equal fingerprints on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def bytes_under(folder: Path) -> int:
    """Of all files in a folder and below it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def fingerprint_path(path: Path) -> str:
    """A short hash of a file's bytes, or of a folder's: names and contents, files beyond 64 MiB by size and time alone,
    because hashing the weights of a large model takes longer than loading them."""
    if path.is_file():
        return fingerprint_file(path)
    found: dict[str, object] = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        facts = file.stat()
        large = facts.st_size > 2**26
        found[str(file.relative_to(path))] = [facts.st_size, facts.st_mtime_ns] if large else fingerprint_file(file)
    return fingerprint(found)


def fingerprint_file(path: Path) -> str:
    """A short hash of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
