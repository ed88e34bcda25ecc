"""The record of a committee's disagreements: how many, between whom, and where the first ones begin."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from stillhouse.consensus._file import FILE, FORMAT
from stillhouse.consensus.base import Consensus, ConsensusRule, Vote
from stillhouse.records import whole
from stillhouse.registry import name_of
from stillhouse.solutions.steps import first_difference

EXAMPLES = 3
"""Disagreements that are kept with their texts."""


@dataclass
class Disagreements:
    """What a committee was asked and how it answered, every question once, the latest time.

    Attributes:
        teachers: their names, in the order of the votes.
        rule: the rule that chose.
    """

    teachers: tuple[str, ...]
    rule: ConsensusRule
    _votes: dict[str, tuple[Vote, ...]] = field(default_factory=dict)
    _chosen: dict[str, Vote] = field(default_factory=dict)
    _examples: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(
        self,
        asked: Sequence[tuple[str, str]],
        votes: Sequence[Sequence[Vote]],
        texts: Sequence[Sequence[str]],
        decided: Consensus,
    ) -> None:
        """Questions that were answered: of each its id and text, the votes, the answers' texts and what was chosen."""
        for place, (name, prompt) in enumerate(asked):
            self._votes[name], self._chosen[name] = tuple(votes[place]), decided.chosen[place]
            self._examples.pop(name, None)
            if len(self._examples) < EXAMPLES and differ(votes[place]):
                chosen, confidence = said(decided.chosen[place]), round(decided.confidence[place], 4)
                found = {"id": name, "prompt": prompt, "chosen": chosen, "confidence": confidence}
                self._examples[name] = found | self._parting(votes[place], texts[place], decided.chosen[place])

    def _parting(self, votes: Sequence[Vote], texts: Sequence[str], chosen: Vote) -> dict[str, Any]:
        """Who answers what, and where a teacher whose answer was chosen parts from the first that differs."""
        given = [place for place, vote in enumerate(votes) if vote is not None]
        one = next((place for place in given if votes[place] == chosen), given[0])
        other = next(place for place in given if votes[place] != votes[one])
        found = first_difference(texts[one], texts[other])
        at = {"step": found.step, "texts": [found.one, found.other]} if found else None
        return {
            "answers": {who: said(vote) for who, vote in zip(self.teachers, votes, strict=True)},
            "between": [self.teachers[one], self.teachers[other]],
            "first_difference": at,
        }

    def summary(self) -> dict[str, Any]:
        """All of it as plain data; reliabilities are the rule's over all questions together."""
        votes = list(self._votes.values())
        reliability = self.rule.decide(votes).reliability if votes else (0.0,) * len(self.teachers)
        return {
            "format": FORMAT,
            "teachers": list(self.teachers),
            "rule": name_of(self.rule),
            "prompts": len(votes),
            "disagreed": sum(map(differ, votes)),
            "undecided": sum(chosen is None for chosen in self._chosen.values()),
            "reliability": dict(zip(self.teachers, reliability, strict=True)),
            "pairs": [
                {"teachers": [self.teachers[p.one], self.teachers[p.other]], "both": p.both, "differ": p.differ}
                for p in pairs(votes)
            ],
            "examples": list(self._examples.values()),
        }


class Pair(NamedTuple):
    """Two teachers, by their places: the questions that both answered, and those on which they differ."""

    one: int
    other: int
    both: int
    differ: int


def pairs(votes: Sequence[Sequence[Vote]]) -> list[Pair]:
    """How often each two teachers differ.

    >>> pairs([["7", "7"], ["1", "2"], ["1", None]])
    [Pair(one=0, other=1, both=2, differ=1)]
    """
    found = []
    for one, other in combinations(range(len(votes[0]) if votes else 0), 2):
        both = [(row[one], row[other]) for row in votes if row[one] is not None and row[other] is not None]
        found.append(Pair(one, other, len(both), sum(a != b for a, b in both)))
    return found


def differ(votes: Sequence[Vote]) -> bool:
    """Whether two given answers are not the same."""
    return len({vote for vote in votes if vote is not None}) > 1


def said(vote: Vote) -> str | None:
    """An answer as it is shown."""
    return None if vote is None else str(vote)


def write_disagreements(folder: Path, summary: dict[str, Any]) -> Path:
    """Write `disagreements.json` into a run folder, whole or not at all."""
    with whole(folder / FILE) as partial:
        partial.write_text(json.dumps(summary, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return folder / FILE
