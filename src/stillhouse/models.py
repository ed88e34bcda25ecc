"""Causal language models from Hugging Face folders: load, hidden states, head, generate, save.

The one place that knows `transformers`' model classes; teachers and students wrap what it returns. Shapes: B sequences,
T tokens, D width, V head width (may be padded beyond the vocabulary), N any number of rows.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from stillhouse import adapters, world
from stillhouse.errors import ModelError
from stillhouse.locating import locate
from stillhouse.records import fingerprint

_UNREADABLE = (OSError, ValueError, TypeError, RuntimeError, SafetensorError, StrictDataclassError)
"""What transformers and the libraries below it raise for files that are missing, damaged or contradict one another."""


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, of a folder that holds a tokenizer alone, or of a hub name.

    Raises:
        ModelError: it cannot be found or read.
    """
    place = name if (Path(name) / "tokenizer.json").is_file() else locate(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"The tokenizer of {name!r} cannot be loaded: {_first_line(error)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.is_fast:
        raise ModelError(f"The tokenizer of {name!r} has no fast form, which is needed to tell tokens' roles apart.")
    # What a file says of padding and truncation is the state it was saved in, which the first call without them ends.
    # Ended here, so that what a run saves does not depend on whether it had any text to encode.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    return tokenizer


def load_config(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The configuration of a model folder or hub name, without its weights."""
    place, revision = _under_adapters(locate(name), revision)
    try:
        return AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=trust_remote_code)
    except _UNREADABLE as error:
        raise ModelError(f"The configuration of {name!r} cannot be loaded: {_first_line(error)}") from error


def _under_adapters(place: str, revision: str | None) -> tuple[str, str | None]:
    """The place itself, or for a folder of adapters that of the model under them."""
    base = adapters.adapter_base(place)
    return (place, revision) if base is None else (locate(base[0]), base[1])


def _first_line(error: BaseException) -> str:
    told = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
    return str(told).strip().partition("\n")[0]


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of ids a tokenizer can produce: its largest id plus one. Model heads are often padded beyond it."""
    return max(tokenizer.get_vocab().values()) + 1


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How text is written. `temperature` 0 is greedy; it is the decoder's, not an objective's.

    Attributes:
        max_new_tokens: at most this many tokens per answer.
        temperature: 0 for the most likely token each time.
        top_p: smallest set of tokens whose mass reaches it; 1 keeps all.
        seed: of the draws; the same seed, prompts and batch size write the same text.
        batch_size: prompts written at once.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 64

    @classmethod
    def of(cls, settings: Any) -> Sampling:
        """The same-named settings of a component that writes."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})


class Written(NamedTuple):
    """What a model wrote after a prompt: token ids without the end token, and whether there was one."""

    ids: list[int]
    ended: bool


@dataclass
class CausalLM:
    """A causal language model in two halves, the stack that makes hidden states and the head that makes logits, and
    its tokenizer."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    vocabulary: int = field(init=False)

    def __post_init__(self) -> None:
        self.vocabulary = vocabulary_size(self.tokenizer)
        width = self._embeddings().shape[0]
        if self.vocabulary > width:
            raise ModelError(
                f"The tokenizer of {self.name!r} makes ids up to {self.vocabulary - 1}, its model embeds {width}. Use "
                "the tokenizer that the model was trained with."
            )

    @classmethod
    def load(
        cls,
        name: str,
        *,
        dtype: str | torch.dtype = "float32",
        device: str = "cpu",
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> CausalLM:
        """Load from a local folder, a hub name or an embedded name; weights from safetensors only. Adapters in a folder
        of peft's are merged into the model that it names.

        Raises:
            ModelError: not found, pickled, or broken.
        """
        place = locate(name)
        tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
        base, revision = _under_adapters(place, revision)
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                base,
                revision=revision,
                trust_remote_code=trust_remote_code,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
            )
        except _UNREADABLE as error:
            raise ModelError(f"The model {name!r} cannot be loaded: {_first_line(error)}") from error
        model, found = loaded
        if missing := sorted(found["missing_keys"]):  # transformers fills them with noise and goes on
            raise ModelError(
                f"The model {name!r} lacks {len(missing)} of its weights, such as {missing[0]}: its files and its "
                "config.json do not belong together, or the download is incomplete."
            )
        if base != place:
            model = adapters.load_adapted(model, place)
        lm = cls(name, model.to(device).eval(), tokenizer)
        lm.check_split()
        return lm

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._embeddings().device

    def _embeddings(self) -> Tensor:
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def context(self) -> int:
        """The longest sequence the model was built for, in tokens."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 2**30)

    def parameters(self) -> int:
        """Number of weights, tied ones counted once."""
        return sum(p.numel() for p in self.model.parameters())

    def hidden(self, tokens_BT: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        """Last hidden states [B, T, D]. Padding stands on the right, where causal attention never looks.

        Args:
            tokens_BT: token ids.
            positions_BT: place of each token in its sequence; where they do not count on, another sequence begins, and
                none attends to another. None for one sequence a row.
        """
        # Without a mask transformers reads the sequences from the positions, and where each row holds one it leaves the
        # mask to the attention kernel, which is faster than any mask in memory.
        return self.model.base_model(input_ids=tokens_BT, position_ids=positions_BT, use_cache=False).last_hidden_state

    def head(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V] of hidden states, with the scaling and capping that some architectures apply."""
        logits = self.model.get_output_embeddings()(hidden_ND)
        config = self.model.config
        if scale := getattr(config, "logit_scale", None):  # Cohere multiplies
            logits = logits * scale
        if scaling := getattr(config, "logits_scaling", None):  # Granite divides
            logits = logits / scaling
        if cap := getattr(config, "final_logit_softcapping", None):  # Gemma caps
            logits = cap * torch.tanh(logits / cap)
        return logits

    def layers(self) -> list[nn.Module]:
        """The blocks that the architecture says belong together, such as its decoder layers."""
        names = set(self.model._no_split_modules or ())
        # By any name in the lineage: sharding gives a module a class of its own, derived from the architecture's.
        return [m for m in self.model.modules() if names & {kind.__name__ for kind in type(m).__mro__}]

    def spread(self) -> None:
        """Spread the layers' frozen weights over all processes; embeddings and head stay whole in each, so that hidden
        states, head and generation work as before, as long as all processes call them together."""
        for layer in self.layers():
            fully_shard(layer)

    def is_spread(self) -> bool:
        """Whether weights lie in several processes, so that all of them must take every step together."""
        return any(isinstance(layer, FSDPModule) for layer in self.layers())

    def head_parameters(self) -> list[nn.Parameter]:
        """The trainable parameters that `head` uses."""
        return [p for p in self.model.get_output_embeddings().parameters() if p.requires_grad]

    @torch.no_grad()
    def check_split(self) -> None:
        """Hidden states and head must give the model's own logits, or every loss would be about another model.

        Raises:
            ModelError: this architecture does more to its logits than `head` knows.
        """
        tokens = torch.arange(4, device=self.device).remainder(self.vocabulary)[None]
        with self.inference():  # dropout would make any two passes differ
            ours = self.head(self.hidden(tokens))
            theirs = self.model(input_ids=tokens, use_cache=False).logits
        if ours.shape != theirs.shape or not torch.allclose(ours.float(), theirs.float(), rtol=1e-2, atol=1e-2):
            raise ModelError(
                f"{type(self.model).__name__} computes its logits in a way stillhouse does not know, so that its loss "
                "would be wrong. Please report the architecture; a LlamaForCausalLM-like one works today."
            )

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        """Continue each prompt (token ids); returns the new ids without the end token, in the order of the prompts.

        Processes share the batches; what is written does not depend on how many they are.
        """
        return [written.ids for written in self.write(prompts, sampling)]

    @torch.no_grad()
    def write(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Written]:
        """As `generate`, and whether each ended by itself."""
        mine = list(self._write_batches(prompts, sampling))
        return [written for _, written in sorted(row for rows in world.gather(mine) for row in rows)]

    def _write_batches(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # alike lengths together: little padding
        pad = (
            self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id or 0
        )
        with self.inference(), torch.random.fork_rng(devices=self._accelerators()):
            for number, counts in world.turns(-(-len(order) // sampling.batch_size)):
                torch.manual_seed(int(fingerprint([sampling.seed, number]), 16) % 2**63)
                chosen = order[number * sampling.batch_size : (number + 1) * sampling.batch_size]
                width = max(len(prompts[i]) for i in chosen)
                tokens = torch.tensor(
                    [[pad] * (width - len(prompts[i])) + list(prompts[i]) for i in chosen], device=self.device
                )
                real = torch.tensor(
                    [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen], device=self.device
                )
                written = self._generate(tokens, real, sampling, pad)[:, width:].tolist()
                for i, ids in zip(chosen, written, strict=True) if counts else ():
                    yield i, self._until_end(ids)

    def _accelerators(self) -> list[torch.device]:
        """Devices whose random state a draw touches besides the processor's."""
        return [self.device] if self.device.type == "cuda" else []

    def _generate(self, tokens: Tensor, real: Tensor, sampling: Sampling, pad: int) -> Tensor:
        room = self.context - tokens.shape[1]
        if room < 1:
            raise ModelError(
                f"A prompt of {tokens.shape[1]} tokens leaves no room in the context of {self.context} of "
                f"{self.name!r}."
            )
        draw: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            draw = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        model: Any = self.model  # transformers types generate() against a protocol that its own classes do not meet
        padding = list(range(self.vocabulary, self._embeddings().shape[0]))  # columns of the head that are no tokens
        return model.generate(
            input_ids=tokens,
            attention_mask=real,
            max_new_tokens=min(sampling.max_new_tokens, room),
            pad_token_id=pad,
            eos_token_id=self.end_ids() or None,
            suppress_tokens=padding or None,
            synced_gpus=self.is_spread(),
            **draw,
        )

    def end_ids(self) -> list[int]:
        """Ids that end an answer: the tokenizer's end token and those of the model's generation settings."""
        configured = self.model.generation_config.eos_token_id if self.model.generation_config else None
        several = configured if isinstance(configured, list) else [configured]
        return sorted({i for i in [*several, self.tokenizer.eos_token_id] if i is not None})

    def _until_end(self, ids: list[int]) -> Written:
        ends = set(self.end_ids())
        end = next((place for place, i in enumerate(ids) if i in ends), None)
        return Written(ids[:end], end is not None)

    @contextmanager
    def inference(self) -> Generator[None, None, None]:
        """Evaluation mode for the time of the block; training mode comes back if it was on."""
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)

    def save(self, folder: Path, *, merge: bool = True) -> None:
        """Write an ordinary Hugging Face folder that AutoModelForCausalLM, vLLM and llama.cpp's converter read.

        Args:
            folder: made where it is absent.
            merge: of a model with adapters, write the sum; otherwise the adapters alone, as peft's folder.

        Raises:
            ModelError: adapters alone, on a model that lies in no folder.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if not adapters.is_adapted(self.model):
            self.model.save_pretrained(folder)
        elif merge:
            adapters.save_merged(self.model, folder)
        else:
            adapters.save_adapter(self.model, folder)
        self.tokenizer.save_pretrained(folder)

    def identity(self) -> dict[str, Any]:
        """What this model is, for manifests: name, size, and a fingerprint of configuration and weights' shapes."""
        return {
            "name": self.name,
            "architecture": type(self.model).__name__,
            "parameters": self.parameters(),
            "vocabulary": self.vocabulary,
            "config": json.loads(self.model.config.to_json_string(use_diff=True)),
        }
