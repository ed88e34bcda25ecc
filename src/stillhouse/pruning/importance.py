"""What of a model is important, by its activations on calibration text.

As in Minitron (Muralidharan et al. 2024, arXiv 2407.14679), the importance of a head, a channel or a dimension of the
residual stream is the L2 norm over sequences of the mean size of its activation over a sequence's tokens: of a head the
length of its output, of a channel what enters the down projection, of a dimension what leaves the norms of all layers.
That of a layer is its block influence (Men et al. 2024, arXiv 2403.03853).

Shapes: B sequences, T tokens, D width of the stream, F MLP channels, H attention heads, L layers, C whatever is
counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.data.batching import TokenBatch
from stillhouse.models import CausalLM
from stillhouse.pruning.architecture import head_width


@dataclass(frozen=True)
class Importance:
    """What calibration text says about a model's parts.

    Attributes:
        influence_L: block influence, one minus the cosine between a layer's input and output.
        heads_LH: of attention heads.
        channels_LF: of MLP channels.
        width_D: of the dimensions of the residual stream.
        shares: by the name of a norm, the share of its input's squared length that lies in each dimension [D].
    """

    influence_L: Tensor
    heads_LH: Tensor
    channels_LF: Tensor
    width_D: Tensor
    shares: Mapping[str, Tensor]


@torch.no_grad()
def measure(lm: CausalLM, batches: Iterable[TokenBatch]) -> Importance:
    """One pass over calibration batches."""
    decoder: Any = lm.model.base_model
    meter = _Meter()
    with lm.inference(), ExitStack() as listening:
        for handle in meter.attach(decoder, head_width(lm.model.config)):
            listening.enter_context(handle)
        for batch in batches:
            here = batch.to(lm.device)
            meter.real_BT1 = (here.examples_BT() >= 0)[..., None].float()
            lm.hidden(here.tokens_BT, here.positions_BT)
    layers = range(len(decoder.layers))
    norms = [f"layers.{i}.{name}" for i in layers for name in _norms(decoder.layers[i])]
    return Importance(
        influence_L=torch.stack([meter.mean(f"influence.{i}")[0] for i in layers]),
        heads_LH=torch.stack([meter.size(f"heads.{i}") for i in layers]),
        channels_LF=torch.stack([meter.size(f"channels.{i}") for i in layers]),
        width_D=torch.stack([meter.size(name) for name in norms]).sum(0),
        shares={name: meter.mean(f"share.{name}") for name in (*norms, "norm")},
    )


def _norms(layer: nn.Module) -> list[str]:
    return [name for name, _ in layer.named_children() if name.endswith("layernorm")]


class _Meter:
    """Listens to a decoder and keeps sums over the real tokens of all batches."""

    def __init__(self) -> None:
        self.real_BT1 = torch.empty(0)
        self._squares: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._tokens: dict[str, float] = {}
        self._before = torch.empty(0)

    def attach(self, decoder: Any, head: int) -> Iterator[Any]:
        """Hooks on every part whose activation counts; each is a context manager that removes itself."""
        for i, layer in enumerate(decoder.layers):
            yield layer.register_forward_pre_hook(self._on_stream(i))
            yield layer.self_attn.o_proj.register_forward_pre_hook(self._on_heads(i, head))
            yield layer.mlp.down_proj.register_forward_pre_hook(self._on_channels(i))
            for name in _norms(layer):
                yield getattr(layer, name).register_forward_hook(self._on_norm(f"layers.{i}.{name}"))
        yield decoder.norm.register_forward_pre_hook(self._on_stream(len(decoder.layers)))
        yield decoder.norm.register_forward_hook(self._on_norm("norm"))

    def _on_stream(self, i: int) -> Any:
        """The stream enters layer `i`, having left the one before."""

        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            stream_BTD = arguments[0].float()
            if i > 0:
                cosine_BT = torch.cosine_similarity(self._before, stream_BTD, dim=-1)
                self._average(f"influence.{i - 1}", 1 - cosine_BT[..., None])
            self._before = stream_BTD

        return hook

    def _on_heads(self, i: int, head: int) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            self._add(f"heads.{i}", arguments[0].float().unflatten(-1, (-1, head)).norm(dim=-1))

        return hook

    def _on_channels(self, i: int) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            self._add(f"channels.{i}", arguments[0].float().abs())

        return hook

    def _on_norm(self, name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...], out_BTD: Tensor) -> None:
            self._add(name, out_BTD.float().abs())
            squares_BTD = arguments[0].float().square()
            self._average(f"share.{name}", squares_BTD / squares_BTD.sum(-1, keepdim=True).clamp_min(1e-30))

        return hook

    def _add(self, name: str, size_BTC: Tensor) -> None:
        mean_BC = (size_BTC * self.real_BT1).sum(1) / self.real_BT1.sum(1)
        self._squares[name] = self._squares.get(name, 0) + mean_BC.square().sum(0).cpu().double()

    def _average(self, name: str, value_BTC: Tensor) -> None:
        self._sums[name] = self._sums.get(name, 0) + (value_BTC * self.real_BT1).sum((0, 1)).cpu().double()
        self._tokens[name] = self._tokens.get(name, 0.0) + float(self.real_BT1.sum())

    def size(self, name: str) -> Tensor:
        """L2 norm over sequences of the mean size over tokens, shape [C]."""
        return self._squares[name].sqrt()

    def mean(self, name: str) -> Tensor:
        """Mean over all tokens, shape [C]."""
        return self._sums[name] / self._tokens[name]
