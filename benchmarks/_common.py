"""What benchmarks of the loss share: its inputs, our way to compute it, each objective as its paper has it, and a
median with its interval.

Shapes: N tokens, D width, V vocabulary.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass
class Inputs:
    """What every contender is given: hidden states for both models, two heads, and the true tokens."""

    hidden_ND: Tensor
    student_VD: Tensor
    teacher_VD: Tensor
    targets_N: Tensor

    @classmethod
    def of(
        cls,
        tokens: int,
        width: int,
        vocabulary: int,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> Inputs:
        """Logits are about standard normal."""
        draws = torch.Generator(device).manual_seed(seed)
        make: dict[str, Any] = {"generator": draws, "device": device, "dtype": dtype}
        hidden = torch.randn(tokens, width, **make).requires_grad_()
        student, teacher = (torch.randn(vocabulary, width, **make).div_(width**0.5) for _ in range(2))
        targets = torch.randint(vocabulary, (tokens,), generator=draws, device=device)
        return cls(hidden, student.requires_grad_(), teacher, targets)

    def gradients(self) -> list[Tensor]:
        """Of the hidden states and of the student's head."""
        found = [self.hidden_ND.grad, self.student_VD.grad]
        assert found[0] is not None
        assert found[1] is not None
        return [g for g in found if g is not None]

    def forget(self) -> None:
        """Drop the gradients, as an optimizer does between updates."""
        self.hidden_ND.grad = self.student_VD.grad = None


def chunked(
    inputs: Inputs, objective: Any, chunk: int | None = None, *, compiled: bool | None = None, signal: Any = None
) -> Tensor:
    """Our loss, with a graph. Imported here, so that the processes of other contenders do not carry this package."""
    from stillhouse.data.batching import Span, TokenBatch
    from stillhouse.signals import Headed
    from stillhouse.training.chunking import batch_loss, choose_chunk

    tokens, vocabulary = len(inputs.hidden_ND), len(inputs.student_VD)
    row = torch.zeros(1, tokens, dtype=torch.long, device=inputs.hidden_ND.device)
    spans = (Span(0, 0, tokens),)
    batch = TokenBatch(("all",), spans, row, inputs.targets_N[None], row == 0, row.byte(), row, (tokens,))
    lm: Any = SimpleNamespace(
        head=lambda h: functional.linear(h, inputs.student_VD),
        vocabulary=vocabulary,
        head_parameters=lambda: [inputs.student_VD],
    )
    hidden = inputs.hidden_ND[None]
    if signal is None and objective.needs:
        signal = Headed(hidden.detach(), lambda h: functional.linear(h, inputs.teacher_VD), vocabulary)
    chunk = chunk or choose_chunk(vocabulary, hidden.device.type)[0]
    return batch_loss(lm, hidden, batch, signal, [objective], chunk, compiled=compiled).total


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
