"""What a synthesizer is: a teacher makes examples, from examples or from nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from stillhouse.data.rendering import Renderer
from stillhouse.records import Example
from stillhouse.teachers.base import TeacherSession


@dataclass(frozen=True, kw_only=True)
class Synthesizer(ABC):
    """Settings of one way to make data; every example it returns says in `meta` how it came to be."""

    family: ClassVar[str] = "synthesizer"
    needs: ClassVar[frozenset[str]] = frozenset({"text"})

    @abstractmethod
    def tokens_written(self, prompts: int) -> int:
        """At most how many tokens the teacher will write for that many prompts (0 where it writes from nothing)."""

    @abstractmethod
    def synthesize(self, examples: Sequence[Example], teacher: TeacherSession, renderer: Renderer) -> list[Example]:
        """New examples. `renderer` makes the teacher's prompts; an empty `examples` asks for examples from nothing."""
