"""The chunked loss on a GPU: time and memory of every objective, in one table and under ten minutes.

    make bench-gpu                                     # or PYTHONPATH=src python benchmarks/gpu.py --json

Needs torch and transformers alone. Everything that is timed is first held against the textbook formula in float64.
Times are medians of CUDA events after a warm-up, with the interval that holds the median; memory is the largest
allocation over the inputs (hidden states and both heads). `products` are the four matrix products that no loss can
avoid: two times logits, the gradient of the hidden states, the gradient of the head.

Shapes: N tokens, D width, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch._dynamo
from _common import Inputs, chunked, spread, textbook
from torch import Tensor
from torch.nn import functional

from stillhouse.objectives.base import Objective
from stillhouse.objectives.cross_entropy import CrossEntropy
from stillhouse.objectives.forward_kl import ForwardKL
from stillhouse.objectives.generalized_jsd import GeneralizedJSD
from stillhouse.objectives.reverse_kl import ReverseKL
from stillhouse.signals import Dense, Signal, TopK
from stillhouse.training.chunking import choose_chunk, choose_compiled

OBJECTIVES: dict[str, Objective] = {
    "forward_kl": ForwardKL(),
    "reverse_kl": ReverseKL(),
    "generalized_jsd": GeneralizedJSD(),
    "cross_entropy": CrossEntropy(),
}
TOKENS = (1024, 4096, 8192)
CHUNKS = (512, 1024, 2048, 4096, 8192)
KEPT = 64


def top_k(inputs: Inputs, k: int) -> TopK:
    """What a store holds of the teacher's distribution, made a chunk at a time."""
    with torch.no_grad():
        rows = inputs.hidden_ND.split(512)
        return TopK.join([TopK.of(Dense(functional.linear(few, inputs.teacher_VD)), k) for few in rows])


# What is timed: each is one forward and backward that leaves gradients behind.


def ours(
    inputs: Inputs,
    objective: Objective,
    chunk: int | None = None,
    *,
    compiled: bool | None = None,
    signal: Signal | None = None,
) -> Tensor:
    loss = chunked(inputs, objective, chunk, compiled=compiled, signal=signal)
    loss.backward()
    return loss.detach()


def dense(inputs: Inputs, name: str) -> Tensor:
    student = functional.linear(inputs.hidden_ND, inputs.student_VD).float()
    with torch.no_grad():
        teacher = functional.linear(inputs.hidden_ND, inputs.teacher_VD).float() if OBJECTIVES[name].needs else student
    loss = textbook(name, student, teacher, inputs.targets_N)
    loss.backward()
    return loss.detach()


@torch.no_grad()
def products(inputs: Inputs, chunk: int) -> None:
    """By the chunk as well, so that memory is not what is compared; sums in place, nothing else."""
    total_VD = torch.zeros_like(inputs.student_VD)
    for hidden_ND in inputs.hidden_ND.split(chunk):
        student_NV = hidden_ND @ inputs.student_VD.T
        _ = hidden_ND @ inputs.teacher_VD.T
        _ = student_NV @ inputs.student_VD
        total_VD.addmm_(student_NV.T, hidden_ND)


# Right first, then fast.


