"""Convenience for notebooks and scripts: read or make examples, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from stillhouse import world
from stillhouse.data.batching import Batches
from stillhouse.data.rendering import Renderer
from stillhouse.data.sources import read_source
from stillhouse.recipe_data import Source
from stillhouse.records import Example


def read(path: str, **columns: Any) -> list[Example]:
    """Examples of a file or folder; `columns` maps names as in a recipe, such as `prompt="question"`.

    Raises:
        DataError: as `data.sources.read_source`.
    """
    return read_source(Source(path=path, **columns))


def problems(count: int, *, seed: int = 0, steps: tuple[int, int] = (2, 4), split: str = "train") -> list[Example]:
    """Worded arithmetic problems of the built-in source, with worked solutions.

    >>> problems(1, seed=5)[0].form
    'prompt'
    """
    made = {"count": count, "seed": seed, "steps": steps, "split": split}
    return read_source(Source.model_validate({"arithmetic": made}))


def batches(
    data: str | Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokens_per_batch: int = 32768,
    max_length: int = 2048,
    seed: int = 0,
) -> Batches:
    """An endless stream of padded batches of a file's or a list's examples; where processes train together, this
    one's turns of it.

    Raises:
        DataError: nothing to train on, or an example longer than `max_length`.
    """
    examples = read(data) if isinstance(data, str) else list(data)
    rendered = Renderer(tokenizer, max_length).render(examples)
    return Batches(rendered, tokens_per_batch=tokens_per_batch, seed=seed, turn=(world.rank(), world.size()))
