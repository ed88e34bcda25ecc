"""A decoder as a learner: vectors in place of a prompt's tokens, the next token among some answers as its class, and
low-rank adapters as all that learns.

Shapes: B rows, T places, D width of a token's embedding, W width of a hidden state, C answers.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from stillhouse import adapters
from stillhouse.classifiers.architectures import VectorClassifier
from stillhouse.errors import DataError, NeedsError
from stillhouse.models import CausalLM
from stillhouse.recipe import LoRA

_LOUDNESS = 0.02
"""Standard deviation of the adapters' second factor. Ordinary adapters begin with zeros there, where the first factor
has no gradient that could be matched."""


class DecoderLearner(VectorClassifier):
    """A causal language model as `(inputs_BTD, mask_BT) -> logits_BC`: what it expects after a row's last place.

    Rows stand on the left and are padded on the right. Everything but the adapters is frozen, and is not among the
    parameters that condensers match.

    Args:
        lm: the model; it is copied.
        answers: ids of the tokens that are the classes.
        lora: the adapters.
        seed: of the adapters.

    Raises:
        NeedsError: the model cannot be fed vectors.
        DataError: fewer than two answers, or one twice.
        MissingExtraError: peft is not installed.
    """

    def __init__(self, lm: CausalLM, answers: Sequence[int], lora: LoRA, *, seed: int) -> None:
        super().__init__()
        require_vectors(lm)
        if len(answers) < 2 or len(set(answers)) < len(answers):
            raise DataError(f"The answers are the tokens {list(answers)}; there must be at least two, each once.")
        model = copy.deepcopy(lm.model)
        model.set_attn_implementation("eager")  # fused attention has no second derivative
        adapters.adapt(model, lora, seed=seed)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and "lora_B" in name:
                    parameter.normal_(std=_LOUDNESS, generator=draw)
            rows = model.get_output_embeddings().weight[list(answers)]
            self.head = nn.Linear(rows.shape[1], len(answers), bias=False).to(rows.dtype)
            self.head.weight.copy_(rows)
        self.head.requires_grad_(False)
        self.model = model

    def features(self, inputs_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """The hidden state at each row's last place that counts, [B, W]."""
        stack = self.model.base_model
        hidden_BTW = stack(inputs_embeds=inputs_BTD, attention_mask=mask_BT.long(), use_cache=False).last_hidden_state
        last_B = (mask_BT.bool() * torch.arange(1, mask_BT.shape[1] + 1)).argmax(1)
        return hidden_BTW[torch.arange(len(last_B)), last_B]


def require_vectors(lm: CausalLM) -> None:
    """Refuse a model that reads tokens alone.

    Raises:
        NeedsError: it has no input embeddings, or its forward pass takes none.
    """
    try:
        table = lm.model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        table = None
    if table is None or "inputs_embeds" not in inspect.signature(lm.model.forward).parameters:
        raise NeedsError(
            f"Condensing makes vectors, and {lm.name!r} ({type(lm.model).__name__}) cannot be fed any: it needs "
            "get_input_embeddings and a forward pass that takes inputs_embeds. Choose real rows for it instead, with a "
            "selector."
        )


def decoder_learner(lm: CausalLM, answers: Sequence[int], lora: LoRA) -> Callable[[int], nn.Module]:
    """A learner for condensers: the same model with adapters drawn by each seed.

    Raises:
        NeedsError: the model cannot be fed vectors.
    """
    require_vectors(lm)
    return lambda seed: DecoderLearner(lm, answers, lora, seed=seed)


def token_vectors(lm: CausalLM, prompts: Sequence[str], places: int) -> tuple[Tensor, Tensor]:
    """Prompts as the model's own embeddings, [B, T, D], zero where no token is, and which places hold one; the last
    tokens of what is longer are kept, because the answer follows them.

    Raises:
        DataError: a prompt without a token.
    """
    table = lm.model.get_input_embeddings()
    ids = [lm.tokenizer.encode(prompt)[-places:] for prompt in prompts]
    if empty := [prompt for prompt, row in zip(prompts, ids, strict=True) if not row]:
        raise DataError(f"{len(empty)} prompts hold no token, such as {empty[0]!r}. Leave them out.")
    tokens_BT = torch.tensor([row + [0] * (places - len(row)) for row in ids])
    lengths_B = torch.tensor([len(row) for row in ids])
    with torch.no_grad():
        vectors_BTD = table(tokens_BT)
    mask_BT = (torch.arange(places)[None] < lengths_B[:, None]).to(vectors_BTD.dtype)
    return vectors_BTD * mask_BT[..., None], mask_BT
