"""What evaluators share: a model's logits at the trained tokens of held-out data, a chunk at a time.

The [tokens, vocabulary] matrix of a data set never exists at once, only that of one chunk (contract C4); what a metric
needs of each token is summed by example there and then. Shapes: B sequences, T tokens, M = B * T positions, D width,
N trained tokens of a chunk, V the true vocabulary, E examples, S sums.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from stillhouse import world
from stillhouse.data.batching import TokenBatch, pass_in_order
from stillhouse.data.rendering import Rendered, Renderer
from stillhouse.errors import DataError
from stillhouse.evaluation.base import Heldout
from stillhouse.models import CausalLM
from stillhouse.statistics import FloatArray, Kind, Measurement

_LOGITS_BYTES = 2**26
"""About this much memory is spent on the float32 logits of one chunk."""
_FEWEST_ROWS = 64


class Chunk(NamedTuple):
    """N trained tokens.

    Attributes:
        example_N: which of the rendered examples each belongs to, on the CPU.
        targets_N: the true next token.
        logits_NV: the model's, float32 at least, over the true vocabulary; the padding of its head is cut off.
        teacher_NV: the teacher's, alike; the model's own where no teacher was given.
    """

    example_N: Tensor
    targets_N: Tensor
    logits_NV: Tensor
    teacher_NV: Tensor


def rows_at_once(vocabulary: int) -> int:
    """Trained tokens of a batch whose logits exist at once."""
    return max(_FEWEST_ROWS, _LOGITS_BYTES // (4 * vocabulary))


def renderer_for(model: CausalLM, data: Heldout, *, fit: bool = False) -> Renderer:
    """The held-out data's renderer, in the model's own tokens: a teacher may read the same text in other pieces.

    Args:
        model: whose tokenizer and context count.
        data: whose settings are kept.
        fit: for prompts of one's own: an example that exceeds the model's context is an error, whatever the settings
            say.
    """
    own = model.tokenizer
    tokenizer = data.renderer.tokenizer if _same_tokens(model, data) else own
    if fit:
        return Renderer(tokenizer, model.context, trace=data.renderer.trace)
    length = min(data.renderer.max_length, model.context)
    return dataclasses.replace(data.renderer, tokenizer=tokenizer, max_length=length, notices=Counter())


def rendered_for(model: CausalLM, data: Heldout) -> Sequence[Rendered]:
    """The held-out data as tokens of the model.

    Raises:
        DataError: nothing is left to measure on.
    """
    rendered = data.rendered if _same_tokens(model, data) else renderer_for(model, data).render(data.examples)
    if not rendered:
        raise DataError(
            f"The held-out data {data.name or 'heldout'!r} has no example to measure {model.name!r} on: all "
            f"{len(data.examples)} were dropped for their length. Raise data.max_length, or give shorter examples."
        )
    return rendered


def _same_tokens(model: CausalLM, data: Heldout) -> bool:
    shared = data.renderer.tokenizer
    return model.tokenizer is shared or model.tokenizer.get_vocab() == shared.get_vocab()


@torch.no_grad()
def chunks(
    model: CausalLM, rendered: Sequence[Rendered], teacher: CausalLM | None = None
) -> Iterator[tuple[int, Chunk]]:
    """Every trained token of the examples once, without gradients and without dropout, on the model's device; with each
    chunk the number of the batch that it is of.

    Processes share the batches: each yields its own.
    """
    place = {r.id: i for i, r in enumerate(rendered)}
    rows = rows_at_once(model.vocabulary)
    asked = [model] if teacher is None else [model, teacher]
    with ExitStack() as stack:
        for lm in asked:
            stack.enter_context(lm.inference())
        for number, batch, counts in _own(rendered):
            on_device = batch.to(model.device)
            example_M = torch.tensor([place[name] for name in batch.ids])[batch.examples_BT().flatten()]
            hidden = [_hidden_MD(lm, batch) for lm in asked]
            for rows_N in on_device.trained_rows().split(rows) if counts else ():
                logits = [_logits_NV(lm, h, rows_N).to(model.device) for lm, h in zip(asked, hidden, strict=True)]
                yield number, Chunk(example_M[rows_N.cpu()], on_device.select(rows_N).targets_N, logits[0], logits[-1])


def _own(rendered: Sequence[Rendered]) -> Iterator[tuple[int, TokenBatch, bool]]:
    """This process's batches: their numbers, and whether they count."""
    plan = pass_in_order(rendered)
    for number, counts in world.turns(len(plan)):
        yield number, TokenBatch.of([rendered[i] for i in plan[number]]), counts


