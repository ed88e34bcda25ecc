"""What `check` foretells of condensing: memory at settings that are never tried is what they would hold."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from stillhouse.checking.metering import LiveBytes
from stillhouse.condensation._matching import Rows
from stillhouse.condensation.base import Real
from stillhouse.recipe_parts import Component
from stillhouse.studies._condensing import Task
from stillhouse.studies._condensing_costs import Costs, line


@pytest.fixture(scope="module")
def task() -> Task:
    draw = torch.Generator().manual_seed(0)
    classes_N = torch.arange(400) % 2
    real = Real(torch.randn(400, 6, 32, generator=draw), torch.ones(400, 6), torch.eye(2)[classes_N], classes_N)
    heldout = Rows(real.inputs_NTD, real.mask_NT, real.labels_NC)
    nowhere: Any = None  # no text is made of these vectors
    return Task(real, real, [""] * 400, [""] * 400, heldout, ["a", "b"], nowhere, 5)


@pytest.mark.parametrize(
    ("name", "settings", "per_class"),
    [
        ("trajectory_matching", {"student_steps": 90}, 80),
        ("gradient_matching", {"unroll": 24}, 100),
        ("distribution_matching", {"batch": 16}, 150),
    ],
)
def test_memory_beyond_what_is_tried(task: Task, name: str, settings: dict[str, Any], per_class: int) -> None:
    component = Component(name=name, settings={**settings, "rounds": 1, "steps": 1})
    foretold = Costs(task, (None, 0.0)).condensing(component, "mlp", per_class, 1)
    condenser = component.model_copy(update={"settings": {**component.settings, "per_class": per_class}})
    with LiveBytes() as live:
        condenser.build("condenser").condense(task.real, partial(task.make, "mlp"))
    assert foretold.each.bytes == pytest.approx(live.peak, rel=0.3)
    assert f"{name} for a mlp learner (per_class {per_class}" in foretold.what


def test_the_line_passes_through_what_was_tried() -> None:
    for value in (65, 100, 1000):
        tried = line(value, 64)
        assert sum(share * (3 + 2 * at) for at, share in tried) == pytest.approx(3 + 2 * value)
        assert max(at for at, _ in tried) == 64
