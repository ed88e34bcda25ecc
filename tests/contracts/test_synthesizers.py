"""Every synthesizer that the registry finds, held to its contract, and broken ones that it must catch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from stillhouse import registry
from stillhouse.models import Sampling
from stillhouse.records import Example
from stillhouse.synthesis.base import Request, Synthesizer, Workbench
from stillhouse.synthesis.best_of_n import BestOfN
from stillhouse.synthesis.rationales import Rationales
from stillhouse.synthesis.teacher_text import TeacherText
from stillhouse.testing import check_synthesizer

NEEDED: Mapping[str, Mapping[str, Any]] = {"self_instruct": {"count": 5}}


@pytest.mark.parametrize("name", registry.names("synthesizer"))
def test_synthesizer_keeps_its_contract(name: str) -> None:
    check_synthesizer(registry.build("synthesizer", name, NEEDED.get(name, {})))


@pytest.mark.parametrize(
    "synthesizer",
    [
        BestOfN(samples=2, by="judge"),
        BestOfN(samples=3, by="medoid"),
        Rationales(samples=3, temperature=1.0, keep="majority"),
        Rationales(shots=1, template="Q: {prompt}"),
    ],
    ids=repr,
)
def test_synthesizer_keeps_its_contract_with_other_settings(synthesizer: Synthesizer) -> None:
    check_synthesizer(synthesizer)


def test_text_from_nothing_keeps_the_contract() -> None:
    check_synthesizer(TeacherText(count=600), [])


@dataclass(frozen=True, kw_only=True)
class Sound(Synthesizer):
    """Answers prompts."""

    def request(self, examples: Sequence[Example], count: int) -> Request:
        return Request(examples, count, count, Sampling())

    def synthesize(self, examples: Sequence[Example], bench: Workbench) -> Iterator[Example]:
        for example, answer in self.ask(examples, bench, Sampling()):
            if answer.finished and answer.text.strip():
                yield self.example(example, answer.text, bench)
            else:
                bench.notes["left out"] += 1

    def example(self, asked: Example, text: str, bench: Workbench) -> Example:
        return replace(asked, completion=text, meta={**asked.meta, **self.made(bench)})


def test_a_sound_one_passes() -> None:
    check_synthesizer(Sound())


@dataclass(frozen=True, kw_only=True)
class Understating(Sound):
    """Announces half of what it asks."""

    def request(self, examples: Sequence[Example], count: int) -> Request:
        return Request(examples, count // 2, count, Sampling())


@dataclass(frozen=True, kw_only=True)
class Generous(Sound):
    """Makes more than it announces."""

    def synthesize(self, examples: Sequence[Example], bench: Workbench) -> Iterator[Example]:
        for example in super().synthesize(examples, bench):
            yield example
            yield replace(example, id=f"{example.id}+")


@dataclass(frozen=True, kw_only=True)
class Shown(Sound):
    """Reckons from what it is shown."""

    def request(self, examples: Sequence[Example], count: int) -> Request:
        return Request(examples, len(examples), len(examples), Sampling())


@dataclass(frozen=True, kw_only=True)
class Disguised(Sound):
    """Asks something else than it announces."""

    def request(self, examples: Sequence[Example], count: int) -> Request:
        return Request([replace(e, prompt="?") for e in examples], count, count, Sampling())


@dataclass(frozen=True, kw_only=True)
class Louder(Sound):
    """Draws in another way than it announces."""

    def request(self, examples: Sequence[Example], count: int) -> Request:
        return Request(examples, count, count, Sampling(temperature=2.0))


@dataclass(frozen=True, kw_only=True)
class Nameless(Sound):
    """Gives all examples one id."""

    def example(self, asked: Example, text: str, bench: Workbench) -> Example:
        return replace(super().example(asked, text, bench), id="made")


@dataclass(frozen=True, kw_only=True)
class Silent(Sound):
    """Does not say how an example came to be."""

    def example(self, asked: Example, text: str, bench: Workbench) -> Example:
        return replace(asked, completion=text)


@dataclass(frozen=True, kw_only=True)
class Moody(Sound):
    """Makes something else every time."""

    def example(self, asked: Example, text: str, bench: Workbench) -> Example:
        return super().example(asked, f"{text} {random.random()}", bench)


@dataclass(frozen=True, kw_only=True)
class Meddling(Sound):
    """Writes into what it was given."""

    def example(self, asked: Example, text: str, bench: Workbench) -> Example:
        made = super().example(asked, text, bench)
        dict.__setitem__(asked.meta, "seen", True)  # ty: ignore[invalid-argument-type]
        return made


@dataclass(frozen=True, kw_only=True)
class Believing(Sound):
    """Takes whatever comes."""

    def synthesize(self, examples: Sequence[Example], bench: Workbench) -> Iterator[Example]:
        for example, answer in self.ask(examples, bench, Sampling()):
            yield self.example(example, answer.text, bench)


@dataclass(frozen=True, kw_only=True)
class Forgiving(Sound):
    """Takes what did not end."""

    def synthesize(self, examples: Sequence[Example], bench: Workbench) -> Iterator[Example]:
        for example, answer in self.ask(examples, bench, Sampling()):
            bench.notes["left out"] += not answer.text.strip()
            if answer.text.strip():
                yield self.example(example, answer.text, bench)


@dataclass(frozen=True, kw_only=True)
class Hushed(Sound):
    """Leaves out without a word."""

    def synthesize(self, examples: Sequence[Example], bench: Workbench) -> Iterator[Example]:
        yield from super().synthesize(examples, Workbench(bench.teacher))


@dataclass(frozen=True, kw_only=True)
class Hoarding(Sound):
    """Waits for all answers."""

    def synthesize(self, examples: Sequence[Example], bench: Workbench) -> Iterator[Example]:
        yield from list(super().synthesize(examples, bench))


@dataclass(frozen=True, kw_only=True)
class Idle(Sound):
    """Makes nothing."""

    def synthesize(self, examples: Sequence[Example], bench: Workbench) -> Iterator[Example]:
        list(super().synthesize(examples, bench))
        yield from ()


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (Understating(), "asked 8 questions where request\\(\\) announced 4"),
        (Generous(), "made 16 examples where request\\(\\) announced 8"),
        (Shown(), "reckon from the count"),
        (Disguised(), "never asked"),
        (Louder(), "the teacher was asked by"),
        (Nameless(), "two examples with the id 'made'"),
        (Silent(), "does not say in meta\\['made_by'\\] its synthesizer, teacher"),
        (Moody(), "second time"),
        (Meddling(), "changed the examples"),
        (Believing(), "of the empty answer ''"),
        (Forgiving(), "of answers that did not end; mark"),
        (Hushed(), "in silence"),
        (Hoarding(), "before it yields anything"),
        (Idle(), "made nothing of answers such as"),
    ],
    ids=repr,
)
def test_contract_catches(broken: Synthesizer, clause: str) -> None:
    with pytest.raises(AssertionError, match=clause):
        check_synthesizer(broken)


def test_what_has_to_see_all_answers_may_say_so() -> None:
    check_synthesizer(Hoarding(), streams=False)


def test_a_script_and_examples_of_one_s_own() -> None:
    check_synthesizer(Sound(), [Example(id="a", prompt="Hello?")], writes=lambda asked: f"You said {asked.prompt}")
