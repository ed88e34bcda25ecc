"""What each of several processes does in the tests of distributed training; started by torchrun, one process alone too.

torchrun --nproc-per-node 2 distributed_worker.py JOB FOLDER [SETTING=VALUE ...]
"""

from __future__ import annotations

import os
import random
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from building import TINY, build_tokenizer
from safetensors.torch import save_file

from stillhouse import world
from stillhouse.data.batching import Batches
from stillhouse.data.rendering import Rendered, Renderer
from stillhouse.evaluation._logits import nats, sum_by_example
from stillhouse.models import Sampling
from stillhouse.objectives.base import Objective
from stillhouse.objectives.cross_entropy import CrossEntropy
from stillhouse.objectives.forward_kl import ForwardKL
from stillhouse.records import Example
from stillhouse.student import Student
from stillhouse.teachers.hf import HFSession, HFTeacher
from stillhouse.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from stillhouse.training.loop import Compute, Step, begin, train
from stillhouse.training.optim import Optim

OBJECTIVES: list[Objective] = [0.7 * ForwardKL(temperature=2.0), 0.3 * CrossEntropy()]
TOKENIZER = build_tokenizer()


def student(seed: int, *, tied: bool = False, double: bool = True) -> Student:
    made = Student.from_config({**TINY, "tie_word_embeddings": tied}, TOKENIZER, seed=seed)
    made.lm.model.to(torch.float64 if double else torch.float32)
    return made


def rendered() -> list[Rendered]:
    examples = [Example(id=f"e{n}", prompt=f"{n} + {n * n} =", completion=f" {n + n * n}" + "!" * n) for n in range(12)]
    return Renderer(TOKENIZER, 128).render(examples)


def stream(packing: bool) -> Batches:
    turn = (world.rank(), world.size())
    return Batches(rendered(), tokens_per_batch=60, seed=3, packing=packing, turn=turn)


def keep(folder: Path, weights: dict[str, torch.Tensor], steps: list[Step]) -> None:
    if world.is_main():
        told = torch.tensor([[s.loss, s.grad_norm, s.tokens, *s.parts.values()] for s in steps], dtype=torch.float64)
        owned = {name: w.contiguous().clone() for name, w in weights.items()}
        save_file({**owned, "told": told}, str(folder / f"result-{world.size()}.safetensors"))


def job_train(folder: Path, settings: dict[str, str]) -> None:
    """A few updates; optionally stopped at a checkpoint, or continued from it."""
    optim = Optim(lr=1e-2, warmup=2, weight_decay=0.1, optimizer=settings.get("optimizer", "adamw"))  # ty: ignore
    half = "bfloat16" in settings
    compute = Compute(accumulate=4, chunk=16, shard="shard" in settings, dtype=torch.bfloat16 if half else None)
    teacher = HFSession(student(9, double=not half).lm)
    state = begin(student(1, tied="tied" in settings, double=not half), stream("packing" in settings), optim, compute)
    if "continued" in settings:
        load_checkpoint(checkpoints(folder / "checkpoints")[-1], state)
    taken: list[Step] = []
    for step in train(
        state.student, state.batches, teacher, OBJECTIVES, steps=5, optim=optim, compute=compute, state=state
    ):
        taken.append(step)
        if "stopped" in settings and step.number == 2:
            save_checkpoint(folder / "checkpoints", state)
            return
    keep(folder, state.parallel.whole_state(), taken)


def job_evaluate(folder: Path, settings: dict[str, str]) -> None:
    """Likelihood of a student whose layers may be spread, and what it writes."""
    made = student(1, double=False)
    if world.is_main():
        made.save(folder / "model")
    world.wait()
    session = HFTeacher(str(folder / "model"), shard="always" if "shard" in settings else "never").open()
    assert session.lm.is_spread() == ("shard" in settings and world.size() > 1)
    sums = torch.from_numpy(sum_by_example(session.lm, rendered(), nats))
    prompts = [r.tokens[: 2 + i % 3] for i, r in enumerate(rendered())]
    sampling = Sampling(max_new_tokens=9, temperature=float(settings.get("temperature", "1.0")), batch_size=4)
    written = session.lm.generate(prompts, sampling)
    padded = torch.tensor([ids + [-1] * (9 - len(ids)) for ids in written])
    keep(folder, {"sums": sums, "written": padded}, [])


def job_random(folder: Path, settings: dict[str, str]) -> None:
    """Two updates each of models and examples that a seed draws."""
    found: dict[str, torch.Tensor] = {}
    for seed in range(8):
        draw = random.Random(seed)
        config = {"hidden_size": draw.choice([8, 16]), "num_hidden_layers": draw.randint(1, 2)}
        tied, packing = draw.random() < 0.5, draw.random() < 0.5
        made = Student.from_config({**TINY, **config, "tie_word_embeddings": tied}, TOKENIZER, seed=seed)
        made.lm.model.double()
        drawn = []
        for n in range(draw.randint(3, 20)):
            length = draw.randint(1, 20)
            ids = [draw.randrange(300) for _ in range(length + 1)]
            trained = [t == 0 or draw.random() < 0.5 for t in range(length)]
            drawn.append(Rendered(str(n), ids[:-1], ids[1:], trained, [3] * length, length))
        turn = (world.rank(), world.size())
        batches = Batches(drawn, tokens_per_batch=draw.randint(20, 60), seed=seed, packing=packing, turn=turn)
        compute = Compute(accumulate=draw.choice([2, 4]), chunk=draw.randint(1, 30), shard=seed % 2 == 1)
        teacher = HFSession(student(seed + 50).lm)
        steps = list(train(made, batches, teacher, OBJECTIVES, steps=2, optim=Optim(lr=1e-3), compute=compute))
        told = [[s.loss, s.grad_norm, s.tokens, *s.parts.values()] for s in steps]
        found[f"seed {seed}"] = torch.tensor(told, dtype=torch.float64)
    keep(folder, found, [])


def job_dies(folder: Path, settings: dict[str, str]) -> None:
    """One of the processes ends in the middle of an update."""
    for step in train(student(1), stream(False), None, [CrossEntropy()], steps=50, compute=Compute(accumulate=2)):
        if step.number == 3 and not world.is_main():
            os._exit(9)


JOBS: dict[str, Any] = {"train": job_train, "evaluate": job_evaluate, "random": job_random, "dies": job_dies}

if __name__ == "__main__":
    warnings.simplefilter("error")
    chosen, place, *pairs = sys.argv[1:]
    with world.joined():
        JOBS[chosen](Path(place), dict(pair.partition("=")[::2] for pair in pairs))
