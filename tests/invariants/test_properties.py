"""However an update is cut, it is the same update: random models and examples, random micro-batches, padding, packing,
chunks, signals live or stored; and a student that equals its teacher has exactly nothing to learn under all of them.

Shapes: N trained tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillhouse import registry
from stillhouse.data.batching import TokenBatch
from stillhouse.data.rendering import Rendered
from stillhouse.objectives.base import Divergence, Objective
from stillhouse.signals import TopK
from stillhouse.signals.kinds import Dense
from stillhouse.student import Student
from stillhouse.teachers.base import TeacherSession
from stillhouse.teachers.hf import HFSession
from stillhouse.training.chunking import batch_loss


class Cut(NamedTuple):
    """How the examples of one update are brought to the model."""

    rows: int
    packed: int
    chunk: int
    stored: bool


class Stored(HFSession):
    """All entries as a top-k signal, in float32 and about trained tokens alone, as a signal store gives them back."""

    def __init__(self, lm: Any, temperature: float) -> None:
        super().__init__(lm)
        self.temperature = temperature

    def score(self, batch: TokenBatch) -> Any:
        live = super().score(batch)
        dense = Dense(live.head(live.hidden_ND), live.vocabulary)
        kept = TopK.of(dense, live.vocabulary, self.temperature)
        silent = ~batch.trained_BT
        return TopK(
            kept.ids_NK.masked_fill(silent[..., None], 0),
            kept.logprobs_NK.float().masked_fill(silent[..., None], torch.nan),
            kept.tail_N.float().masked_fill(silent, torch.nan),
            kept.vocabulary,
            self.temperature,
        )


@st.composite
def examples(draw: Any) -> list[Rendered]:
    made = []
    for n in range(draw(st.integers(1, 6))):
        length = draw(st.integers(1, 12))
        ids = draw(st.lists(st.integers(0, 299), min_size=length + 1, max_size=length + 1))
        trained = draw(st.lists(st.booleans(), min_size=length, max_size=length))
        trained[draw(st.integers(0, length - 1))] = True
        made.append(Rendered(f"e{n}", ids[:-1], ids[1:], trained, [3] * length, length))
    return made


cuts = st.builds(Cut, st.integers(1, 6), st.integers(1, 3), st.integers(1, 40), st.booleans())
models = st.fixed_dictionaries(
    {
        "hidden_size": st.sampled_from([8, 16]),
        "num_hidden_layers": st.integers(1, 2),
        "intermediate_size": st.sampled_from([8, 24]),
    }
)


def batches(rendered: list[Rendered], cut: Cut) -> list[TokenBatch]:
    rows = [rendered[i : i + cut.packed] for i in range(0, len(rendered), cut.packed)]
    return [TokenBatch.packed(rows[i : i + cut.rows]) for i in range(0, len(rows), cut.rows)]


def update(
    student: Student, teacher: TeacherSession, objectives: list[Objective], rendered: list[Rendered], cut: Cut
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of one update, as the loop has them."""
    student.lm.model.zero_grad()
    group, total = batches(rendered, cut), 0.0
    count = sum(batch.trained_count() for batch in group)
    for batch in group:
        hidden = student.lm.hidden(batch.tokens_BT, batch.positions_BT)
        loss = batch_loss(student.lm, hidden, batch, teacher.score(batch), objectives, cut.chunk).total / count
        loss.backward()
        total += loss.item()
    return total, {n: p.grad.clone() for n, p in student.lm.model.named_parameters() if p.grad is not None}


def objectives_at(temperature: float) -> list[Objective]:
    found = [registry.component("objective", name) for name in registry.names("objective")]
    return [o(weight=0.4, temperature=temperature) if issubclass(o, Divergence) else o(weight=0.3) for o in found]


@settings(max_examples=60)
@given(examples(), cuts, models, st.booleans(), st.sampled_from([1.0, 2.0]), st.integers(0, 99))
def test_the_cut_of_an_update_changes_nothing(
    make_student: Any, rendered: list[Rendered], cut: Cut, config: Any, tied: bool, temperature: float, seed: int
) -> None:
    student = make_student(seed=seed, double=True, tied=tied, **config)
    lm = make_student(seed=seed + 100, double=True, **config).lm
    objectives = objectives_at(temperature)
    whole = Cut(rows=1, packed=1, chunk=10**6, stored=False)  # one example at a time, nothing padded, nothing chunked
    loss, gradient = update(student, HFSession(lm), objectives, rendered, whole)
    session = Stored(lm, temperature) if cut.stored else HFSession(lm)
    other, others = update(student, session, objectives, rendered, cut)
    assert other == pytest.approx(loss, rel=1e-5)
    for name, expected in gradient.items():
        torch.testing.assert_close(others[name], expected, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@settings(max_examples=60)
@given(examples(), cuts, models, st.booleans(), st.sampled_from([1.0, 2.0]), st.integers(0, 99))
def test_a_student_that_equals_its_teacher_learns_exactly_nothing(
    make_student: Any, rendered: list[Rendered], cut: Cut, config: Any, tied: bool, temperature: float, seed: int
) -> None:
    student = make_student(seed=seed, tied=tied, **config)
    lm = copy.deepcopy(student.lm)
    objectives = [o for o in objectives_at(temperature) if isinstance(o, Divergence)]
    session = Stored(lm, temperature) if cut.stored else HFSession(lm)
    loss, _ = update(student, session, objectives, rendered, cut)
    if cut.stored:  # it spoke of other rows at once, and a matrix product rounds by its shape
        assert abs(loss) < 1e-6
    else:
        assert loss == 0.0
