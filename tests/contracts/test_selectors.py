"""Every selector that the registry finds, held to the public contract, and broken ones it must catch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass
from typing import Any

import numpy as np
import pytest

from stillhouse import registry
from stillhouse.errors import NeedsError
from stillhouse.features.tfidf import Tfidf
from stillhouse.records import Example
from stillhouse.selection._contract import check_selector
from stillhouse.selection.base import Selection, SelectionBench, Selector
from stillhouse.selection.decontaminate import Decontaminate
from stillhouse.selection.deduplicate import Deduplicate
from stillhouse.selection.gradient_match import GradientMatch
from stillhouse.selection.kernel_herding import KernelHerding
from stillhouse.selection.longest import Longest
from stillhouse.selection.random import Random


@pytest.mark.parametrize("name", registry.names("selector"))
def test_selector_keeps_its_contract(name: str) -> None:
    fields = dataclasses.fields(registry.component("selector", name))
    must = {f.name for f in fields if f.default is MISSING and f.default_factory is MISSING}
    try:
        check_selector(registry.build("selector", name, {"budget": 12} if "budget" in must else {}))
    except NeedsError:
        pytest.skip(f"{name} looks at a student or a teacher; its own tests hold it to the contract with one")


@pytest.mark.parametrize(
    "selector",
    [
        Random(budget=7, by="completion", seed=3),
        Longest(budget=24, by="completion"),
        Deduplicate(how="minhash"),
        Deduplicate(how="minhash", threshold=0.4, ngram=1),
        Deduplicate(how="minhash", budget=20, ngram=2),
        Deduplicate(how="semantic"),
        Deduplicate(how="semantic", budget=5),
        Decontaminate(ngram=3, threshold=0.2),
        GradientMatch(budget=12, features=Tfidf(dimensions=8), by="completion"),
        KernelHerding(budget=9, sharpness=0.5),
    ],
    ids=repr,
)
def test_selector_keeps_its_contract_with_other_settings(selector: Selector) -> None:
    check_selector(selector)


@pytest.mark.parametrize("name", registry.names("selector"))
def test_every_selector_has_a_summary(name: str) -> None:
    assert registry.summary("selector", name).endswith(".")


def of(rows: Sequence[int], **otherwise: Any) -> Selection:
    """A sound selection of these rows, but for what is said."""
    count = len(rows)
    sound = Selection(np.array(rows, np.int64), np.ones(count), np.full(count, np.nan), ["because"] * count)
    return dataclasses.replace(sound, **otherwise)


@dataclass(frozen=True, kw_only=True)
class Lazy(Selector):
    """Takes the first rows, and is right."""

    budget: int = 4

    def choose(self, examples: Sequence[Example], bench: SelectionBench) -> Selection:
        if len(examples) < self.budget:
            return Random(budget=self.budget).choose(examples, bench)  # which refuses
        return of(range(self.budget))


@dataclass(frozen=True, kw_only=True)
class Double(Lazy):
    """Takes a row twice."""

    def choose(self, examples: Sequence[Example], bench: SelectionBench) -> Selection:
        return of([0, 1, 2, 2])


@dataclass(frozen=True, kw_only=True)
class Beyond(Lazy):
    """Takes what is not there."""

    def choose(self, examples: Sequence[Example], bench: SelectionBench) -> Selection:
        return of([0, 1, 2, len(examples)])


@dataclass(frozen=True, kw_only=True)
class Greedy(Lazy):
    """Takes more than its budget."""

    def choose(self, examples: Sequence[Example], bench: SelectionBench) -> Selection:
        return of(range(self.budget + 1))


@dataclass(frozen=True, kw_only=True)
class Weightless(Lazy):
    """Gives a row no weight."""

    def choose(self, examples: Sequence[Example], bench: SelectionBench) -> Selection:
        return of(range(self.budget), weights=np.zeros(self.budget))


@dataclass(frozen=True, kw_only=True)
class Silent(Lazy):
    """Says nothing."""

    def choose(self, examples: Sequence[Example], bench: SelectionBench) -> Selection:
        return of(range(self.budget), reasons=[""] * self.budget)


@dataclass(frozen=True, kw_only=True)
class Brief(Lazy):
    """Says why of one row alone."""

    def choose(self, examples: Sequence[Example], bench: SelectionBench) -> Selection:
        return of(range(self.budget), reasons=["because"])


@dataclass(frozen=True, kw_only=True)
class Moody(Lazy):
    """Chooses otherwise every time."""

    def choose(self, examples: Sequence[Example], bench: SelectionBench) -> Selection:
        return of(np.random.default_rng().choice(len(examples), self.budget, replace=False).tolist())


@dataclass(frozen=True, kw_only=True)
class Slicing(Lazy):
    """Takes the examples into memory."""

    def choose(self, examples: Sequence[Example], bench: SelectionBench) -> Selection:
        return of(range(len(examples[: self.budget])))


@dataclass(frozen=True, kw_only=True)
class Marking(Lazy):
    """Writes into what it is given."""

    def choose(self, examples: Sequence[Example], bench: SelectionBench) -> Selection:
        for example in examples:
            example.meta["seen"] = True  # ty: ignore[invalid-assignment]
        return super().choose(examples, bench)


@dataclass(frozen=True, kw_only=True)
class Editing(Lazy):
    """Improves the texts."""

    def select(self, examples: Sequence[Example], bench: SelectionBench | None = None) -> Iterator[Example]:
        for example in super().select(examples, bench):
            yield dataclasses.replace(example, prompt=f"{example.prompt} Please.")


@dataclass(frozen=True, kw_only=True)
class Forgetful(Lazy):
    """Does not say what chose before it."""

    def select(self, examples: Sequence[Example], bench: SelectionBench | None = None) -> Iterator[Example]:
        for example in super().select(examples, bench):
            yield dataclasses.replace(example, meta={**example.meta, "selected_by": example.meta["selected_by"][-1:]})


@dataclass(frozen=True, kw_only=True)
class Content(Lazy):
    """Takes what there is where it is too little."""

    def choose(self, examples: Sequence[Example], bench: SelectionBench) -> Selection:
        return of(range(min(self.budget, len(examples))))


def test_contract_holds_for_a_sound_one() -> None:
    check_selector(Lazy())


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (Double(), "a row twice"),
        (Beyond(), "of 48"),
        (Greedy(), "its budget is 4"),
        (Weightless(), "not positive"),
        (Silent(), "a reason"),
        (Brief(), "1 reasons for 4"),
        (Moody(), "second time"),
        (Slicing(), "a slice"),
        (Marking(), "changes the examples"),
        (Editing(), "changes example"),
        (Forgetful(budget=48), "which was"),
        (Content(), "fewer examples than its budget"),
    ],
    ids=repr,
)
def test_contract_catches(broken: Selector, clause: str) -> None:
    with pytest.raises(AssertionError, match=clause):
        check_selector(broken)
