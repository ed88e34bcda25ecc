"""The data stage: the examples of every split are read, made, chosen and stored, so that later stages read files
alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stillhouse import world
from stillhouse.errors import DataError
from stillhouse.ledger import Tally
from stillhouse.records import Example, fingerprint_path
from stillhouse.runs import StageRecord
from stillhouse.selection.base import Selector
from stillhouse.stepping import Way
from stillhouse.workshop import ANSWERS, Workshop


def make_data(shop: Workshop) -> bool:
    """Fill the run's `data` folder; whether it was filled before.

    Raises:
        DataError: a source cannot be read, came out empty, or holds an id twice.
    """
    data = shop.recipe.data
    sources = data.sources()
    files = {s.path: fingerprint_path(Path(s.path)) for s in sources.values() if s.path and Path(s.path).exists()}
    inputs: dict[str, Any] = {"data": data.model_dump(mode="json"), "models": shop.models_in_play, "files": files}
    if any(isinstance(step, Selector) for step in shop.plan.steps):
        inputs |= {"seed": shop.recipe.seed, "baselines": shop.plan.has_baselines}
    with shop.folder.stage("data", inputs) as (record, done):
        if done:
            return True
        # Training data last: what is made for it must know what it may not repeat.
        others = [name for name in sources if name != "train"]
        for place, name in enumerate(others):
            shop.progress("data", place, len(sources), name)
            way = Way(shop, others[:place])
            _keep(shop, name, way.begin(sources[name]), way.notes, record)
        shop.progress("data", len(others), len(sources), "train")
        _make_train(shop, Way(shop, others), record)
        shop.progress("data", len(sources), len(sources), "")
        _bill(shop, record)
        # What a stopped run had been answered; now it is in the data.
        world.first(lambda: shutil.rmtree(shop.path / ANSWERS, ignore_errors=True))
    return False


def _make_train(shop: Workshop, way: Way, record: StageRecord) -> None:
    source = shop.recipe.data.train
    examples = way.begin(source)
    if source.synthesizer is None:
        examples = way.clean(examples)
    _keep(shop, "train", way.go(examples), way.notes, record)
    way.notes.clear()
    if way.fork is not None:
        record.out["pool"] = way.weigh_pool()
    drawn = way.go_random()
    if drawn is not None:
        _keep(shop, "random", drawn, way.notes, record)
    world.first(way.forget)


def _keep(
    shop: Workshop, name: str, examples: Iterable[Example], notes: Mapping[str, int], record: StageRecord
) -> None:
    """Store a data file, and what a user should know of how it came to be."""
    if world.size() > 1:  # all processes make them together, and the first alone stores
        examples = list(examples)
    tally = Tally()
    count, key = shop.store(name, tally.over(_require_unique(examples, name)))
    for note, times in notes.items():
        record.choose(f"{name} data", f"{times} {note}", "what became of the rows and of the teacher's answers")
    record.out[name] = {"examples": count, "fingerprint": key, "text_bytes": world.agree(tally.text)}


def _require_unique(examples: Iterable[Example], name: str) -> Iterator[Example]:
    """Pass examples on; there must be some, and no two with one id. Of each a hash alone is kept."""
    seen: set[int] = set()
    for example in examples:
        key = hash(example.id)
        if key in seen:
            raise DataError(f"The {name} data holds two examples with the id {example.id!r}; ids must be unique.")
        seen.add(key)
        yield example
    if not seen:
        raise DataError(f"The {name} data came out empty. Look at its source and at data.steps.")


def _bill(shop: Workshop, record: StageRecord) -> None:
    if "teacher" in vars(shop):
        world.first(lambda: shop.teacher.keep(shop.path))
        record.cost = {
            "teacher_tokens_read": shop.teacher.tokens_read,
            "teacher_tokens_written": shop.teacher.tokens_written,
            **shop.teacher.bill(),
        }
        record.tell(shop.teacher.told())
