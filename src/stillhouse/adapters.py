"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685) on a transformers model, through peft: checked, put on, merged,
saved, loaded.

peft exchanges layers in place, so that an adapted model keeps its class and everything that knows a model by its hidden
states and head works on it as it is. peft is optional and imported inside functions.
"""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from importlib import util
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from stillhouse.errors import MissingExtraError, ModelError, RecipeError, did_you_mean
from stillhouse.recipe import LoRA

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = "default"
"""What peft calls an adapter that nobody named."""
_KINDS = (nn.Linear, nn.Embedding, Conv1D)
"""Layers that low-rank factors can be added to and merged into."""


def require_peft() -> None:
    """Refuse at once where peft is absent.

    Raises:
        MissingExtraError: with the extra that brings it.
    """
    if util.find_spec("peft") is None:
        raise MissingExtraError('LoRA needs peft, which is not installed: pip install "stillhouse[peft]"')


def skeleton(config: Any, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model's layers without memory behind their weights, to look at."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def trainable_parameters(config: Any, lora: LoRA | None = None, *, trust_remote_code: bool = False) -> int:
    """How many parameters training moves, counted without allocating them.

    Args:
        config: the student's architecture, as Hugging Face's configuration object.
        lora: its adapters; None where everything is trained.
        trust_remote_code: the architecture brings its own code.

    Raises:
        MissingExtraError, RecipeError: as `adapt`.
    """
    model = skeleton(config, trust_remote_code=trust_remote_code)
    if lora is not None:
        with torch.device("meta"):
            adapt(model, lora)
    return count_trainable(model)


def count_trainable(model: nn.Module) -> int:
    """How many parameters of a model receive a gradient."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def is_adapted(model: nn.Module) -> bool:
    """Whether adapters were put on."""
    return hasattr(model, "peft_config")


def check_targets(model: PreTrainedModel, lora: LoRA) -> None:
    """Every name that LoRA settings give must be a layer of the model; peft passes over those that are not.

    Raises:
        RecipeError: one is not, with the closest that is.
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, _KINDS)]
    kept = [name for name, module in model.named_modules() if next(module.parameters(recurse=False), None) is not None]
    owner = type(model).__name__
    if isinstance(lora.target_modules, list):
        _require_layers("target_modules", lora.target_modules, layers, owner)
        if both := sorted(set(lora.target_modules) & set(lora.modules_to_save)):
            raise RecipeError(
                f"student.lora names {both[0]!r} in target_modules, which adapts it, and in modules_to_save, which "
                "trains it whole. Keep one of the two."
            )
    elif lora.target_modules != "all-linear" and not any(re.fullmatch(lora.target_modules, name) for name in layers):
        raise RecipeError(
            f"student.lora.target_modules is {lora.target_modules!r}; a text is all-linear, or a pattern that matches "
            f"whole names such as {layers[0]}, and it matches none in {owner}. Give names as a list: "
            f"[{lora.target_modules}]. {did_you_mean(lora.target_modules, ['all-linear', *_last_parts(layers)])}"
        )
    _require_layers("modules_to_save", lora.modules_to_save, kept, owner)


def _require_layers(setting: str, wanted: Iterable[str], there: list[str], owner: str) -> None:
    for name in wanted:
        if not any(f".{full}".endswith(f".{name}") for full in there):
            raise RecipeError(
                f"student.lora.{setting} names {name!r}, and {owner} has no such layer. "
                f"{did_you_mean(name, _last_parts(there))}"
            )


def _last_parts(names: Iterable[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


def adapt(model: PreTrainedModel, lora: LoRA, *, seed: int = 0, revision: str | None = None) -> None:
    """Put fresh adapters on a model, in place; everything but them is frozen, and nothing it computes changes yet.

    Args:
        model: on any device, without adapters.
        lora: which layers, how wide.
        seed: of the factors A; the factors B are zero. The same seed draws the same on every device.
        revision: of the model's repository, for those who load the adapters alone.

    Raises:
        MissingExtraError: peft is not installed.
        RecipeError: a layer that is named does not exist.
        ModelError: it has adapters already.
    """
    require_peft()
    if is_adapted(model):
        raise ModelError(
            "The model has adapters already, and a second set on top is not supported. Start from a merged folder."
        )
    check_targets(model, lora)
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        modules_to_save=lora.modules_to_save or None,
        task_type="CAUSAL_LM",
        base_model_name_or_path=_origin(model),
        revision=revision,
    )
    with torch.random.fork_rng(devices=[]), _what_is_handled_here():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)


@contextmanager
def _what_is_handled_here() -> Generator[None, None, None]:
    """peft warns of tied embeddings, which `merged_state` and `load_adapted` take apart, of a layout that it then turns
    itself, and of a name that transformers gave up and it still uses."""
    handled = ("Model has `tie_word_embeddings=True`", "fan_in_fan_out is set to", "`is_gradient_checkpointing` is dep")
    with warnings.catch_warnings():
        for message in handled:
            warnings.filterwarnings("ignore", message=message)
        yield


def _origin(model: PreTrainedModel) -> str | None:
    """Where a model's own weights lie: a hub name, or a folder by its full path; None for those that lie nowhere."""
    name = model.name_or_path
    if not name or (Path(name) / CONFIG).is_file():
        return None
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def merged_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of an ordinary model that computes what the adapted one does, by that model's names."""
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    state = model.state_dict()
    merged = dict(state)
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer | ModulesToSaveWrapper):
            own = {key.removeprefix(f"{name}."): merged.pop(key) for key in state if key.startswith(f"{name}.")}
            kept = "base_layer." if isinstance(module, LoraLayer) else f"modules_to_save.{_NAME}."
            merged |= {f"{name}.{key.removeprefix(kept)}": own[key] for key in own if key.startswith(kept)}
            if isinstance(module, LoraLayer):
                merged[f"{name}.weight"] = merged[f"{name}.weight"] + _delta(module, own)
    return merged


