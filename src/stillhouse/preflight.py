"""Turn a recipe's names into objects and see that they fit together, before any weights are loaded (contract C5)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from transformers import PreTrainedTokenizerBase

from stillhouse.adapters import adapter_base, check_targets, require_peft, skeleton
from stillhouse.errors import NeedsError, RecipeError
from stillhouse.evaluation.base import Evaluator
from stillhouse.locating import locate
from stillhouse.models import load_config, load_tokenizer, vocabulary_size
from stillhouse.objectives.base import Divergence, Objective
from stillhouse.pruning.architecture import shrunk_config
from stillhouse.recipe import Recipe, ScoreSection, StudentSection
from stillhouse.recipe_parts import STEP_FAMILIES, Component
from stillhouse.registry import component as find_component
from stillhouse.registry import family_of, name_of, names
from stillhouse.selection.base import Selector
from stillhouse.signals.vocabulary import require_same_vocabulary
from stillhouse.student import student_config
from stillhouse.synthesis.base import Synthesizer
from stillhouse.teachers.base import Teacher
from stillhouse.tracking.base import Tracker

DataStep = Synthesizer | Selector
"""What may be done to the training examples on their way."""


@dataclass(frozen=True)
class Plan:
    """A recipe whose names have become objects that fit one another; nothing heavy is loaded yet.

    Attributes:
        max_length: tokens of the longest example.
        record_temperature: of the teacher's record, where there is one or one is made.
        student_config: the student's architecture, as Hugging Face's configuration object.
        teacher_tokenizer: None of a teacher that shows nothing but text.
        teacher_config: the teacher's, None where it is not a local architecture.
    """

    recipe: Recipe
    teacher: Teacher
    objectives: tuple[Objective, ...]
    evaluators: tuple[Evaluator, ...]
    steps: tuple[DataStep, ...]
    student_tokenizer: PreTrainedTokenizerBase
    teacher_tokenizer: PreTrainedTokenizerBase | None
    student_config: Any
    teacher_config: Any
    max_length: int
    record_temperature: float
    trackers: tuple[Tracker, ...] = ()

    @property
    def white_box(self) -> bool:
        """Whether training asks the teacher for more than text."""
        return any(objective.needs for objective in self.objectives)

    @property
    def recorded(self) -> bool:
        """Whether training reads the teacher's record instead of asking at every update."""
        return self.recipe.score is not None and self.white_box

    @property
    def trained(self) -> tuple[str, ...]:
        """The models that the run trains, provided that there is text to train them on."""
        control = ("control",) if self.may_have_control else ()
        if not self.has_baselines:
            return ("student", *control)
        return ("student", *control, "random", *(f"random_{name}" for name in control))

    @property
    def has_baselines(self) -> bool:
        """Whether random rows are trained on beside those that were chosen."""
        return self.recipe.baselines and any(isinstance(step, Selector) and step.budgeted() for step in self.steps)

    @property
    def may_have_control(self) -> bool:
        """Whether the run trains the same student without its teacher, provided that there is text to train it on."""
        return self.recipe.control and (self.white_box or any(isinstance(step, Synthesizer) for step in self.steps))


def make_plan(recipe: Recipe) -> Plan:
    """Build every component, match needs to provides, and compare vocabularies.

    Raises:
        RecipeError: unknown component or wrong setting.
        NeedsError: a component needs what the teacher does not provide, or the tokenizers differ.
        ModelError: a tokenizer or configuration cannot be read.
        MissingExtraError: the recipe asks for LoRA or a tracker whose package is not installed.
    """
    if recipe.student.lora is not None:
        require_peft()
    trackers = tuple(item.build("tracker") for item in recipe.track)
    for tracker in trackers:
        tracker.require()
    teacher: Teacher = recipe.teacher.build("teacher")
    objectives = tuple(item.build("objective") for item in recipe.objective)
    evaluators = tuple(item.build("evaluator") for item in recipe.evaluate)
    steps = tuple(_step(item, recipe.seed) for item in recipe.data.steps)
    sources = recipe.data.sources().values()
    writers = [*steps, *(s.synthesizer.build("synthesizer") for s in sources if s.synthesizer is not None)]
    match_needs(teacher, [*objectives, *evaluators, *writers])
    _require_present(teacher, evaluators)
    _require_live(teacher, writers)
    _refuse_twins(evaluators)
    _require_a_student(recipe.student, steps)
    teacher_tokenizer = teacher.load_tokenizer()
    width = vocabulary_size(teacher_tokenizer) if teacher_tokenizer is not None else None
    temperature = _match_record(recipe, teacher, objectives, width)
    teacher_config = teacher.load_config()
    student_tokenizer, config = _student(recipe, teacher, teacher_tokenizer, teacher_config)
    _check_training(recipe, config)
    token_by_token = [name_of(c) for c in (*objectives, *evaluators) if "distribution" in c.needs]
    if token_by_token and teacher_tokenizer is not None:
        _compare_tokenizers(student_tokenizer, teacher_tokenizer, token_by_token)
    context = min(_context(config), _context(teacher_config) if token_by_token else 2**30)
    limit = recipe.data.max_length
    if limit is not None and limit > context:
        raise NeedsError(
            f"data.max_length is {limit}, the context of the models is {context} tokens. Lower it, or leave it out."
        )
    return Plan(
        recipe,
        teacher,
        objectives,
        evaluators,
        steps,
        student_tokenizer,
        teacher_tokenizer,
        config,
        teacher_config,
        limit or context,
        temperature,
        trackers,
    )


