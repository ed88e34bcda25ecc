"""Peak memory and time of the chunked loss against the dense formula, checkpointed chunks, TRL and Liger.

    python benchmarks/loss_memory.py --json
    python benchmarks/loss_memory.py --objectives forward_kl --tokens 256 --vocabulary 32000 --repeats 3

Forward and backward between two heads, the same tensors for all. Every contender lives in a process of its own and they
take turns, so that a busy moment falls on all of them. Nothing is reported before loss and gradients agree with those
of the dense formula. `peak` is the largest resident memory of the whole process, libraries included; `over` is what it
grew by after the inputs were there. Linux only: it reads /proc/self/status. TRL and Liger: `make bench-venv`.

Shapes: N tokens, D width, V vocabulary.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _common import Inputs, chunked, spread, textbook
from torch import Tensor
from torch.nn import functional

OBJECTIVES = {"forward_kl": 0.0, "reverse_kl": 1.0, "generalized_jsd": 0.5, "cross_entropy": None}
"""With the beta that TRL and Liger give them."""
CHECKPOINT = 256
TOLERANCE = 1e-5


Loss = Callable[[Inputs], Tensor]
"""The sum over all tokens, with a graph."""


# The contenders: each imports what it needs and returns its loss.


def _teacher_logits(name: str, hidden_ND: Tensor, inputs: Inputs) -> Tensor:
    if name == "cross_entropy":
        return hidden_ND.new_empty(0)
    with torch.no_grad():
        return functional.linear(hidden_ND, inputs.teacher_VD)


def dense(name: str, args: argparse.Namespace) -> Loss:
    def loss(inputs: Inputs, rows: slice = slice(None)) -> Tensor:
        hidden = inputs.hidden_ND[rows]
        teacher = _teacher_logits(name, hidden, inputs)
        return textbook(name, functional.linear(hidden, inputs.student_VD), teacher, inputs.targets_N[rows])

    return loss


def checkpointed(name: str, args: argparse.Namespace) -> Loss:
    from torch.utils.checkpoint import checkpoint

    one: Any = dense(name, args)

    def loss(inputs: Inputs) -> Tensor:
        starts = range(0, args.tokens, CHECKPOINT)
        parts = [checkpoint(one, inputs, slice(i, i + CHECKPOINT), use_reentrant=False) for i in starts]
        return torch.stack(parts).sum()

    return loss


def trl_dense(name: str, args: argparse.Namespace) -> Loss:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from trl.experimental.gkd import GKDTrainer

    def loss(inputs: Inputs) -> Tensor:
        student = functional.linear(inputs.hidden_ND, inputs.student_VD)
        teacher = _teacher_logits(name, inputs.hidden_ND, inputs)
        return GKDTrainer.generalized_jsd_loss(student[None], teacher[None], beta=OBJECTIVES[name], reduction="sum")

    return loss


def trl_chunked(name: str, args: argparse.Namespace) -> Loss:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    def loss(inputs: Inputs) -> Tensor:
        hidden, beta = inputs.hidden_ND, OBJECTIVES[name]
        found: Any = ChunkedDivergenceFunction.apply(
            hidden, inputs.student_VD, None, hidden.detach(), inputs.teacher_VD, None, beta
        )
        return found[0].sum()

    return loss


def liger(name: str, args: argparse.Namespace) -> Loss:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    module = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=OBJECTIVES[name], compiled=False, chunk_size=CHECKPOINT
    )

    def loss(inputs: Inputs) -> Tensor:
        hidden = inputs.hidden_ND
        mean = module(hidden, inputs.student_VD, hidden.detach(), inputs.teacher_VD, inputs.targets_N)
        return mean * args.tokens

    return loss


def stillhouse(name: str, args: argparse.Namespace) -> Loss:
    from stillhouse import registry

    objective = registry.build("objective", name, {})
    return lambda inputs: chunked(inputs, objective, args.chunk)


@dataclass(frozen=True)
class Contender:
    """How a contender is prepared, what must be installed for it, and whether it has a cross-entropy."""

    prepare: Callable[[str, argparse.Namespace], Loss]
    package: str | None = None
    cross_entropy: bool = False

    def missing(self, objective: str) -> str | None:
        """Why it cannot compete, or None."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed (make bench-venv)"
        if objective == "cross_entropy" and not self.cross_entropy:
            return "has no cross-entropy that runs on a processor"
        return None


CONTENDERS = {
    "stillhouse": Contender(stillhouse, cross_entropy=True),
    "dense": Contender(dense, cross_entropy=True),
    "checkpointed": Contender(checkpointed, cross_entropy=True),
    "trl dense": Contender(trl_dense, "trl"),
    "trl chunked": Contender(trl_chunked, "trl"),
    "liger": Contender(liger, "liger_kernel"),
}


# One process each.


