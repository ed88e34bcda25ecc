"""Stillhouse: distil language models and data sets, and prove that it helped.

Names below load what they need on first use, so that `import stillhouse` stays light (no torch).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stillhouse.errors import did_you_mean

if TYPE_CHECKING:
    from stillhouse.data.batching import Batches
    from stillhouse.objectives.cross_entropy import CrossEntropy
    from stillhouse.objectives.forward_kl import ForwardKL
    from stillhouse.objectives.generalized_jsd import GeneralizedJSD
    from stillhouse.objectives.reverse_kl import ReverseKL
    from stillhouse.recipe import LoRA
    from stillhouse.records import Example
    from stillhouse.shortcuts import batches, problems, read
    from stillhouse.student import Student
    from stillhouse.teachers.hf import HFTeacher
    from stillhouse.training.loop import Compute, Step, train
    from stillhouse.training.optim import Optim

_HOME = {
    "Batches": "stillhouse.data.batching",
    "Compute": "stillhouse.training.loop",
    "CrossEntropy": "stillhouse.objectives.cross_entropy",
    "Example": "stillhouse.records",
    "ForwardKL": "stillhouse.objectives.forward_kl",
    "GeneralizedJSD": "stillhouse.objectives.generalized_jsd",
    "HFTeacher": "stillhouse.teachers.hf",
    "LoRA": "stillhouse.recipe",
    "Optim": "stillhouse.training.optim",
    "ReverseKL": "stillhouse.objectives.reverse_kl",
    "Step": "stillhouse.training.loop",
    "Student": "stillhouse.student",
    "batches": "stillhouse.shortcuts",
    "problems": "stillhouse.shortcuts",
    "read": "stillhouse.shortcuts",
    "train": "stillhouse.training.loop",
}

__version__ = "0.1.0"
__all__ = [
    "Batches",
    "Compute",
    "CrossEntropy",
    "Example",
    "ForwardKL",
    "GeneralizedJSD",
    "HFTeacher",
    "LoRA",
    "Optim",
    "ReverseKL",
    "Step",
    "Student",
    "batches",
    "problems",
    "read",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"stillhouse has no {name!r}. {did_you_mean(name, _HOME)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
