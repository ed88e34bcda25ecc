"""Hidden states: what a causal language model makes of the prompt, averaged over its tokens or at the last.

Shapes: B prompts at once, T tokens, N examples, D the width of the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from stillhouse.data.rendering import Renderer, Role
from stillhouse.errors import DataError, RecipeError
from stillhouse.features.base import FeatureBench, Features, Matrix, require_student
from stillhouse.locating import fingerprint_model
from stillhouse.models import CausalLM
from stillhouse.records import Example

_BATCHES = 16
"""Batches of a block: prompts of a block are sorted by length, so that little is padding."""
_CHARACTERS = 64
"""No text averages more characters a token; what lies beyond them is not tokenised only to be cut."""


@dataclass(frozen=True, kw_only=True)
class HiddenStates(Features):
    """Hidden states of any Hugging Face causal model, as selectors use them (Ivison et al. 2025, arXiv 2503.01807).

    A prompt is rendered as it is for generation, by the chat template where there is one; the answer is left out. Two
    batches pad differently, so that a vector depends on its block to about 1e-6 of its size.

    Attributes:
        model: a folder or hub name; none is the student of the run as it is before training.
        layer: 0 are the embeddings, 1 is what the first block makes of them; negative ones count from the end, and -1
            is what the head sees.
        pool: the mean over all tokens, or the state at the last, which predicts the answer's first token.
        max_length: tokens that are read at most, fewer where the model's context is shorter: the last of a prompt, the
            first of running text.
        batch_size: prompts at once.

    >>> asked = [Example(id="a", prompt="2 + 2 =")]
    >>> HiddenStates(model="stillhouse:arithmetic", pool="last").compute(asked).shape
    (1, 192)
    """

    model: str | None = None
    layer: int = -1
    pool: Literal["mean", "last"] = "mean"
    max_length: int = 1024
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.pool not in ("mean", "last"):
            raise ValueError(f"pool is {self.pool!r}; it must be mean or last")
        for key in ("max_length", "batch_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; it must be at least 1")

    @property
    def of_text(self) -> bool:
        """With a model of its own."""
        return self.model is not None

    def identity(self) -> Any:
        """The settings, and what lies in the folder of a model of its own."""
        return [*super().identity(), self.model and fingerprint_model(self.model)]

    def blocks(self, examples: Sequence[Example], bench: FeatureBench) -> Iterator[Matrix]:
        """Pooled states in float32.

        Raises:
            NeedsError: no model of its own, and the bench has no student.
            ModelError: the model cannot be loaded.
            RecipeError: the model has no such layer.
            DataError: an example without a token, or with text that no tokenizer reads.
        """
        lm, renderer = self._open(bench)
        for start in range(0, len(examples), step := _BATCHES * self.batch_size):
            rows = range(start, min(start + step, len(examples)))
            prompts = [self._tokens(examples[row], renderer, min(self.max_length, lm.context)) for row in rows]
            order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
            vectors_ND = np.empty((0, 0), np.float32)
            for first in range(0, len(order), self.batch_size):
                chosen = order[first : first + self.batch_size]
                pooled_BD = self._pooled(lm, [prompts[place] for place in chosen])
                if not first:
                    vectors_ND = np.empty((len(prompts), pooled_BD.shape[1]), np.float32)
                vectors_ND[chosen] = pooled_BD.cpu().numpy()
            yield vectors_ND

    def _open(self, bench: FeatureBench) -> tuple[CausalLM, Renderer]:
        if self.model is None:
            student, renderer = require_student(bench, "hidden_states")
            lm = student.lm
        else:
            lm = CausalLM.load(self.model, device=bench.device)
            renderer = Renderer(lm.tokenizer, lm.context)
        # Of its own: what happens here is no notice about the training data, and all of a running text is looked at.
        everything = frozenset({Role.ANSWER})
        return lm, replace(renderer, train_on=everything, overflow="truncate", notices=Counter())

    def _tokens(self, example: Example, renderer: Renderer, limit: int) -> list[int]:
        example = _readable(example, _CHARACTERS * limit)
        if example.form == "text":
            rendered = renderer.render([example])
            tokens = rendered[0].tokens[:limit] if rendered else []
        else:
            tokens = renderer.prompt_ids(example)[-limit:]
        if not tokens:
            raise DataError(
                f"Example {example.id!r} has no token, so that hidden_states has nothing to look at. Fill it or remove "
                "it."
            )
        return tokens

    @torch.no_grad()
    def _pooled(self, lm: CausalLM, prompts: Sequence[Sequence[int]]) -> Tensor:
        width = max(map(len, prompts))
        tokens_BT = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in prompts], device=lm.device)
        with lm.inference():
            hidden_BTD = self._layer(lm, tokens_BT).float()
        if self.pool == "last":
            return torch.stack([hidden_BTD[row, len(ids) - 1] for row, ids in enumerate(prompts)])
        return torch.stack([hidden_BTD[row, : len(ids)].mean(0) for row, ids in enumerate(prompts)])

    def _layer(self, lm: CausalLM, tokens_BT: Tensor) -> Tensor:
        if self.layer == -1:
            return lm.hidden(tokens_BT)
        states = lm.model.base_model(input_ids=tokens_BT, use_cache=False, output_hidden_states=True).hidden_states
        if not -len(states) <= self.layer < len(states):
            raise RecipeError(
                f"hidden_states.layer is {self.layer}; {lm.name!r} has {len(states) - 1} blocks, so it must be from "
                f"{-len(states)} to {len(states) - 1}."
            )
        return states[self.layer]


def _readable(example: Example, characters: int) -> Example:
    """An example cut to so many characters of each text, the last of a prompt and the first of running text.

    Raises:
        DataError: text that no tokenizer reads.
    """
    if example.messages is not None:
        turns = tuple({**m, "content": m["content"][-characters:]} for m in example.messages)
        short, said = replace(example, messages=turns), "".join(turn["content"] for turn in turns)
    elif example.prompt is not None:
        said = example.prompt[-characters:]
        short = replace(example, prompt=said)
    else:
        said = (example.text or "")[:characters]
        short = replace(example, text=said)
    try:
        said.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"Example {example.id!r} holds half a character ({error.object[error.start]!r}, a lone surrogate), which "
            "no tokenizer reads. Remove it from the data."
        ) from error
    return short
