"""The training examples on their way through `data.steps`: made by synthesizers, chosen by selectors.

Where a selector chooses to a budget, as many random rows take the rest of the same way, so that runs can train on them
as well: what a choice is worth shows against nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain

from stillhouse import world
from stillhouse.data.sources import iter_source
from stillhouse.errors import DataError
from stillhouse.features.base import FeatureBench
from stillhouse.ledger import Tally
from stillhouse.preflight import DataStep
from stillhouse.recipe_data import Source
from stillhouse.records import Example, ExampleFile, write_examples
from stillhouse.registry import name_of
from stillhouse.selection.base import SelectionBench, Selector
from stillhouse.selection.decontaminate import Decontaminate
from stillhouse.selection.random import Random
from stillhouse.synthesis.base import Workbench
from stillhouse.workshop import Workshop


class Way:
    """From a source to the examples that are stored.

    Args:
        shop: the run.
        known: the data files that were stored before, which nothing that is made may repeat.
    """

    def __init__(self, shop: Workshop, known: Sequence[str]) -> None:
        self.shop = shop
        self.known = known
        self.notes: Counter[str] = Counter()
        self.fork: tuple[ExampleFile, Sequence[DataStep]] | None = None
        """The examples that the first selector with a budget chose from, and the steps from there on."""

    @cached_property
    def bench(self) -> Workbench:
        """What synthesizers work with; the teacher is opened for it."""
        bench = self.shop.bench(self.known)
        bench.notes = self.notes
        return bench

    def begin(self, source: Source) -> Iterable[Example]:
        """The examples of a source, read or written by the teacher."""
        if source.synthesizer is None:
            return iter_source(source)
        return source.synthesizer.build("synthesizer").synthesize([], self.bench)

    def clean(self, examples: Iterable[Example]) -> Iterable[Example]:
        """Without those that stand in an evaluation set, where the recipe says so.

        Raises:
            DataError: none is left.
        """
        data = self.shop.recipe.data
        if not data.decontaminate or all(source.arithmetic is not None for source in data.sources().values()):
            return examples  # the package's own problems are held out by how they are made
        return self._chosen(Decontaminate(), self._laid_down(examples, "read"))

    def go(self, examples: Iterable[Example]) -> Iterable[Example]:
        """Through all steps; the text that was there before the teacher's is kept for the control."""
        return self._walk(examples, self.shop.plan.steps, "control")

    def go_random(self) -> Iterable[Example] | None:
        """As many random rows through the same steps, after `go`; None where nothing was chosen to a budget."""
        if self.fork is None or not self.shop.plan.has_baselines:
            return None
        pool, steps = self.fork
        return self._walk(pool, [self._drawn(step) for step in steps], "random_control")

    def weigh_pool(self) -> dict[str, int]:
        """Examples and bytes of what was chosen from."""
        assert self.fork is not None
        tally = Tally()
        for _ in tally.over(self.fork[0]):
            pass
        return {"examples": tally.examples, "text_bytes": tally.text}

    def _walk(self, examples: Iterable[Example], steps: Sequence[DataStep], control: str) -> Iterable[Example]:
        written = False
        for number, step in enumerate(steps):
            if isinstance(step, Selector):
                pool = self._laid_down(examples, f"{control}-{number}")
                if step.budgeted() and self.fork is None:
                    self.fork = pool, steps[number:]
                examples = self._chosen(step, pool)
            else:
                given = list(examples)
                if not written and all(e.form != "prompt" or e.completion is not None for e in given):
                    self.shop.store(control, given)
                written = True
                examples = step.synthesize(given, self.bench)
            examples = self._some(examples, step)
        return examples

    def _some(self, examples: Iterable[Example], step: DataStep) -> Iterator[Example]:
        """The examples, of which there must be one."""
        examples = iter(examples)
        first = next(examples, None)
        if first is None:
            raise DataError(f"data.steps: {name_of(step)} left no example. {self._told()}")
        return chain([first], examples)

    def _told(self) -> str:
        told = "; ".join(f"{times} {note}" for note, times in self.notes.items())
        return told or "It was given none that it could use."

    def _drawn(self, step: DataStep) -> DataStep:
        """What takes a step's place on the random rows' way."""
        budget = step.budgeted() if isinstance(step, Selector) else None
        return step if budget is None else Random(budget=budget.rows, by=budget.by, seed=self.shop.recipe.seed)

    def forget(self) -> None:
        """Remove what lay between the steps."""
        for place in (self.shop.path / "data").glob(".*.jsonl"):
            place.unlink()

    def _chosen(self, step: Selector, pool: ExampleFile) -> Iterable[Example]:
        if world.size() == 1:
            return step.select(pool, self._selection(step))
        return world.first(lambda: list(step.select(pool, self._selection(step))))

    def _laid_down(self, examples: Iterable[Example], name: str) -> ExampleFile:
        """Examples on disk, where a selector can walk over them as often as it likes."""
        place = self.shop.path / "data" / f".{name}.jsonl"
        if world.size() > 1:  # all processes make them together, and the first alone stores
            examples = list(examples)
        world.first(lambda: write_examples(place, examples))
        return ExampleFile(place)

    def _selection(self, step: Selector) -> SelectionBench:
        shop = self.shop
        features = FeatureBench(
            student=shop.new_student,
            teacher=shop.teacher if step.needs else None,
            renderer=shop.renderer(),
            identity=[shop.models_in_play, shop.rendering_in_play, shop.recipe.seed],
            device=shop.device,
        )
        return SelectionBench(features, shop.path / "features", self._heldout, self.notes)

    @cached_property
    def _heldout(self) -> list[Example]:
        return [example for name in self.known for example in self.shop.examples(name)]
