"""What data weigh: text and the teacher's distributions in bytes, so that sets compare at equal bytes as at equal rows.

Soft labels can be a hundred times larger than the rows they belong to, and a table at equal rows hides that (Qin et al.
2024, arXiv 2406.10485).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stillhouse.records import Example


def text_bytes(example: Example) -> int:
    """UTF-8 bytes of what an example says; neither ids nor meta count.

    >>> text_bytes(Example(id="a", prompt="2 + 2 =", completion=" 4"))
    9
    """
    turns = [turn["content"] for turn in example.messages or ()]
    parts = [example.prompt, example.rationale, example.completion, example.text, *turns]
    return sum(len(part.encode("utf-8", "surrogatepass")) for part in parts if part)


def record_bytes(folder: Path) -> int:
    """Bytes of a teacher's record (a signal store): its shards; the copy of the tokenizer beside them is no label."""
    return sum(path.stat().st_size for path in folder.glob("shard-*"))


@dataclass
class Tally:
    """Counts examples and their bytes as they go by."""

    examples: int = 0
    text: int = 0

    def over(self, examples: Iterable[Example]) -> Iterator[Example]:
        """The same examples, counted."""
        for example in examples:
            self.examples += 1
            self.text += text_bytes(example)
            yield example
