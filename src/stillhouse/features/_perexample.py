"""The gradient of each example, from one backward pass of their summed losses: what went into a layer and the gradient
of what came out are enough for all of them.

No gradient is whole at any time: it is made a few rows of a weight at a time, for whoever adds them to a sketch.

Shapes: B rows of a batch (one example each), E examples, T tokens, R rows and C columns of a parameter (C is 1 for a
vector), D width of a layer's input, S the most trained tokens of a row, V head width, N trained tokens.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from transformers.pytorch_utils import Conv1D

from stillhouse.data.batching import TokenBatch
from stillhouse.errors import ModelError
from stillhouse.models import CausalLM
from stillhouse.objectives.base import Objective
from stillhouse.signals.kinds import Signal

_NUMBERS = 2**22
"""Of all gradients at once: 16 MiB in float32."""


def weighted_loss(
    lm: CausalLM, batch: TokenBatch, signal: Signal | None, objectives: Sequence[Objective], weights_B: Tensor
) -> Tensor:
    """The weighted objectives summed over a batch's trained tokens, each token times the weight of its row.

    The head sees the trained tokens of each row side by side, [B, S], so that rows stay apart in it as well.
    """
    counts_B = batch.trained_BT.sum(1)
    mask_BS = torch.arange(int(counts_B.max()), device=counts_B.device) < counts_B[:, None]
    places_BS = torch.argsort(batch.trained_BT.logical_not(), dim=1, stable=True)[:, : mask_BS.shape[1]]
    hidden_BTD = lm.hidden(batch.tokens_BT, batch.positions_BT)
    logits_BSV = lm.head(hidden_BTD.take_along_dim(places_BS[..., None], dim=1))
    logits_NV = logits_BSV[mask_BS][:, : lm.vocabulary]
    rows_N = batch.trained_rows()
    said = None if signal is None else signal.select(rows_N)
    tokens = batch.select(rows_N)
    losses_N = torch.stack([o.weight * o.loss(logits_NV, said, tokens) for o in objectives]).sum(0)
    return (losses_N * weights_B.to(losses_N.dtype).repeat_interleave(counts_B)).sum()


@dataclass(frozen=True)
class Product:
    """A part of a gradient, `left^T right` of each row of the batch."""

    left_BTR: Tensor
    right_BTC: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        """[B, stop - start, C]."""
        return self.left_BTR[:, :, start:stop].mT @ self.right_BTC

    def columns(self, ids_BT: Tensor) -> Tensor:
        """What its left factor says of each of a row's ids, [B, T, T of the ids]."""
        return self.left_BTR.gather(2, ids_BT[:, None].expand(-1, self.left_BTR.shape[1], -1))


@dataclass(frozen=True)
class Lookup:
    """The part of an embedding's gradient that comes from looking rows up."""

    ids_BT: Tensor
    right_BTC: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        """[B, stop - start, C]."""
        inside_BT = (self.ids_BT >= start) & (self.ids_BT < stop)
        places_BT = torch.where(inside_BT, self.ids_BT - start, 0)
        values_BTC = self.right_BTC * inside_BT[..., None]
        rows_BRC = values_BTC.new_zeros(len(values_BTC), stop - start, values_BTC.shape[2])
        return rows_BRC.scatter_add_(1, places_BT[..., None].expand_as(values_BTC), values_BTC)


Part = Product | Lookup


def _inner(one: Part, other: Part) -> Tensor:
    """The inner product of two parts of a gradient, for each row of the batch, [B], without forming either."""
    if isinstance(one, Lookup) and isinstance(other, Product):
        return _inner(other, one)
    if isinstance(one, Product):
        left = one.left_BTR @ other.left_BTR.mT if isinstance(other, Product) else one.columns(other.ids_BT)
    else:
        assert isinstance(other, Lookup)
        left = one.ids_BT[:, :, None] == other.ids_BT[:, None]
    return (left * (one.right_BTC @ other.right_BTC.mT)).sum((1, 2))


@dataclass
class Gradient:
    """The gradient of one parameter by each row of a batch, as the sum of its parts.

    Attributes:
        parameter: whose it is.
        parts: one for each use of the parameter in the forward pass; a tied matrix has two.
    """

    parameter: Tensor
    parts: list[Part] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns; a vector is one column."""
        return len(self.parameter), self.parameter[0].numel()

    def blocks(self, owners_B: Tensor, examples: int, *, whole: bool) -> Iterator[tuple[int, Tensor]]:
        """All coordinates in order, a few rows of the parameter at a time: the first one's number, and [E, numbers].

        Args:
            owners_B: of each row of the batch, which example it belongs to; ascending.
            examples: E.
            whole: whether rows must come that are zero for all, such as those of tokens that occur nowhere.
        """
        rows, columns = self.shape
        for start, stop in self._spans(max(1, _NUMBERS // (len(owners_B) * columns)), rows, whole):
            formed = reduce(torch.add, (part.rows(start, stop) for part in self.parts)).flatten(1)
            if examples < len(owners_B):
                formed = formed.new_zeros(examples, formed.shape[1]).index_add_(0, owners_B, formed)
            yield start * columns, formed

    def _spans(self, size: int, rows: int, whole: bool) -> Iterator[tuple[int, int]]:
        lookups = [part.ids_BT for part in self.parts if isinstance(part, Lookup)]
        if whole or len(lookups) < len(self.parts):
            yield from ((start, min(start + size, rows)) for start in range(0, rows, size))
        else:
            used = torch.cat([ids.flatten() for ids in lookups]).unique().tolist()
            yield from ((row, row + 1) for row in used)

    def squares(self, owners_B: Tensor, examples: int) -> Tensor:
        """The squared norm of each example's gradient, [E], arguments as `blocks` has them.

        Where each example is one row, and tokens are fewer than the parameter's sides, nothing is formed: the ghost
        norm (Goodfellow 2015, arXiv 1510.01799; Li et al. 2021, arXiv 2110.05679).
        """
        rows, columns = self.shape
        inner = sum(len(one.right_BTC[0]) * len(other.right_BTC[0]) for one in self.parts for other in self.parts)
        if examples == len(owners_B) and inner <= rows * columns:
            found = reduce(torch.add, (_inner(one, other) for one in self.parts for other in self.parts))
            return found.clamp(min=0)  # of a tied matrix cross terms are negative, and rounding may win
        blocks = (values_EN for _, values_EN in self.blocks(owners_B, examples, whole=False))
        return reduce(torch.add, (values_EN.square().sum(1) for values_EN in blocks))


@dataclass
class _Call:
    """One call of a module: what went in, and where in the graph its output's gradient will be."""

    module: nn.Module
    given: Tensor
    edge: Any


