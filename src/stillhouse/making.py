"""The data stage: the examples of every split are read, made and stored, so that later stages read files alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from stillhouse import world
from stillhouse.data.sources import iter_source
from stillhouse.errors import DataError
from stillhouse.recipe_data import Source
from stillhouse.records import Example, fingerprint_path
from stillhouse.registry import name_of
from stillhouse.runs import StageRecord
from stillhouse.synthesis.base import Workbench
from stillhouse.workshop import ANSWERS, Workshop


def make_data(shop: Workshop) -> bool:
    """Fill the run's `data` folder; whether it was filled before.

    Raises:
        DataError: a source cannot be read, came out empty, or holds an id twice.
    """
    data = shop.recipe.data
    sources = data.sources()
    files = {s.path: fingerprint_path(Path(s.path)) for s in sources.values() if s.path and Path(s.path).exists()}
    inputs = {"data": data.model_dump(mode="json"), "models": shop.models_in_play, "files": files}
    with shop.folder.stage("data", inputs) as (record, done):
        if done:
            return True
        # Training data last: what is made for it must know what it may not repeat.
        names = [*(name for name in sources if name != "train"), "train"]
        for place, name in enumerate(names):
            shop.progress("data", place, len(names), name)
            source, steps = sources[name], shop.plan.steps if name == "train" else ()
            if source.synthesizer is None and not steps:
                count, key = shop.store(name, _require_unique(iter_source(source), name))
            else:
                bench = shop.bench(names[:place])
                examples = _made(shop, source, bench)
                if steps:
                    examples = _through_steps(shop, list(examples), bench)
                if world.size() > 1:  # all processes write together, and the first alone stores
                    examples = list(examples)
                count, key = shop.store(name, _require_unique(examples, name))
                for note, times in bench.notes.items():
                    record.choose(f"{name} data", f"{times} {note}", "what became of the teacher's answers")
            record.out[name] = {"examples": count, "fingerprint": key}
        shop.progress("data", len(names), len(names), "")
        _bill(shop, record)
        # What a stopped run had been answered; now it is in the data.
        world.first(lambda: shutil.rmtree(shop.path / ANSWERS, ignore_errors=True))
    return False


def _made(shop: Workshop, source: Source, bench: Workbench) -> Iterable[Example]:
    if source.synthesizer is None:
        return iter_source(source)
    return source.synthesizer.build("synthesizer").synthesize([], bench)


def _through_steps(shop: Workshop, examples: list[Example], bench: Workbench) -> Iterable[Example]:
    """The training examples after `data.steps`; the text that was there before is kept for the control."""
    if not any(e.form == "prompt" and e.completion is None for e in examples):
        shop.store("control", examples)
    *before, last = shop.plan.steps
    for step in before:
        examples = list(step.synthesize(examples, bench))
        if not examples:
            raise DataError(f"data.steps: {name_of(step)} left no example. {_told(bench)}")
    return last.synthesize(examples, bench)


def _told(bench: Workbench) -> str:
    return "; ".join(f"{times} {note}" for note, times in bench.notes.items()) or "It was given none that it could use."


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
