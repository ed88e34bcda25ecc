"""Rendered examples become batches, padded or packed: the order fixed by a seed, resumable at any batch, shared among
processes.

Shapes: B rows, T tokens (the longest row of the batch), N selected token positions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.data.rendering import Rendered, Role
from stillhouse.data.tokens import lengths
from stillhouse.data.tokens import weights as example_weights
from stillhouse.errors import DataError

Row = int | list[int]
"""What stands in a row of a batch: an example by its number, or several."""

_WINDOW = 32
"""Batches whose examples are sorted by length together: enough to save padding, few enough to stay shuffled."""


class TokenSlice(NamedTuple):
    """Facts about N token positions: the next token of each, its role, and what it counts where that is not 1."""

    targets_N: Tensor
    role_N: Tensor
    weight_N: Tensor | None = None

    def cut(self, rows: slice) -> TokenSlice:
        """Those of some positions."""
        weight_N = None if self.weight_N is None else self.weight_N[rows]
        return TokenSlice(self.targets_N[rows], self.role_N[rows], weight_N)


class Span(NamedTuple):
    """Where an example stands in a batch: its row, and from which token to before which."""

    row: int
    start: int
    stop: int


@dataclass(frozen=True)
class TokenBatch:
    """Examples as tensors, one a row or packed several to a row. Padding stands on the right and is never trained on.

    No example sees another one: attention is causal, and where positions begin again at 0 a new example begins, which
    the model is told (`CausalLM.hidden`).

    Attributes:
        ids: the examples' ids.
        spans: where each of them stands.
        tokens_BT: inputs.
        targets_BT: the token after each input.
        trained_BT: whether that prediction counts.
        role_BT: `data.rendering.Role` of the target.
        positions_BT: place of each token in its example; padding counts on.
        sizes: bytes of text behind each example's trained targets.
        role_weights_R: what each role counts in the loss, shape [4]; None where all tokens count alike. A stream says
            what the mean over a role's tokens is to count; the loop, which knows the whole update, makes of it what one
            token counts.
        weights_BT: what each token counts in the loss besides, by the weight of its example; None where all count 1.
    """

    ids: tuple[str, ...]
    spans: tuple[Span, ...]
    tokens_BT: Tensor
    targets_BT: Tensor
    trained_BT: Tensor
    role_BT: Tensor
    positions_BT: Tensor
    sizes: tuple[int, ...]
    role_weights_R: Tensor | None = None
    weights_BT: Tensor | None = None

    @classmethod
    def of(cls, rendered: Sequence[Rendered], device: str | torch.device = "cpu") -> TokenBatch:
        """One example a row, padded to the longest of them."""
        return cls.packed([[r] for r in rendered], device)

    @classmethod
    def packed(cls, rows: Sequence[Sequence[Rendered]], device: str | torch.device = "cpu") -> TokenBatch:
        """Several examples a row, one behind the other, padded to the longest row."""
        width = max(sum(len(r.tokens) for r in row) for row in rows)
        spans: list[Span] = []
        for number, row in enumerate(rows):
            start = 0
            for r in row:
                spans.append(Span(number, start, start := start + len(r.tokens)))

        def stack(name: str, dtype: torch.dtype) -> Tensor:
            joined = [[value for r in row for value in getattr(r, name)] for row in rows]
            padded = [values + [0] * (width - len(values)) for values in joined]
            return torch.tensor(padded, dtype=dtype, device=device)

        return cls(
            ids=tuple(r.id for row in rows for r in row),
            spans=tuple(spans),
            tokens_BT=stack("tokens", torch.long),
            targets_BT=stack("targets", torch.long),
            trained_BT=stack("trained", torch.bool),
            role_BT=stack("role", torch.uint8),
            positions_BT=_positions(spans, len(rows), width).to(device),
            sizes=tuple(r.size for row in rows for r in row),
        )

    def trained_rows(self) -> Tensor:
        """Indices of the trained positions in the flattened [B * T] order, shape [N]."""
        return self.trained_BT.flatten().nonzero().squeeze(1)

    def trained_rows_of(self, example: int) -> Tensor:
        """Those of one example, counted as `ids` are."""
        row, start, stop = self.spans[example]
        return self.trained_BT[row, start:stop].nonzero().squeeze(1) + row * self.trained_BT.shape[1] + start

    def examples_BT(self) -> Tensor:
        """Which example each position belongs to, counted as `ids` are; -1 where there is padding."""
        owner_BT = torch.full(self.tokens_BT.shape, -1, dtype=torch.long, device=self.tokens_BT.device)
        for example, (row, start, stop) in enumerate(self.spans):
            owner_BT[row, start:stop] = example
        return owner_BT

    def select(self, rows_N: Tensor) -> TokenSlice:
        """Targets, roles and weights at flattened positions."""
        weight_N = None if self.weights_BT is None else self.weights_BT.flatten()[rows_N]
        return TokenSlice(self.targets_BT.flatten()[rows_N], self.role_BT.flatten()[rows_N], weight_N)

    def weighted(self, weights: Sequence[float]) -> TokenBatch:
        """The batch with what each of its examples counts in the loss."""
        each = torch.tensor([*weights, 1.0], device=self.tokens_BT.device)  # the last for padding, which is -1
        return dataclasses.replace(self, weights_BT=each[self.examples_BT()])

    def digest(self, example: int) -> bytes:
        """A hash of one example's tokens and of which of them are trained; its neighbours do not count."""
        row, start, stop = self.spans[example]
        ids = torch.stack([self.tokens_BT[row, start:stop], self.targets_BT[row, start:stop]]).int().cpu().numpy()
        trained = self.trained_BT[row, start:stop].cpu().numpy()
        return hashlib.blake2b(ids.astype("<i4").tobytes() + trained.tobytes(), digest_size=8).digest()

    def trained_count(self) -> int:
        """How many predictions count."""
        return int(self.trained_BT.sum())

    def trained_by_role(self) -> Tensor:
        """How many predictions of each role count, shape [4]."""
        return torch.bincount(self.role_BT[self.trained_BT].long(), minlength=len(Role))

    def real_count(self) -> int:
        """How many tokens are no padding."""
        return sum(stop - start for _, start, stop in self.spans)

    def to(self, device: str | torch.device) -> TokenBatch:
        """The batch on another device."""
        names = ("tokens_BT", "targets_BT", "trained_BT", "role_BT", "positions_BT", "role_weights_R", "weights_BT")
        moved = {name: value.to(device) for name in names if (value := getattr(self, name)) is not None}
        return dataclasses.replace(self, **moved)


