"""Which of a model's trainable parameters gradients are taken by, from a word or from patterns of names."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from torch import nn
from transformers.pytorch_utils import Conv1D

from stillhouse.errors import RecipeError, did_you_mean
from stillhouse.models import CausalLM

Layers = str | tuple[str, ...]
"""`all`, `all-linear`, `last:K`, or patterns of parameters' names such as `model.layers.3.*`."""


def check_layers(layers: Layers) -> None:
    """Refuse what no model could have.

    Raises:
        ValueError: a text that is none of the words, or no pattern.
    """
    if isinstance(layers, str) and not re.fullmatch(r"all|all-linear|last:[1-9]\d*", layers):
        raise ValueError(
            f"layers is {layers!r}; it must be all, all-linear, last:K with a number of blocks K, or a list of "
            "patterns of parameters' names"
        )
    if not layers:
        raise ValueError("layers is an empty list; it must have at least one pattern of parameters' names")


def choose_parameters(lm: CausalLM, layers: Layers) -> dict[str, nn.Parameter]:
    """The trainable parameters that are meant, in the model's order.

    `all-linear` is weights and biases of every linear layer but the head, `last:K` those in the last K blocks.

    Raises:
        RecipeError: a pattern that matches nothing, more blocks than there are, or nothing that is trainable.
    """
    trainable = {name: p for name, p in lm.model.named_parameters() if p.requires_grad}
    if isinstance(layers, str):
        owned = {id(p) for module in _modules(lm, layers) for p in module.parameters(recurse=False)}
        chosen = trainable if layers == "all" else {name: p for name, p in trainable.items() if id(p) in owned}
    else:
        for pattern in layers:
            if not any(fnmatchcase(name, pattern) for name in trainable):
                raise RecipeError(
                    f"layers names {pattern!r}, and {lm.name!r} has no such trainable parameter. "
                    f"{did_you_mean(pattern, trainable)}"
                )
        chosen = {n: p for n, p in trainable.items() if any(fnmatchcase(n, pattern) for pattern in layers)}
    if not chosen:
        raise RecipeError(
            f"layers is {layers!r}, and {lm.name!r} has no trainable parameter there. Choose others, such as all."
        )
    return chosen


def _modules(lm: CausalLM, layers: str) -> list[nn.Module]:
    """The linear layers that a word means."""
    blocks = lm.layers()
    places: list[nn.Module] = [lm.model]
    if layers.startswith("last:"):
        count = int(layers.removeprefix("last:"))
        if count > len(blocks):
            raise RecipeError(f"layers is {layers!r}, and {lm.name!r} has {len(blocks)} blocks. Lower the number.")
        places = blocks[-count:]
    head = set(lm.model.get_output_embeddings().modules())
    linear = (module for place in places for module in place.modules() if isinstance(module, nn.Linear | Conv1D))
    return [module for module in linear if module not in head]