def batch_gradients(
    lm: CausalLM,
    parameters: Mapping[str, nn.Parameter],
    batch: TokenBatch,
    signal: Signal | None,
    objectives: Sequence[Objective],
    weights_B: Tensor,
) -> dict[str, Gradient]:
    """The gradient of each row's loss (`weighted_loss` cut into rows) by some parameters of a model.

    One forward pass and one backward pass, which goes no deeper than the first layer that was asked for; no gradient of
    a weight is computed in it. Dropout is off.

    Raises:
        ModelError: a parameter of a layer that is not understood, or that the loss does not depend on.
    """
    wanted = {id(p): name for name, p in parameters.items()}
    found = {name: Gradient(p) for name, p in parameters.items()}
    with lm.inference(), _watched(lm.model, wanted, len(weights_B)) as calls:
        loss = weighted_loss(lm, batch, signal, objectives, weights_B)
        grads = torch.autograd.grad(loss, [call.edge for call in calls], allow_unused=True) if calls else ()
    for call, grad in zip(calls, grads, strict=True):
        if grad is None:
            continue
        for name, parameter in call.module.named_parameters(recurse=False):
            if id(parameter) in wanted:
                found[wanted[id(parameter)]].parts.append(_part(call, name, grad))
    if lost := next((name for name, gradient in found.items() if not gradient.parts), None):
        raise ModelError(
            f"The loss does not depend on {lost} in a way that is understood, so that it has no gradient. Choose other "
            "layers."
        )
    return found


@contextmanager
def _watched(model: nn.Module, wanted: Mapping[int, str], rows: int) -> Generator[list[_Call], None, None]:
    """Note every call of the modules that own what is wanted; no weight is part of the graph meanwhile."""
    calls: list[_Call] = []

    def note(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        _require_layer(module, given, output, rows)
        if not output.requires_grad:  # the first layer that was asked for: the graph begins here
            output.requires_grad_()
        calls.append(_Call(module, given[0].detach(), get_gradient_edge(output)))

    owners = [m for m in model.modules() if any(id(p) in wanted for p in m.parameters(recurse=False))]
    trained = [p for p in model.parameters() if p.requires_grad]
    with ExitStack() as stack:
        for owner in owners:
            stack.callback(owner.register_forward_hook(note).remove)
        for parameter in trained:
            stack.callback(parameter.requires_grad_, True)
            parameter.requires_grad_(False)
        yield calls


def _require_layer(module: nn.Module, given: tuple[Any, ...], output: Any, rows: int) -> None:
    """Refuse a layer whose examples would be mixed up, or whose gradient is none that is known here."""
    known = type(module).forward in (nn.Linear.forward, Conv1D.forward, nn.Embedding.forward)
    vectors = all(parameter.ndim == 1 for parameter in module.parameters(recurse=False))
    apart = len(given) == 1 and isinstance(given[0], Tensor) and isinstance(output, Tensor)
    if not apart or output.ndim < 3 or len(given[0]) != rows or not (known or vectors):
        raise ModelError(
            f"The gradients of single examples by {type(module).__name__} are not known: it is not a linear layer, an "
            "embedding or a norm, or it mixes the rows of a batch. Choose layers by name that leave it out, or "
            "all-linear."
        )


def _part(call: _Call, name: str, grad: Tensor) -> Part:
    module, given = call.module, call.given
    if isinstance(module, nn.Embedding):
        here = given != (-1 if module.padding_idx is None else module.padding_idx)
        return Lookup(given, grad * here[..., None])
    if not isinstance(module, nn.Linear | Conv1D):
        return _run_again(call, name, grad)
    given, grad = given.flatten(1, -2), grad.flatten(1, -2)
    if name == "bias":
        return Product(grad, torch.ones_like(grad[..., :1]))
    return Product(grad, given) if isinstance(module, nn.Linear) else Product(given, grad)


def _run_again(call: _Call, name: str, grad: Tensor) -> Product:
    """The gradient of any other layer, such as a norm: run again, one row at a time. It is small."""
    values = []
    parameter = call.module.get_parameter(name).detach().requires_grad_()
    for given, along in zip(call.given.split(1), grad.split(1), strict=True):
        with torch.enable_grad():
            output = torch.func.functional_call(call.module, {name: parameter}, (given,))
        values.append(torch.autograd.grad(output, parameter, along)[0].reshape(1, 1, -1))
    left_BTR = torch.cat(values)
    return Product(left_BTR, torch.ones_like(left_BTR[..., :1]))
