"""What selection costs and how well it does, part by part; each against a baseline in the same run.

    python benchmarks/selection.py --json
    python benchmarks/selection.py sketch per_example --repeats 20

`sketch` projects the same vectors to the same width in several ways: ours, whose hash is computed on the way; a
count-sketch by NumPy's bincount and by SciPy's sparse matrix, both with their tables drawn beforehand and free of
charge; and a dense matrix of signs, made anew in blocks because it would not fit. Dense time grows evenly with the
coordinates, and is measured on a part of them. `per_example` takes the gradient features of the embedded model against
one backward pass an example, sketched alike. `facility` chooses 500 of 10 000 clustered rows by facility location,
against lazy greedy in plain NumPy (a heap of stale gains, Minoux 1978): choices a second, the table of similarities
included, and as `objective` what ours reaches over what it reaches. Contenders take turns, so that a busy moment falls
on all of them; one thread. Speed is by the clock and, less moved by neighbours, by the processor's time.

Shapes: B vectors, N coordinates, W width.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from _common import spread
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from stillhouse.data.arithmetic import generate
from stillhouse.data.batching import TokenBatch
from stillhouse.data.rendering import Renderer
from stillhouse.features._layers import choose_parameters
from stillhouse.features._perexample import weighted_loss
from stillhouse.features._sketch import Sketch
from stillhouse.features.base import FeatureBench
from stillhouse.features.gradients import Gradients
from stillhouse.objectives.cross_entropy import CrossEntropy
from stillhouse.records import Example
from stillhouse.selection.facility_location import FacilityLocation
from stillhouse.student import Student

Floats = NDArray[np.float32]
Row = dict[str, Any]
Prepared = Callable[[], Floats]


def timed(call: Prepared) -> tuple[Floats, float, float]:
    """What it returns, seconds by the clock, and seconds of the processor."""
    clock, busy = time.perf_counter(), time.process_time()
    found = call()
    return found, time.perf_counter() - clock, time.process_time() - busy


# The sketch against other projections.


def ours(vectors_BN: Floats, width: int, seed: int) -> Prepared:
    sketch, vectors = Sketch(width=width, seed=seed), torch.from_numpy(vectors_BN)
    return lambda: sketch.of(vectors).numpy()


def _tables(coordinates: int, width: int, seed: int) -> tuple[NDArray[np.int64], Floats]:
    draws = np.random.default_rng(seed)
    return draws.integers(0, width, coordinates), draws.choice(np.array([-1, 1], np.float32), coordinates)


def numpy_bincount(vectors_BN: Floats, width: int, seed: int) -> Prepared:
    buckets_N, signs_N = _tables(vectors_BN.shape[1], width, seed)
    return lambda: np.stack(
        [np.bincount(buckets_N, row * signs_N, minlength=width).astype(np.float32) for row in vectors_BN]
    )


def scipy_sparse(vectors_BN: Floats, width: int, seed: int) -> Prepared:
    buckets_N, signs_N = _tables(vectors_BN.shape[1], width, seed)
    matrix = csr_matrix((signs_N, buckets_N, np.arange(len(signs_N) + 1)), shape=(len(signs_N), width)).T.tocsr()
    return lambda: np.ascontiguousarray((matrix @ vectors_BN.T).T)


def dense_signs(vectors_BN: Floats, width: int, seed: int) -> Prepared:
    vectors, block = torch.from_numpy(vectors_BN), 4096

    def project() -> Floats:
        draws = torch.Generator().manual_seed(seed)
        sums = torch.zeros(len(vectors), width)
        for start in range(0, vectors.shape[1], block):
            part = vectors[:, start : start + block]
            signs = torch.empty(part.shape[1], width, dtype=torch.int8).random_(2, generator=draws)
            sums += part @ signs.float().mul_(2).sub_(1)
        return (sums / width**0.5).numpy()

    return project


PROJECTIONS = {"ours": ours, "numpy_bincount": numpy_bincount, "scipy_sparse": scipy_sparse, "dense_signs": dense_signs}


def sketch(args: argparse.Namespace) -> Iterator[Row]:
    draws = np.random.default_rng(args.seed)
    vectors_BN = draws.standard_normal((args.vectors, args.coordinates), np.float32)
    vectors_BN += 0.3 * draws.standard_normal(args.coordinates, np.float32)  # what they share: cosines of about 0.08
    vectors_BN /= np.linalg.norm(vectors_BN, axis=1, keepdims=True)
    clock, busy, errors, biases = ({name: [] for name in PROJECTIONS} for _ in range(4))
    pairs = np.triu_indices(args.vectors, 1)
    for repeat in range(args.repeats):
        for name, prepare in PROJECTIONS.items():
            share = args.dense_share if name == "dense_signs" else 1
            some_BN = np.ascontiguousarray(vectors_BN[:, : args.coordinates // share])
            some_BN = some_BN / np.linalg.norm(some_BN, axis=1, keepdims=True)
            found_BW, seconds, processor = timed(prepare(some_BN, args.width, args.seed + 1 + repeat))
            clock[name].append(args.vectors / seconds / share)
            busy[name].append(args.vectors / processor / share)
            true = (some_BN @ some_BN.T)[pairs]
            unit_BW = found_BW / np.linalg.norm(found_BW, axis=1, keepdims=True)
            errors[name].append(float(np.square((unit_BW @ unit_BW.T)[pairs] - true).mean()))
            biases[name].append(float(((found_BW @ found_BW.T)[pairs] - true).mean()))
    for name in PROJECTIONS:
        z = statistics.mean(biases[name]) / (statistics.stdev(biases[name]) / args.repeats**0.5)
        quality = {"cosine_rmse": math.sqrt(statistics.mean(errors[name])), "bias_z": z}
        yield {"part": "sketch", "contender": name, **_speeds(clock, busy, name), **quality, **settings(args)}


def _speeds(clock: dict[str, list[float]], busy: dict[str, list[float]], name: str) -> Row:
    """Gradients or choices a second, and ours as a multiple of them, turn by turn."""
    speeds = spread("per_second", clock[name]) | spread("per_processor_second", busy[name])
    for key, rates in (("ours_over_it", clock), ("ours_over_it_processor", busy)):
        speeds |= spread(key, [ours / other for ours, other in zip(rates["ours"], rates[name], strict=True)])
    return speeds


# Gradients of all examples of a batch at once, against one backward pass each.


def per_example(args: argparse.Namespace) -> Iterator[Row]:
    student = Student("stillhouse:arithmetic")
    problems = generate(args.examples, seed=args.seed)
    examples = [Example(id=str(n), prompt=p.question, completion=p.solution) for n, p in enumerate(problems)]
    renderer = Renderer(student.tokenizer, student.lm.context)
    bench = FeatureBench(student=lambda: student, renderer=renderer)
    features = Gradients(width=args.width, seed=args.seed)
    projection = Sketch(width=args.width, seed=args.seed)

    def one_by_one() -> Floats:
        parameters = choose_parameters(student.lm, features.layers)
        rows = []
        for rendered in renderer.render(examples):
            batch = TokenBatch.of([rendered])
            mean = torch.tensor([1 / batch.trained_count()])
            with student.lm.inference():
                loss = weighted_loss(student.lm, batch, None, [CrossEntropy()], mean)
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            rows.append(projection.of(torch.cat([g.flatten() for g in gradients])[None])[0])
        return torch.nn.functional.normalize(torch.stack(rows)).numpy()

    contenders = {"ours": lambda: features.compute(examples, bench), "one_backward_each": one_by_one}
    clock, busy = ({name: [] for name in contenders} for _ in range(2))
    for _ in range(args.repeats):
        made = {}
        for name, call in contenders.items():
            made[name], seconds, processor = timed(call)
            clock[name].append(args.examples / seconds)
            busy[name].append(args.examples / processor)
        np.testing.assert_allclose(made["ours"], made["one_backward_each"], atol=1e-4)
    for name in contenders:
        yield {"part": "per_example", "contender": name, **_speeds(clock, busy, name), **settings(args)}


# Facility location against the lazy greedy that one would write.


def lazy_greedy(vectors_ND: Floats, count: int) -> NDArray[np.int64]:
    similar_NN = np.maximum(vectors_ND @ vectors_ND.T, 0)
    best_N = np.zeros(len(similar_NN), np.float32)
    heap = [(-float(gain), row) for row, gain in enumerate(similar_NN.sum(axis=1))]
    heapq.heapify(heap)
    chosen: list[int] = []
    while len(chosen) < count:
        _, row = heapq.heappop(heap)
        gain = float(np.maximum(similar_NN[row] - best_N, 0).sum())
        if heap and gain < -heap[0][0]:
            heapq.heappush(heap, (-gain, row))
            continue
        chosen.append(row)
        np.maximum(best_N, similar_NN[row], out=best_N)
    return np.array(chosen)


def facility(args: argparse.Namespace) -> Iterator[Row]:
    draws = np.random.default_rng(args.seed)
    centres_KD = draws.standard_normal((200, 64), np.float32)
    vectors_ND = centres_KD[draws.integers(0, 200, args.rows)] + draws.standard_normal((args.rows, 64), np.float32)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    selector = FacilityLocation(budget=args.budget)
    contenders = {
        "ours": lambda: selector.pick(vectors_ND, args.budget, np.random.default_rng(0)).rows,
        "lazy_greedy": lambda: lazy_greedy(vectors_ND, args.budget),
    }
    clock, busy, reached = ({name: [] for name in contenders} for _ in range(3))
    for _ in range(args.repeats):
        for name, call in contenders.items():
            rows_B, seconds, processor = timed(call)
            clock[name].append(args.budget / seconds)
            busy[name].append(args.budget / processor)
            reached[name].append(float(np.maximum(vectors_ND @ vectors_ND[rows_B].T, 0).max(axis=1).sum()))
    for name in contenders:
        quality = {"objective": reached["ours"][0] / reached[name][0]}
        yield {"part": "facility", "contender": name, **_speeds(clock, busy, name), **quality, **settings(args)}


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "sketch": sketch,
    "per_example": per_example,
    "facility": facility,
}


def settings(args: argparse.Namespace) -> Row:
    return {key: value for key, value in vars(args).items() if key not in ("parts", "json")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="part", help=", ".join(PARTS))
    parser.add_argument("--vectors", type=int, default=64)
    parser.add_argument("--coordinates", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--rows", type=int, default=10_000, help="that facility location chooses from")
    parser.add_argument("--budget", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=10, help="each with a seed of its own")
    parser.add_argument("--dense-share", type=int, default=16, help="measure the dense matrix on one part in so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"there is no part {sorted(unknown)}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    for part in args.parts:
        for row in PARTS[part](args):
            print(json.dumps(row) if args.json else line(row), flush=True)


def line(row: Row) -> str:
    def shown(key: str) -> str:
        return f"{row[key]:.4g} [{row[f'{key}_low']:.4g}, {row[f'{key}_high']:.4g}]"

    quality = f"; cosine RMSE {row['cosine_rmse']:.4f}, bias z {row['bias_z']:+.2f}" if "bias_z" in row else ""
    quality += f"; objective {row['objective']:.5f} of it" if "objective" in row else ""
    return (
        f"{row['part']}: {row['contender']}: {shown('per_second')} a second, ours {shown('ours_over_it')} times it; "
        f"{shown('per_processor_second')} a processor second, ours {shown('ours_over_it_processor')} times it"
        f"{quality}; n = {row['repeats']}"
    )


if __name__ == "__main__":
    main()
