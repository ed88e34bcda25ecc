"""What a teacher says about tokens: the kinds of signal, each a value that can be cut into rows.

Shapes: N trained tokens (rows), V the vocabulary, K kept entries, D width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from stillhouse.errors import NeedsError


class Signal(ABC):
    """A teacher's statement about N tokens. `select` cuts rows out of it without touching the others."""

    provides: ClassVar[frozenset[str]]

    @abstractmethod
    def select(self, rows_N: Tensor) -> Signal:
        """The same kind of statement about fewer tokens; `rows_N` are indices into the flattened token positions."""

    def broken(self) -> Tensor:
        """Of each token whether anything said about it is NaN; what is no number cannot be."""
        return torch.zeros(1, dtype=torch.bool)


@dataclass(frozen=True)
class Dense(Signal):
    """The full next-token distribution as logits.

    Attributes:
        logits_NV: any leading shape, last dimension the head's width, which may exceed the vocabulary (padded heads).
        vocabulary: the number of token ids the tokenizer can produce; columns beyond it are padding and are never
            looked at.
    """

    logits_NV: Tensor
    vocabulary: int | None = None
    provides: ClassVar[frozenset[str]] = frozenset({"distribution", "token_logprobs"})

    def select(self, rows_N: Tensor) -> Dense:
        """Rows of the logits."""
        return Dense(self.logits_NV.flatten(0, -2)[rows_N], self.vocabulary)

    def broken(self) -> Tensor:
        """By its logits, padding aside."""
        return self.logits_NV[..., : self.vocabulary].isnan().any(-1)


@dataclass(frozen=True)
class Headed(Signal):
    """A distribution not yet computed: hidden states and the head that turns them into logits.

    Selecting rows gives `Dense`, so that the [tokens, vocabulary] matrix exists one chunk at a time (contract C4).
    """

    hidden_ND: Tensor
    head: Callable[[Tensor], Tensor]
    vocabulary: int
    provides: ClassVar[frozenset[str]] = Dense.provides

    def select(self, rows_N: Tensor) -> Dense:
        """Logits of the chosen rows, computed now, without a gradient."""
        with torch.no_grad():
            return Dense(self.head(self.hidden_ND.flatten(0, -2)[rows_N]), self.vocabulary)

    def broken(self) -> Tensor:
        """By its hidden states."""
        return self.hidden_ND.isnan().any(-1)


@dataclass(frozen=True)
class TopK(Signal):
    """The k most likely tokens; the mass of all others is one tail bucket.

    Attributes:
        ids_NK: distinct token ids.
        logprobs_NK: their log-probabilities under the full, tempered softmax (not renormalised over the k).
        tail_N: log-probability of all other tokens together, summed directly: one minus the kept mass is rounding noise
            where a teacher is sure.
        temperature: the temperature those were computed at.
        vocabulary: as in `Dense`; with K equal to it the tail is empty and the signal is exactly the dense one.
    """

    ids_NK: Tensor
    logprobs_NK: Tensor
    tail_N: Tensor
    vocabulary: int
    temperature: float = 1.0
    provides: ClassVar[frozenset[str]] = Dense.provides

    def select(self, rows_N: Tensor) -> TopK:
        """Rows of the kept entries."""
        ids, logprobs = self.ids_NK.flatten(0, -2)[rows_N], self.logprobs_NK.flatten(0, -2)[rows_N]
        return TopK(ids, logprobs, self.tail_N.flatten()[rows_N], self.vocabulary, self.temperature)

    def broken(self) -> Tensor:
        """By its entries and the tail."""
        return self.logprobs_NK.isnan().any(-1) | self.tail_N.isnan()

    @classmethod
    def of(cls, dense: Dense, k: int, temperature: float = 1.0) -> TopK:
        """Keep the k largest entries of a dense signal.

        Raises:
            ValueError: k is larger than the vocabulary.
        """
        vocabulary = dense.vocabulary or dense.logits_NV.shape[-1]
        if not 1 <= k <= vocabulary:
            raise ValueError(f"k is {k}; it must lie between 1 and the vocabulary, which has {vocabulary} tokens")
        logprobs_NV = log_softmax(dense.logits_NV[..., :vocabulary], temperature)
        ids_NK = logprobs_NV.topk(k, dim=-1).indices
        return cls(ids_NK, *split_tail(logprobs_NV, ids_NK), vocabulary, temperature)

    def cut(self, k: int) -> TopK:
        """The k largest entries; the others join the tail.

        Raises:
            ValueError: there are fewer.

        >>> halves = TopK(torch.tensor([[4, 2]]), torch.tensor([[0.25, 0.5]]).log(), torch.tensor([0.25]).log(), 9)
        >>> halves.cut(1).ids_NK, halves.cut(1).tail_N.exp()
        (tensor([[2]]), tensor([0.5000]))
        """
        if not 1 <= k <= self.ids_NK.shape[-1]:
            raise ValueError(f"k is {k}; it must lie between 1 and the {self.ids_NK.shape[-1]} entries there are")
        if k == self.ids_NK.shape[-1]:
            return self
        logprobs_NK, order_NK = self.logprobs_NK.sort(dim=-1, descending=True)
        tail_N = torch.logaddexp(self.tail_N, logprobs_NK[..., k:].logsumexp(-1))
        ids_NK = self.ids_NK.gather(-1, order_NK)
        return TopK(ids_NK[..., :k], logprobs_NK[..., :k], tail_N, self.vocabulary, self.temperature)

    def to(self, device: str | torch.device) -> TopK:
        """The signal on another device."""
        moved = (t.to(device) for t in (self.ids_NK, self.logprobs_NK, self.tail_N))
        return TopK(*moved, self.vocabulary, self.temperature)

    @classmethod
    def join(cls, parts: Sequence[TopK]) -> TopK:
        """Signals about consecutive tokens as one."""
        ids, logprobs, tail = (torch.cat([getattr(p, n) for p in parts]) for n in ("ids_NK", "logprobs_NK", "tail_N"))
        return cls(ids, logprobs, tail, parts[0].vocabulary, parts[0].temperature)


