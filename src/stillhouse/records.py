"""The record that flows through data stages: one example, and where it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

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


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Write examples as JSONL, atomically (a reader never sees half a file); returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".partial")
    count = 0
    with partial.open("w", encoding="utf-8") as stream:
        for example in examples:
            stream.write(example.to_json() + "\n")
            count += 1
    partial.replace(path)
    return count


def read_examples(path: Path) -> Iterator[Example]:
    """Read examples that `write_examples` wrote."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield Example.from_json(line)


def fingerprint(value: object) -> str:
    """A short stable hash of anything JSON can say; equal values give equal fingerprints on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
