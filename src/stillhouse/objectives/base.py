"""What an objective is: student logits and a teacher's signal in, one loss per token out (contract C2).

Shapes: N tokens, V vocabulary, K support. Student first, teacher second, everywhere.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from stillhouse.data.batching import TokenSlice
from stillhouse.errors import NeedsError
from stillhouse.signals.kinds import Signal
from stillhouse.signals.support import Aligned, align


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """A loss per token. Sums and means belong to the loop; a weighted sum of objectives is a list.

    Attributes:
        weight: factor of this objective in the list's sum; `0.9 * ForwardKL()` sets it in Python.
    """

    weight: float = 1.0

    family: ClassVar[str] = "objective"
    needs: ClassVar[frozenset[str]] = frozenset()
    """What the teacher must provide, out of: text, token_logprobs, distribution, hidden_states, attentions."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(
                f"weight is {self.weight}; it must be positive (leave the objective out instead of weighting it by 0)"
            )

    @abstractmethod
    def loss(self, student_logits_NV: Tensor, signal: Signal | None, tokens: TokenSlice) -> Tensor:
        """One loss per token, unweighted, shape [N], in nats.

        Args:
            student_logits_NV: raw logits over the true vocabulary.
            signal: what the teacher says about these tokens; `None` where no objective of the run needs a teacher.
            tokens: the true next tokens and their roles.
        """

    def __rmul__(self, factor: float) -> Self:
        return dataclasses.replace(self, weight=factor * self.weight)


@dataclass(frozen=True, kw_only=True)
class Divergence(Objective):
    """An objective that compares two distributions over the next token.

    The temperature convention of the whole project: both sides are softened by `temperature`, and the divergence is
    multiplied by its square, so that gradients keep their size as the temperature grows (Hinton et al. 2015, arXiv
    1503.02531, section 2).
    """

    temperature: float = 1.0

    needs: ClassVar[frozenset[str]] = frozenset({"distribution"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be positive")

    @abstractmethod
    def divergence(self, aligned: Aligned) -> Tensor:
        """The divergence of each row, shape [N], zero exactly where both sides agree."""

    def loss(self, student_logits_NV: Tensor, signal: Signal | None, tokens: TokenSlice) -> Tensor:
        """The tempered divergence times the temperature squared."""
        if signal is None:
            raise NeedsError(f"{type(self).__name__} needs a teacher's distribution, and no teacher was given.")
        return self.temperature**2 * self.divergence(align(student_logits_NV, signal, self.temperature))
