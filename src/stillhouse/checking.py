"""`check`: what a recipe would do, what it needs and what it costs, having loaded no weights."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from stillhouse.data.rendering import Renderer
from stillhouse.data.sources import describe, iter_source
from stillhouse.data.tokens import BYTES_PER_EXAMPLE, BYTES_PER_TOKEN
from stillhouse.models import vocabulary_size
from stillhouse.preflight import Plan, make_plan
from stillhouse.recipe import Recipe, Source
from stillhouse.registry import name_of
from stillhouse.signals.layout import bytes_per_token
from stillhouse.training.chunking import choose_chunk
from stillhouse.workshop import choose_device, render_settings

_SAMPLE = 2000
"""Examples that are tokenized to estimate lengths; a million-row data set must not make `check` slow."""


@dataclass(frozen=True)
class Size:
    """A model's size, counted on an empty skeleton of it."""

    parameters: int
    width: int
    layers: int
    head: int
    intermediate: int


def check(recipe: Recipe) -> dict[str, Any]:
    """Resolve a recipe, verify its data, tokenizers and vocabularies, and estimate its cost.

    Raises:
        RecipeError, NeedsError, DataError, ModelError: whatever a run would stumble over, before it starts.
    """
    plan = make_plan(recipe)
    device, reason = choose_device(recipe.device)
    student = measure_size(plan.student_config)
    teacher = measure_size(plan.teacher_config) if plan.teacher_config is not None else None
    data = {name: _look_at(plan, source) for name, source in recipe.data.sources().items()}
    estimate = _estimate(plan, student, teacher, data)
    free = shutil.disk_usage(Path.cwd()).free
    warnings = []
    if estimate["disk_bytes"] > free:
        warnings.append(
            f"the run needs about {estimate['disk_bytes'] / 2**30:.1f} GiB of disk, {free / 2**30:.1f} are free here"
        )
    return {
        "recipe": recipe.resolved(),
        "device": {"value": device, "reason": reason},
        "teacher": {
            "component": name_of(plan.teacher),
            "is": str(plan.teacher),
            "provides": sorted(plan.teacher.provides),
            "parameters": teacher and teacher.parameters,
        },
        "student": {
            "parameters": student.parameters,
            "share_of_teacher": teacher and round(student.parameters / teacher.parameters, 4),
        },
        "vocabulary": len(plan.student_tokenizer),
        "chat_template": plan.student_tokenizer.chat_template is not None,
        "max_length": plan.max_length,
        "objectives": {name_of(o): sorted(o.needs) for o in plan.objectives},
        "control": plan.may_have_control,
        "data": data,
        "estimate": estimate,
        "warnings": warnings,
    }