def resident(key: str) -> float:
    """VmRSS or VmHWM of this process in megabytes (10^6 bytes)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024 / 1e6


def live(contender: str, objective: str, args: argparse.Namespace, place: str, pipe: Any) -> None:
    """Wait for orders: one timed forward and backward, or the final account."""
    torch.set_num_threads(args.threads)
    loss_of = CONTENDERS[contender].prepare(objective, args)
    inputs = Inputs.of(args.tokens, args.width, args.vocabulary, seed=args.seed)
    before, value = resident("VmRSS"), math.nan
    pipe.send("ready")
    while pipe.recv() == "go":
        inputs.forget()
        gc.collect()
        started = time.perf_counter()
        loss = loss_of(inputs)
        loss.backward()
        value = loss.item()
        pipe.send(time.perf_counter() - started)
        del loss
    peak = resident("VmHWM")
    torch.save(inputs.gradients(), place)
    pipe.send({"loss": value, "peak": peak, "over": peak - before})


class Rival:
    """A contender's process, seen from outside."""

    def __init__(self, contender: str, objective: str, args: argparse.Namespace, folder: Path) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.place = folder / f"{contender.replace(' ', '_')}.pt"
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=live, args=(contender, objective, args, str(self.place), theirs))
        self.process.start()
        theirs.close()  # or a death there would not be noticed here
        self.pipe.recv()
        self.seconds: list[float] = []

    def go(self) -> float:
        """One forward and backward; its seconds."""
        self.pipe.send("go")
        return self.pipe.recv()

    def finish(self) -> dict[str, float]:
        """Its loss and memory; the gradients lie in a file."""
        self.pipe.send("stop")
        account = self.pipe.recv()
        self.process.join()
        return account


# Comparing.


def disagreement(objective: str, accounts: dict[str, dict[str, float]], rivals: dict[str, Rival]) -> str | None:
    """Whose loss or gradients differ from the dense formula's, and by how much; None where all agree."""
    wanted, exact = accounts["dense"]["loss"], torch.load(rivals["dense"].place)
    found = []
    for name, rival in rivals.items():
        off = [abs(accounts[name]["loss"] - wanted) / abs(wanted)]
        for gradient, right in zip(torch.load(rival.place), exact, strict=True):
            off.append(((gradient - right).norm() / right.norm()).item())
        if not all(o <= TOLERANCE for o in off):
            found.append(f"{name}: loss, gradient of hidden states and of the head are off by {off}")
    return f"{objective}: {'; '.join(found)}; nothing is reported" if found else None


def compete(objective: str, args: argparse.Namespace) -> dict[str, Any]:
    chosen = {name: CONTENDERS[name] for name in args.contenders}
    skipped = {name: why for name, c in chosen.items() if (why := c.missing(objective))}
    with tempfile.TemporaryDirectory() as folder:
        rivals = {n: Rival(n, objective, args, Path(folder)) for n in chosen if n not in skipped}
        for turn in range(args.repeats + 1):  # the first one warms up
            order = list(rivals.values())
            for rival in order if turn % 2 else reversed(order):
                seconds = rival.go()
                if turn:
                    rival.seconds.append(seconds)
        accounts = {name: rival.finish() for name, rival in rivals.items()}
        if wrong := disagreement(objective, accounts, rivals):
            raise SystemExit(wrong)
    for name, rival in rivals.items():
        accounts[name] |= spread("seconds", rival.seconds)
    ours, ratio = rivals["stillhouse"].seconds, {}
    for name, rival in rivals.items():
        if name != "stillhouse":
            pairs = [a / b for a, b in zip(ours, rival.seconds, strict=True)]
            sizes = {key: accounts["stillhouse"][key] / accounts[name][key] for key in ("peak", "over")}
            ratio[name] = {**sizes, **spread("seconds", pairs)}
    return {"objective": objective, "contenders": accounts, "ratio": ratio, "skipped": skipped}


def lines(row: dict[str, Any]) -> Iterator[str]:
    yield f"\n{row['objective']}: stillhouse / other in brackets"
    for name, account in row["contenders"].items():
        size = f"{name:>14}: peak {account['peak']:6.0f} MB, over inputs {account['over']:6.0f} MB, "
        time_taken = f"{account['seconds']:.2f} s [{account['seconds_low']:.2f}, {account['seconds_high']:.2f}]"
        if ratio := row["ratio"].get(name):
            size = size.replace("MB,", f"MB ({ratio['peak']:.2f}),", 1)
            time_taken += f" ({ratio['seconds']:.2f} [{ratio['seconds_low']:.2f}, {ratio['seconds_high']:.2f}])"
        yield size + time_taken
    for name, why in row["skipped"].items():
        yield f"{name:>14}: skipped, {why}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {"tokens": 1024, "width": 256, "vocabulary": 151936, "repeats": 7, "seed": 0, "threads": 2}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--chunk", type=int, help="tokens of our chunks; chosen by stillhouse where not given")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not {"stillhouse", "dense"} <= set(args.contenders):
        parser.error("stillhouse and dense must compete: the one is measured, the other says what is right")
    setting = {name: getattr(args, name) for name in [*numbers, "chunk"]}
    if not args.json:
        print(setting)
    for objective in args.objectives:
        row = {"setting": setting, **compete(objective, args)}
        print(json.dumps(row) if args.json else "\n".join(lines(row)), flush=True)


if __name__ == "__main__":
    main()
