"""The configuration of a student that is cut out of its teacher, known before any weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from stillhouse.errors import ModelError, RecipeError
from stillhouse.recipe import CutSection

SUPPORTED = ("gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "qwen2", "qwen3")
"""Architectures whose parts are known here and tested, by `model_type`."""

_EMBEDS_BY_WIDTH = ("gemma", "gemma2", "gemma3_text")
"""Those that scale their embeddings by the width of the stream, so that it cannot be cut without changing them."""


def shrunk_config(config: Any, settings: CutSection, layers: Sequence[int] | None = None) -> Any:
    """The student's configuration object, from its teacher's and no weights.

    Args:
        config: the teacher's.
        settings: what is kept.
        layers: which, once that is known; importance is known only after calibration, and until then, where layers are
            of several types, evenly spaced ones stand in.

    Raises:
        ModelError: the teacher's architecture is not supported.
        RecipeError: more is kept than there is, or heads do not fit into key-value groups.
    """
    _refuse_unknown(config)
    _refuse_more_than_there_is(config, settings)
    heads, groups = kept_heads(config, settings)
    if layers is None:
        layers = planned_layers(config.num_hidden_layers, settings)
    old = config.to_dict()
    new = {
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "intermediate_size": settings.intermediate_size or config.intermediate_size,
        "hidden_size": settings.hidden_size or config.hidden_size,
    }
    if heads != config.num_attention_heads or new["hidden_size"] != config.hidden_size:
        new["head_dim"] = head_width(config)  # by default it follows from the two, which would now be wrong
    if old.get("layer_types"):
        new["layer_types"] = [old["layer_types"][i] for i in layers]
    try:
        return type(config).from_dict({**old, **new})
    except (ValueError, StrictDataclassError) as error:
        told = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        raise RecipeError(
            f"student.from_teacher gives an impossible {config.model_type!r} model: {told} Choose sizes that fit."
        ) from error


def _refuse_unknown(config: Any) -> None:
    if config.model_type not in SUPPORTED:
        raise ModelError(
            f"student.from_teacher cannot cut a {config.model_type!r} model; it knows the parts of "
            f"{', '.join(SUPPORTED)}. Name such a teacher, or give the student as model or config."
        )


def _refuse_more_than_there_is(config: Any, settings: CutSection) -> None:
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "hidden_size"):
        wanted, there = getattr(settings, name), getattr(config, name)
        if wanted is not None and wanted > there:
            raise RecipeError(f"student.from_teacher.{name} is {wanted}, the teacher has {there}. Keep at most that.")
    there = config.num_hidden_layers
    if isinstance(settings.layers, int) and settings.layers > there:
        raise RecipeError(f"student.from_teacher.layers is {settings.layers}, the teacher has {there}. Keep fewer.")
    if isinstance(settings.layers, list) and settings.layers[-1] >= there:
        raise RecipeError(
            f"student.from_teacher.layers names layer {settings.layers[-1]}; the teacher's {there} layers are numbered "
            f"0 to {there - 1}."
        )
    if settings.hidden_size not in (None, config.hidden_size) and config.model_type in _EMBEDS_BY_WIDTH:
        raise RecipeError(
            f"student.from_teacher.hidden_size cannot be cut for {config.model_type!r}: it scales its embeddings by "
            "the width. Cut layers, heads or intermediate_size instead."
        )


def head_width(config: Any) -> int:
    """Dimensions of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def kept_heads(config: Any, settings: CutSection) -> tuple[int, int]:
    """How many attention heads and key-value groups the student has. With heads alone, whole groups go, so that as many
    heads share a group as in the teacher.

    Raises:
        RecipeError: the heads do not fit into the groups.
    """
    each = config.num_attention_heads // config.num_key_value_heads
    heads, groups = settings.num_attention_heads, settings.num_key_value_heads
    if heads is None:
        groups = groups or config.num_key_value_heads
        return groups * each, groups
    if groups is None:
        if heads % each:
            raise RecipeError(
                f"student.from_teacher.num_attention_heads is {heads}; in the teacher {each} heads share one key-value "
                f"group. Keep a multiple of {each}, or say num_key_value_heads too."
            )
        return heads, heads // each
    if heads % groups or heads // groups > each:
        raise RecipeError(
            f"student.from_teacher keeps {heads} heads in {groups} key-value groups; each group must keep equally many "
            f"of the teacher's {each}. Set num_attention_heads to one of "
            f"{', '.join(str(groups * n) for n in range(1, each + 1))}."
        )
    return heads, groups


def planned_layers(there: int, settings: CutSection) -> list[int]:
    """The layers that are kept, as far as that is known without measuring: evenly spaced ones where importance
    decides.

    >>> planned_layers(12, CutSection(layers=6, choose="evenly"))  # as DistilBERT was made from BERT
    [0, 2, 4, 7, 9, 11]
    >>> planned_layers(12, CutSection(layers=5, choose="first_last"))
    [0, 1, 2, 10, 11]
    """
    if settings.layers is None:
        return list(range(there))
    if isinstance(settings.layers, list):
        return settings.layers
    count = settings.layers
    if settings.choose == "first_last":
        first = (count + 1) // 2
        return [*range(first), *range(there - count + first, there)]
    gaps = max(1, count - 1)
    return [(i * (there - 1) + gaps // 2) // gaps for i in range(count)]
