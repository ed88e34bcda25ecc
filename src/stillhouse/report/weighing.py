"""What the run's training data weigh, set by set, so that its models are compared at equal bytes as at equal rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stillhouse.ledger import record_bytes
from stillhouse.report.numbers import ABSENT, count, in_bytes, is_number, percent
from stillhouse.report.reading import Run

_SETS = {
    "pool": ("chosen from", None),
    "train": ("student and control", "signals"),
    "random": ("random rows", "signals-random"),
}
"""The data files of a run: what they are called here, and where the teacher's record of each lies."""


@dataclass(frozen=True)
class Weight:
    """One set, ready to print."""

    name: str
    rows: str
    text: str
    distributions: str
    total: str
    share: str


def weights_of(run: Run) -> list[Weight]:
    """The sets of a run that chose its data; none of one that took them as they came."""
    data = next((stage.get("out") for stage in run.stages if stage.get("stage") == "data"), None)
    if not isinstance(data, Mapping) or not isinstance(data.get("pool"), Mapping):
        return []
    whole = data["pool"].get("text_bytes")
    found = []
    for key, (name, record) in _SETS.items():
        facts = data.get(key)
        if not isinstance(facts, Mapping) or not is_number(text := facts.get("text_bytes")):
            continue
        held = record_bytes(run.path / record) if record else 0
        share = percent((text + held) / whole) if is_number(whole) and whole else ABSENT
        said = in_bytes(held) if held else ABSENT
        found.append(Weight(name, count(facts.get("examples")), in_bytes(text), said, in_bytes(text + held), share))
    return found
