"""A Hugging Face model in this process: frozen, white-box, from a local folder, the hub, or the package itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from transformers import PreTrainedTokenizerBase

from stillhouse import world
from stillhouse.data.batching import TokenBatch
from stillhouse.data.rendering import Renderer
from stillhouse.errors import DataError
from stillhouse.locating import fingerprint_model
from stillhouse.models import CausalLM, Sampling, load_config, load_tokenizer
from stillhouse.records import Example, fingerprint, whole
from stillhouse.signals.kinds import Headed
from stillhouse.teachers.base import Answer, Teacher, TeacherSession


@dataclass(frozen=True)
class HFTeacher(Teacher):
    """A causal language model by folder or hub name.

    Attributes:
        model: a folder, a hub name, or `stillhouse:arithmetic`, the teacher that ships with the package.
        dtype: of its weights; `auto` takes what they were saved in.
        revision: of a hub model.
        trust_remote_code: run code that comes with the model; off unless asked.
        shard: spread its layers over the processes of a distributed run; `auto` does so where its weights would take
            more than half of what is free on the accelerator.
    """

    model: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    revision: str | None = None
    trust_remote_code: bool = False
    shard: Literal["auto", "never", "always"] = "auto"

    provides: ClassVar[frozenset[str]] = frozenset({"text", "token_logprobs", "distribution"})

    def open(self, device: str = "cpu") -> HFSession:
        """Load the weights.

        Raises:
            ModelError: not found, pickled, or of an architecture whose logits are not understood.
        """
        how: dict[str, Any] = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        session = HFSession(CausalLM.load(self.model, dtype=self.dtype, device="cpu", **how), self.revision)
        if self._must_shard(session.lm, device):
            session.lm.spread()  # before the move, so that no device ever holds the whole
        session.lm.model.to(device)
        return session

    def _must_shard(self, lm: CausalLM, device: str) -> bool:
        if world.size() == 1 or self.shard != "auto" or not device.startswith("cuda"):
            return world.size() > 1 and self.shard == "always"
        weights = sum(p.numel() * p.element_size() for p in lm.model.parameters())
        # The fullest device decides for all, because sharding takes all of them.
        free = min(world.gather(torch.cuda.mem_get_info(device)[0]))
        return 2 * weights > free

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return load_tokenizer(self.model, revision=self.revision, trust_remote_code=self.trust_remote_code)

    def fingerprint(self) -> str | None:
        """Of a local folder's files."""
        return fingerprint_model(self.model)

    def load_config(self) -> Any:
        """The model's configuration."""
        return load_config(self.model, revision=self.revision, trust_remote_code=self.trust_remote_code)


class HFSession(TeacherSession):
    """The loaded model, its weights frozen; where they are spread over processes, all of them must ask together."""

    def __init__(self, lm: CausalLM, revision: str | None = None) -> None:
        self._lm, self._revision = lm, revision
        self._journal: Path | None = None
        self.tokenizer = lm.tokenizer
        lm.model.requires_grad_(False).eval()

    @property
    def lm(self) -> CausalLM:
        """The model."""
        return self._lm

    @torch.no_grad()
    def score(self, batch: TokenBatch) -> Headed:
        """Hidden states and the head; the [tokens, vocabulary] logits are made chunk by chunk, where they are used."""
        self.tokens_read += batch.real_count()
        return Headed(self._lm.hidden(batch.tokens_BT, batch.positions_BT), self._lm.head, self._lm.vocabulary)

    def journal(self, folder: Path) -> None:
        """Each call of `answer` is one file, named by all that was asked."""
        self._journal = folder

    def answer(self, asked: Sequence[Example], sampling: Sampling) -> list[Answer]:
        """Generate; counted as written, prompts as read.

        Raises:
            DataError: an empty prompt where no token begins a sequence; a conversation without a chat template.
        """
        renderer = Renderer(self._lm.tokenizer, self._lm.context)
        prompts = [renderer.prompt_ids(example) for example in asked]
        if empty := next((e.id for e, ids in zip(asked, prompts, strict=True) if not ids), None):
            raise DataError(
                f"Example {empty!r} asks for text from nothing, and the tokenizer has no beginning-of-sequence token "
                "to write from. Give prompts instead."
            )
        drawn = int(fingerprint([sampling.seed, [example.id for example in asked]]), 16) % 2**63
        seeded = dataclasses.replace(sampling, seed=drawn)
        place = self._journal and self._journal / f"{fingerprint([prompts, dataclasses.asdict(seeded)])}.json"
        answers = world.first(lambda: _read(place)) if place else None
        if answers is None:
            answers = self._write(prompts, seeded)
            if place:
                world.first(lambda: _keep(place, answers))
        self.tokens_read += sum(map(len, prompts))
        self.tokens_written += sum(answer.tokens for answer in answers)
        return answers

    def _write(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Answer]:
        decode = self._lm.tokenizer.decode
        return [
            Answer(str(decode(ids, skip_special_tokens=True)), ended, len(ids))
            for ids, ended in self._lm.write(prompts, sampling)
        ]

    def identity(self) -> dict[str, Any]:
        """Name, revision, size and configuration."""
        return {**self._lm.identity(), "revision": self._revision}


def _read(place: Path) -> list[Answer] | None:
    """Answers of a journal; None where they were not kept."""
    if not place.exists():
        return None
    return [Answer(**row) for row in json.loads(place.read_text(encoding="utf-8"))]


def _keep(place: Path, answers: Sequence[Answer]) -> None:
    with whole(place) as partial:
        partial.write_text(json.dumps([dataclasses.asdict(answer) for answer in answers]), encoding="utf-8")
