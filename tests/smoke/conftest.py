"""What smoke tests share: the smallest recipe that goes through everything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tiny_recipe() -> Callable[..., dict[str, Any]]:
    """A recipe of eight problems and three updates for a teacher's folder, with sections replaced by name."""

    def make(teacher: Path, **sections: Any) -> dict[str, Any]:
        recipe = {
            "teacher": {"hf": {"model": str(teacher)}},
            "student": {
                "config": {
                    "model_type": "llama",
                    "hidden_size": 16,
                    "intermediate_size": 24,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "max_position_embeddings": 512,
                }
            },
            "data": {
                "train": {"arithmetic": {"count": 8, "steps": [2, 2], "distractors": 0.0}},
                "heldout": {"arithmetic": {"count": 6, "steps": [2, 2], "split": "heldout", "distractors": 0.0}},
            },
            "objective": [{"forward_kl": {"weight": 0.5}}, "cross_entropy"],
            "train": {
                "steps": 3,
                "lr": 1e-3,
                "tokens_per_step": 2048,
                "accumulate": 2,
                "evaluate_every": 2,
                "checkpoint_every": 1,
                "precision": "float32",
            },
            "evaluate": ["likelihood", "fidelity", "calibration", {"tasks": {"max_new_tokens": 4}}],
            "samples": 3,
        }
        return recipe | sections

    return make
