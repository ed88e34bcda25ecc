"""Rendered examples become padded batches: alike lengths together, the order fixed by a seed, resumable at any batch.

Shapes: B sequences, T tokens (the longest of the batch), N selected token positions.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stillhouse.data.rendering import Rendered
from stillhouse.errors import DataError

_WINDOW = 32
"""Batches whose examples are sorted by length together: enough to save padding, few enough to stay shuffled."""


class TokenSlice(NamedTuple):
    """Facts about N token positions: the next token of each, and its role."""

    targets_N: Tensor
    role_N: Tensor


@dataclass(frozen=True)
class TokenBatch:
    """A padded batch. Padding stands on the right, is never attended to and never trained on.

    Attributes:
        ids: the examples' ids, B of them.
        tokens_BT: inputs.
        targets_BT: the token after each input.
        trained_BT: whether that prediction counts.
        role_BT: `data.rendering.Role` of the target.
        attention_BT: 1 at real tokens.
        sizes: bytes of text behind each example's trained targets.
    """

    ids: tuple[str, ...]
    tokens_BT: Tensor
    targets_BT: Tensor
    trained_BT: Tensor
    role_BT: Tensor
    attention_BT: Tensor
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, rendered: Sequence[Rendered], device: str | torch.device = "cpu") -> TokenBatch:
        """Pad examples to the longest of them."""
        width = max(len(r.tokens) for r in rendered)

        def stack(rows: list[list[Any]], dtype: torch.dtype) -> Tensor:
            return torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=dtype, device=device)

        return cls(
            ids=tuple(r.id for r in rendered),
            tokens_BT=stack([r.tokens for r in rendered], torch.long),
            targets_BT=stack([r.targets for r in rendered], torch.long),
            trained_BT=stack([r.trained for r in rendered], torch.bool),
            role_BT=stack([r.role for r in rendered], torch.uint8),
            attention_BT=stack([[1] * len(r.tokens) for r in rendered], torch.long),
            sizes=tuple(r.size for r in rendered),
        )

    def trained_rows(self) -> Tensor:
        """Indices of the trained positions in the flattened [B * T] order, shape [N]."""
        return self.trained_BT.flatten().nonzero().squeeze(1)

    def select(self, rows_N: Tensor) -> TokenSlice:
        """Targets and roles at flattened positions."""
        return TokenSlice(self.targets_BT.flatten()[rows_N], self.role_BT.flatten()[rows_N])

    def digest(self, row: int) -> bytes:
        """A hash of one example's tokens and of which of them are trained; padding does not count."""
        length = int(self.attention_BT[row].sum())
        ids = torch.stack([self.tokens_BT[row, :length], self.targets_BT[row, :length]]).int().cpu().numpy()
        trained = self.trained_BT[row, :length].cpu().numpy()
        return hashlib.blake2b(ids.astype("<i4").tobytes() + trained.tobytes(), digest_size=8).digest()

    def trained_count(self) -> int:
        """How many predictions count."""
        return int(self.trained_BT.sum())

    def to(self, device: str | torch.device) -> TokenBatch:
        """The batch on another device."""
        names = ("tokens_BT", "targets_BT", "trained_BT", "role_BT", "attention_BT")
        moved = {name: getattr(self, name).to(device) for name in names}
        return TokenBatch(ids=self.ids, sizes=self.sizes, **moved)


class Batches:
    """An endless, reproducible stream of padded batches, each at most `tokens_per_batch` tokens including padding.

    Every epoch shuffles anew from the seed, sorts by length within windows, fills batches and shuffles those.
    `state_dict` is two numbers, so that a stream continues at any batch, on any machine.

    Raises:
        DataError: no examples, or one that is longer than a whole batch.
    """

    def __init__(self, rendered: Sequence[Rendered], *, tokens_per_batch: int, seed: int = 0) -> None:
        if not rendered:
            raise DataError("There are no examples to make batches of: all were dropped, or the source is empty.")
        longest = max(rendered, key=lambda r: len(r.tokens))
        if len(longest.tokens) > tokens_per_batch:
            raise DataError(
                f"Example {longest.id!r} has {len(longest.tokens)} tokens, a batch holds {tokens_per_batch}. Raise "
                "train.tokens_per_step, lower train.accumulate, or set data.max_length."
            )
        self.rendered = rendered
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed
        self._epoch, self._position = 0, 0
        self._plan = self._make_plan(0)

    def __iter__(self) -> Iterator[TokenBatch]:
        return self

    def __next__(self) -> TokenBatch:
        if self._position == len(self._plan):
            self._epoch, self._position = self._epoch + 1, 0
            self._plan = self._make_plan(self._epoch)
        chosen = self._plan[self._position]
        self._position += 1
        return TokenBatch.of([self.rendered[i] for i in chosen])

    def batches_per_epoch(self) -> int:
        """Batches of the current epoch; shuffling makes it vary by a few."""
        return len(self._plan)

    def state_dict(self) -> dict[str, int]:
        """Where the stream stands: epoch, and batches already given out in it."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state_dict` was taken."""
        self._epoch, self._position = state["epoch"], state["position"]
        self._plan = self._make_plan(self._epoch)

    def _make_plan(self, epoch: int) -> list[list[int]]:
        draw = random.Random(f"{self.seed}/{epoch}")
        order = list(range(len(self.rendered)))
        draw.shuffle(order)
        mean = sum(len(r.tokens) for r in self.rendered) / len(self.rendered)
        span = max(1, int(_WINDOW * self.tokens_per_batch / mean))
        plan: list[list[int]] = []
        for start in range(0, len(order), span):
            window = sorted(order[start : start + span], key=lambda i: len(self.rendered[i].tokens))
            plan += fill(window, [len(r.tokens) for r in self.rendered], self.tokens_per_batch)
        draw.shuffle(plan)
        return plan


def fill(order: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut an order into batches of at most `budget` tokens, padding counted.

    >>> fill([0, 1, 2], [2, 3, 4], budget=6)
    [[0, 1], [2]]
    """
    batches: list[list[int]] = []
    widest = 0
    for i in order:
        widest = max(widest, lengths[i])
        if batches and widest * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
            widest = lengths[i]
    return batches


def in_order(rendered: Sequence[Rendered], tokens_per_batch: int = 16384) -> Iterator[TokenBatch]:
    """One pass over all examples, shortest first, for evaluation; callers find examples by the batch's `ids`."""
    lengths = [len(r.tokens) for r in rendered]
    order = sorted(range(len(rendered)), key=lambda i: lengths[i])
    for chosen in fill(order, lengths, max(tokens_per_batch, max(lengths, default=0))):
        yield TokenBatch.of([rendered[i] for i in chosen])