def _delta(layer: Any, own: Mapping[str, Tensor]) -> Tensor:
    """What a layer's factors add to its weight: `alpha / r * B A`, laid out as the weight is."""
    if f"lora_embedding_A.{_NAME}" in own:  # an embedding's weight is [V, D], its factors make [D, V]
        delta = (own[f"lora_embedding_B.{_NAME}"] @ own[f"lora_embedding_A.{_NAME}"]).mT
    else:
        delta = own[f"lora_B.{_NAME}.weight"] @ own[f"lora_A.{_NAME}.weight"]
        delta = delta.mT if layer.fan_in_fan_out else delta
    return delta * layer.scaling[_NAME]


def unties(model: PreTrainedModel) -> bool:
    """Whether adapters part a head from the embeddings whose weights it shares: merged, the two are different
    matrices."""
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    adapted = any(isinstance(end, LoraLayer | ModulesToSaveWrapper) for end in ends)
    return bool(model.config.tie_word_embeddings) and adapted


def save_merged(model: PreTrainedModel, folder: Path) -> None:
    """Write an ordinary model folder with the adapters in its weights; the model itself stays adapted."""
    model.save_pretrained(folder, state_dict=merged_state(model))
    if unties(model):
        config = copy.deepcopy(model.config)
        config.tie_word_embeddings = False
        config.save_pretrained(folder)


def save_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Write the adapters alone, as peft's folder: `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        ModelError: the model under the adapters lies in no folder and has no hub name.
    """
    from peft import get_peft_model_state_dict

    settings: Any = copy.copy(model.peft_config[_NAME])
    if settings.base_model_name_or_path is None:
        raise ModelError(
            "Adapters alone are of no use without the model they belong to, and this one lies in no folder of its own. "
            "Save it merged (student.lora.merge: true), or start from a model folder or hub name."
        )
    settings.inference_mode = True
    if isinstance(settings.target_modules, set):  # of strings, whose order changes from process to process
        settings.target_modules = sorted(settings.target_modules)
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    weights = {f"base_model.model.{name}": tensor.detach().contiguous() for name, tensor in own.items()}
    save_file(weights, str(folder / WEIGHTS), metadata={"format": "pt"})
    settings.save_pretrained(str(folder))


def adapter_base(place: str) -> tuple[str, str | None] | None:
    """The model under the adapters of a peft folder and its revision; None where the place is no such folder.

    Raises:
        ModelError: the folder does not say, or holds no safetensors.
    """
    file = Path(place) / CONFIG
    if not file.is_file():
        return None
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        base, revision, kind = facts["base_model_name_or_path"], facts.get("revision"), facts["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file} is damaged and does not say which model its adapters belong to.") from error
    if not base:
        raise ModelError(f"{file} does not say which model its adapters belong to: set base_model_name_or_path in it.")
    if kind != "LORA":
        raise ModelError(f"{place} holds adapters of the kind {kind}; those that can be merged are LORA.")
    if not (Path(place) / WEIGHTS).is_file():
        raise ModelError(f"{place} holds no {WEIGHTS}. Adapters are read from safetensors only.")
    return str(base), revision


def load_adapted(model: PreTrainedModel, place: str) -> PreTrainedModel:
    """Merge the adapters of a peft folder into the model they belong to, in memory.

    Raises:
        MissingExtraError: peft is not installed.
        ModelError: they are damaged, incomplete, or belong to another model.
    """
    require_peft()
    from peft import PeftModel

    try:
        with _what_is_handled_here():
            warnings.filterwarnings("error", message="Found missing adapter keys")  # they would do nothing, in silence
            adapted = PeftModel.from_pretrained(model, place)
            if unties(model):
                _part(model)
            merged = adapted.merge_and_unload()
            merged.name_or_path = place  # what it is now lies there, not where its weights came from
            return merged
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, UserWarning, SafetensorError) as error:
        told = str(error).strip().partition("\n")[0]
        raise ModelError(f"The adapters in {place} do not fit the model they name: {told}") from error


def _part(model: PreTrainedModel) -> None:
    """Give head and embeddings a matrix each: merging into a shared one would change both."""
    from peft.utils import ModulesToSaveWrapper

    model.config.tie_word_embeddings = False
    head: Any = model.get_output_embeddings()
    if isinstance(head, ModulesToSaveWrapper):  # it holds a matrix of its own
        return
    layer = head.get_base_layer() if hasattr(head, "get_base_layer") else head
    layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
