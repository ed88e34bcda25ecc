"""The cut: which of the teacher's layers, heads, channels and dimensions stay, and the student made of them.

Shapes: D width of the stream, F MLP channels, H attention heads, G key-value groups, L layers, N kept ones, C whatever
is counted.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from stillhouse.data.batching import TokenBatch
from stillhouse.errors import ModelError
from stillhouse.models import CausalLM
from stillhouse.pruning.architecture import head_width, kept_heads, planned_layers, shrunk_config
from stillhouse.pruning.importance import Importance, measure
from stillhouse.recipe import CutSection

_AXES: dict[str, tuple[str | None, ...]] = {
    "embed_tokens": (None, "width"),
    "lm_head": (None, "width"),
    "q_proj": ("queries", "width"),
    "k_proj": ("keys", "width"),
    "v_proj": ("keys", "width"),
    "o_proj": ("width", "queries"),
    "q_norm": (None,),
    "k_norm": (None,),
    "gate_proj": ("channels", "width"),
    "up_proj": ("channels", "width"),
    "down_proj": ("width", "channels"),
    "input_layernorm": ("width",),
    "post_attention_layernorm": ("width",),
    "pre_feedforward_layernorm": ("width",),
    "post_feedforward_layernorm": ("width",),
    "norm": ("width",),
}
"""What the rows and columns of each module's weight count; a bias has the rows alone."""


@dataclass(frozen=True)
class Kept:
    """Which of the teacher's parts the student keeps, as positions in the teacher; the lists run over kept layers."""

    layers: list[int]
    heads: list[Tensor]
    groups: list[Tensor]
    channels: list[Tensor]
    width: Tensor


def choose(config: Any, settings: CutSection, importance: Importance) -> Kept:
    """The most important parts, as many as the settings keep, in the teacher's order."""
    layers = choose_layers(config.num_hidden_layers, settings, importance.influence_L)
    heads, groups = kept_heads(config, settings)
    chosen = [choose_heads(importance.heads_LH[i], config.num_key_value_heads, heads, groups) for i in layers]
    return Kept(
        layers=layers,
        heads=[heads_N for heads_N, _ in chosen],
        groups=[groups_N for _, groups_N in chosen],
        channels=[top(importance.channels_LF[i], settings.intermediate_size) for i in layers],
        width=top(importance.width_D, settings.hidden_size),
    )


def top(importance_C: Tensor, count: int | None) -> Tensor:
    """Positions of the largest, in order; of equal ones the first. None keeps all.

    >>> top(torch.tensor([0.3, 0.9, 0.3, 0.5]), 3).tolist()
    [0, 1, 3]
    """
    return importance_C.argsort(descending=True, stable=True)[:count].sort().values


def choose_layers(there: int, settings: CutSection, influence_L: Tensor) -> list[int]:
    """The layers that are kept: the most influential, or those that the settings name."""
    if isinstance(settings.layers, int) and settings.choose == "importance":
        return top(influence_L, settings.layers).tolist()
    return planned_layers(there, settings)


def choose_heads(importance_H: Tensor, there: int, heads: int, groups: int) -> tuple[Tensor, Tensor]:
    """Heads and key-value groups of one layer: the groups whose heads are most active together, and in each of them the
    most active heads.

    >>> importance_H = torch.tensor([1.0, 2.0, 9.0, 0.0, 4.0, 3.0])
    >>> [kept_N.tolist() for kept_N in choose_heads(importance_H, there=3, heads=2, groups=2)]
    [[2, 4], [1, 2]]
    """
    importance_GN = importance_H.unflatten(0, (there, -1))
    each = importance_GN.shape[1]
    groups_N = top(importance_GN.norm(dim=1), groups)
    kept = [top(importance_GN[g], heads // groups) + g * each for g in groups_N.tolist()]
    return torch.cat(kept), groups_N


def shrink(lm: CausalLM, settings: CutSection, batches: Iterable[TokenBatch]) -> CausalLM:
    """A smaller model out of a larger one, its parts chosen on calibration batches; the same one every time.

    Raises:
        ModelError, RecipeError: as `shrunk_config`.
    """
    shrunk_config(lm.model.config, settings)  # refuse before anything is computed
    importance = measure(lm, batches)
    return cut(lm, settings, choose(lm.model.config, settings, importance), importance)


@torch.no_grad()
def cut(lm: CausalLM, settings: CutSection, kept: Kept, importance: Importance) -> CausalLM:
    """The kept parts as a model of its own, in float32.

    Raises:
        ModelError: the model has weights that are not known here.
    """
    config = shrunk_config(lm.model.config, settings, kept.layers)
    with torch.random.fork_rng(devices=[]):  # its first weights are drawn, and overwritten
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    source = lm.model.state_dict()
    places = [_positions(kept, i, head_width(lm.model.config)) for i in range(len(kept.layers))]
    state = {}
    for name in model.state_dict():
        layer, original = _original(name, kept.layers)
        weight = _slice(original, source[original], places[layer])
        state[name] = weight * _norm_scale(original, kept.width, importance)
    model.load_state_dict(state)
    model.generation_config = copy.deepcopy(lm.model.generation_config)
    student = CausalLM("student", model.to(lm.device).eval(), lm.tokenizer)
    student.check_split()
    return student


def _original(name: str, layers: Sequence[int]) -> tuple[int, str]:
    """The place of a student's weight among the kept layers (0 outside of them) and its name in the teacher."""
    found = re.fullmatch(r"(.*\.layers\.)(\d+)(\..*)", name)
    if found is None:
        return 0, name
    layer = int(found[2])
    return layer, f"{found[1]}{layers[layer]}{found[3]}"


def _positions(kept: Kept, layer: int, head: int) -> dict[str, Tensor]:
    """Rows or columns that one kept layer keeps, by what they count."""

    def rows(heads_N: Tensor) -> Tensor:
        return (heads_N[:, None] * head + torch.arange(head)).flatten()

    return {
        "queries": rows(kept.heads[layer]),
        "keys": rows(kept.groups[layer]),
        "channels": kept.channels[layer],
        "width": kept.width,
    }


def _slice(name: str, weight: Tensor, places: Mapping[str, Tensor]) -> Tensor:
    module = name.split(".")[-2]
    if module not in _AXES:
        raise ModelError(f"student.from_teacher does not know what the weight {name} counts. Please report the model.")
    weight = weight.cpu().float()
    for dimension, axis in enumerate(_AXES[module][: weight.dim()]):
        if axis is not None:
            weight = weight.index_select(dimension, places[axis])
    return weight


def _norm_scale(name: str, width: Tensor, importance: Importance) -> float:
    """What keeps a norm's output at its size. RMSNorm divides by the root mean square over all dimensions, and the mean
    over those that stay is another: larger if the ones that went were small."""
    share_D = importance.shares.get(name.removeprefix("model.").removesuffix(".weight"))
    if share_D is None or len(width) == len(share_D):
        return 1.0
    return float((share_D[width].sum() * len(share_D) / len(width)).sqrt())