def _step(item: Component, seed: int) -> DataStep:
    """A step of `data.steps`; a selector that draws does so by the run's seed where it is given none, so that the runs
    of a sweep differ in their rows as well."""
    family = family_of(item.name, STEP_FAMILIES)
    drawn = family == "selector" and "seed" in {f.name for f in fields(find_component(family, item.name))}
    settings = {"seed": seed, **item.settings} if drawn else item.settings
    return Component(name=item.name, settings=settings).build(family)


def match_needs(teacher: Teacher, components: Iterable[Objective | Evaluator | DataStep]) -> None:
    """Refuse a component that needs more than the teacher provides.

    Raises:
        NeedsError: which one, what it needs, what there is, and which objectives would do.
    """
    for component in components:
        missing = component.needs - teacher.provides
        if missing:
            usable = [n for n in names("objective") if find_component("objective", n).needs <= teacher.provides]
            raise NeedsError(
                f"{name_of(component)} needs the teacher's {', '.join(sorted(missing))}; {name_of(teacher)} provides "
                f"{', '.join(sorted(teacher.provides)) or 'nothing'}. Use a teacher that provides it, or one of the "
                f"objectives that this one can serve: {', '.join(usable)}."
            )


def _require_present(teacher: Teacher, evaluators: Iterable[Evaluator]) -> None:
    """Evaluators hold students against the teacher's own model on held-out text."""
    for evaluator in evaluators:
        if evaluator.needs and teacher.live and not teacher.here:
            raise NeedsError(
                f"{name_of(evaluator)} measures the teacher's own model beside its students, and {name_of(teacher)} "
                f"has none in this process. Leave {name_of(evaluator)} out of evaluate."
            )
    _require_live(teacher, evaluators)


def _require_live(teacher: Teacher, askers: Iterable[Evaluator | DataStep]) -> None:
    """Evaluators ask about held-out text and synthesizers for new text; a record knows neither."""
    for asker in askers:
        if asker.needs and not teacher.live:
            raise NeedsError(
                f"{name_of(asker)} asks the teacher about text that {name_of(teacher)} has not heard. Give the weights "
                f"beside the record ({name_of(teacher)}: {{path: ..., model: ...}}), or leave {name_of(asker)} out."
            )


def _match_record(recipe: Recipe, teacher: Teacher, objectives: Iterable[Objective], vocabulary: int | None) -> float:
    """The temperature a record of the teacher has, or would be made at.

    A truncated distribution cannot be softened afterwards, so every objective that reads it must ask for that one.
    """
    score = recipe.score
    if score is not None and vocabulary is not None and score.k > vocabulary:
        raise RecipeError(f"score.k is {score.k}, the vocabulary has {vocabulary} tokens. Set a smaller k.")
    if score is not None:
        _require_shown(score, teacher)
    wanted = {name_of(o): float(o.temperature) for o in objectives if isinstance(o, Divergence)}
    kept = teacher.recorded_at
    if kept is None and score is not None:
        kept = score.temperature
    if kept is None:
        if score is not None and len(set(wanted.values())) > 1:
            raise NeedsError(f"One record has one temperature; the objectives ask for {wanted}. Give them the same.")
        return next(iter(wanted.values()), 1.0)
    for name, temperature in wanted.items():
        if temperature != kept:
            raise NeedsError(
                f"{name} asks for temperature {temperature:g}, the teacher's record has {kept:g}, and a truncated "
                f"distribution cannot be re-tempered. Set the objective's temperature to {kept:g}, or score at "
                f"{temperature:g}."
            )
    return kept


