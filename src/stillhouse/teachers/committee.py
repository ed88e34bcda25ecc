"""A committee: several teachers as one, their distributions mixed, their answers chosen by a consensus rule."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import PlainValidator
from transformers import PreTrainedTokenizerBase

from stillhouse.answers import normalized, number
from stillhouse.consensus._disagreements import Disagreements, write_disagreements
from stillhouse.consensus.base import Consensus, ConsensusRule, Vote
from stillhouse.consensus.majority import Majority
from stillhouse.data.batching import TokenBatch
from stillhouse.data.rendering import Rendered
from stillhouse.errors import DataError, NeedsError
from stillhouse.models import Sampling, vocabulary_size
from stillhouse.recipe_parts import Component
from stillhouse.records import Example, fingerprint
from stillhouse.registry import name_of
from stillhouse.signals.kinds import Combine, Mixture
from stillhouse.signals.vocabulary import require_same_vocabulary
from stillhouse.teachers.base import Answer, Teacher, TeacherSession


def _teacher(value: Any) -> Teacher:
    return value if isinstance(value, Teacher) else Component.model_validate(value).build("teacher")


def _rule(value: Any) -> ConsensusRule:
    return value if isinstance(value, ConsensusRule) else Component.model_validate(value).build("consensus_rule")


_MAJORITY = Majority()
_NOTHING = Answer("", finished=True, tokens=0)


@dataclass(frozen=True)
class CommitteeTeacher(Teacher):
    """Several teachers that are asked together.

    Distributions are mixed token by token (see `signals.Mixture`), so the members must share one vocabulary; a
    temperature softens the mixture. Answers in text are chosen: every member answers, the final answers vote (the
    number a text ends in, else the whole text, normalised), and the text of a member that gave the chosen answer is
    passed on. An answer that did not end by itself votes only where no member's did. Where the rule abstains the answer
    is empty. Reliabilities are estimated from what is asked in one call: ask for many answers at once.

    Attributes:
        teachers: at least two, as in a recipe: `[{hf: {model: A}}, {hf: {model: B}}]`.
        names: of the teachers, for reports; without them what each was made from, such as its model.
        combine: `mean` of the probabilities, `confidence`-weighted mean, or `product` of experts; none where text alone
            is wanted, and then vocabularies may differ.
        answers: the rule that chooses among answers, by its name.
    """

    teachers: tuple[Annotated[Teacher, PlainValidator(_teacher)], ...]
    names: tuple[str, ...] = ()
    combine: Combine | None = "mean"
    answers: Annotated[ConsensusRule, PlainValidator(_rule)] = _MAJORITY

    provides: ClassVar[frozenset[str]] = frozenset({"text", "token_logprobs", "distribution"})

    def __post_init__(self) -> None:
        if len(self.teachers) < 2:
            raise ValueError(f"teachers names {len(self.teachers)}; a committee needs at least two")
        if self.names and len(self.names) != len(self.teachers):
            raise ValueError(f"names has {len(self.names)} entries for {len(self.teachers)} teachers; give one each")
        named = self.member_names
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(
                f"teachers holds two that are called {twice[0]!r}, and one teacher asked twice would outvote the "
                "others with its own errors. Name different teachers, or if they do differ, tell them apart with "
                f"names: [{', '.join(f'{name}-{place + 1}' for place, name in enumerate(named))}]"
            )
        shared = frozenset.intersection(*(teacher.provides for teacher in self.teachers))
        whole = self.combine is not None and all(teacher.recorded_at is None for teacher in self.teachers)
        object.__setattr__(self, "provides", shared if whole else shared & {"text"})

    @property
    def member_names(self) -> tuple[str, ...]:
        """The teachers' names, in their order."""
        return self.names or tuple(map(_called, self.teachers))

    @property
    def live(self) -> bool:
        """Where all of them are."""
        return all(teacher.live for teacher in self.teachers)

    def open(self, device: str = "cpu") -> CommitteeSession:
        """Open all of them, or none.

        Raises:
            NeedsError: their distributions are wanted and their vocabularies differ.
        """
        with ExitStack() as opened:
            members = [opened.enter_context(teacher.open(device)) for teacher in self.teachers]
            session = CommitteeSession(self, members)
            opened.pop_all()
        return session

    @property
    def here(self) -> bool:
        """Never: a committee is no single model."""
        return False

    def load_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The one they share; the first teacher's, where text alone is wanted.

        Raises:
            NeedsError: their distributions are wanted and their vocabularies differ.
        """
        return self.shared_tokenizer([teacher.load_tokenizer() for teacher in self.teachers])

    def shared_tokenizer(self, tokenizers: Sequence[PreTrainedTokenizerBase | None]) -> PreTrainedTokenizerBase | None:
        """The first of the members' tokenizers, which the others must equal where distributions are mixed.

        Raises:
            NeedsError: they do not.
        """
        first, *others = tokenizers
        for name, other in zip(self.member_names[1:], others, strict=True) if "distribution" in self.provides else ():
            assert first is not None  # of a teacher that shows distributions
            assert other is not None
            try:
                require_same_vocabulary(first, other)
            except NeedsError as error:
                raise NeedsError(
                    f"{self.member_names[0]} and {name} cannot mix their distributions, token by token, because their "
                    "vocabularies differ. Set teacher.committee.combine to null, and the committee gives text alone."
                ) from error
        return first

    def fingerprint(self) -> str | None:
        """Of all of theirs."""
        found = [teacher.fingerprint() for teacher in self.teachers]
        return None if all(one is None for one in found) else fingerprint(found)

    def afford(self, calls: int, prompt_tokens: int, new_tokens: int) -> list[dict[str, Any]]:
        """Every member is asked everything; members that share a budget are each held against it alone.

        Raises:
            BudgetError: a member's is too small.
        """
        return [bill for member in self.teachers for bill in member.afford(calls, prompt_tokens, new_tokens)]

    def load_config(self) -> None:
        """A committee has no single architecture."""
        return


def _called(teacher: Teacher) -> str:
    """A teacher by what it was made from; by its kind where it does not say."""
    made_from = (getattr(teacher, key, None) for key in ("model", "path"))
    return next((str(name) for name in made_from if name), name_of(teacher))


class CommitteeSession(TeacherSession):
    """The opened members. What it counts as read and written is what it was given and what it passed on; what that cost
    each member is counted there.

    Attributes:
        members: their sessions, in the order of the settings.
        disagreements: what they were asked in text and how they differed.
    """

    def __init__(self, settings: CommitteeTeacher, members: Sequence[TeacherSession]) -> None:
        self.settings, self.members = settings, tuple(members)
        shared = settings.load_tokenizer()
        if shared is not None:
            self.tokenizer = shared
        self.disagreements = Disagreements(settings.member_names, settings.answers)

    def score(self, batch: TokenBatch) -> Mixture:
        """Everybody's distribution as one, mixed chunk by chunk where it is used.

        Raises:
            NeedsError: the settings combine no distributions.
        """
        if self.settings.combine is None:
            raise NeedsError("This committee gives text alone. Set teacher.committee.combine, such as to mean.")
        self.tokens_read += batch.real_count()
        said = tuple(member.score(batch) for member in self.members)
        return Mixture(said, vocabulary_size(self.tokenizer), self.settings.combine)

    def prepare(self, rendered: Sequence[Rendered]) -> None:
        """See that every member can speak about these examples.

        Raises:
            DataError: an example is longer than a member's context.
        """
        for name, member in zip(self.settings.member_names, self.members, strict=True):
            member.prepare(rendered)
            longest = max(rendered, key=lambda r: len(r.tokens), default=None)
            if longest and member.lm is not None and len(longest.tokens) > member.lm.context:
                raise DataError(
                    f"Example {longest.id!r} has {len(longest.tokens)} tokens, the context of {name} is "
                    f"{member.lm.context}. Set data.max_length to it, with overflow: drop or truncate."
                )

    def answer(self, asked: Sequence[Example], sampling: Sampling) -> list[Answer]:
        """Everybody answers, and of each question the answer that the rule chooses is passed on; an empty one where it
        abstains."""
        read_before = self.members[0].tokens_read
        by_member = [member.answer(asked, sampling) for member in self.members]
        answers = list(zip(*by_member, strict=True))  # of each question, every member's
        texts = [[answer.text for answer in row] for row in answers]
        ended = [[answer.finished for answer in row] for row in answers]
        picks = self.settle([(example.id, _asked(example)) for example in asked], texts, ended)
        passed = [_NOTHING if pick is None else row[pick] for row, pick in zip(answers, picks, strict=True)]
        self.tokens_read += self.members[0].tokens_read - read_before
        self.tokens_written += sum(answer.tokens for answer in passed)
        return passed

    def settle(
        self, asked: Sequence[tuple[str, str]], texts: Sequence[Sequence[str]], ended: Sequence[Sequence[bool]]
    ) -> list[int | None]:
        """Of each question the member whose text is passed on, or None where the rule abstains; the disagreements are
        kept.

        Args:
            asked: of each question its id and its text.
            texts: of each question what every member wrote.
            ended: whether that ended by itself.
        """
        votes = [_votes(row, done) for row, done in zip(texts, ended, strict=True)]
        decided: Consensus = self.settings.answers.decide(votes)
        self.disagreements.add(asked, votes, texts, decided)
        return [
            None if answer is None else row.index(answer) for row, answer in zip(votes, decided.chosen, strict=True)
        ]

    def identity(self) -> dict[str, Any]:
        """The members', by their names, and how they are combined."""
        members = {n: m.identity() for n, m in zip(self.settings.member_names, self.members, strict=True)}
        rule = {name_of(self.settings.answers): dataclasses.asdict(self.settings.answers)}
        return {
            "name": f"a committee of {', '.join(Path(name).name for name in members)}",
            "parameters": sum(member.get("parameters", 0) for member in members.values()),
            "committee": members,
            "combine": self.settings.combine,
            "answers": rule,
        }

    def journal(self, folder: Path) -> None:
        """Every member's in a folder of its own."""
        for place, member in enumerate(self.members):
            member.journal(folder / str(place))

    def bill(self) -> dict[str, int]:
        """Of all members together."""
        total: Counter[str] = Counter()
        for member in self.members:
            total.update(member.bill())
        return dict(total)

    def told(self) -> dict[str, str]:
        """Of every member, by its name."""
        named = zip(self.settings.member_names, self.members, strict=True)
        return {f"{who}: {name}": value for who, member in named for name, value in member.told().items()}

    def keep(self, folder: Path) -> None:
        """Where its members disagreed, if they were asked anything in text."""
        summary = self.disagreements.summary()
        if summary["prompts"]:
            write_disagreements(folder, summary)

    @property
    def lm(self) -> None:
        """A committee is no single model."""
        return

    def close(self) -> None:
        """Close all members, also where one of them fails to."""
        with ExitStack() as closing:
            for member in self.members:
                closing.callback(member.close)


def _asked(example: Example) -> str:
    """A question as it is shown where teachers differed on it."""
    return example.prompt or "\n".join(turn["content"] for turn in example.messages or ())


def _votes(texts: Sequence[str], ended: Sequence[bool]) -> list[Vote]:
    """Final answers; one that was cut off counts only where all were."""
    return [final_answer(text) if done or not any(ended) else None for text, done in zip(texts, ended, strict=True)]


def final_answer(text: str) -> Vote:
    """What a text answers: the number it ends in, else the text itself, normalised; None for an empty one."""
    found = number(text)
    return found if found is not None else normalized(text) or None
