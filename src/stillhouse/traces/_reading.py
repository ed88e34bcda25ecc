"""A small model reads traces: the log-probability of each token of a continuation. Shapes: B sequences, T tokens, V
vocabulary, N tokens of a continuation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional

from stillhouse.data.rendering import Renderer
from stillhouse.models import CausalLM
from stillhouse.records import Example
from stillhouse.statistics import FloatArray

_LOGITS_BYTES = 2**26
"""About this much memory is spent on the float32 logits of one batch."""


def logprobs(
    model: CausalLM, prompts: Sequence[str], continuations: Sequence[str], between: Sequence[str] | None = None
) -> list[FloatArray]:
    """`log q(y_t | x, y_<t)` of every token of each continuation, in nats, behind its prompt (by the chat template
    where the model has one) and what is written `between` the two.

    What exceeds the model's context is cut off in front: the prompt's beginning first, then the continuation's.
    """
    renderer = Renderer(model.tokenizer, model.context)
    asked = {prompt: renderer.prompt_ids(Example(id="", prompt=prompt)) for prompt in dict.fromkeys(prompts)}
    middle = [""] * len(prompts) if between is None else between
    parts = zip(prompts, middle, continuations, strict=True)
    pairs = [(asked[prompt] + _ids(model, m), _ids(model, c)) for prompt, m, c in parts]
    found: list[FloatArray] = [np.zeros(0)] * len(pairs)
    with torch.no_grad(), model.inference():
        for places in _batches([len(p) + len(c) for p, c in pairs], model):
            for place, values_N in zip(places, _score(model, [pairs[i] for i in places]), strict=True):
                found[place] = values_N
    return found


def beyond_context(model: CausalLM, prompts: Sequence[str], continuations: Sequence[str]) -> int:
    """How many texts `logprobs` has to cut."""
    renderer = Renderer(model.tokenizer, model.context)
    asked = {prompt: len(renderer.prompt_ids(Example(id="", prompt=prompt))) for prompt in dict.fromkeys(prompts)}
    pairs = zip(prompts, continuations, strict=True)
    return sum(asked[prompt] + len(_ids(model, text)) > model.context for prompt, text in pairs)


def _ids(model: CausalLM, text: str) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _batches(lengths: Sequence[int], model: CausalLM) -> Iterator[list[int]]:
    """Places of texts of like length, as many at once as memory is set aside for."""
    budget = max(1, _LOGITS_BYTES // (4 * model.vocabulary))
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    batch: list[int] = []
    for place in order:
        if batch and (len(batch) + 1) * min(lengths[place], model.context) > budget:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _score(model: CausalLM, pairs: Sequence[tuple[list[int], list[int]]]) -> list[FloatArray]:
    rows = [(prompt + continuation)[-model.context :] for prompt, continuation in pairs]
    width = max(map(len, rows))
    tokens_BT = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    hidden_BTD = model.hidden(tokens_BT)
    found = []
    for row, (_, continuation), tokens_T, hidden_TD in zip(rows, pairs, tokens_BT, hidden_BTD, strict=True):
        first = max(1, len(row) - len(continuation))
        logits_NV = model.head(hidden_TD[first - 1 : len(row) - 1])[:, : model.vocabulary].float()
        nats_N = functional.cross_entropy(logits_NV, tokens_T[first : len(row)], reduction="none")
        found.append(-nats_N.double().cpu().numpy())
    return found