def _hidden_MD(lm: CausalLM, batch: TokenBatch) -> Tensor:
    there = batch.to(lm.device)
    return lm.hidden(there.tokens_BT, there.positions_BT).flatten(0, 1)


def _logits_NV(lm: CausalLM, hidden_MD: Tensor, rows_N: Tensor) -> Tensor:
    logits_NV = lm.head(hidden_MD[rows_N.to(hidden_MD.device)])[:, : lm.vocabulary]
    return logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()


Contribute = Callable[[Chunk], Sequence[Tensor]]
"""S numbers for each token of a chunk, every one of shape [N]."""


def token_values(
    model: CausalLM, rendered: Sequence[Rendered], contribute: Contribute, teacher: CausalLM | None = None
) -> tuple[NDArray[np.int64], FloatArray]:
    """What `contribute` says of every trained token, in float64: the example each token belongs to [N], and values
    [N, S]."""
    mine: list[tuple[int, NDArray[np.int64], FloatArray]] = []
    for number, chunk in chunks(model, rendered, teacher):
        values_NS = torch.stack([column.double().cpu() for column in contribute(chunk)], dim=1).numpy()
        mine.append((number, chunk.example_N.numpy(), values_NS))
    # In the order of the batches, whoever had them, so that sums are the same bits for any number of processes.
    every = sorted((part for parts in world.gather(mine) for part in parts), key=lambda part: part[0])
    return np.concatenate([places for _, places, _ in every]), np.concatenate([values for _, _, values in every])


def nats(chunk: Chunk) -> Sequence[Tensor]:
    """`-log q(y_t | y_<t)` of each token, and 1 to count it by."""
    nats_N = functional.cross_entropy(chunk.logits_NV, chunk.targets_N, reduction="none")
    return nats_N, torch.ones_like(nats_N)


def sum_by_example(
    model: CausalLM, rendered: Sequence[Rendered], contribute: Contribute, teacher: CausalLM | None = None
) -> FloatArray:
    """The sums of those values over each example's tokens, shape [E, S]."""
    example_N, values_NS = token_values(model, rendered, contribute, teacher)
    return sums_of(example_N, values_NS, len(rendered))


def sums_of(example_N: NDArray[np.int64], values_NS: FloatArray, examples: int) -> FloatArray:
    """Values of tokens summed by the example they belong to, shape [E, S]."""
    columns = [np.bincount(example_N, column_N, minlength=examples) for column_N in values_NS.T]
    return np.stack(columns, axis=1).astype(np.float64)


def likelihoods(model: CausalLM, rendered: Sequence[Rendered]) -> tuple[Measurement, Measurement]:
    """Loss in nats per trained token, and the same information in bits per byte of the text behind the tokens."""
    nats_E, tokens_E = sum_by_example(model, rendered, nats).T
    bytes_E = [r.size for r in rendered]
    return measurement(rendered, nats_E, tokens_E), measurement(rendered, nats_E / math.log(2), bytes_E)


def measurement(rendered: Sequence[Rendered], *columns_E: ArrayLike, kind: Kind = "ratio") -> Measurement:
    """A measurement of rendered examples from its columns of sums."""
    sums_ES = np.stack([np.asarray(column, dtype=np.float64) for column in columns_E], axis=1)
    return Measurement(tuple(r.id for r in rendered), sums_ES, kind)
