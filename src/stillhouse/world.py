"""The processes of one run: how many there are, which one this is, and what they say to one another.

`torchrun` starts them; one process alone is the ordinary case, and everything here is then the plain thing. torch is
imported only where processes speak.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from stillhouse.errors import RunError, StillhouseError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

SHARED = "raised in the first process, for all"
"""Note on an error that every process raises alike, so that it is printed once."""


def _distributed() -> Any | None:
    """torch's module for it, where processes have joined; nobody joined in a process that never imported torch."""
    module = sys.modules.get("torch.distributed")
    return module if module is not None and module.is_available() and module.is_initialized() else None


def size() -> int:
    """How many processes share the work."""
    joined = _distributed()
    return 1 if joined is None else int(joined.get_world_size())


def expected() -> int:
    """How many processes there will be once they have joined: what `torchrun` said."""
    return int(os.environ.get("WORLD_SIZE", "1")) if _distributed() is None else size()


def rank() -> int:
    """Which of them this is, counted from 0; before they have joined, what `torchrun` said."""
    joined = _distributed()
    return int(os.environ.get("RANK", "0")) if joined is None else int(joined.get_rank())


def is_main() -> bool:
    """Whether this is the first process, which alone writes files and speaks."""
    return rank() == 0


def local_rank() -> int:
    """Which process of its host this is: the number of its accelerator."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined() -> Generator[None, None, None]:
    """Join the processes that `torchrun` started, for the time of the block; nothing where there is one or they have
    joined already.

    Raises:
        RunError: they cannot reach one another.
    """
    if expected() == 1 or _distributed() is not None:
        yield
        return
    import torch

    accelerated = torch.cuda.is_available()
    if accelerated:
        torch.cuda.set_device(local_rank())
    try:
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if accelerated else "gloo")
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR', 'unknown')}:{os.environ.get('MASTER_PORT', 'unknown')}"
        raise RunError(
            f"Process {rank()} of {os.environ['WORLD_SIZE']} cannot join the others at {where}: {error}. Start all of "
            "them with torchrun, with the same --master-addr or --rdzv-endpoint on every host."
        ) from error
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def agree(value: T) -> T:
    """The first process's value, in all of them."""
    if size() == 1:
        return value
    import torch

    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def first(action: Callable[[], T]) -> T:
    """Do something in the first process alone; all get its value, or raise its error."""
    if size() == 1:
        return action()
    value: Any = None
    error: StillhouseError | None = None
    if is_main():
        try:
            value = action()
        except StillhouseError as caught:
            error = caught
    value, error = agree((value, error))
    if error is not None:
        error.add_note(SHARED)
        raise error
    return value


def gather(value: T) -> list[T]:
    """Every process's value, in the order of their ranks, in all of them."""
    if size() == 1:
        return [value]
    import torch

    boxes: list[Any] = [None] * size()
    torch.distributed.all_gather_object(boxes, value)
    return boxes


def collect(value: T) -> list[T]:
    """Every process's value, in the order of their ranks, in the first one; nothing in the others."""
    if size() == 1:
        return [value]
    import torch

    boxes: list[Any] | None = [None] * size() if is_main() else None
    torch.distributed.gather_object(value, boxes)
    return boxes or []


def add(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place; the same bits in each of them."""
    if size() > 1:
        import torch

        torch.distributed.all_reduce(tensor)
    return tensor


def wait() -> None:
    """Until all processes have come here."""
    if size() > 1:
        import torch

        torch.distributed.barrier()


def turns(count: int) -> Iterator[tuple[int, bool]]:
    """This process's share of `count` jobs: their numbers, and whether the result counts.

    Every process gets equally many, the last ones again where they do not divide, because work on weights that are
    spread over the processes needs all of them at every call.

    >>> list(turns(3))
    [(0, True), (1, True), (2, True)]
    """
    for start in range(0, count, size()):
        number = start + rank() if size() > 1 else start
        yield min(number, count - 1), number < count
