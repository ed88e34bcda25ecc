"""Models of the right shapes without the user's weights: counted on no memory at all, or built a few layers deep from
noise, so that `check` can time and weigh the work of a run on this machine.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from stillhouse.adapters import skeleton, trainable_parameters
from stillhouse.models import CausalLM
from stillhouse.recipe import LoRA

_THIN = (1, 2)
"""Layers of two skeletons whose difference is a layer."""


@dataclass(frozen=True)
class Size:
    """A model's size, counted on an empty skeleton of it.

    Attributes:
        parameters: tied ones once, adapters not counted.
        trainable: those that training moves; of the adapters alone where there are some.
        per_layer: of those, in one layer of the stack.
        layers: how many there are.
        width: of the hidden states.
    """

    parameters: int
    trainable: int
    per_layer: int
    layers: int
    width: int

    def at(self, layers: int) -> int:
        """Parameters of the same model with so many layers."""
        return self.parameters - (self.layers - layers) * self.per_layer

    @property
    def training_bytes(self) -> float:
        """Of a parameter, with the gradients and moments that its share of trainable ones brings."""
        return 4 + 12 * self.trainable / self.parameters


def measure_size(config: Any, lora: LoRA | None = None, *, trust_remote_code: bool = False) -> Size:
    """Count a model's parameters without allocating them."""
    model = skeleton(config, trust_remote_code=trust_remote_code)
    stack = next((m for m in model.modules() if isinstance(m, nn.ModuleList)), [])
    parameters = sum(p.numel() for p in model.parameters())
    embeddings: Any = model.get_input_embeddings()
    return Size(
        parameters=parameters,
        trainable=trainable_parameters(config, lora, trust_remote_code=trust_remote_code) if lora else parameters,
        per_layer=sum(p.numel() for p in stack[-1].parameters()) if len(stack) else 0,
        layers=int(config.num_hidden_layers),
        width=embeddings.weight.shape[1],
    )


def build_skeleton(
    config: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    layers: int,
    dtype: torch.dtype,
    device: str,
    trust_remote_code: bool = False,
) -> CausalLM:
    """A random model of a configuration, so many layers deep."""
    thin = copy.deepcopy(config)
    thin.num_hidden_layers = layers
    if kinds := getattr(thin, "layer_types", None):  # such as sliding and full attention in turn
        thin.layer_types = kinds[:layers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(thin, dtype=dtype, trust_remote_code=trust_remote_code)
    return CausalLM("a random skeleton", model.to(device).eval(), tokenizer)


def choose_depths(
    size: Size, *, bytes_per_parameter: float, room: int, seconds: float, limit: float
) -> tuple[int, ...]:
    """Of how many layers to build skeletons: all of them where that is small and fast enough, one and two of them to
    tell what a layer adds, or none where not even those fit.

    Args:
        size: of the whole model.
        bytes_per_parameter: weights, and what training adds to them.
        room: bytes that a skeleton may take.
        seconds: what the work of one trial would take the whole model.
        limit: what it may take.
    """
    if size.layers <= max(_THIN) or (size.parameters * bytes_per_parameter <= room and seconds <= limit):
        return (size.layers,) if size.parameters * bytes_per_parameter <= room else ()
    return _THIN if size.at(max(_THIN)) * bytes_per_parameter <= room else ()
