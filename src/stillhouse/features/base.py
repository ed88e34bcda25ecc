"""What features are: one vector an example, in the examples' order, made in blocks so that a million rows stream.

Shapes: N examples, D the width of a vector.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from stillhouse.data.rendering import Renderer
from stillhouse.errors import NeedsError
from stillhouse.recipe_parts import Component
from stillhouse.records import Example
from stillhouse.student import Student
from stillhouse.teachers.base import TeacherSession

Matrix = NDArray[np.float32]
"""One vector an example, shape [N, D]."""


@dataclass(frozen=True)
class FeatureBench:
    """What features may be computed with; features of text alone need none of it.

    Attributes:
        student: makes the student as it is before training; the same one every time.
        teacher: an opened teacher.
        renderer: how examples become the student's tokens.
        identity: what of these decides the features, for the store's fingerprint.
        device: where models run.
    """

    student: Callable[[], Student] | None = None
    teacher: TeacherSession | None = None
    renderer: Renderer | None = None
    identity: Any = None
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class Features(ABC):
    """Settings of one kind of vectors; what is computed depends on them, the examples and the bench alone."""

    family: ClassVar[str] = "feature"
    needs: ClassVar[frozenset[str]] = frozenset()
    """What they need of the teacher, in the words of `Objective.needs`."""
    of_text: ClassVar[bool] = True
    """Whether the text of the examples is enough; False where a student, its renderer or a teacher takes part."""

    @abstractmethod
    def blocks(self, examples: Sequence[Example], bench: FeatureBench) -> Iterator[Matrix]:
        """Vectors of consecutive examples, float32 and finite, [a block's examples, D]; all blocks together are [N, D].

        `examples` may lie on disk: it may be walked over again, and should not be copied.

        Raises:
            NeedsError: the bench lacks what these features are computed with.
            DataError: an example that has no vector.
        """

    def compute(self, examples: Sequence[Example], bench: FeatureBench | None = None) -> Matrix:
        """All vectors in memory, [N, D]; an empty [0, 0] of no examples."""
        found = list(self.blocks(examples, bench or FeatureBench())) if len(examples) else []
        return np.concatenate(found) if found else np.zeros((0, 0), np.float32)


def as_features(value: Any) -> Features:
    """Features from their short form in a recipe (`tfidf`, `{static_embeddings: {model: ...}}`), or as they are."""
    return value if isinstance(value, Features) else Component.model_validate(value).build("feature")


def text_of(example: Example) -> str:
    """What an example asks, in words: its prompt, its running text, or what was said in the conversation.

    The answer is left out: a selector that saw it would choose by the label.

    >>> text_of(Example(id="a", prompt="2 + 2 =", completion="4"))
    '2 + 2 ='
    """
    if example.messages is not None:
        return "\n".join(m["content"] for m in example.messages if m["role"] != "assistant")
    return (example.prompt if example.prompt is not None else example.text) or ""


def require_student(bench: FeatureBench, who: str) -> tuple[Student, Renderer]:
    """The bench's student and renderer.

    Raises:
        NeedsError: there is none.
    """
    if bench.student is None or bench.renderer is None:
        raise NeedsError(
            f"{who} is computed with a student, and none was given. In a recipe it is the run's own; in Python pass "
            "FeatureBench(student=..., renderer=...). Features of text alone, such as tfidf, need none."
        )
    return bench.student(), bench.renderer
