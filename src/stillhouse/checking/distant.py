"""A teacher elsewhere as a rehearsal needs it: it says as much as the real one, about nothing, and asks nobody.

Shapes: M = B * T positions of a batch, K entries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from stillhouse.data.batching import TokenBatch
from stillhouse.errors import NeedsError
from stillhouse.models import Sampling, vocabulary_size
from stillhouse.records import Example
from stillhouse.signals.kinds import TopK
from stillhouse.teachers.base import Answer, TeacherSession


class Distant(TeacherSession):
    """The stand-in of a teacher whose answers cost money.

    Args:
        tokenizer: the teacher's.
        k: how many of the likeliest tokens it says at every place, `Teacher.shows`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, k: int) -> None:
        self.tokenizer, self.k = tokenizer, k

    def score(self, batch: TokenBatch) -> TopK:
        """The same of every position: k tokens and all others together are equally likely."""
        places, device = batch.tokens_BT.numel(), batch.tokens_BT.device
        ids_MK = torch.arange(self.k, device=device).repeat(places, 1)
        even_M = torch.full((places,), -math.log(self.k + 1), device=device)
        return TopK(ids_MK, even_M[:, None].repeat(1, self.k), even_M, vocabulary_size(self.tokenizer))

    def answer(self, asked: Sequence[Example], sampling: Sampling) -> list[Answer]:
        """Nobody is there to write.

        Raises:
            NeedsError: always.
        """
        raise NeedsError("A rehearsal does not ask a teacher elsewhere for text.")

    def identity(self) -> dict[str, Any]:
        """None that matters."""
        return {"name": "distant"}

    @property
    def lm(self) -> None:
        """Elsewhere."""
        return
