"""What a run decides about its computing, once: how an update is cut, in which precision, and how processes share it.

Kept in the run folder, so that student and control, and a run that is continued on other machines, compute alike.
"""

from __future__ import annotations

from typing import Any

import torch

from stillhouse import world
from stillhouse.adapters import skeleton
from stillhouse.data.batching import TokenBatch
from stillhouse.runs import StageRecord
from stillhouse.training.chunking import choose_chunk, choose_compiled
from stillhouse.training.loop import Compute
from stillhouse.training.parallel import BYTES_PER_WEIGHT
from stillhouse.training.precision import choose_precision
from stillhouse.workshop import Workshop

_TRIAL_TOKENS = 1024


def choose_compute(shop: Workshop, record: StageRecord) -> Compute:
    """The settings of every update of this run; each choice is recorded with its reason."""
    train = shop.recipe.train
    inputs = shop.recipe.model_dump(mode="json", include={"seed", "device", "student", "data", "train"})
    with shop.folder.stage("compute", inputs) as (kept, done):
        if not done:
            kept.out = world.agree(_choose(shop))
    record.choose("accumulate", *kept.out["accumulate"])
    record.choose("precision", *kept.out["precision"])
    kind = shop.device.partition(":")[0]
    chosen = choose_chunk(len(shop.plan.student_tokenizer), kind)
    chunk = (train.chunk, "asked for by the recipe") if train.chunk else chosen
    record.choose("chunk", f"{chunk[0]} tokens", chunk[1])
    compiled, why = choose_compiled(kind)
    record.choose("objectives", "compiled" if compiled else "as they stand", why)
    shard, why = _choose_shard(shop)
    if world.size() > 1:
        record.choose("processes", f"{world.size()}, weights {'sharded' if shard else 'in each'}", why)
    dtype = None if kept.out["precision"][0] == "float32" else torch.bfloat16
    return Compute(accumulate=kept.out["accumulate"][0], chunk=chunk[0], dtype=dtype, shard=shard)


def _choose(shop: Workshop) -> dict[str, tuple[Any, str]]:
    """What is chosen, and why."""
    wanted = shop.recipe.train.accumulate
    reason = "asked for by the recipe" if wanted else f"one micro-batch in each of {world.size()} processes"
    accumulate = wanted or world.size()
    if shop.recipe.train.precision == "auto" and _choose_shard(shop)[0]:  # too large to be tried in one piece
        dtype = torch.bfloat16 if shop.device.startswith("cuda") else None
        why = "not measured, because the student is sharded: bfloat16 on accelerators, float32 elsewhere"
    else:
        batch = _trial_batch(shop, accumulate)
        dtype, why = choose_precision(shop.recipe.train.precision, shop.trainee(StageRecord("", "")), batch)
    name = str(dtype or torch.float32).removeprefix("torch.")
    return {"accumulate": (accumulate, reason), "precision": (name, why)}


def _trial_batch(shop: Workshop, accumulate: int) -> TokenBatch:
    """A batch of the run's own, no larger than it takes to tell which precision is faster: trying costs time and memory
    too."""
    rendered = shop.rendered("train", StageRecord("", ""))
    enough = max(_TRIAL_TOKENS, int(rendered.lengths.max()))
    return next(shop.batches(rendered, max(accumulate, shop.recipe.train.tokens_per_step // enough)))


def _choose_shard(shop: Workshop) -> tuple[bool, str]:
    """Whether the weights are spread over the processes."""
    wanted = shop.recipe.train.shard
    if wanted != "auto" or world.size() == 1 or not shop.device.startswith("cuda"):
        return wanted == "always", "asked for by the recipe" if wanted != "auto" else "there is one main memory"
    # Counted without memory behind it: what may not fit must not be built to find out.
    empty = skeleton(shop.plan.student_config, trust_remote_code=shop.recipe.student.trust_remote_code)
    needed = sum(p.numel() for p in empty.parameters()) * BYTES_PER_WEIGHT
    room = torch.cuda.get_device_properties(shop.device).total_memory
    told = f"weights, gradients and moments take {needed / 2**30:.1f} GiB of {room / 2**30:.1f} on each accelerator"
    return needed > room / 2, told
