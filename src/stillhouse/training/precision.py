"""bfloat16 or float32: measured on the student itself, because for small models the casts can cost more than they
save."""

from __future__ import annotations

import statistics
import time
from typing import Literal

import torch

from stillhouse.data.batching import TokenBatch
from stillhouse.student import Student

_TRIALS = 3
_WORTH = 1.15
"""Speed-up below which float32 stays: bfloat16 has to pay for its rounding."""


def choose_precision(
    wanted: Literal["auto", "float32", "bfloat16"], student: Student, batch: TokenBatch
) -> tuple[torch.dtype | None, str]:
    """The autocast dtype of the updates (None for float32) and the reason.

    `auto` times a forward and backward pass of the student's body on a real batch both ways and takes the median of
    three.
    """
    if wanted == "float32":
        return None, "asked for by the recipe"
    if wanted == "bfloat16":
        return torch.bfloat16, "asked for by the recipe"
    batch = batch.to(student.lm.device)
    plain, half = _seconds(student, batch, None), _seconds(student, batch, torch.bfloat16)
    measured = (
        f"measured on a batch of {tuple(batch.tokens_BT.shape)} tokens: float32 {plain * 1e3:.0f} ms, bfloat16 "
        f"{half * 1e3:.0f} ms"
    )
    return (torch.bfloat16, measured) if plain / half >= _WORTH else (None, measured)


def _seconds(student: Student, batch: TokenBatch, dtype: torch.dtype | None) -> float:
    lm, times = student.lm, []
    for _ in range(_TRIALS + 1):
        started = time.perf_counter()
        with torch.autocast(lm.device.type, dtype=dtype, enabled=dtype is not None):
            hidden = lm.hidden(batch.tokens_BT, batch.positions_BT)
        if hidden.requires_grad:  # not where the head alone is trained
            hidden.float().sum().backward()
        if lm.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    lm.model.zero_grad(set_to_none=True)
    return statistics.median(times[1:])  # the first warms up
