"""Where a committee of teachers disagreed, from `disagreements.json`; nothing where a run had one teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stillhouse.consensus._file import FILE, FORMAT
from stillhouse.errors import RunError
from stillhouse.report.numbers import ABSENT, count, percent
from stillhouse.report.reading import Run, read_json


@dataclass(frozen=True)
class Parting:
    """A prompt on which teachers differ: who answered what, which answer was chosen, and where two solutions part.

    Attributes:
        prompt: as it was asked.
        answers: by teacher.
        chosen: the answer that was passed on, or what was done instead.
        place: which step differs first and between whom; empty where no step does.
        texts: these two teachers' steps, by their names.
    """

    prompt: str
    answers: list[tuple[str, str]]
    chosen: str
    place: str
    texts: list[tuple[str, str]]


@dataclass(frozen=True)
class Committee:
    """A committee's disagreements ready to print.

    Attributes:
        lede: how many prompts, how many disagreed.
        teachers: names with the reliability that the rule gives them.
        pairs: two names, on how many prompts they differ, of how many.
        partings: the first few disagreements.
    """

    lede: str
    teachers: list[tuple[str, str]]
    pairs: list[tuple[str, str]]
    partings: list[Parting]


def committee_of(run: Run) -> Committee | None:
    """The committee of a run; None where there was none.

    Raises:
        RunError: a file of another format.
    """
    place = run.path / FILE
    if not place.is_file():
        return None
    found = read_json(place)
    if found.get("format") != FORMAT:
        raise RunError(
            f"{place} has format {found.get('format')!r}; this Stillhouse reads format {FORMAT}. Make the data again "
            "with this version, or report it with the version that wrote it."
        )
    prompts, disagreed, undecided = (found[key] for key in ("prompts", "disagreed", "undecided"))
    share = f" ({percent(disagreed / prompts)})" if prompts else ""
    left = f" On {count(undecided)} no answer was passed on." if undecided else ""
    lede = (
        f"The teachers disagreed on {count(disagreed)} of {count(prompts)} prompts{share}; {found['rule']} chose.{left}"
    )
    pairs = [
        (" and ".join(pair["teachers"]), f"{count(pair['differ'])} of {count(pair['both'])}") for pair in found["pairs"]
    ]
    reliability = [(name, percent(share)) for name, share in found["reliability"].items()]
    return Committee(lede, reliability, pairs, [_parting(example) for example in found["examples"]])


def _parting(example: Mapping[str, Any]) -> Parting:
    answers = [(who, ABSENT if answer is None else str(answer)) for who, answer in example["answers"].items()]
    chosen = "none: the rule abstained" if example["chosen"] is None else str(example["chosen"])
    first = example["first_difference"]
    if first is None:
        return Parting(example["prompt"], answers, chosen, "", [])
    one, other = example["between"]
    texts = [(who, text or "(has ended)") for who, text in zip((one, other), first["texts"], strict=True)]
    return Parting(example["prompt"], answers, chosen, f"step {first['step']}", texts)
