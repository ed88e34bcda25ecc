"""How long a piece of work takes here, and how many bytes of tensors it holds at once."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_SECONDS = 0.4
_REPEATS = 9


class Trial(NamedTuple):
    """What a piece of work took: seconds, and bytes of tensors alive at its peak beside those there before."""

    seconds: float
    bytes: float

    @classmethod
    def combine(cls, trials: Sequence[Trial], weights: Sequence[float]) -> Trial:
        """A weighted sum: the line through trials of thin models, at the depth of the real one. Noise in the trials
        cannot bring it below the largest of them."""
        return cls(
            *(max(max(c), sum(w * v for w, v in zip(weights, c, strict=True))) for c in zip(*trials, strict=True))
        )


Trials = dict[str, Trial]
"""What pieces of a run took, by name."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside the block, as they come and go.

    Attributes:
        peak: the most that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self._known:
                    self._count(storage)
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes()).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def measure(job: Callable[[], object]) -> Trial:
    """Time a job, the quickest of a few, after one that warms up and is weighed. What else the machine does makes a
    job slower, never quicker, and would be multiplied by how often the run does it."""
    with LiveBytes() as live:
        job()
    return Trial(quickest(job), live.peak)


def quickest(job: Callable[[], object]) -> float:
    """Seconds of a job, the quickest of as many as take little time together; a long one is done once."""
    times: list[float] = []
    while not times or (sum(times) < _SECONDS and len(times) < _REPEATS):
        times.append(seconds_of(job))
    return min(times)


def seconds_of(job: Callable[[], object]) -> float:
    """Wall time of a job; accelerators have finished when it ends."""
    started = time.perf_counter()
    job()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - started


def operations_per_second(dtype: torch.dtype, device: str) -> float:
    """Speed of matrix products here, measured for a moment."""
    size = 512 if device == "cpu" else 4096  # large enough to keep it busy
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / measure(lambda: a @ b).seconds


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, shared storages once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def resident_bytes() -> int:
    """Memory that this process holds now; 0 where the system does not say."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return 0
    import resource

    return int(status.read_text().split()[1]) * resource.getpagesize()