def measure_size(config: Any) -> Size:
    """Count a model's parameters without allocating them."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    embeddings = model.get_input_embeddings().weight
    return Size(
        parameters=sum(p.numel() for p in model.parameters()),
        width=embeddings.shape[1],
        layers=int(config.num_hidden_layers),
        head=embeddings.shape[0],
        intermediate=int(getattr(config, "intermediate_size", None) or 4 * embeddings.shape[1]),
    )


def _look_at(plan: Plan, source: Source) -> dict[str, Any]:
    """Read a source as a run would and measure its lengths; one the teacher writes is estimated from its settings."""
    if source.synthesizer is not None:
        made = source.synthesizer.build("synthesizer")
        tokens = made.tokens_written(0)
        return {
            "source": describe(source),
            "examples": made.count,
            "mean_tokens": tokens / made.count,
            "written": tokens,
        }
    examples = iter_source(source)
    sample = list(islice(examples, _SAMPLE))
    count = len(sample) + sum(1 for _ in examples)
    renderer = Renderer(plan.student_tokenizer, plan.max_length, **render_settings(plan.recipe))
    started = time.perf_counter()
    prompts_only = bool(plan.steps) and sample[0].completion is None and sample[0].form == "prompt"
    if prompts_only:
        lengths = [len(renderer.prompt_ids(e)) for e in sample]
    else:
        lengths = [len(r.tokens) for r in renderer.render(sample)]
    return {
        "source": describe(source),
        "examples": count,
        "mean_tokens": round(sum(lengths) / max(1, len(lengths)), 1),
        "longest_tokens": max(lengths, default=0),
        "notices": dict(renderer.notices),
        "seconds_per_1000": round((time.perf_counter() - started) / max(1, len(lengths)) * 1000, 3),
    }


def _estimate(plan: Plan, student: Size, teacher: Size | None, data: dict[str, Any]) -> dict[str, Any]:
    train = plan.recipe.train
    tokens = train.steps * train.tokens_per_step
    models = 2 if plan.may_have_control else 1
    heldout = sum(d["examples"] * d["mean_tokens"] for name, d in data.items() if name != "train")
    written = sum(d.get("written", 0) for d in data.values())
    written += sum(step.tokens_written(data["train"]["examples"]) for step in plan.steps)
    recorded = int(data["train"]["examples"] * data["train"]["mean_tokens"]) if plan.recorded else 0
    cut = plan.recipe.student.from_teacher
    calibration = min(cut.calibration, data["train"]["examples"]) * data["train"]["mean_tokens"] if cut else 0
    teacher_reads = ((recorded or tokens) if plan.white_box else 0) + 2 * heldout + calibration
    teacher_size = teacher.parameters if teacher else 0
    # A forward pass costs two operations per weight and token, a backward pass four.
    operations = models * 6 * tokens * student.parameters + 2 * (teacher_reads + written) * teacher_size
    rate = _operations_per_second()
    return {
        "steps": train.steps * models,
        "epochs": round(tokens / max(1.0, data["train"]["examples"] * data["train"]["mean_tokens"]), 2),
        "student_tokens": tokens * models,
        "teacher_tokens_read": int(teacher_reads),
        "teacher_tokens_written": int(written),
        "peak_memory_bytes": _memory(plan, student, teacher),
        "disk_bytes": student.parameters * 4 * (bool(cut) + models + 3 * models * (train.keep_checkpoints + 1))
        + recorded * _bytes_per_token(plan)
        + int(sum(d["examples"] * (d["mean_tokens"] * BYTES_PER_TOKEN + BYTES_PER_EXAMPLE) for d in data.values())),
        "seconds": round(operations / rate, 1),
        "operations_per_second": int(rate),
        "note": "time is the matrix products alone, at the speed measured just now; small models spend a multiple of "
        "it on everything else",
    }


def _bytes_per_token(plan: Plan) -> int:
    """Of the recorded signal; every token counts, because which are trained is known only after rendering."""
    score = plan.recipe.score
    return bytes_per_token(vocabulary_size(plan.teacher_tokenizer), score.k) if score else 0


def _memory(plan: Plan, student: Size, teacher: Size | None) -> int:
    """Weights, gradients and two moments in float32; kept activations; one chunk of logits of both models."""
    train = plan.recipe.train
    micro = train.tokens_per_step // (train.accumulate or 1)
    weights = 16 * student.parameters + 4 * (teacher.parameters if teacher else 0)
    per_token_and_layer = 4 * (10 * student.width + 3 * student.intermediate)
    activations = micro * student.layers * per_token_and_layer
    chunk = train.chunk or choose_chunk(len(plan.student_tokenizer))[0]
    logits = 6 * 4 * min(chunk, micro) * max(student.head, teacher.head if teacher else 0)
    libraries = 600 * 2**20  # torch, transformers and Python themselves
    return int(weights + activations + logits + libraries)


def _operations_per_second() -> float:
    """Speed of float32 matrix products here, measured for a moment."""
    a = torch.randn(1024, 512)
    b = torch.randn(512, 512)
    a @ b
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < 0.2:
        a @ b
        done += 1
    return done * 2 * 1024 * 512 * 512 / (time.perf_counter() - started)
