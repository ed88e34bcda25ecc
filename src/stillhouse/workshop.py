"""The things a run works with, each made once and only when first needed: device, teacher, data, students."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from stillhouse import world
from stillhouse.adapters import unties
from stillhouse.data.batching import Batches, in_order
from stillhouse.data.rendering import Rendered, Renderer, Role
from stillhouse.data.tokens import TokenFile, open_tokens
from stillhouse.errors import RecipeError
from stillhouse.evaluation.base import Heldout
from stillhouse.locating import fingerprint_model
from stillhouse.metrics import Metrics
from stillhouse.models import CausalLM
from stillhouse.preflight import Plan, make_plan
from stillhouse.pruning.cut import choose, cut
from stillhouse.pruning.importance import measure
from stillhouse.recipe import CutSection, Recipe
from stillhouse.recipe_data import RoleName
from stillhouse.records import Example, fingerprint_file, read_examples, whole, write_examples
from stillhouse.runs import RunFolder, StageRecord
from stillhouse.student import Student
from stillhouse.synthesis.base import Workbench
from stillhouse.teachers.base import TeacherSession
from stillhouse.teachers.stored import StoredTeacher

_TRAINING_SEED = 0
"""Of the training examples that models are measured on."""
_REPORT_EVERY = 1000
"""Examples rendered between two reports of progress."""

Progress = Callable[[str, int, int, str], None]
"""Called as (stage, done, total, note); the command line draws it, everyone else may ignore it."""


ANSWERS = "answers"
"""The folder in which a run keeps what its teacher has answered until the data are whole."""

CALIBRATION_BATCH = 8192
"""Tokens of a calibration batch, padding counted; fixed, because the last bits of a measurement depend on it."""


def silent(stage: str, done: int, total: int, note: str) -> None:
    """No progress."""


class Trainee(NamedTuple):
    """A model that a run trains: the student, or one that it is held against.

    Attributes:
        role: what it is called in the run's results.
        source: the data file that it is trained on.
        taught: whether it has the teacher; without, it is trained on the text alone.
    """

    role: str
    source: str
    taught: bool


class Workshop:
    """A run's plan, folder and tools."""

    def __init__(self, recipe: Recipe, folder: RunFolder, progress: Progress = silent) -> None:
        self.recipe = recipe
        self.folder = folder
        self.progress = progress
        self.plan: Plan = make_plan(recipe)
        self.metrics = Metrics(folder)
        self.device, self.device_reason = choose_device(recipe.device)
        self._tokens: dict[str, TokenFile] = {}
        self._heldout: dict[str, tuple[list[Example], list[Rendered]]] = {}

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    @cached_property
    def teacher(self) -> TeacherSession:
        """The opened teacher."""
        return self.plan.teacher.open(self.device)

    def signals_folder(self, source: str = "train") -> Path:
        """Where the teacher's record of a training file lies."""
        return self.path / ("signals" if source == "train" else f"signals-{source}")

    def signals(self, source: str = "train") -> TeacherSession:
        """Who is asked while a model trains on a file: the teacher, or its record where the recipe says `score`."""
        return StoredTeacher(str(self.signals_folder(source))).open(self.device) if self.plan.recorded else self.teacher

    @property
    def trainees(self) -> list[Trainee]:
        """The models that are trained; known once the data stage is done.

        Each takes the same steps. What is trained without its teacher needs either divergences beside it or other text
        than the teacher's, or it would be the very same training.
        """
        found = []
        for role in self.plan.trained:
            own = "random" if role.startswith("random") else "train"
            taught = role in ("student", "random")
            source = own if taught or self.plan.white_box else role
            if (self.path / "data" / f"{source}.jsonl").exists():
                found.append(Trainee(role, source, taught))
        return found

    @property
    def has_control(self) -> bool:
        """Whether the same student is trained without its teacher too; known once the data stage is done."""
        return any(trainee.role == "control" for trainee in self.trainees)

    @cached_property
    def models_in_play(self) -> dict[str, Any]:
        """Teacher and student as the recipe names them, with what their folders hold: stages are done again when either
        changes."""
        named = self.recipe.model_dump(mode="json", include={"student"})
        named["teacher"] = self.recipe.teacher.lasting("teacher")
        start = self.recipe.student.model
        return {**named, "files": [self.plan.teacher.fingerprint(), start and fingerprint_model(start)]}

    @cached_property
    def rendering_in_play(self) -> dict[str, Any]:
        """What of the recipe decides how examples become tokens: stages are done again when it changes."""
        return self.recipe.data.model_dump(mode="json", include={"max_length", "overflow", "train_on", "trace"})

    def close(self) -> None:
        """Close the trackers, and the teacher if it was opened."""
        self.metrics.close()
        if "teacher" in self.__dict__:
            self.teacher.close()

    def new_student(self) -> Student:
        """The student as it was before any training; the same one every time."""
        chosen = self.recipe.student
        if chosen.from_teacher is not None:
            return Student(str(self._cut_out(chosen.from_teacher)), device=self.device)
        if chosen.model is not None:
            return Student(
                chosen.model, device=self.device, revision=chosen.revision, trust_remote_code=chosen.trust_remote_code
            )
        return Student.from_config(
            chosen.config or {}, self.plan.student_tokenizer, seed=self.recipe.seed, device=self.device
        )

    def trainee(self, record: StageRecord) -> Student:
        """The student ready for training: with fresh adapters and recomputed activations where the recipe asks for
        them; the same one every time."""
        student, chosen = self.new_student(), self.recipe.student
        if chosen.lora is not None:
            student.adapt(chosen.lora, seed=self.recipe.seed, revision=chosen.revision)
            count = f"{student.trainable_parameters():,} beside {student.parameters():,}"
            record.choose("trained parameters", count, "student.lora: the model's own are frozen")
            if unties(student.lm.model):
                reason = "student.lora names one of the two, so that they no longer share their weights"
                record.choose("head and embeddings", "a matrix each", reason)
        if self.recipe.train.activation_checkpointing:
            student.checkpoint_activations()
        return student

    def _cut_out(self, settings: CutSection) -> Path:
        """The folder of the student that was cut out of its teacher: made once, so that all its uses start alike."""
        folder = self.path / "initial"
        inputs = {
            "data": fingerprint_file(self.path / "data" / "train.jsonl"),
            "models": self.models_in_play,
            "rendering": self.rendering_in_play,
            "seed": self.recipe.seed,
        }
        with self.folder.stage("initial", inputs) as (record, done):
            if not done:
                self.progress("cut student", 0, 1, settings.describe())
                student = self._calibrate_and_cut(settings, record)
                world.first(lambda: _save_whole(student, folder))
                self.progress("cut student", 1, 1, "")
        return folder

    def _calibrate_and_cut(self, settings: CutSection, record: StageRecord) -> CausalLM:
        rendered, teacher = self.rendered("train", record), self.model("teacher")
        if teacher.is_spread():
            raise RecipeError(
                "student.from_teacher cuts whole weights, and the teacher's are spread over the processes. Make the "
                "student in one process first (`stillhouse train`), or set teacher.hf.shard: never."
            )
        drawn = random.Random(self.recipe.seed).sample(rendered, min(settings.calibration, len(rendered)))
        importance = measure(teacher, in_order(drawn, CALIBRATION_BATCH))
        kept = choose(teacher.model.config, settings, importance)
        record.cost = {"teacher_tokens_read": sum(len(r.tokens) for r in drawn)}
        record.out = {"layers": kept.layers, "block_influence": importance.influence_L.tolist()}
        if settings.layers is not None:
            influence = ", ".join(f"{value:.3f}" for value in importance.influence_L.tolist())
            how = "named by the recipe" if isinstance(settings.layers, list) else f"choose: {settings.choose}"
            reason = f"{how}; block influence {influence}"
            record.choose("layers of the teacher", ", ".join(map(str, kept.layers)), reason)
        return cut(teacher, settings, kept, importance)

    def renderer(self) -> Renderer:
        """A renderer as the recipe asks for."""
        return Renderer(self.plan.student_tokenizer, self.plan.max_length, **render_settings(self.recipe))

    def bench(self, heldout: Sequence[str]) -> Workbench:
        """What synthesizers work with, the data files of the run that they may not repeat named."""
        self.teacher.journal(self.path / ANSWERS)
        return Workbench(self.teacher, [e for name in heldout for e in self.examples(name)])

    def store(self, name: str, examples: Iterable[Example]) -> tuple[int, str]:
        """Write a data file of the run, in the first process alone; how many examples it holds, and its fingerprint."""
        place = self.path / "data" / f"{name}.jsonl"

        def write() -> tuple[int, str]:
            return write_examples(place, examples), fingerprint_file(place)

        return world.first(write)

    def examples(self, name: str) -> list[Example]:
        """A data file of the run, as the data stage left it."""
        return list(read_examples(self.path / "data" / f"{name}.jsonl"))

    def tokens(self, name: str) -> TokenFile:
        """A data file of the run as tokens, which lie on disk: rendered once for all stages, models and evaluators, and
        for a run that continues this one."""
        if name not in self._tokens:
            folder, data = self.path / "tokens" / name, self.path / "data" / f"{name}.jsonl"
            opened = partial(open_tokens, folder, data, self.renderer(), self._watched)
            if world.size() > 1:
                world.first(lambda: len(opened()))  # it writes them; the others then find them
            self._tokens[name] = opened()
        return self._tokens[name]

    def _watched(self, data: Path) -> Iterator[Example]:
        """The examples of a data file that is being rendered."""
        with data.open("rb") as stream:
            total = sum(1 for _ in stream)
        for done, example in enumerate(read_examples(data)):
            if done % _REPORT_EVERY == 0:
                self.progress(f"render {data.stem}", done, total, "")
            yield example
        self.progress(f"render {data.stem}", total, total, "")

    def rendered(self, name: str, record: StageRecord) -> TokenFile:
        """A data file of the run as tokens; what happened on the way is recorded as a choice."""
        tokens = self.tokens(name)
        for notice, count in tokens.notices.items():
            record.choose(f"{name} data", f"{count} {notice}", f"data.overflow is {self.recipe.data.overflow}")
        return tokens

    def batches(self, rendered: Sequence[Rendered], accumulate: int) -> Batches:
        """This process's turns of the training stream, an update being `accumulate` micro-batches of all of them."""
        train = self.recipe.train
        return Batches(
            rendered,
            tokens_per_batch=train.tokens_per_step // accumulate,
            seed=self.recipe.seed,
            packing=train.packing,
            role_weights=None if train.role_weights is None else by_role(train.role_weights),
            turn=(world.rank(), world.size()),
        )

    def heldout(self, name: str = "heldout", limit: int | None = None) -> Heldout:
        """A held-out data set, rendered for all evaluators and models alike; unlike training data it is kept in
        memory, as text and as tokens."""
        if name not in self._heldout:
            self._heldout[name] = self.examples(name), list(self.tokens(name))
        every, tokens = self._heldout[name]
        chosen = {example.id for example in every[:limit]}
        rendered = [r for r in tokens if _owner(r, chosen) in chosen]
        # What was dropped for its length is measured by no evaluator, so that all metrics speak of the same examples.
        kept = {_owner(r, chosen) for r in rendered}
        examples = [example for example in every if example.id in kept]
        if name != "heldout":
            return Heldout(name, examples, rendered, self.renderer())
        return Heldout("", examples, rendered, self.renderer(), partial(self.training_sample, len(rendered)))

    def training_sample(self, count: int) -> Heldout:
        """So many of the examples that the student is trained on, or windows of them where they are long texts: the
        same ones whatever the run's seed, so that runs on the same data compare."""
        key = f"train/{count}"  # no name of a data set holds a slash
        if key not in self._heldout:
            tokens = self.tokens("train")
            drawn = random.Random(_TRAINING_SEED).sample(range(len(tokens)), min(count, len(tokens)))
            rendered = [tokens[i] for i in sorted(drawn)]
            names = {name for r in rendered for name in (r.id, r.id.rpartition("/")[0])}
            found = [e for e in read_examples(self.path / "data" / "train.jsonl") if e.id in names]
            known = {e.id for e in found}
            owners = {_owner(r, known) for r in rendered}
            self._heldout[key] = [e for e in found if e.id in owners], rendered
        return Heldout("train", *self._heldout[key], self.renderer())

    def model(self, role: str) -> CausalLM:
        """One of the four models that a run evaluates."""
        if role == "teacher":
            if self.teacher.lm is None:
                raise RecipeError("This teacher is not in this process, so it cannot be evaluated beside its student.")
            return self.teacher.lm
        if role == "student_before":
            return self.new_student().lm
        trusted = self.recipe.student.trust_remote_code
        return CausalLM.load(str(self.path / role), device=self.device, trust_remote_code=trusted)


