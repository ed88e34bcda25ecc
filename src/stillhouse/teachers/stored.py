"""What another teacher said, read from a signal store that `stillhouse score` wrote: asked once, used often.

Shapes: N trained tokens of one example, M = B * T positions of a batch, K kept entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from stillhouse.data.batching import TokenBatch
from stillhouse.data.rendering import Rendered
from stillhouse.errors import NeedsError, SignalStoreError
from stillhouse.locating import fingerprint_model
from stillhouse.models import CausalLM, Sampling, load_config, load_tokenizer
from stillhouse.records import Example, fingerprint, fingerprint_file
from stillhouse.signals.kinds import TopK
from stillhouse.signals.layout import WAY_OUT, read_header
from stillhouse.signals.store import TOKENIZER, SignalStore
from stillhouse.signals.vocabulary import tokenizer_fingerprint
from stillhouse.teachers.base import Answer, Teacher, TeacherSession


@dataclass(frozen=True)
class StoredTeacher(Teacher):
    """The recorded signals of a teacher: the top k tokens and a tail bucket of every trained token.

    Attributes:
        path: the store's folder, such as `runs/scored/signals`.
        model: the recorded teacher's weights, for the evaluation alone; without them the teacher itself is not
            measured, and what asks it about held-out text (fidelity) is refused.
    """

    path: str
    model: str | None = None

    provides: ClassVar[frozenset[str]] = frozenset({"token_logprobs", "distribution"})

    @property
    def live(self) -> bool:
        """Only with the weights at hand can it be asked about text that it has not heard."""
        return self.model is not None

    @property
    def recorded_at(self) -> float | None:
        """As the store's header says.

        Raises:
            SignalStoreError: no store, or a damaged header.
        """
        return read_header(Path(self.path)).temperature

    @property
    def shows(self) -> int | None:
        """As the store's header says.

        Raises:
            SignalStoreError: no store, or a damaged header.
        """
        return read_header(Path(self.path)).k

    def open(self, device: str = "cpu") -> StoredSession:
        """Map the store into memory.

        Raises:
            SignalStoreError: no store, not finished, or damaged.
        """
        return StoredSession(self, SignalStore(self.path), device)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that the store keeps a copy of.

        Raises:
            SignalStoreError: no store, not finished, damaged, or a tokenizer that is not the one it was scored with.
        """
        return _tokenizer(SignalStore(self.path))

    def fingerprint(self) -> str | None:
        """Of the store's own account of itself, and of the weights."""
        account = [fingerprint_file(Path(self.path) / name) for name in ("header.json", "complete.json")]
        return fingerprint([*account, self.model and fingerprint_model(self.model)])

    def load_config(self) -> Any:
        """The recorded teacher's configuration where its weights are at hand."""
        return load_config(self.model) if self.model is not None else None


def _tokenizer(store: SignalStore) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(str(store.folder / TOKENIZER))
    if tokenizer_fingerprint(tokenizer) != store.header.tokenizer:
        raise SignalStoreError(
            f"{store.folder / TOKENIZER} is not the tokenizer that the store was scored with: its ids mean other "
            f"tokens. {WAY_OUT}"
        )
    return tokenizer


def recorded_signal(store: SignalStore, batch: TokenBatch) -> TopK:
    """What a store holds about a batch. Rows are the flattened [B * T] positions, NaN where a position is not trained,
    so that a mistake cannot pass for a signal.

    Raises:
        SignalStoreError: an example is not there, or its text is not the one that was scored.
    """
    places, k = batch.trained_BT.numel(), store.header.k
    ids_MK = torch.zeros(places, k, dtype=torch.long)
    logprobs_MK, tail_M = torch.full((places, k), torch.nan), torch.full((places,), torch.nan)
    for example, name in enumerate(batch.ids):
        record = store.read(name, batch.digest(example))
        rows_N = batch.trained_rows_of(example).cpu()
        ids_MK[rows_N] = torch.from_numpy(record.ids_NK.astype(np.int64))
        logprobs_MK[rows_N] = torch.from_numpy(record.logprobs_NK.copy())
        tail_M[rows_N] = torch.from_numpy(record.tail_N.copy())
    device, header = batch.tokens_BT.device, store.header
    on_device = (ids_MK.to(device), logprobs_MK.to(device), tail_M.to(device))
    return TopK(*on_device, header.vocabulary, header.temperature)


class StoredSession(TeacherSession):
    """An opened store; it reads no tokens, because they were read when it was written."""

    def __init__(self, settings: StoredTeacher, store: SignalStore, device: str) -> None:
        self.settings, self.store, self.device = settings, store, device
        self.tokenizer = _tokenizer(store)

    def prepare(self, rendered: Sequence[Rendered]) -> None:
        """See that every example is there and is the text that was scored.

        Raises:
            SignalStoreError: the first that is not.
        """
        for example in rendered:
            self.store.read(example.id, TokenBatch.of([example]).digest(0))

    def score(self, batch: TokenBatch) -> TopK:
        """What was recorded about the trained positions; all others are NaN."""
        return recorded_signal(self.store, batch)

    def answer(self, asked: Sequence[Example], sampling: Sampling) -> list[Answer]:
        """A record cannot answer.

        Raises:
            NeedsError: always.
        """
        raise NeedsError(
            "A stored teacher holds signals about known text and writes none. Use the hf teacher for that."
        )

    def identity(self) -> dict[str, Any]:
        """The recorded teacher's, and how it was recorded."""
        header = self.store.header
        return {**header.teacher, "stored": {"k": header.k, "temperature": header.temperature}}

    @cached_property
    def _model(self) -> CausalLM:
        lm = CausalLM.load(str(self.settings.model), device=self.device)
        lm.model.requires_grad_(False).eval()
        recorded, found = self.store.header.teacher, lm.identity()
        if any(recorded.get(key) != found[key] for key in ("architecture", "parameters", "vocabulary")):
            raise SignalStoreError(
                f"{self.store.folder} recorded {recorded.get('name')} ({recorded.get('parameters'):,} parameters), "
                f"{self.settings.model} has {found['parameters']:,}. Give the weights that were recorded as "
                "teacher.stored.model, or none."
            )
        return lm

    @property
    def lm(self) -> CausalLM | None:
        """The recorded teacher's weights where the recipe names them."""
        return self._model if self.settings.model is not None else None
