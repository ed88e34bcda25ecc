"""The student: the model that learns. From a folder, a hub name, or a configuration from scratch; whole, or through
adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from stillhouse import adapters
from stillhouse.errors import ModelError
from stillhouse.models import CausalLM, vocabulary_size
from stillhouse.recipe import LoRA


class Student:
    """A trainable causal language model.

    >>> student = Student("stillhouse:arithmetic")
    >>> student.lm.parameters() < 4_000_000
    True
    """

    def __init__(
        self,
        model: str | CausalLM,
        *,
        device: str = "cpu",
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if isinstance(model, str):
            # float32 master weights: bfloat16 ones lose the small updates of small learning rates.
            model = CausalLM.load(model, device=device, revision=revision, trust_remote_code=trust_remote_code)
        self.lm = model
        self.lora: LoRA | None = None

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, *, seed: int = 0, device: str = "cpu"
    ) -> Student:
        """A student from scratch.

        Args:
            config: `model_type` and that architecture's settings; the vocabulary and special tokens come from the
                tokenizer.
            tokenizer: usually the teacher's.
            seed: of the initial weights.
            device: where to put it.

        Raises:
            ModelError: unknown architecture or settings that contradict one another.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(student_config(config, tokenizer), dtype=torch.float32)
        lm = CausalLM("student", model.to(device), tokenizer)
        lm.check_split()
        return cls(lm)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """What its token ids mean."""
        return self.lm.tokenizer

    def adapt(self, lora: LoRA, *, seed: int = 0, revision: str | None = None) -> None:
        """Train low-rank adapters from here on, in place of the weights; what the student computes is the same yet.

        Raises:
            MissingExtraError: peft is not installed.
            RecipeError: a layer that the settings name does not exist.
        """
        adapters.adapt(self.lm.model, lora, seed=seed, revision=revision)
        self.lora = lora

    def checkpoint_activations(self) -> None:
        """In training, keep the input of each layer alone and compute the rest again in the backward pass: less memory
        for about a third more time, the same gradients. Evaluation and writing are as before.

        Raises:
            ModelError: the architecture cannot.
        """
        model = self.lm.model
        if not model.supports_gradient_checkpointing:
            raise ModelError(f"{type(model).__name__} cannot compute activations again.")
        enable = getattr(
            model, "activation_checkpointing_enable", None
        )  # its name until transformers 5.22 is the other
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})

    def trainable_parameters(self) -> int:
        """Number of parameters that training moves."""
        return adapters.count_trainable(self.lm.model)

    def parameters(self) -> int:
        """Number of weights of the model, its adapters not counted."""
        return self.lm.parameters() - (self.trainable_parameters() if self.lora is not None else 0)

    def save(self, folder: str | Path, card: str | None = None) -> None:
        """Write an ordinary Hugging Face folder (or its adapters alone, where `lora.merge` is false), with a model card
        if one is given."""
        self.lm.save(Path(folder), merge=self.lora is None or self.lora.merge)
        if card is not None:
            (Path(folder) / "README.md").write_text(card, encoding="utf-8")


def student_config(config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Any:
    """The architecture's configuration object, with vocabulary and special tokens taken from the tokenizer.

    Raises:
        ModelError: unknown architecture or settings that contradict one another.
    """
    settings = dict(config)
    kind = settings.pop("model_type")
    settings.setdefault("vocab_size", vocabulary_size(tokenizer))
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    try:
        return AutoConfig.for_model(kind, **special, **settings)
    except (ValueError, TypeError, StrictDataclassError) as error:
        told = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        raise ModelError(f"student.config is not a valid {kind!r} configuration: {told}") from error
