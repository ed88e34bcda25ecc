"""Tokens a second of the training loop against TRL's GKD and SFT trainers: same weights, same batches, same objective.

    python benchmarks/train_throughput.py --json

Needs TRL in the same environment: `pip install trl==1.16.0`. Five contenders take turns, each in a process of its own
that waits while the others run:

    live     this loop, generalised JSD (beta 0.5) against the teacher itself
    gkd      TRL's GKDTrainer, off-policy (lmbda 0), beta 0.5; its temperature is in no loss, so ours is 1
    stored   this loop, the same objective against the teacher's record (64 entries and a tail)
    plain    this loop, cross-entropy
    sft      TRL's SFTTrainer, cross-entropy

All get the same rows in the same order, the same number a batch, alike lengths together, padded to the longest of the
batch and never packed (this loop's inputs lack the last column, which predicts nothing); the same tokens are trained,
the answers. float32, AdamW with one learning rate, no decay, clipped at 1. TRL gets what is best for it: AdamW's fused
form (its default), tokens prepared beforehand, no logging, checkpoints, gradient checkpointing or key-value cache, and
no loader process, which would be a thread more than ours has. A step is everything from rows to updated weights.
Loading, scoring into the store and warm-up are left out.

Before anything is reported the losses of the first update are compared: live with gkd and plain with sft to 1e-4 (one
formula each), stored with live as a coarser view of the same divergence, which can only be smaller.

Speed is in real tokens a second. A ratio is the median over the repeats, each of which pairs windows measured one after
the other, with the order statistics that cover the true median at least as often as `coverage` says.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stillhouse.data.batching import TokenBatch
from stillhouse.data.rendering import Rendered, Renderer
from stillhouse.models import CausalLM, load_tokenizer
from stillhouse.objectives.cross_entropy import CrossEntropy
from stillhouse.objectives.generalized_jsd import GeneralizedJSD
from stillhouse.shortcuts import problems
from stillhouse.signals import TopK
from stillhouse.signals.store import TOKENIZER, StoreHeader, open_writer
from stillhouse.signals.vocabulary import tokenizer_fingerprint
from stillhouse.student import Student
from stillhouse.teachers.hf import HFSession
from stillhouse.teachers.stored import StoredTeacher
from stillhouse.training.loop import train
from stillhouse.training.optim import Optim

CONTENDERS = ("live", "gkd", "stored", "plain", "sft")
RATIOS = (("live", "gkd"), ("stored", "sft"), ("stored", "plain"), ("plain", "sft"))
SAME = (("live", "gkd"), ("plain", "sft"))
BODIES: dict[str, dict[str, Any]] = {
    "teacher": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 6},
    "student": {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4},
}
LR = 1e-3
TOP_K = 64
WARMUP = 3
WINDOW = 32
"""Batches whose rows are sorted by length together, as both trainers would."""

Clock = Generator[None, float, None]
"""Sent the loss after every update; it measures, and holds the contender while others run."""


@dataclass(frozen=True)
class Setting:
    """What all contenders share."""

    vocabulary: int
    rows: int
    steps: int
    repeats: int
    threads: int
    seed: int

    def updates(self) -> int:
        """Of the whole session: warm-up, then one more warm-up and the measured ones of each repeat."""
        return WARMUP + self.repeats * (1 + self.steps)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Ids and nothing else: the text is tokenized beforehand."""
        vocabulary = {"<pad>": 0, "<eos>": 1} | {f"t{i}": i for i in range(2, self.vocabulary)}
        raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
        return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")

    def batches(self) -> list[list[Rendered]]:
        """Arithmetic problems, their ids spread over the vocabulary: every update's rows, none twice."""
        count, draw = self.rows * self.updates(), random.Random(self.seed)
        source = load_tokenizer("stillhouse:arithmetic")
        rendered = Renderer(source, 2048).render(problems(count, seed=self.seed))
        spread = self.vocabulary // len(source)
        found: list[list[Rendered]] = []
        for start in range(0, count, WINDOW * self.rows):
            window = sorted(rendered[start : start + WINDOW * self.rows], key=lambda r: len(r.tokens))
            window = [with_ids(r, lambda i: i * spread) for r in window]
            cut = [window[i : i + self.rows] for i in range(0, len(window), self.rows)]
            found += draw.sample(cut, len(cut))
        return found

    def lm(self, role: str) -> CausalLM:
        """A Llama from scratch, the same in every process."""
        heads = BODIES[role]["num_attention_heads"]
        config = {**BODIES[role], "model_type": "llama", "num_key_value_heads": heads, "tie_word_embeddings": True}
        seed = self.seed + (role == "teacher")
        return Student.from_config({**config, "initializer_range": 0.1}, self.tokenizer(), seed=seed).lm


