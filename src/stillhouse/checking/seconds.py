"""How long a run will take: the pieces that were rehearsed, multiplied by how often the run does them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from stillhouse import world
from stillhouse.checking.metering import Trials
from stillhouse.checking.rehearsing import Asking, Sample, Writing, judges, shortened, writes
from stillhouse.checking.skeletons import Size
from stillhouse.evaluation.base import Evaluator
from stillhouse.preflight import Plan
from stillhouse.scoring import TOKENS_AT_ONCE
from stillhouse.stages import CADENCE_EXAMPLES


@dataclass(frozen=True)
class Split:
    """A data set as a run will have it.

    Attributes:
        examples: how many.
        sample: some of them.
        read_seconds: of reading all of it and writing it into the run's folder.
        render_seconds: of turning all of it into tokens on disk.
        held_bytes: what an example takes in memory while the run trains and evaluates.
        file_bytes: what an example and its tokens take on disk.
        askings: what the teacher is asked for it.
    """

    examples: int
    sample: Sample
    read_seconds: float
    render_seconds: float
    held_bytes: float
    file_bytes: float
    askings: tuple[Asking, ...] = ()

    @property
    def written(self) -> int:
        """At most how many tokens the teacher writes for it."""
        return sum(asking.written for asking in self.askings)

    @property
    def tokens(self) -> float:
        """Of all examples."""
        return self.examples * self.sample.tokens() / max(1, len(self.sample.examples))

    @property
    def trained(self) -> float:
        """Of all examples, those that count in the loss."""
        return self.examples * self.sample.trained() / max(1, len(self.sample.examples))


@dataclass(frozen=True)
class Work:
    """A plan, its data, and what its pieces took.

    Attributes:
        roles: of the models that are evaluated.
        sizes: of `student` and `teacher`.
        trials: by name, at the models' full depth.
        writings: by name.
        rehearsed: the samples that the trials worked on.
        start: seconds that Python and its libraries take to start.
        resident: bytes that they take.
        processes: that share the run; everything was tried in one.
    """

    plan: Plan
    roles: tuple[str, ...]
    sizes: dict[str, Size]
    splits: dict[str, Split]
    trials: Trials
    writings: dict[str, Writing]
    rehearsed: dict[str, Sample]
    start: float
    resident: float
    processes: int = field(default_factory=world.expected)

    def seconds(self, name: str) -> float:
        """Of a trial; 0 where there was none."""
        return self.trials[name].seconds if name in self.trials else 0.0

    def bytes(self, name: str) -> float:
        """Of a trial; 0 where there was none."""
        return self.trials[name].bytes if name in self.trials else 0.0

    @property
    def calibration(self) -> float:
        """Tokens on which a student that is cut out of its teacher is chosen; 0 for any other."""
        cut, train = self.plan.recipe.student.from_teacher, self.splits["train"]
        return min(cut.calibration, train.examples) * train.tokens / train.examples if cut else 0.0

    def evaluators(self) -> Iterator[tuple[int, Evaluator]]:
        """Those of the recipe with their places, by which trials are named."""
        return iter(enumerate(self.plan.evaluators))

    def prompts(self, evaluator: Evaluator, split: str = "heldout", limit: int | None = None) -> int:
        """How many answers an evaluator asks for, on a data set or on its first `limit` examples alone."""
        bounds = [self.splits[split].examples, getattr(evaluator, "limit", None), limit]
        return min(bound for bound in bounds if bound is not None) * getattr(evaluator, "samples", 1)

    def evaluated(self, evaluator: Evaluator, limit: int | None = None) -> list[str]:
        """The data sets that an evaluator measures; on the way through training, with a limit, the first alone. Running
        text out of the domain asks no question that could be judged."""
        away = [] if evaluator.once or limit is not None else [n for n in self.splits if n not in ("train", "heldout")]
        if judges(evaluator):
            away = [n for n in away if all(e.form != "text" for e in self.splits[n].sample.examples)]
        return ["heldout", *away]


def like(role: str) -> str:
    """The model whose training takes as long: what is trained on random rows is trained like that on chosen ones."""
    return {"random": "student", "random_control": "control"}.get(role, role)


def stage_seconds(work: Work) -> dict[str, float]:
    """Every stage of the run, in its order."""
    plan, data = work.plan, work.splits
    stages = {"start": work.start, "data": sum(s.read_seconds for s in data.values())}
    stages["data"] += sum(
        written_seconds(work, a.name, a.count) for s in data.values() for a in s.askings if a.name in work.writings
    )
    rendering = sum(s.render_seconds for s in data.values())
    if plan.recorded:
        taught = 2 if plan.has_baselines else 1
        stages["score"] = taught * _score(work) / work.processes
    if work.calibration:
        stages["initial"] = work.seconds("calibrate") * work.calibration / work.rehearsed["train"].tokens()
    for role in plan.trained:
        stages[f"train-{role}"] = _training(work, like(role))
    stages["train-student"] += rendering + work.seconds("student compute")
    for place, role in enumerate(work.roles):
        player = "teacher" if role == "teacher" else "student"
        stages[f"evaluate-{role}"] = sum(evaluation_seconds(work, player, i, e) for i, e in work.evaluators())
        if not any(writes(e) and judges(e) for e in plan.evaluators):
            stages[f"evaluate-{role}"] += written_seconds(work, f"{player} continues", plan.recipe.samples)
        stages[f"evaluate-{role}"] /= work.processes
        if place < 2:  # later models have the same shapes, whose memory is known by then
            stages[f"evaluate-{role}"] += sum(
                work.start + work.seconds(f"{player} evaluator {i}")
                for i, e in work.evaluators()
                if getattr(e, "memory", False)
            )
    return stages


def _score(work: Work) -> float:
    """The teacher reads everything; a few batches are held against what is stored."""
    train, sample = work.splits["train"], work.rehearsed["train"]
    batches = math.ceil(train.tokens / TOKENS_AT_ONCE)
    compared = min(1.0, (math.log2(max(1, batches)) + 2) / batches)
    closeness = work.seconds("closeness")
    reading = max(0.0, work.seconds("score") - closeness * sample.trained()) / sample.tokens()
    return train.tokens * reading + compared * train.trained * closeness


def _training(work: Work, role: str) -> float:
    settings = work.plan.recipe.train
    every = settings.checkpoint_every or max(1, settings.steps // 5)
    seconds = settings.steps * work.seconds(f"{role} update")
    seconds += math.ceil(settings.steps / every) * work.seconds(f"{role} checkpoint")
    if role == "student":
        examples = len(work.rehearsed["train"].examples)
        seconds += work.seconds("prepare") * work.splits["train"].examples / max(1, examples)
    if settings.evaluate_every:
        once = sum(
            evaluation_seconds(work, "student", i, e, CADENCE_EXAMPLES)
            for i, e in work.evaluators()
            if not e.once and not e.needs
        )
        seconds += settings.steps // settings.evaluate_every * once / work.processes
    return seconds


def evaluation_seconds(work: Work, player: str, place: int, evaluator: Evaluator, limit: int | None = None) -> float:
    """One evaluator on one model; the held-out data whole, or its first `limit` examples alone."""
    name = f"{player} evaluator {place}"
    if writes(evaluator):
        asked = sum(work.prompts(evaluator, name, limit) for name in work.evaluated(evaluator, limit))
        return written_seconds(work, f"{player} writes {place}", asked)
    if trials := getattr(evaluator, "trials", 0):
        return work.seconds(name) * (trials + 1) / 2
    short = shortened(evaluator)
    if short is not None and short is not evaluator:
        asked = sum(work.prompts(evaluator, n, limit) for n in work.evaluated(evaluator, limit))
        return work.seconds(name) * asked / max(1, work.prompts(short))
    splits = [work.splits[n] for n in work.evaluated(evaluator, limit)]
    share = 1.0 if limit is None else min(1.0, limit / splits[0].examples)
    return work.seconds(name) * share * sum(s.tokens for s in splits) / work.rehearsed["heldout"].tokens()


def written_seconds(work: Work, name: str, prompts: int) -> float:
    """Of writing to so many prompts. A token costs more the longer the text before it, so the line through two
    stretches of tokens is followed, half way up to the last one."""
    if f"{name} 0" not in work.trials:
        return 0.0
    writing = work.writings[name]
    (first, middle, last), (t1, t2, t3) = writing.counts, (work.seconds(f"{name} {i}") for i in range(3))
    early = (t2 - t1) / max(1, middle - first)
    late = (t3 - t2) / max(1, last - middle) if last > middle else early
    growth = min(max(0.0, 2 * (late - early) / max(1, last - first)), early / 32)
    each = (t3 - t1) / max(1, last - first) + growth * (writing.length - last) / 2
    return prompts / len(writing.prompts) * (t1 + each * (writing.length - 1))
