"""One function per verb: the only place that turns names into objects and objects into runs.

A stage whose inputs have not changed is skipped, and says so; `run` is nothing but the stages in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from stillhouse import world
from stillhouse.cards import model_card
from stillhouse.computing import choose_compute
from stillhouse.errors import RunError
from stillhouse.evaluation.base import Evaluator, Heldout, Result
from stillhouse.making import make_data
from stillhouse.models import CausalLM
from stillhouse.objectives.base import Objective
from stillhouse.objectives.cross_entropy import CrossEntropy
from stillhouse.publishing import write_dataset
from stillhouse.recipe import Recipe, ScoreSection
from stillhouse.records import fingerprint_file, fingerprint_path
from stillhouse.registry import name_of
from stillhouse.report.page import write_report
from stillhouse.results import ROLES, ModelResult, summarize
from stillhouse.runs import RunFolder, StageRecord, environment
from stillhouse.samples import continuations, write_samples
from stillhouse.scoring import write_signals
from stillhouse.student import Student
from stillhouse.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from stillhouse.training.loop import Step, TrainState, begin, train
from stillhouse.training.optim import Optim
from stillhouse.workshop import Progress, Trainee, Workshop, silent

CADENCE_EXAMPLES = 100
"""Held-out examples of the evaluations during training: enough for a curve, cheap enough to draw one."""


@dataclass
class Outcome:
    """What a verb did: the folder, and which stages were done before."""

    folder: Path
    skipped: list[str] = field(default_factory=list)


def run(recipe: Recipe, out: Path, progress: Progress = silent) -> Outcome:
    """Everything: data, student, control, evaluation, report, manifest.

    Raises:
        StillhouseError: see the stages; the same call continues a run that was stopped.
    """
    return _with_workshop(recipe, out, progress, ("data", "train", "evaluate", "report"))


def train_only(recipe: Recipe, out: Path, progress: Progress = silent) -> Outcome:
    """Data and training; `evaluate` on the folder continues."""
    return _with_workshop(recipe, out, progress, ("data", "train"))


def score(recipe: Recipe, out: Path, progress: Progress = silent) -> Outcome:
    """Data, and what the teacher says about it, stored in `out/signals` for the `stored` teacher of other runs."""
    asked = recipe if recipe.score is not None else recipe.model_copy(update={"score": ScoreSection()})
    return _with_workshop(asked, out, progress, ("data", "score"))


def evaluate_run(out: Path, progress: Progress = silent) -> Outcome:
    """Evaluate the models of a run folder and write its report.

    Raises:
        RunError: not a run folder, or not trained yet.
    """
    recipe = RunFolder(out).recipe()
    if RunFolder(out).stage_record("train-student") is None:
        raise RunError(f"{out} has no trained student yet. `stillhouse run` or `stillhouse train` makes one.")
    return _with_workshop(recipe, out, progress, ("data", "train", "evaluate", "report"))


def _with_workshop(recipe: Recipe, out: Path, progress: Progress, parts: Sequence[str]) -> Outcome:
    with world.joined(), RunFolder.claim(out, recipe) as folder:
        shop = Workshop(recipe, folder, progress if world.is_main() else silent)
        outcome = Outcome(out)
        try:
            if "train" in parts:
                world.first(lambda: shop.metrics.open(shop.plan.trackers, recipe.resolved(), recipe.name))
            if "data" in parts and make_data(shop):
                outcome.skipped.append("data")
            _describe_environment(shop)
            if "score" in parts or ("train" in parts and shop.plan.recorded):
                for source in dict.fromkeys(trainee.source for trainee in shop.trainees if trainee.taught):
                    if write_signals(shop, source):
                        outcome.skipped.append("score" if source == "train" else f"score-{source}")
            if "train" in parts:
                for trainee in shop.trainees:
                    _train(shop, outcome, trainee)
            if "evaluate" in parts:
                _evaluate(shop, outcome)
            if "report" in parts:
                world.first(lambda: _conclude(folder, recipe))
        finally:
            shop.close()
    return outcome


def _conclude(folder: RunFolder, recipe: Recipe) -> None:
    write_dataset(folder, recipe)
    write_report(folder.path)
    folder.finish(recipe)


def _describe_environment(shop: Workshop) -> None:
    choices = [
        {"name": "device", "value": shop.device, "reason": shop.device_reason},
        {
            "name": "longest example",
            "value": f"{shop.plan.max_length} tokens",
            "reason": "data.max_length, or the models' context",
        },
    ]
    if not shop.has_control:
        plain = "the objective is plain training, and there is no text but the teacher's to train a control on"
        reason = plain if shop.recipe.control else "the recipe says control: false"
        choices.append({"name": "control", "value": "none", "reason": reason})
    if shop.recipe.score is not None and not shop.plan.recorded:
        choices.append({"name": "record", "value": "none", "reason": "no objective reads the teacher's distributions"})
    facts = {**environment(), "device": shop.device, "seed": shop.recipe.seed, "choices": choices}
    shop.folder.write_json("environment.json", facts)


def _train(shop: Workshop, outcome: Outcome, trainee: Trainee) -> None:
    """Train one of the run's models: all by the same steps and schedule."""
    recipe, role = shop.recipe, trainee.role
    objectives: Sequence[Objective] = shop.plan.objectives if trainee.taught else [CrossEntropy()]
    inputs = {
        "role": role,
        "data": fingerprint_file(shop.path / "data" / f"{trainee.source}.jsonl"),
        "objectives": [repr(o) for o in objectives],
        "recipe": recipe.model_dump(mode="json", include={"seed", "train", "score"}),
        "models": shop.models_in_play,
        "rendering": shop.rendering_in_play,
    }
    with shop.folder.stage(f"train-{role}", inputs) as (record, done):
        if done:
            outcome.skipped.append(f"train-{role}")
            return
        _train_to_the_end(shop, trainee, objectives, record)


