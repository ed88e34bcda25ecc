"""The student: the model that learns. From a folder, a hub name, or a configuration from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from stillhouse.errors import ModelError
from stillhouse.models import CausalLM, vocabulary_size


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

    def save(self, folder: str | Path, card: str | None = None) -> None:
        """Write an ordinary Hugging Face folder, with a model card if one is given."""
        self.lm.save(Path(folder))
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