def _positions(spans: Sequence[Span], rows: int, width: int) -> Tensor:
    """Counted from the beginning of the example that a token belongs to, or that it follows as padding."""
    starts_BT = torch.zeros(rows, width, dtype=torch.long)
    for row, start, _ in spans:
        starts_BT[row, start:] = start
    return torch.arange(width) - starts_BT


class Batches:
    """An endless, reproducible stream of batches, each at most `tokens_per_batch` tokens including padding.

    Every epoch shuffles anew from the seed, sorts by length within windows, fills batches and shuffles those.
    `state_dict` is two numbers, so that a stream continues at any batch, on any machine. Several processes share one
    stream by turns: with `turn=(1, 2)` this one takes every second batch, and all of them stand at the same place
    after each round. Examples that stand for several (`Rendered.weight`) count in the loss as many times the mean.

    Args:
        rendered: the examples as tokens.
        tokens_per_batch: of one batch.
        seed: of the order.
        packing: put several examples into a row as long as the longest of them, instead of one padded to it.
        turn: number of this process and how many there are.
        role_weights: what the mean loss over each role's tokens counts, nothing for one that is not named; None for one
            mean over all tokens.

    Raises:
        DataError: no examples, or one that is longer than a whole batch.
    """

    def __init__(
        self,
        rendered: Sequence[Rendered],
        *,
        tokens_per_batch: int,
        seed: int = 0,
        packing: bool = False,
        turn: tuple[int, int] = (0, 1),
        role_weights: Mapping[Role, float] | None = None,
    ) -> None:
        if not rendered:
            raise DataError("There are no examples to make batches of: all were dropped, or the source is empty.")
        self._lengths = lengths(rendered).tolist()
        self._longest = max(self._lengths)
        if self._longest > tokens_per_batch:
            name = rendered[self._lengths.index(self._longest)].id
            raise DataError(
                f"Example {name!r} has {self._longest} tokens, a batch holds {tokens_per_batch}. Raise "
                "train.tokens_per_step, lower train.accumulate, or set data.max_length."
            )
        self.rendered = rendered
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed
        self.packing = packing
        self.turn = turn
        weights = None if role_weights is None else [role_weights.get(role, 0.0) for role in Role]
        self._role_weights_R = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        self._weights = _relative(example_weights(rendered))
        self._epoch, self._position = 0, 0
        self._plan = self._make_plan(0)

    def __iter__(self) -> Iterator[TokenBatch]:
        return self

    def __next__(self) -> TokenBatch:
        mine, processes = self.turn
        chosen = [self._advance() for _ in range(processes)][mine]
        rows = [[row] if isinstance(row, int) else row for row in chosen]
        batch = TokenBatch.packed([[self.rendered[i] for i in row] for row in rows])
        if self._weights is not None:
            batch = batch.weighted([self._weights[i] for row in rows for i in row])
        return dataclasses.replace(batch, role_weights_R=self._role_weights_R)

    def batches_per_epoch(self) -> int:
        """Batches of the current epoch, for all processes together; shuffling makes it vary by a few."""
        return len(self._plan)

    def state_dict(self) -> dict[str, int]:
        """Where the stream stands: epoch, and batches already given out in it."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state_dict` was taken."""
        self._epoch, self._position = state["epoch"], state["position"]
        self._plan = self._make_plan(self._epoch)

    def _advance(self) -> Sequence[Row]:
        if self._position == len(self._plan):
            self._epoch, self._position = self._epoch + 1, 0
            self._plan = self._make_plan(self._epoch)
        self._position += 1
        return self._plan[self._position - 1]

    def _make_plan(self, epoch: int) -> list[Sequence[Row]]:
        draw = random.Random(f"{self.seed}/{epoch}")
        order = list(range(len(self._lengths)))
        draw.shuffle(order)
        mean = sum(self._lengths) / len(self._lengths)
        span = max(1, int(_WINDOW * self.tokens_per_batch / mean))
        plan: list[Sequence[Row]] = []
        for start in range(0, len(order), span):
            window = order[start : start + span]
            if self.packing:
                plan += pack(window, self._lengths, self._longest, self.tokens_per_batch)
            else:
                alike = sorted(window, key=self._lengths.__getitem__)
                plan += fill(alike, self._lengths, self.tokens_per_batch)
        draw.shuffle(plan)
        return plan