def _save_whole(model: CausalLM, folder: Path) -> None:
    with whole(folder) as partial:
        model.save(partial)


def _owner(rendered: Rendered, examples: set[str]) -> str:
    """The id of the example that tokens belong to; the windows of a long text are `id/0`, `id/1` and so on."""
    return rendered.id if rendered.id in examples else rendered.id.rpartition("/")[0]


def render_settings(recipe: Recipe) -> dict[str, Any]:
    """The recipe's settings of `Renderer`."""
    roles = frozenset(Role[name.upper()] for name in recipe.data.train_on)
    return {"train_on": roles, "overflow": recipe.data.overflow, "trace": recipe.data.trace}


def by_role(weights: Mapping[RoleName, float]) -> dict[Role, float]:
    """A recipe's weights by what they are called in code."""
    return {Role[name.upper()]: weight for name, weight in weights.items()}


def choose_device(wanted: str) -> tuple[str, str]:
    """The device and the reason for it.

    Raises:
        RecipeError: the recipe names a device that is not there.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            own = f"cuda:{world.local_rank()}" if world.size() > 1 else "cuda"
            return own, f"an accelerator is there: {torch.cuda.get_device_name()}"
        return "cpu", "no accelerator is there"
    with suppress(RuntimeError, AssertionError):  # a build without CUDA asserts
        torch.empty(1, device=wanted)
        return wanted, "asked for by the recipe"
    raise RecipeError(
        f"The recipe asks for device {wanted!r}, which is not there. Use auto, cpu, or install a torch build for it."
    )