def _require_shown(score: ScoreSection, teacher: Teacher) -> None:
    """A record keeps no more than the teacher says, at the temperature it says it at."""
    if teacher.shows is not None and score.k > teacher.shows:
        raise NeedsError(
            f"score.k is {score.k}, and {name_of(teacher)} says the {teacher.shows} likeliest tokens at every place, "
            f"no more. Set score.k to {teacher.shows} or less, or let the teacher say more (server: logprobs; stored: "
            "score again with a larger k)."
        )
    if score.temperature is not None and teacher.recorded_at not in (None, score.temperature):
        raise NeedsError(
            f"score.temperature is {score.temperature:g}, what {name_of(teacher)} says is at {teacher.recorded_at:g}, "
            "and a truncated distribution cannot be re-tempered. Leave score.temperature out."
        )


def _require_a_student(student: StudentSection, steps: Iterable[DataStep]) -> None:
    """A student that is cut out of its teacher comes after the training data, which a selector is about to choose."""
    if student.from_teacher is None:
        return
    for step in steps:
        looked_at = step.looks_at() if isinstance(step, Selector) else None
        if looked_at is not None and not looked_at.of_text:
            raise NeedsError(
                f"{name_of(step)} looks at {name_of(looked_at)}, which is computed with the student, and a student "
                "that is cut out of its teacher (student.from_teacher) is made after the data. Cut it in a run of its "
                "own and name its folder as student.model, or choose by features of text, such as tfidf."
            )


def _refuse_twins(evaluators: Iterable[Evaluator]) -> None:
    """Two evaluators may not give the same metric: the second would overwrite the first."""
    seen: set[str] = set()
    for evaluator in evaluators:
        for metric in evaluator.metrics():
            full = f"{name_of(evaluator)}.{metric}"
            if full in seen:
                raise RecipeError(f"evaluate names {full} twice. Give one of the two another name: ... {{name: ...}}.")
            seen.add(full)


def _student(
    recipe: Recipe, teacher: Teacher, teacher_tokenizer: PreTrainedTokenizerBase | None, teacher_config: Any
) -> tuple[PreTrainedTokenizerBase, Any]:
    chosen = recipe.student
    if chosen.from_teacher is not None:
        if teacher_config is None or teacher_tokenizer is None:
            raise NeedsError(
                f"student.from_teacher cuts the student out of the teacher's weights, and {name_of(teacher)} has none "
                "in this process. Use a teacher with weights, such as hf, or give the student as model or config."
            )
        return teacher_tokenizer, shrunk_config(teacher_config, chosen.from_teacher)
    if chosen.model is not None:
        how = {"revision": chosen.revision, "trust_remote_code": chosen.trust_remote_code}
        return load_tokenizer(chosen.model, **how), load_config(chosen.model, **how)
    tokenizer = load_tokenizer(chosen.tokenizer) if chosen.tokenizer else teacher_tokenizer
    if tokenizer is None:
        raise NeedsError(
            f"A student from a configuration takes its teacher's tokenizer, and {name_of(teacher)} shows none. Set "
            "student.tokenizer to a folder or hub name, or teacher.server.tokenizer where you know it."
        )
    return tokenizer, student_config(chosen.config or {}, tokenizer)


def _check_training(recipe: Recipe, config: Any) -> None:
    """Adapters and recomputed activations must suit the student's architecture, looked at without its weights."""
    chosen = recipe.student
    if chosen.lora is None and not recipe.train.activation_checkpointing:
        return
    model = skeleton(config, trust_remote_code=chosen.trust_remote_code)
    if recipe.train.activation_checkpointing and not model.supports_gradient_checkpointing:
        raise NeedsError(
            f"train.activation_checkpointing: {type(model).__name__} cannot compute activations again. Leave it out."
        )
    if chosen.lora is None:
        return
    check_targets(model, chosen.lora)
    if not chosen.lora.merge and adapter_base(locate(chosen.model or "")) is not None:
        raise NeedsError(
            f"student.lora.merge is false, and {chosen.model} holds adapters itself: new ones belong to the sum, which "
            "lies in no folder. Leave merge out."
        )


def _compare_tokenizers(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, users: list[str]) -> None:
    try:
        require_same_vocabulary(student, teacher)
    except NeedsError as error:
        raise NeedsError(f"{', '.join(users)}: {error}") from error


def _context(config: Any) -> int:
    # No configuration: a teacher elsewhere, whose limit its server knows.
    return int(getattr(config, "max_position_embeddings", None) or 2**30)
