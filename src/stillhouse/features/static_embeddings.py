"""Static embeddings: the mean of learned word-piece vectors, by model2vec; as quick as counting words.

Shapes: N examples, D the width of a vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from stillhouse.errors import MissingExtraError, ModelError
from stillhouse.features.base import FeatureBench, Features, Matrix, text_of
from stillhouse.locating import fingerprint_model, locate
from stillhouse.records import Example

_BLOCK = 4096
_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class StaticEmbeddings(Features):
    """Model2Vec (Tulkens and van Dongen 2024, github.com/MinishLab/model2vec): a sentence transformer distilled into
    one vector a word piece. A text is the mean of its pieces, scaled to length 1 where the model says so.

    Of a text count as many tokens as the model's `max_length` says, 512 where it says nothing.

    Attributes:
        model: a folder of model2vec's with `config.json`, `model.safetensors` and `tokenizer.json`, or a hub name such
            as `minishlab/potion-base-8M`. Weights are read from safetensors only.

    >>> StaticEmbeddings(model="minishlab/potion-base-8M").compute(examples).shape  # doctest: +SKIP
    (1000, 256)
    """

    model: str

    def __post_init__(self) -> None:
        require_model2vec()

    def identity(self) -> Any:
        """The settings, and what lies in the model's folder."""
        return [*super().identity(), fingerprint_model(self.model)]

    def blocks(self, examples: Sequence[Example], bench: FeatureBench) -> Iterator[Matrix]:
        """Mean vectors, or zero for a text without a word piece that the model knows.

        Raises:
            ModelError: the model is not there, is damaged, or is none of model2vec's.
        """
        model = load_static_model(self.model)
        for start in range(0, len(examples), _BLOCK):
            texts = [text_of(examples[row]) for row in range(start, min(start + _BLOCK, len(examples)))]
            vectors_ND = model.encode(texts, batch_size=_BATCH, use_multiprocessing=False)
            yield np.asarray(vectors_ND, np.float32)


def require_model2vec() -> None:
    """Refuse to go on without the extra.

    Raises:
        MissingExtraError: model2vec is not installed.
    """
    if find_spec("model2vec") is None:
        raise MissingExtraError(
            'Static embeddings need model2vec, which is not installed: pip install "stillhouse[data]"'
        )


def load_static_model(name: str) -> Any:
    """model2vec's own object, its table in float32, of a folder or hub name.

    Raises:
        MissingExtraError: model2vec is not installed.
        ModelError: the model is not there, is damaged, or is none of model2vec's.
    """
    require_model2vec()
    from model2vec import StaticModel  # an extra

    place = locate(name)
    try:
        model = StaticModel.from_pretrained(place, force_download=False)
    except Exception as error:  # the tokenizer's library raises nothing narrower
        said = str(error).strip().rstrip(".") or type(error).__name__
        raise ModelError(
            f"{name!r} cannot be loaded as static embeddings: {said}. They are a folder of model2vec's, with "
            "config.json, model.safetensors and tokenizer.json, or the hub name of one."
        ) from error
    # What is stored in eight or sixteen bits is averaged in float32, whatever it was stored in.
    model.embedding = model.embedding.astype(np.float32)
    return model
