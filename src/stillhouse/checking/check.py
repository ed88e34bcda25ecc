"""`check`: what a recipe would do, what it needs and what it costs, having loaded no weights.

Costs are rehearsed: the run's own code works on a sample with random models of the real shapes, and what that took is
multiplied by how often the run will do it.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from stillhouse.checking.looking import look_at
from stillhouse.checking.metering import Trial, Trials, operations_per_second, resident_bytes
from stillhouse.checking.rehearsing import Asking, Rehearsal, Writing, judges, writes
from stillhouse.checking.seconds import Split, Work, stage_seconds
from stillhouse.checking.skeletons import Size, build_skeleton, choose_depths, measure_size
from stillhouse.checking.space import disk_bytes, stage_bytes
from stillhouse.checking.updates import cut_update
from stillhouse.data.rendering import Renderer
from stillhouse.models import CausalLM, Sampling
from stillhouse.preflight import Plan
from stillhouse.recipe import Recipe
from stillhouse.registry import name_of
from stillhouse.results import ROLES
from stillhouse.runs import RunFolder
from stillhouse.samples import CONTINUATION, start

_ROOM = 2**29
"""Bytes that a skeleton may take, with what training adds to it."""
_TRIAL_SECONDS = 0.4
"""What one update, or one pass over a sample, may take in rehearsal."""
_FEWEST_TOKENS = 256
_DAY = 86400
_EPOCHS = 50
_START = time.process_time()  # this module is imported last: Python and its libraries have just been loaded


def check(recipe: Recipe) -> dict[str, Any]:
    """Resolve a recipe, verify its data, tokenizers and vocabularies, and estimate its cost.

    Raises:
        RecipeError, NeedsError, DataError, ModelError: whatever a run would stumble over, before it starts.
    """
    resident = resident_bytes()
    with tempfile.TemporaryDirectory(prefix="stillhouse-") as scratch:
        shop = Rehearsal(recipe, RunFolder(scratch))
        plan = shop.plan
        looks = {name: look_at(plan, name, source, Path(scratch)) for name, source in recipe.data.sources().items()}
        splits = {name: look[0] for name, look in looks.items()}
        askings = [asking for _, _, askings in looks.values() for asking in askings]
        here = plan.teacher_config is not None
        writings = {asking.name: asking.writing() for asking in askings if here}
        chosen = recipe.student
        sizes = {"student": measure_size(plan.student_config, chosen.lora, **_trust(chosen))}
        if plan.teacher_config is not None:
            sizes["teacher"] = measure_size(plan.teacher_config, **_trust(plan.teacher))
        asking = _afford(plan, askings, splits["train"])
        work = _rehearse(shop, sizes, splits, writings, resident)
    student, teacher = sizes["student"], sizes.get("teacher")
    estimate = _estimate(work, shop.device)
    return {
        "recipe": recipe.resolved(),
        "device": {"value": shop.device, "reason": shop.device_reason},
        "teacher": {
            "component": name_of(plan.teacher),
            "is": str(plan.teacher),
            "provides": sorted(plan.teacher.provides),
            "parameters": teacher and teacher.parameters,
        },
        "student": {
            "parameters": student.parameters,
            "trainable": student.trainable,
            "adapters": recipe.student.lora is not None,
            "share_of_teacher": teacher and round(student.parameters / teacher.parameters, 4),
        },
        "vocabulary": len(plan.student_tokenizer),
        "chat_template": plan.student_tokenizer.chat_template is not None,
        "max_length": plan.max_length,
        "objectives": {name_of(o): sorted(o.needs) for o in plan.objectives},
        "control": plan.may_have_control,
        "data": {name: facts for name, (_, facts, _) in looks.items()},
        "estimate": estimate | ({"asking": asking} if asking else {}),
        "warnings": _warnings(estimate, shop.device),
    }


def _afford(plan: Plan, askings: Sequence[Asking], train: Split) -> list[dict[str, Any]]:
    """What teachers that are paid are going to be asked, at most: for their text, and once about every training example
    where students learn from more than text.

    Raises:
        BudgetError: a budget is smaller.
    """
    scored = train.examples if plan.white_box else 0
    calls = sum(asking.count for asking in askings) + scored
    read = sum(round(asking.count * asking.prompt_tokens) for asking in askings) + (
        round(train.tokens) if scored else 0
    )
    written = sum(asking.written for asking in askings) + scored  # a server that scores writes one token
    return plan.teacher.afford(calls, read, written) if calls else []


def _rehearse(
    shop: Rehearsal, sizes: dict[str, Size], splits: dict[str, Split], writings: dict[str, Writing], resident: float
) -> Work:
    """Cast the rehearsal with skeletons, at one or several depths, and bring what it took to full depth."""
    plan, settings = shop.plan, shop.recipe.train
    rate = operations_per_second(torch.float32, shop.device)
    _, micro = cut_update(settings)
    student, teacher = sizes["student"], sizes.get("teacher")
    dtype = _teacher_dtype(plan)
    took = 6 * student.parameters * micro / rate
    deep = choose_depths(
        student, bytes_per_parameter=student.training_bytes, room=_ROOM, seconds=took, limit=_TRIAL_SECONDS
    )
    below: tuple[int, ...] = (0,)
    if teacher is not None:
        took = 2 * teacher.parameters * micro / rate
        below = choose_depths(
            teacher, bytes_per_parameter=dtype.itemsize, room=_ROOM, seconds=took, limit=_TRIAL_SECONDS
        )
    roles = tuple(r for r in ROLES if _evaluated(plan, r, teacher))
    common: dict[str, Any] = {
        "plan": plan,
        "roles": roles,
        "sizes": sizes,
        "splits": splits,
        "start": _START,
        "resident": resident,
    }
    if not deep or not below:
        return Work(trials={}, writings={}, rehearsed={}, **common)
    writings = writings | _evaluators_writings(plan, splits, sizes)
    cost = 6 * student.at(max(deep)) + (2 * teacher.at(max(below)) if teacher else 0)
    affordable = max(_FEWEST_TOKENS, int(rate * _TRIAL_SECONDS / cost))
    rehearsed = {name: s.sample.first(min(2048, affordable)) for name, s in splits.items()}
    rehearsed["train"] = splits["train"].sample.first(int(min(6 * micro, 3 * affordable)))
    tokens = max(min(micro, affordable), *(len(r.tokens) for r in rehearsed["train"].rendered))
    depths = [(deep[0], below[0]), *((d, below[0]) for d in deep[1:]), *((deep[0], b) for b in below[1:])]
    found: list[Trials] = []
    for place, (above, under) in enumerate(depths):
        pair = _skeletons(plan, above, under, dtype, shop.device)
        cast = shop.cast(shop.path / f"depth-{place}", *pair, rehearsed, tokens)
        found.append(cast.rehearse(writings))
    more = [student.layers - deep[0] for _ in deep[1:]] + [teacher.layers - below[0] for _ in below[1:] if teacher]
    weights = [1.0 - sum(more), *map(float, more)]
    trials = {name: Trial.combine([f[name] for f in found], weights) for name in found[0]}
    return Work(trials=trials, writings=writings, rehearsed=rehearsed, **common)


def _evaluated(plan: Plan, role: str, teacher: Size | None) -> bool:
    if role == "teacher":
        return teacher is not None and plan.teacher.live
    return role == "student_before" or role in plan.trained


def _teacher_dtype(plan: Plan) -> torch.dtype:
    name = getattr(plan.teacher, "dtype", "float32")
    if name == "auto":
        name = str(getattr(plan.teacher_config, "dtype", None) or "float32")
    return getattr(torch, name.removeprefix("torch."))


def _trust(source: Any) -> dict[str, Any]:
    return {"trust_remote_code": getattr(source, "trust_remote_code", False)}


def _skeletons(plan: Plan, above: int, under: int, dtype: torch.dtype, device: str) -> tuple[CausalLM, CausalLM | None]:
    """A student of `above` layers and, where its architecture is known, a teacher of `under`."""
    student = build_skeleton(
        plan.student_config,
        plan.student_tokenizer,
        layers=above,
        dtype=torch.float32,
        device=device,
        **_trust(plan.recipe.student),
    )
    if plan.teacher_config is None or plan.teacher_tokenizer is None:
        return student, None
    return student, build_skeleton(
        plan.teacher_config, plan.teacher_tokenizer, layers=under, dtype=dtype, device=device, **_trust(plan.teacher)
    )


def _evaluators_writings(plan: Plan, splits: dict[str, Split], sizes: dict[str, Size]) -> dict[str, Writing]:
    """What evaluators and samples let the models write. A teacher ends its answers as the data end theirs; of a batch
    that a student answers, one is taken to go on to the limit."""
    renderer = Renderer(plan.student_tokenizer, plan.max_length)
    sample = splits["heldout"].sample
    asked = {f"writes {i}": Sampling.of(e) for i, e in enumerate(plan.evaluators) if writes(e)}
    if plan.recipe.samples and not any(writes(e) and judges(e) for e in plan.evaluators):
        size = min(CONTINUATION.batch_size, plan.recipe.samples)
        asked["continues"] = dataclasses.replace(CONTINUATION, batch_size=size)
    most = max((sampling.batch_size for sampling in asked.values()), default=0)
    prompts = [start(renderer, example) for example in sample.examples[:most]]
    whole = sample.rendered
    if plan.recipe.data.trace != "rationale_first":  # a teacher writes its steps, whatever the student learns
        whole = Renderer(plan.student_tokenizer, plan.max_length, overflow="drop").render(sample.examples)
    found = {}
    for role in sizes:
        for name, sampling in asked.items():
            batch = (prompts * math.ceil(sampling.batch_size / len(prompts)))[: sampling.batch_size]
            bound = sampling.max_new_tokens
            answers = [sum(r.trained) for r in whole]
            longest = [max(answers[i : i + len(batch)]) for i in range(0, len(answers), len(batch))]
            expected = round(sum(longest) / len(longest)) if role == "teacher" and name != "continues" else bound
            found[f"{role} {name}"] = Writing(role, batch, sampling, min(bound, expected))
    return found


def _estimate(work: Work, device: str) -> dict[str, Any]:
    settings, train = work.plan.recipe.train, work.splits["train"]
    models = len(work.plan.trained)
    tokens = settings.steps * settings.tokens_per_step
    heldout = sum(s.tokens for name, s in work.splits.items() if name != "train")
    reads = (train.tokens if work.plan.recorded else tokens) if work.plan.white_box else 0
    reads += work.calibration
    facts = {
        "steps": settings.steps * models,
        "epochs": round(tokens / max(1.0, train.tokens), 2),
        "student_tokens": tokens * models,
        "teacher_tokens_read": int(reads + 2 * heldout),
        "teacher_tokens_written": int(sum(s.written for s in work.splits.values())),
    }
    if work.processes > 1:
        facts["processes"] = work.processes
    if not work.trials:
        return facts | _reckoned(work, device)
    memory = stage_bytes(work, on_cpu=device == "cpu")
    disk, stages = disk_bytes(work), stage_seconds(work)
    fullest = max(memory, key=lambda name: memory[name])
    return facts | {
        "rehearsed": True,
        "peak_memory_bytes": int(memory[fullest]),
        "peak_memory_stage": fullest,
        "memory": {name: int(value) for name, value in memory.items()},
        "disk_bytes": int(sum(disk.values())),
        "disk": {name: int(value) for name, value in disk.items()},
        "seconds": round(sum(stages.values()), 1),
        "stages": {name: round(value, 2) for name, value in stages.items()},
        "note": _note(work),
    }


def _note(work: Work) -> str:
    said = "rehearsed on random models of the same shapes, on this machine as busy as it is now"
    lengths = {w.role: w.length for name, w in work.writings.items() if " writes " in name}
    if lengths:
        said += "; a batch of answers is taken to end after " + ", ".join(
            f"{count} tokens ({role})" for role, count in lengths.items()
        )
    if any(a.name not in work.writings for s in work.splits.values() for a in s.askings):
        said += "; without the time that the teacher takes to answer, which its server alone knows"
    left = [name_of(e) for _, e in work.evaluators() if e.once and not hasattr(e, "trials") and not writes(e)]
    return said + (f"; without {', '.join(left)}, whose work is not known" if left else "")


def _reckoned(work: Work, device: str) -> dict[str, Any]:
    """From sizes alone, where even one layer is too large to try here: weights, gradients and moments in float32, and
    the matrix products at their measured speed."""
    plan, settings = work.plan, work.plan.recipe.train
    student, teacher = work.sizes["student"], work.sizes.get("teacher")
    models = len(plan.trained)
    tokens = settings.steps * settings.tokens_per_step
    read = sum(s.tokens for s in work.splits.values())
    below = teacher.parameters if teacher else 0
    operations = models * 6 * tokens * student.parameters + 2 * (read if plan.recorded else tokens) * below
    operations += 2 * read * 2 * (below + models * student.parameters)
    _, micro = cut_update(settings)
    activations = 4 * micro * student.layers * 20 * student.width
    memory = student.training_bytes * student.parameters + _teacher_dtype(plan).itemsize * below + activations + 2**29
    disk = 4 * student.parameters * (models + bool(work.calibration))
    disk += 12 * student.trainable * (models * settings.keep_checkpoints + 1)
    disk += sum(s.examples * s.file_bytes for s in work.splits.values())
    return {
        "rehearsed": False,
        "peak_memory_bytes": int(memory + (work.resident if device == "cpu" else 0)),
        "disk_bytes": int(disk),
        "seconds": round(operations / operations_per_second(torch.float32, device), 1),
        "note": "the models are too large to be rehearsed here: matrix products alone, at the speed measured just now",
    }


def _warnings(estimate: dict[str, Any], device: str) -> list[str]:
    free = shutil.disk_usage(Path.cwd()).free
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.startswith("cuda"):
        memory = torch.cuda.mem_get_info()[1]
    found = []
    if estimate["disk_bytes"] > free:
        found.append(
            f"the run needs about {estimate['disk_bytes'] / 2**30:.1f} GiB of disk, {free / 2**30:.1f} are free here"
        )
    if estimate["peak_memory_bytes"] > memory:
        found.append(
            f"the run needs about {estimate['peak_memory_bytes'] / 2**30:.1f} GiB of memory, {device} has "
            f"{memory / 2**30:.1f}: raise train.accumulate, or take a smaller model"
        )
    if estimate["seconds"] > _DAY:
        found.append(f"the run takes about {estimate['seconds'] / _DAY:.1f} days")
    if estimate["epochs"] < 1:
        found.append(f"training sees {estimate['epochs']:.0%} of its data: raise train.steps, or give less data")
    if estimate["epochs"] > _EPOCHS:
        found.append(f"training repeats its data {estimate['epochs']:.0f} times: give more data, or lower train.steps")
    return found