def with_ids(rendered: Rendered, new: Callable[[int], int]) -> Rendered:
    tokens, targets = [new(i) for i in rendered.tokens], [new(i) for i in rendered.targets]
    return Rendered(rendered.id, tokens, targets, rendered.trained, rendered.role, rendered.size)


class Given:
    """The stream of batches that the loop draws from; tensors are made when a batch is asked for, as in training."""

    def __init__(self, batches: Sequence[Sequence[Rendered]]) -> None:
        self._batches = iter(batches)

    def __iter__(self) -> Iterator[TokenBatch]:
        return self

    def __next__(self) -> TokenBatch:
        return TokenBatch.of(next(self._batches))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a benchmark is not continued."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Never asked for."""
        raise NotImplementedError


def ours(setting: Setting, way: str, folder: Path, clock: Clock) -> None:
    batches, teacher, objective = setting.batches(), None, GeneralizedJSD(beta=0.5)
    if way != "plain":
        teacher = HFSession(setting.lm("teacher"))
    if way == "stored":
        assert teacher is not None
        record(teacher, batches, folder)
        teacher = StoredTeacher(str(folder)).open()
        teacher.prepare([row for rows in batches for row in rows])
    student, optim = Student(setting.lm("student")), Optim(lr=LR, schedule="constant", clip=1.0)
    objectives = [CrossEntropy() if way == "plain" else objective]
    for step in train(student, Given(batches), teacher, objectives, steps=setting.updates(), optim=optim):
        clock.send(step.loss)


def record(teacher: HFSession, batches: Sequence[Sequence[Rendered]], folder: Path) -> None:
    key, vocabulary = tokenizer_fingerprint(teacher.tokenizer), len(teacher.tokenizer)
    with open_writer(folder, StoreHeader(teacher.identity(), key, vocabulary, TOP_K)) as writer:
        teacher.tokenizer.save_pretrained(folder / TOKENIZER)
        for batch in map(TokenBatch.of, batches):
            signal, width = teacher.score(batch), batch.trained_BT.shape[1]
            for row, name in enumerate(batch.ids):
                rows_N = batch.trained_BT[row].nonzero().squeeze(1) + row * width
                writer.add(name, batch.digest(row), TopK.of(signal.select(rows_N), TOP_K))
        writer.finish({})