Combine = Literal["mean", "confidence", "product"]
"""How the distributions of several teachers become one."""


@dataclass(frozen=True)
class Mixture(Signal):
    """What several teachers say together, computed for the rows that are asked for.

    `mean` is the average of the probabilities. `confidence` is their average weighted token by token with
    `1 - entropy / log V`: a teacher that is sure counts, one that guesses evenly does not. `product` is the product of
    experts, the average of the log-probabilities made a distribution again: high where all agree.

    The members speak at temperature 1, and a temperature softens the mixture, not them.

    Attributes:
        members: what each says about the same tokens; rows of each must be `Dense`, over one vocabulary.
        vocabulary: as in `Dense`.
        combine: which of the three.
    """

    members: tuple[Signal, ...]
    vocabulary: int
    combine: Combine = "mean"
    provides: ClassVar[frozenset[str]] = Dense.provides

    def select(self, rows_N: Tensor) -> Dense:
        """The mixture's log-probabilities of the chosen rows, without a gradient; two members' exist at once."""
        with torch.no_grad():
            total_NV = self._weighed(self.members[0], rows_N)
            for member in self.members[1:]:
                part_NV = self._weighed(member, rows_N)
                total_NV = total_NV.add_(part_NV) if self.combine == "product" else torch.logaddexp(total_NV, part_NV)
            if self.combine == "product":
                total_NV /= len(self.members)
            return Dense(log_softmax(total_NV, 1.0), self.vocabulary)

    def _weighed(self, member: Signal, rows_N: Tensor) -> Tensor:
        """A member's log-probabilities, each row's with the logarithm of its weight added; scaling is left for last."""
        rows = member.select(rows_N)
        if not isinstance(rows, Dense):
            raise NeedsError(
                f"A mixture needs whole distributions; one of its teachers gives {type(rows).__name__}. Leave that "
                "teacher out, or ask it live."
            )
        logprobs_NV = log_softmax(rows.logits_NV[..., : self.vocabulary], 1.0)
        if self.combine != "confidence":
            return logprobs_NV
        entropy_N = -(logprobs_NV.exp() * logprobs_NV.clamp_min(-1e4)).sum(-1, keepdim=True)
        confidence_N = (1 - entropy_N / math.log(self.vocabulary)).clamp_min(1e-6)  # all even: all count alike
        return logprobs_NV + confidence_N.log()

    def broken(self) -> Tensor:
        """By any of the members."""
        return torch.stack([member.broken() for member in self.members]).any(0)


def log_softmax(logits_NV: Tensor, temperature: float) -> Tensor:
    """Tempered log-probabilities, in float32 at least: in bfloat16 the normaliser of a large vocabulary loses the loss
    itself; float64 stays for the tests."""
    wide = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    return torch.log_softmax(wide if temperature == 1 else wide / temperature, dim=-1)


def split_tail(logprobs_NV: Tensor, ids_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the kept tokens, and of all others together."""
    return logprobs_NV.gather(-1, ids_NK), logprobs_NV.scatter(-1, ids_NK, -torch.inf).logsumexp(-1)