def _relative(weights_E: NDArray[np.float64]) -> list[float] | None:
    """Weights as shares of their mean, so that the learning rate means the same with and without them; None where all
    are alike."""
    if (weights_E == weights_E[0]).all():
        return None
    return (weights_E / weights_E.mean()).tolist()


def pack(window: Sequence[int], sizes: Sequence[int], width: int, budget: int) -> list[list[list[int]]]:
    """Batches of rows of `width` tokens, each filled with the examples that still fit, longest first (first-fit
    decreasing, which needs about 11/9 of the fewest rows: Johnson 1973).

    >>> pack([0, 1, 2, 3], [2, 4, 1, 1], width=4, budget=8)
    [[[1], [0, 2, 3]]]
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(window, key=sizes.__getitem__, reverse=True):
        place = next((n for n, free in enumerate(room) if free >= sizes[i]), None)
        if place is None:
            place = len(rows)
            rows.append([])
            room.append(width)
        rows[place].append(i)
        room[place] -= sizes[i]
    count = max(1, budget // width)
    return [rows[start : start + count] for start in range(0, len(rows), count)]


def fill(order: Sequence[int], sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Cut an order into batches of at most `budget` tokens, padding counted.

    >>> fill([0, 1, 2], [2, 3, 4], budget=6)
    [[0, 1], [2]]
    """
    batches: list[list[int]] = []
    widest = 0
    for i in order:
        widest = max(widest, sizes[i])
        if batches and widest * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
            widest = sizes[i]
    return batches


def pass_in_order(rendered: Sequence[Rendered], tokens_per_batch: int = 16384) -> list[list[int]]:
    """The examples of each batch of one pass over all, shortest first."""
    sizes = lengths(rendered).tolist()
    order = sorted(range(len(rendered)), key=sizes.__getitem__)
    return fill(order, sizes, max(tokens_per_batch, max(sizes, default=0)))


def in_order(rendered: Sequence[Rendered], tokens_per_batch: int = 16384) -> Iterator[TokenBatch]:
    """One pass over all examples, shortest first, for evaluation; callers find examples by the batch's `ids`."""
    for chosen in pass_in_order(rendered, tokens_per_batch):
        yield TokenBatch.of([rendered[i] for i in chosen])