def theirs(setting: Setting, way: str, folder: Path, clock: Clock) -> None:
    os.environ.update(TRL_EXPERIMENTAL_SILENCE="1", HF_HUB_OFFLINE="1")
    import datasets
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    losses: list[float] = []

    class Told:
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss: torch.Tensor = super().training_step(*args, **kwargs)  # ty: ignore[missing-attribute]
            if not losses:
                losses.append(loss.item())
            return loss

    class Turn(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.send(losses[0])

    rows = [row for batch in setting.batches() for row in batch]
    common: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": setting.updates(),
        "per_device_train_batch_size": setting.rows,
        "train_sampling_strategy": "sequential",
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_length": 2048,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    student, given = setting.lm("student"), {"processing_class": setting.tokenizer(), "callbacks": [Turn()]}
    student.model.config.use_cache = False
    if way == "sft":
        data = datasets.Dataset.from_list([{"input_ids": ids(row), "labels": labels(row)} for row in rows])
        kind: Any = type("Sft", (Told, SFTTrainer), {})
        trainer = kind(model=student.model, args=SFTConfig(**common), train_dataset=data, **given)
        trainer.remove_callback(PrinterCallback)  # standard output is the report's
        trainer.train()
        return
    teacher = setting.lm("teacher")
    teacher.model.config.use_cache = False
    data = datasets.Dataset.from_list(
        [{"prompt": "", "input_ids": ids(row), "completion_mask": [0, *map(int, row.trained)]} for row in rows]
    )
    kind = type("Gkd", (Told, GKDTrainer), {})
    args = GKDConfig(lmbda=0.0, beta=0.5, temperature=1.0, **common)
    trainer = kind(model=student.model, teacher_model=teacher.model, args=args, train_dataset=data, **given)
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def ids(row: Rendered) -> list[int]:
    return [*row.tokens, row.targets[-1]]


def labels(row: Rendered) -> list[int]:
    return [-100, *(i if counts else -100 for i, counts in zip(row.targets, row.trained, strict=True))]


def turns(setting: Setting, pipe: Any) -> Clock:
    """The first loss, then the seconds of each repeat's updates, each when the other side asks for it."""
    loss = yield
    for _ in range(WARMUP - 1):
        yield
    pipe.send(loss)
    for _ in range(setting.repeats):
        pipe.recv()
        yield  # warms up again after the wait
        started = time.perf_counter()
        for _ in range(setting.steps):
            yield
        pipe.send(time.perf_counter() - started)
    yield


def contend(setting: Setting, way: str, pipe: Any) -> None:
    torch.set_num_threads(setting.threads)
    clock = turns(setting, pipe)
    next(clock)
    with tempfile.TemporaryDirectory() as folder:
        (theirs if way in ("gkd", "sft") else ours)(setting, way, Path(folder), clock)


def measure(setting: Setting) -> tuple[dict[str, float], dict[str, list[float]]]:
    """First losses and seconds a window of every contender; the order turns round from repeat to repeat."""
    context = multiprocessing.get_context("spawn")
    pipes, losses, processes = {}, {}, []
    seconds: dict[str, list[float]] = {way: [] for way in CONTENDERS}
    for way in CONTENDERS:
        pipes[way], other = context.Pipe()
        processes.append(context.Process(target=contend, args=(setting, way, other), daemon=True))
        processes[-1].start()
        other.close()
        losses[way] = answer(pipes[way], way)
    check(losses)
    for repeat in range(setting.repeats):
        for way in CONTENDERS if repeat % 2 == 0 else reversed(CONTENDERS):
            pipes[way].send("go")
            seconds[way].append(answer(pipes[way], way))
    for process in processes:
        process.join()
    return losses, seconds


def answer(pipe: Any, way: str) -> float:
    """What a contender says next; its own error stands on standard error."""
    try:
        return pipe.recv()
    except EOFError as error:
        raise SystemExit(f"{way} died; what it said stands above.") from error


def check(losses: dict[str, float]) -> None:
    for one, other in SAME:
        if abs(losses[one] - losses[other]) > 1e-4:
            raise SystemExit(f"The first losses of {one} and {other} differ, so nothing is reported: {losses}")
    if not 0 < losses["stored"] < losses["live"] + 1e-6:
        raise SystemExit(f"The record's divergence is not below the teacher's, so nothing is reported: {losses}")


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median with the closest order statistics that cover the true one with 95 %, or the outermost there are."""
    ordered, n = sorted(values), len(values)
    outside, skip = 2 * 0.5**n, 0
    while skip + 1 < n / 2 and (wider := outside + 2 * math.comb(n, skip + 1) * 0.5**n) <= 0.05:
        outside, skip = wider, skip + 1
    edges = {"low": ordered[skip], "median": statistics.median(ordered), "high": ordered[n - 1 - skip]}
    return {**{name: round(value, 3) for name, value in edges.items()}, "coverage": round(1 - outside, 3)}


def report(setting: Setting) -> dict[str, Any]:
    batches = setting.batches()
    windows = [WARMUP + r * (1 + setting.steps) + 1 for r in range(setting.repeats)]
    real = [sum(len(ids(row)) for rows in batches[w : w + setting.steps] for row in rows) for w in windows]
    padded = [setting.rows * max(len(ids(row)) for row in rows) for rows in batches]
    trained = sum(sum(row.trained) for rows in batches for row in rows)
    losses, seconds = measure(setting)
    speeds = {way: [t / s for t, s in zip(real, seconds[way], strict=True)] for way in CONTENDERS}
    facts = {
        "vocabulary": setting.vocabulary,
        **{f"{role}_parameters": setting.lm(role).parameters() for role in BODIES},
        "rows_per_batch": setting.rows,
        "updates_per_repeat": setting.steps,
        "repeats": setting.repeats,
        "threads": setting.threads,
        "seed": setting.seed,
        "tokens_per_batch": {
            "padded": round(sum(padded) / len(batches)),
            "real": round(sum(len(ids(row)) for rows in batches for row in rows) / len(batches)),
            "trained": round(trained / len(batches)),
        },
        "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
    }
    return {
        "setting": facts,
        **{
            way: {"tokens_per_second": round(statistics.median(speeds[way])), "first_loss": round(losses[way], 6)}
            for way in CONTENDERS
        },
        "ratio": {f"{a} / {b}": spread([x / y for x, y in zip(speeds[a], speeds[b], strict=True)]) for a, b in RATIOS},
    }


def line(row: dict[str, Any]) -> str:
    speeds = "\n".join(f"  {way:7}{row[way]['tokens_per_second']:>9,} tokens/s" for way in CONTENDERS)
    ratios = "\n".join(
        f"  {name:15}{r['median']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for name, r in row["ratio"].items()
    )
    return f"{row['setting']}\n{speeds}\n{ratios}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[4096, 32768], help="one setting each")
    for name, default in {"rows": 8, "steps": 4, "repeats": 7, "threads": 2, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if find_spec("trl") is None:
        sys.exit("This compares with TRL, which is not installed: pip install trl==1.16.0")
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))  # for the contenders, which are started from here
    for vocabulary in args.vocabularies:
        row = report(Setting(vocabulary, args.rows, args.steps, args.repeats, args.threads, args.seed))
        print(json.dumps(row) if args.json else line(row), flush=True)


if __name__ == "__main__":
    main()