def _train_to_the_end(shop: Workshop, trainee: Trainee, objectives: Sequence[Objective], record: StageRecord) -> None:
    role = trainee.role
    recipe, settings = shop.recipe, shop.recipe.train
    torch.manual_seed(recipe.seed)
    student = shop.trainee(record)
    rendered = shop.rendered(trainee.source, record)
    compute = choose_compute(shop, record)
    batches = shop.batches(rendered, compute.accumulate or 1)
    optim = Optim(
        **settings.model_dump(include={"lr", "warmup", "schedule", "clip", "weight_decay", "beta2", "optimizer"})
    )
    state = begin(student, batches, optim, compute)
    saved = shop.path / "checkpoints" / f"{role}-{record.fingerprint}"
    if found := checkpoints(saved):
        load_checkpoint(found[-1], state)
        record.choose(f"{role} continued", f"from step {state.step}", "a checkpoint of a run that was stopped")
    shop.metrics.forget(role, state.step)
    every = settings.checkpoint_every or max(1, settings.steps // 5)
    teacher = shop.signals(trainee.source) if any(o.needs for o in objectives) else None
    if teacher is not None:
        teacher.prepare(rendered)
    read_before, paid = (teacher.tokens_read, teacher.bill()) if teacher else (0, {})
    watched = _Cadence(shop, role)
    for step in train(
        student, batches, teacher, objectives, steps=settings.steps, optim=optim, compute=compute, state=state
    ):
        _log(shop, role, step)
        watched.after(step)
        if step.number % every == 0 and step.number < settings.steps:
            save_checkpoint(saved, state, keep=settings.keep_checkpoints)
    save_checkpoint(saved, state, keep=settings.keep_checkpoints)
    shop.metrics.account(record)
    record.cost = {f"{role}_tokens_trained": state.tokens}
    if teacher is not None:
        record.cost["teacher_tokens_read"] = teacher.tokens_read - read_before
        record.cost |= {name: now - paid.get(name, 0) for name, now in teacher.bill().items()}
    facts = {
        "teacher": shop.teacher.identity(),
        "parameters": student.parameters(),
        "trainable": student.trainable_parameters(),
        "tokens": state.tokens,
        "steps": state.step,
    }
    trained = _unsharded(shop, state)
    if world.is_main():
        trained.save(shop.path / role, model_card(recipe, role, facts))


def _unsharded(shop: Workshop, state: TrainState) -> Student:
    """The trained student in one piece; where its weights were sharded, a copy in the first process."""
    if not state.parallel.sharded:
        return state.student
    copy, weights = shop.trainee(StageRecord("", "")), state.parallel.whole_state()
    if world.is_main():
        copy.lm.model.load_state_dict(weights)
    return copy


def _log(shop: Workshop, role: str, step: Step) -> None:
    shop.metrics.log(
        {
            "model": role,
            "step": step.number,
            "loss": step.loss,
            "objectives": step.parts,
            "lr": step.lr,
            "grad_norm": step.grad_norm,
            "tokens": step.tokens,
            "seconds": round(step.seconds, 4),
        }
    )
    shop.progress(f"train {role}", step.number, shop.recipe.train.steps, f"loss {step.loss:.3f}")


class _Cadence:
    """Evaluates a few held-out examples every so often, for the curves."""

    def __init__(self, shop: Workshop, role: str) -> None:
        self.shop, self.role = shop, role
        self.every = shop.recipe.train.evaluate_every
        self.data = shop.heldout(limit=CADENCE_EXAMPLES) if self.every else None

    def after(self, step: Step) -> None:
        if self.data is None or not self.every or step.number % self.every:
            return
        measured = ModelResult()
        for evaluator in self.shop.plan.evaluators:
            if not evaluator.once:
                with step.state.parallel.readable() as model:
                    _measure(evaluator, model, self.data, None, measured)
        values = {name: estimate.value for name, estimate in measured.values().items()}
        self.shop.metrics.log({"model": self.role, "step": step.number, "evaluation": values})


def _evaluate(shop: Workshop, outcome: Outcome) -> None:
    """Measure every model, compare them pairwise, write evaluation.json and samples.jsonl."""
    trained = [trainee.role for trainee in shop.trainees]
    present = {"student_before", *trained, *(["teacher"] if shop.plan.teacher.here else [])}
    roles = [role for role in ROLES if role in present]
    results: dict[str, ModelResult] = {}
    for place, role in enumerate(roles):
        shop.progress("evaluate", place, len(roles), role)
        training = shop.folder.stage_record(f"train-{role}")
        inputs = {
            "role": role,
            "evaluate": [repr(e) for e in shop.plan.evaluators],
            "trained": training.fingerprint if training else shop.recipe.seed,
            "models": shop.models_in_play,
            "data": (shop.folder.stage_record("data") or StageRecord("data", "")).out,
            "samples": shop.recipe.samples,
            "files": _files_read(shop.plan.evaluators),
        }
        with shop.folder.stage(f"evaluate-{role}", inputs) as (_, done):
            if done:
                outcome.skipped.append(f"evaluate-{role}")
            else:
                result = _evaluate_model(shop, role)
                if world.is_main():
                    result.save(shop.path / "evaluation" / role)
        results[role] = ModelResult.load(shop.path / "evaluation" / role)
    shop.progress("evaluate", len(roles), len(roles), "")
    summary = summarize(results, shop.recipe.headline)
    shop.folder.write_json("evaluation.json", summary)
    if world.is_main():
        shop.metrics.conclude(summary["models"], shop.recipe.train.steps)
        write_samples(shop, results)


def _files_read(evaluators: Sequence[Evaluator]) -> dict[str, str]:
    """Fingerprints of the files that evaluators read themselves."""
    return {str(path): fingerprint_path(path) for e in evaluators for path in e.files() if path.exists()}


def _evaluate_model(shop: Workshop, role: str) -> ModelResult:
    model, teacher = shop.model(role), shop.teacher.lm if shop.plan.teacher.here else None
    measured = ModelResult()
    for name in ("heldout", *shop.recipe.data.out_of_domain):
        data = shop.heldout(name)
        if role == "teacher":  # what marks a student's tasks means nothing to a teacher, which is asked plainly
            data = replace(data, renderer=replace(data.renderer, trace="rationale_first"))
        for evaluator in shop.plan.evaluators:
            if name == "heldout" or not evaluator.once:
                _measure(evaluator, model, data, teacher, measured)
    shown = shop.heldout(limit=shop.recipe.samples)
    if shop.recipe.samples and not any(example.id in measured.outputs for example in shown.examples):
        measured.outputs |= continuations(model, shown)
    return measured


def _measure(evaluator: Evaluator, model: CausalLM, data: Heldout, teacher: CausalLM | None, into: ModelResult) -> None:
    result: Result = evaluator.evaluate(model, data, teacher)
    prefix = f"{data.name}:" if data.name else ""
    metrics = {**evaluator.metrics(), **result.metrics}
    for name in (*result.measurements, *result.estimates):
        into.metrics[f"{prefix}{name_of(evaluator)}.{name}"] = metrics[name]
    into.measurements |= {f"{prefix}{name_of(evaluator)}.{name}": m for name, m in result.measurements.items()}
    into.estimates |= {f"{prefix}{name_of(evaluator)}.{name}": e for name, e in result.estimates.items()}
    if not data.name:
        into.outputs |= result.outputs
        into.correct |= result.correct
        into.reliability = result.reliability or into.reliability
