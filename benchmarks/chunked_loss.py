"""Peak memory and time of the chunked loss against the dense formula: same tensors, each in a process of its own.

    python benchmarks/chunked_loss.py --tokens 1024 --width 256 --vocabulary 32000 --json

Forward and backward of forward KL between two heads. Loss and gradient norm must agree before anything is reported.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from types import SimpleNamespace
from typing import Any

import torch

from stillhouse.data.batching import Span, TokenBatch
from stillhouse.objectives.forward_kl import ForwardKL
from stillhouse.signals import Dense, Headed, align
from stillhouse.training.chunking import batch_loss


def tensors(tokens: int, width: int, vocabulary: int, seed: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(seed)
    hidden = torch.randn(1, tokens, width)
    student, teacher = torch.nn.Linear(width, vocabulary, bias=False), torch.nn.Linear(width, vocabulary, bias=False)
    return hidden.requires_grad_(), student.weight, teacher.weight.detach()


def dense(hidden: torch.Tensor, student: torch.Tensor, teacher: torch.Tensor, chunk: int) -> torch.Tensor:
    logits, wanted = hidden @ student.T, Dense((hidden @ teacher.T).detach())
    loss = ForwardKL().divergence(align(logits, wanted)).sum()
    loss.backward()
    return loss.detach()


def chunked(hidden: torch.Tensor, student: torch.Tensor, teacher: torch.Tensor, chunk: int) -> torch.Tensor:
    tokens, vocabulary = hidden.shape[1], student.shape[0]
    row = torch.zeros(1, tokens, dtype=torch.long)
    batch = TokenBatch(("all",), (Span(0, 0, tokens),), row, row, row == 0, row.byte(), row, (tokens,))
    lm: Any = SimpleNamespace(head=lambda h: h @ student.T, vocabulary=vocabulary, head_parameters=lambda: [student])
    signal = Headed(hidden.detach(), lambda h: h @ teacher.T, vocabulary)
    loss = batch_loss(lm, hidden, batch, signal, [ForwardKL()], chunk).total
    loss.backward()
    return loss.detach()


def measure(way: str, args: argparse.Namespace, pipe: Any) -> None:
    torch.set_num_threads(args.threads)
    hidden, student, teacher = tensors(args.tokens, args.width, args.vocabulary, args.seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    loss = torch.zeros(())
    for _ in range(args.repeats):
        hidden.grad = student.grad = None
        started = time.perf_counter()
        loss = {"dense": dense, "chunked": chunked}[way](hidden, student, teacher, args.chunk)
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert hidden.grad is not None
    assert student.grad is not None
    norms = hidden.grad.norm().item(), student.grad.norm().item()
    pipe.send(
        {"loss": loss.item(), "norms": norms, "mb": (peak - before) / 1024, "seconds": statistics.median(seconds)}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "tokens": 1024,
        "width": 256,
        "vocabulary": 32000,
        "chunk": 256,
        "repeats": 3,
        "seed": 0,
        "threads": 2,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = {}
    for way in ("dense", "chunked"):
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(way, args, theirs))
        process.start()
        found[way] = ours.recv()
        process.join()
    agreed = torch.allclose(*(torch.tensor([found[w]["loss"], *found[w]["norms"]]) for w in found), rtol=1e-5)
    if not agreed:
        raise SystemExit(f"dense and chunked disagree, so nothing is reported: {found}")
    setting = {k: v for k, v in vars(args).items() if k != "json"}
    ratio = {key: round(found["chunked"][key] / found["dense"][key], 3) for key in ("mb", "seconds")}
    row = {
        "setting": setting,
        **{w: {k: round(found[w][k], 4) for k in ("loss", "mb", "seconds")} for w in found},
        "ratio": ratio,
    }
    print(json.dumps(row) if args.json else f"{setting}\n{found}\nchunked / dense: {ratio}")


if __name__ == "__main__":
    main()
