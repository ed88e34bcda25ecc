"""What benchmarks share: each objective as its paper has it, and a median with its interval.

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

import math
import statistics

import torch
from torch import Tensor
from torch.nn import functional


def textbook(name: str, student_NV: Tensor, teacher_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Each objective as a reader of its paper would write it, sharing no code with the package."""
    if name == "cross_entropy":
        return functional.cross_entropy(student_NV, targets_N, reduction="sum")
    student, teacher = student_NV.log_softmax(-1), teacher_NV.log_softmax(-1)

    def kl(first: Tensor, second: Tensor) -> Tensor:
        return functional.kl_div(second, first, reduction="sum", log_target=True)

    if name == "forward_kl":
        return kl(teacher, student)
    if name == "reverse_kl":
        return kl(student, teacher)
    mixture = torch.logaddexp(student, teacher) - math.log(2)
    return 0.5 * kl(teacher, mixture) + 0.5 * kl(student, mixture)


def interval(values: list[float]) -> tuple[float, float]:
    """Order statistics that hold the median with 95 % probability, or the extremes where n is too small for it."""
    ordered, n = sorted(values), len(values)
    below, cut = 0.0, 0
    while (below := below + math.comb(n, cut) / 2**n) <= 0.025:
        cut += 1
    cut = max(0, cut - 1)
    return ordered[cut], ordered[n - 1 - cut]


def spread(key: str, values: list[float]) -> dict[str, float]:
    low, high = interval(values)
    return {key: statistics.median(values), f"{key}_low": low, f"{key}_high": high}
