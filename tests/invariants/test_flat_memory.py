"""Training holds no more memory after many steps than after few: nothing that belongs to a step outlives it."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from stillhouse.data.batching import Batches, TokenBatch
from stillhouse.data.rendering import Rendered
from stillhouse.objectives.cross_entropy import CrossEntropy
from stillhouse.objectives.forward_kl import ForwardKL
from stillhouse.signals import TopK
from stillhouse.signals.store import TOKENIZER, StoreHeader, open_writer
from stillhouse.signals.vocabulary import tokenizer_fingerprint
from stillhouse.student import Student
from stillhouse.teachers.base import TeacherSession
from stillhouse.teachers.hf import HFSession
from stillhouse.teachers.stored import StoredTeacher
from stillhouse.training.loop import train
from stillhouse.training.optim import Optim

SMALL: dict[str, Any] = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8}
"""Of a model whose step takes little time; what a step leaves behind does not depend on the model's size."""

BYTES = 4 * 2**20
"""What the allocator may round up and cut apart; one batch kept of every step is more in the shortest run here."""

OBJECTS = 50
"""What Python may keep for itself; one object kept of every step is more."""


class Held(NamedTuple):
    """What this process holds: bytes in memory, and objects that Python's garbage collector knows of."""

    bytes: int
    objects: int

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(pages * resource.getpagesize(), len(gc.get_objects()))


def record(teacher: TeacherSession, rendered: list[Rendered], folder: Path) -> StoredTeacher:
    key, vocabulary = tokenizer_fingerprint(teacher.tokenizer), len(teacher.tokenizer)
    with open_writer(folder, StoreHeader(teacher.identity(), key, vocabulary, k=32)) as writer:
        teacher.tokenizer.save_pretrained(folder / TOKENIZER)
        for example in rendered:
            batch = TokenBatch.of([example])
            signal = teacher.score(batch).select(batch.trained_rows())
            writer.add(example.id, batch.digest(0), TopK.of(signal, k=32))  # ty: ignore[invalid-argument-type]
        writer.finish({})
    return StoredTeacher(str(folder))


@pytest.fixture
def rendered(render: Any, examples: Any) -> list[Rendered]:
    return render(examples)


@pytest.fixture
def open_teacher(make_student: Any, rendered: list[Rendered], tmp_path: Path) -> Callable[[str], TeacherSession]:
    def run(kind: str) -> TeacherSession:
        live = HFSession(make_student(seed=2, **SMALL).lm)
        return record(live, rendered, tmp_path / "signals").open() if kind == "stored" else live

    return run


def growth(steps: Iterator[object], warmup: int, count: int) -> Held:
    """Bytes and objects that `count` steps left behind, after `warmup` steps that may keep what they need.

    Measured twice, the smaller counts: a step that keeps something keeps it both times, while threads that other tests
    left in this process wake up when they like.
    """

    def take(number: int) -> Held:
        for _ in islice(steps, number):
            pass
        return Held.now()

    first, second, third = take(warmup), take(count), take(count)
    left = [
        (after.bytes - before.bytes, after.objects - before.objects)
        for before, after in ((first, second), (second, third))
    ]
    return Held(*map(min, zip(*left, strict=True)))


def check_batches(teacher: TeacherSession, rendered: list[Rendered], warmup: int, count: int) -> None:
    batches = Batches(rendered, tokens_per_batch=1024)
    left = growth((teacher.score(batch) for batch in batches), warmup, count)
    assert left.objects < OBJECTS
    assert left.bytes < BYTES


def check_updates(teacher: TeacherSession, student: Student, rendered: list[Rendered], warmup: int, count: int) -> None:
    batches, objectives = Batches(rendered, tokens_per_batch=1024), [0.5 * ForwardKL(), 0.5 * CrossEntropy()]
    steps = train(student, batches, teacher, objectives, steps=warmup + 2 * count, optim=Optim(lr=1e-4))
    left = growth(steps, warmup, count)
    assert left.objects < OBJECTS
    assert left.bytes < BYTES


def test_two_thousand_batches_and_their_signals_leave_nothing(open_teacher: Any, rendered: list[Rendered]) -> None:
    check_batches(open_teacher("stored"), rendered, 100, 1_000)


@pytest.mark.parametrize("kind", ["live", "stored"])
def test_hundreds_of_updates_leave_nothing(
    kind: str, open_teacher: Any, make_student: Any, rendered: list[Rendered]
) -> None:
    check_updates(open_teacher(kind), make_student(seed=1, **SMALL), rendered, 50, 100)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["live", "stored"])
def test_a_long_run_leaves_nothing(kind: str, open_teacher: Any, make_student: Any, rendered: list[Rendered]) -> None:
    """100,000 steps' worth of batches with what the teacher says about them, and 10,000 updates."""
    teacher = open_teacher(kind)
    check_batches(teacher, rendered, 1_000, 50_000)
    check_updates(teacher, make_student(seed=1, **SMALL), rendered, 1_000, 5_000)
