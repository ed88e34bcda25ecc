"""What a synthesizer is: a teacher makes examples, from examples or from nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, ClassVar

from stillhouse.models import Sampling
from stillhouse.records import Example
from stillhouse.registry import name_of
from stillhouse.teachers.base import Answer, TeacherSession

_HOW_FAST = ("batch_size",)
"""Settings that do not decide what is made."""
BLOCK = 512
"""Questions that a teacher gets at once: enough to sort them into batches of like lengths, or to keep a server busy."""


@dataclass
class Workbench:
    """What a synthesizer works with.

    Attributes:
        teacher: who writes.
        heldout: the examples of all evaluation sets, which nothing that is made may repeat.
        notes: what happened on the way that a user should know, counted: answers that were refused, prompts dropped.
    """

    teacher: TeacherSession
    heldout: Sequence[Example] = ()
    notes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Request:
    """What a synthesizer is going to ask of the teacher, for estimates.

    Attributes:
        asked: a few of the prompts, as they will be asked.
        count: how many there will be in all.
        makes: how many examples come of it at most.
        sampling: how they are answered.
    """

    asked: Sequence[Example]
    count: int
    makes: int
    sampling: Sampling


@dataclass(frozen=True, kw_only=True)
class Synthesizer(ABC):
    """Settings of one way to make data; every example it makes says in `meta["made_by"]` how it came to be."""

    family: ClassVar[str] = "synthesizer"
    needs: ClassVar[frozenset[str]] = frozenset({"text"})

    @abstractmethod
    def request(self, examples: Sequence[Example], count: int) -> Request:
        """What will be asked about `count` examples, of which a few are given; none where it writes from nothing.

        Raises:
            DataError: examples that cannot be asked about.
        """

    @abstractmethod
    def synthesize(self, examples: Sequence[Example], bench: Workbench) -> Iterator[Example]:
        """New examples, as they are made. An empty `examples` asks for examples from nothing.

        Raises:
            DataError: examples that cannot be asked about.
        """

    def ask(self, asked: Iterable[Example], bench: Workbench, sampling: Sampling) -> Iterator[tuple[Example, Answer]]:
        """Questions with their answers, in order, asked in blocks: what is made can be stored on the way."""
        waiting = iter(asked)
        while block := list(islice(waiting, BLOCK)):
            yield from zip(block, bench.teacher.answer(block, sampling), strict=True)

    def made(self, bench: Workbench, **facts: Any) -> Mapping[str, Any]:
        """How an example came to be, for its `meta`: the method with its settings, the teacher, and what is given."""
        settings = {key: value for key, value in asdict(self).items() if key not in _HOW_FAST}
        teacher = bench.teacher.identity()
        named = {"teacher": teacher.get("name", teacher)}
        return {"made_by": {"synthesizer": name_of(self), **settings, **named, **facts}}
