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
from stillhouse.errors import DataError, NeedsError
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

    @property
    def needs(self) -> frozenset[str]:
        """What they need of the teacher, in the words of `Objective.needs`."""
        return frozenset()

    @property
    def of_text(self) -> bool:
        """Whether the examples are enough; False where the run's student, its renderer or a teacher takes part."""
        return True

    @abstractmethod
    def blocks(self, examples: Sequence[Example], bench: FeatureBench) -> Iterator[Matrix]:
        """Vectors of consecutive examples, float32 and finite, [a block's examples, D]; all blocks together are [N, D].

        `examples` may lie on disk: it may be walked over again, and should not be copied.

        Raises:
            NeedsError: the bench lacks what these features are computed with.
            DataError: an example that has no vector.
        """

    def identity(self) -> Any:
        """What decides the vectors besides the examples and the bench, for the store's fingerprint: the settings, and
        what lies in the folder of a model that they name."""
        return [type(self).__module__, repr(self)]

    def compute(self, examples: Sequence[Example], bench: FeatureBench | None = None) -> Matrix:
        """All vectors in memory, [N, D]; an empty [0, 0] of no examples.

        Raises:
            NeedsError, DataError: as `blocks`; a vector that is not finite is named by its example.
        """
        vectors_ND = np.zeros((0, 0), np.float32)
        start = 0
        for block in checked(self, examples, bench or FeatureBench()):
            if not start:  # filled as the blocks come, so that no row is held twice
                vectors_ND = np.empty((len(examples), block.shape[1]), np.float32)
            vectors_ND[start : start + len(block)] = block
            start += len(block)
        return vectors_ND


def checked(features: Features, examples: Sequence[Example], bench: FeatureBench) -> Iterator[Matrix]:
    """The blocks of all examples, each held to what `Features.blocks` promises; none of no examples.

    Raises:
        DataError: a vector that is not finite, named by its example, or not one vector an example.
    """
    who = type(features).__name__
    done, width = 0, None
    for block in features.blocks(examples, bench) if len(examples) else ():
        if block.ndim != 2 or block.dtype != np.float32 or block.shape[1] != (width or block.shape[1]):
            raise DataError(
                f"{who} made a block of shape {block.shape} and {block.dtype}; expected [rows, {width or 'D'}] and "
                "float32. This is a fault of these features, not of the data."
            )
        width = block.shape[1]
        wrong = ~np.isfinite(block).all(axis=1)
        if wrong.any() and done + len(block) <= len(examples):
            name = examples[done + int(wrong.argmax())].id
            raise DataError(
                f"{who} gives example {name!r} a vector with NaN or infinity, the first of {int(wrong.sum())} in a "
                f"block of {len(block)}. Look at that example, or use other features."
            )
        done += len(block)
        if done > len(examples):
            break
        yield block
    if done != len(examples):
        raise DataError(
            f"{who} made {done} vectors or more of {len(examples)} examples; expected one each. This is a fault of "
            "these features, not of the data."
        )


def as_features(value: Any) -> Features:
    """Features from their short form in a recipe (`tfidf`, `{static_embeddings: {model: ...}}`), or as they are."""
    return value if isinstance(value, Features) else Component.model_validate(value).build("feature")


def text_of(example: Example) -> str:
    """What an example asks, in words: its prompt, its running text, or what was said in the conversation.

    The answer is left out: a selector that saw it would choose by the label. Half a character (a lone surrogate, which
    JSON can hold and UTF-8 cannot) becomes U+FFFD, because libraries below Python refuse a text with one.

    >>> text_of(Example(id="a", prompt="2 + 2 =", completion="4"))
    '2 + 2 ='
    """
    if example.messages is not None:
        text = "\n".join(m["content"] for m in example.messages if m["role"] != "assistant")
    else:
        text = (example.prompt if example.prompt is not None else example.text) or ""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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