def check(device: str, *, compiled: bool) -> Iterator[str]:
    """Every objective, dense and top-k, eager and compiled, against float64.

    Raises:
        SystemExit: one of them is wrong, and nothing is timed.
    """
    for dtype, allowed in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        inputs = Inputs.of(200, 64, 1003, dtype=dtype, device=device)
        kept = top_k(inputs, KEPT)
        for name, objective in OBJECTIVES.items():
            for signal in (None, kept) if objective.needs else (None,):
                wanted = _account(inputs, lambda exact, n=name, s=signal: _exact(exact, n, s), wide=True)
                for way in [False, True] if compiled else [False]:
                    found = _account(
                        inputs, lambda given, o=objective, w=way, s=signal: ours(given, o, 64, compiled=w, signal=s)
                    )
                    off = max(((a - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True))
                    what = f"{name}, {'top-k' if signal else 'dense'}, {dtype}, {'compiled' if way else 'eager'}"
                    if not off <= allowed:
                        raise SystemExit(f"{what} is off by {off:.2g} from float64, {allowed:g} is allowed; not timed")
                    yield f"{what}: off by {off:.1e}"


def _exact(inputs: Inputs, name: str, signal: Signal | None) -> Tensor:
    """The textbook formula; a top-k signal's is the same formula on the kept tokens and one bucket for the rest."""
    student = functional.linear(inputs.hidden_ND, inputs.student_VD)
    teacher = functional.linear(inputs.hidden_ND.detach(), inputs.teacher_VD)
    if isinstance(signal, TopK):
        logprobs_NV = student.log_softmax(-1)
        rest = (1 - logprobs_NV.gather(-1, signal.ids_NK).exp().sum(-1, keepdim=True)).log()
        student = torch.cat([logprobs_NV.gather(-1, signal.ids_NK), rest], -1)
        teacher = torch.cat([signal.logprobs_NK, signal.tail_N[:, None]], -1).double()
    loss = textbook(name, student, teacher, inputs.targets_N)
    loss.backward()
    return loss.detach()


def _account(inputs: Inputs, work: Callable[[Inputs], Tensor], *, wide: bool = False) -> list[Tensor]:
    def copy(tensor: Tensor) -> Tensor:
        return tensor.detach().to(torch.float64 if wide else tensor.dtype, copy=True)

    given = Inputs(
        copy(inputs.hidden_ND).requires_grad_(),
        copy(inputs.student_VD).requires_grad_(),
        copy(inputs.teacher_VD),
        inputs.targets_N,
    )
    loss = work(given)
    assert given.hidden_ND.grad is not None
    assert given.student_VD.grad is not None
    return [loss.double(), given.hidden_ND.grad.double(), given.student_VD.grad.double()]


def measure(inputs: Inputs, repeats: int, work: Callable[[], Any]) -> dict[str, Any]:
    """Milliseconds and megabytes (10^6 bytes) over the inputs, or that there was not memory enough."""
    times = []
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    try:
        for turn in range(repeats + 3):
            inputs.hidden_ND.grad = inputs.student_VD.grad = None
            if turn == 3:
                torch.cuda.reset_peak_memory_stats()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
    except torch.cuda.OutOfMemoryError:
        return {"failed": "out of memory"}
    finally:
        inputs.hidden_ND.grad = inputs.student_VD.grad = None
    return {**spread("ms", times[3:]), "mb": (torch.cuda.max_memory_allocated() - before) / 1e6, "n": repeats}


def cases(args: argparse.Namespace, device: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """What was measured, tokens, figures."""
    can_compile = choose_compiled(device)[0]
    for tokens in TOKENS:
        inputs = Inputs.of(tokens, args.width, args.vocabulary, dtype=torch.bfloat16, device=device)

        def timed(work: Callable[[], Any], inputs: Inputs = inputs) -> dict[str, Any]:
            return measure(inputs, args.repeats, work)

        chunk = choose_chunk(args.vocabulary, device)[0]
        yield f"products, chunks of {chunk}", tokens, timed(lambda i=inputs, c=chunk: products(i, c))
        yield "products, whole", tokens, timed(lambda i=inputs, c=tokens: products(i, c))
        for name, objective in OBJECTIVES.items():
            yield f"{name}, stillhouse", tokens, timed(lambda i=inputs, o=objective: ours(i, o))
            yield f"{name}, dense formula", tokens, timed(lambda i=inputs, n=name: dense(i, n))
        if tokens == TOKENS[1]:
            kept = top_k(inputs, KEPT)
            for name, objective in OBJECTIVES.items():
                if can_compile:
                    eager = timed(lambda i=inputs, o=objective: ours(i, o, compiled=False))
                    yield f"{name}, stillhouse, eager", tokens, eager
                if objective.needs:
                    sparse = timed(lambda i=inputs, o=objective, s=kept: ours(i, o, signal=s))
                    yield f"{name}, stillhouse, top {KEPT}", tokens, sparse
        if tokens == TOKENS[-1]:
            for size in CHUNKS:
                found = timed(lambda i=inputs, s=size: ours(i, OBJECTIVES["generalized_jsd"], s))
                yield f"generalized_jsd, stillhouse, chunks of {size}", tokens, found
        del inputs


def line(name: str, tokens: int, found: dict[str, Any]) -> str:
    if "failed" in found:
        return f"| {name} | {tokens:,} | {found['failed']} | |"
    spent = f"{found['ms']:.1f} [{found['ms_low']:.1f}, {found['ms_high']:.1f}]"
    return f"| {name} | {tokens:,} | {spent} | {found['mb']:,.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"width": 4096, "vocabulary": 128_256, "repeats": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        why = "torch sees no GPU on this machine, so there is nothing to measure."
        print(json.dumps({"skipped": why}) if args.json else why)
        return
    torch._dynamo.config.recompile_limit = 64  # as many shapes, signals and objectives as here no training run sees
    device, (compiled, reason) = "cuda", choose_compiled("cuda")
    setting = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "compiled": reason,
        "chunk": choose_chunk(args.vocabulary, device)[1],
        **{name: getattr(args, name) for name in ("width", "vocabulary", "repeats")},
    }
    right = list(check(device, compiled=compiled))
    if not args.json:
        print("\n".join(f"{key}: {value}" for key, value in setting.items()))
        print(f"{len(right)} ways of computing agree with float64.\n")
        print(
            f"| what | tokens | ms, median of {args.repeats} [interval] | MB over inputs |\n| --- | --- | --- | --- |"
        )
    for name, tokens, found in cases(args, device):
        row = {"setting": setting, "what": name, "tokens": tokens, **found}
        print(json.dumps(row) if args.json else line(name, tokens, found), flush=True)


if __name__ == "__main__":
    main()
