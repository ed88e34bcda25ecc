"""The vectors of words: a static embedding table, so that texts are sequences of vectors and vectors can be text again.

Shapes: N rows, T places, D width, V pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillhouse.features.static_embeddings import load_static_model


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer with a vector for each of its pieces.

    Attributes:
        tokenizer: of the `tokenizers` library.
        table_VD: a vector a piece, scaled to a mean square of about one.
        readable_V: which pieces a text may be made of: letters, digits and punctuation that have a vector.
    """

    tokenizer: Any
    table_VD: Tensor
    readable_V: Tensor

    def encode(self, texts: Sequence[str], places: int) -> tuple[Tensor, Tensor]:
        """Texts as pieces, [N, T], and which places hold one; what is longer is cut. A text without a piece is one
        place that holds the zero vector's piece."""
        found = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        pieces_NT = torch.zeros(len(texts), places, dtype=torch.long)
        mask_NT = torch.zeros(len(texts), places, dtype=self.table_VD.dtype)
        for row, one in enumerate(found):
            ids = one.ids[:places]
            pieces_NT[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
            mask_NT[row, : max(1, len(ids))] = 1
        return pieces_NT, mask_NT

    def vectors(self, texts: Sequence[str], places: int) -> tuple[Tensor, Tensor]:
        """Texts as vectors, [N, T, D], zero where no piece is, and which places hold one."""
        pieces_NT, mask_NT = self.encode(texts, places)
        return self.table_VD[pieces_NT] * mask_NT[..., None], mask_NT

    def text(self, pieces: Sequence[int]) -> str:
        """Pieces as text."""
        return str(self.tokenizer.decode(list(pieces)))


def load_vocabulary(model: str) -> Vocabulary:
    """The table of a static embedding model (Model2Vec), a folder or hub name.

    Raises:
        MissingExtraError: model2vec is not installed.
        ModelError: it cannot be loaded.
    """
    loaded = load_static_model(model)
    table_VD = torch.tensor(loaded.embedding)
    norm_V = table_VD.norm(dim=1)
    table_VD = table_VD / norm_V.mean() * table_VD.shape[1] ** 0.5
    readable = torch.zeros(len(table_VD), dtype=torch.bool)
    for piece, place in loaded.tokenizer.get_vocab().items():
        bare = piece.removeprefix("##")
        readable[place] = bare.isascii() and bare.isprintable() and not bare.startswith("[") and norm_V[place] > 0
    return Vocabulary(loaded.tokenizer, table_VD, readable)
