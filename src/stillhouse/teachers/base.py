"""What a teacher is: settings that can be checked and printed, and a session that has the weights (or the socket)
open."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from transformers import PreTrainedTokenizerBase

from stillhouse.data.batching import TokenBatch
from stillhouse.data.rendering import Rendered
from stillhouse.models import CausalLM, Sampling
from stillhouse.records import Example
from stillhouse.signals.kinds import Signal


@dataclass(frozen=True)
class Answer:
    """What a teacher wrote.

    Attributes:
        text: without special tokens.
        finished: it ended by itself; False where the limit of tokens or the context stopped it.
        tokens: how many it wrote, the end token not counted.
    """

    text: str
    finished: bool
    tokens: int


class TeacherSession(ABC):
    """An opened teacher: frozen, counting what it was asked.

    Attributes:
        tokenizer: what its token ids mean; asking one that shows nothing but text for it is a NeedsError.
        tokens_read: tokens it has scored, or was given to answer.
        tokens_written: tokens it has generated.
    """

    tokenizer: PreTrainedTokenizerBase
    tokens_read: int = 0
    tokens_written: int = 0

    @abstractmethod
    def score(self, batch: TokenBatch) -> Signal:
        """What the teacher says about every position of a batch; rows are the flattened [B * T] positions."""

    def prepare(self, rendered: Sequence[Rendered]) -> None:
        """See, before training starts, that it can speak about these examples; most teachers can about any.

        Raises:
            StillhouseError: it cannot, and about which.
        """
        return

    @abstractmethod
    def answer(self, asked: Sequence[Example], sampling: Sampling) -> list[Answer]:
        """Answers to prompts and conversations, in their order; an empty prompt asks for text from nothing.

        The ids of the examples take part in the draws of sampled text, so that one prompt asked under two ids gives two
        draws, and the same call again the same ones.

        Raises:
            DataError: a prompt that it cannot be asked.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What this teacher is, for manifests and fingerprints."""

    @property
    @abstractmethod
    def lm(self) -> CausalLM | None:
        """The model itself where it lives in this process, else None."""

    def journal(self, folder: Path) -> None:
        """From now on keep answers in a folder as they come, and read those that are there: what was stopped goes on.
        Teachers that keep their answers elsewhere, or have none, need no journal."""
        return

    def bill(self) -> dict[str, int]:
        """What asking came to besides tokens, such as calls; counts, which add up over stages."""
        return {}

    def told(self) -> dict[str, str]:
        """What the report should say about the asking besides counts, each under a name."""
        return {}

    def keep(self, folder: Path) -> None:
        """Write into a run's folder what its report should tell of the asking; most teachers have nothing to tell."""
        return

    def close(self) -> None:
        """Release what `open` took; weights need nothing."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Teacher(ABC):
    """The settings of a teacher; opening them is what costs memory, time or money."""

    family: ClassVar[str] = "teacher"
    provides: ClassVar[frozenset[str]] = frozenset()
    """What objectives may need of it, out of: text, token_logprobs, distribution, hidden_states, attentions."""
    manners: ClassVar[frozenset[str]] = frozenset()
    """Settings that change nothing of what it says, so that a run may go on with others."""

    @property
    def live(self) -> bool:
        """Whether it can be asked about any text; a record speaks about what it has heard alone."""
        return True

    @property
    def here(self) -> bool:
        """Whether its model is in this process, where it is measured beside its students."""
        return self.live

    @property
    def recorded_at(self) -> float | None:
        """The temperature of a record's distributions; None where the teacher can be asked at any."""
        return None

    @property
    def shows(self) -> int | None:
        """How many of the likeliest tokens it says at every place; None where it says whole distributions, or none."""
        return None

    def afford(self, calls: int, prompt_tokens: int, new_tokens: int) -> list[dict[str, Any]]:
        """What so many answers will cost at most, a bill for every teacher that is paid; none where nothing is.

        Raises:
            BudgetError: more than a budget allows.
        """
        return []

    @abstractmethod
    def open(self, device: str = "cpu") -> TeacherSession:
        """Load or connect."""

    @abstractmethod
    def load_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer alone, for checks before anything heavy is loaded; None of one that shows nothing but text."""

    @abstractmethod
    def fingerprint(self) -> str | None:
        """A hash of what lies behind the settings and could change under them, such as weights on disk; None where
        nothing can be seen without asking."""

    @abstractmethod
    def load_config(self) -> Any:
        """The architecture's configuration without weights, for estimates; None where it is not known."""


def find_nan(session: TeacherSession, batches: Iterable[TokenBatch]) -> str | None:
    """Where a teacher says what is no number: the first such example and which of its trained tokens, in words."""
    for batch in batches:
        signal = session.score(batch)
        for example, name in enumerate(batch.ids):
            wrong_N = signal.select(batch.trained_rows_of(example)).broken()
            if wrong_N.any():
                return f"example {name!r} at its trained token {int(wrong_N.int().argmax())}"
    return None
