"""The signal store: what a teacher said about every example, on disk, so that it is asked once.

    header.json     what was asked: teacher, tokenizer, vocabulary, temperature, k
    shard-00000     records one after another, each with its example's id and its own checksum
    tokenizer/      what the ids mean
    complete.json   how long each shard is and how faithful the signal; written last, so its existence means it is whole

Records are found by example id, never by position, so that shuffling, packing, accumulation and ranks cannot misalign
them, and each carries a hash of the tokens it speaks of. Writing appends; a writer that was killed leaves at most one
torn record, which the next one cuts off.

Shapes: N trained tokens of one example, K kept entries.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.errors import SignalStoreError
from stillhouse.signals.kinds import TopK
from stillhouse.signals.layout import (
    SHARD_HEAD,
    WAY_OUT,
    Record,
    StoreHeader,
    check_shard_head,
    is_torn,
    pack_record,
    read_facts,
    read_header,
    shard_head,
    shard_path,
    shard_paths,
    unpack_record,
    walk,
    write_facts,
)

__all__ = ["SHARD_BYTES", "TOKENIZER", "SignalStore", "StoreHeader", "StoreWriter", "open_writer"]

TOKENIZER = "tokenizer"
"""The folder beside the shards that keeps what the token ids mean."""

SHARD_BYTES = 2**28
"""A shard is closed once it is this large: few enough files to list, small enough to copy one at a time."""


@contextmanager
def open_writer(
    folder: Path, header: StoreHeader, *, shard_bytes: int = SHARD_BYTES
) -> Generator[StoreWriter, None, None]:
    """A writer that holds the store alone; it continues a store of the same header.

    Raises:
        SignalStoreError: another process writes to it, it holds other signals, or it is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SignalStoreError(f"{folder} is being written by another process. Wait for it.") from error
        writer = StoreWriter(folder, header, shard_bytes)
        try:
            yield writer
        finally:
            writer.close()


class StoreWriter:
    """Appends signals to a store; `open_writer` makes one.

    Attributes:
        repaired: bytes of a torn record that a killed writer left, cut off now.
    """

    def __init__(self, folder: Path, header: StoreHeader, shard_bytes: int) -> None:
        self.folder, self.header, self.shard_bytes = folder, header, shard_bytes
        self.repaired = 0
        self._stream: FileIO | None = None
        self._number = -1
        self._known: set[str] = set()
        self._adopt()

    def __contains__(self, name: str) -> bool:
        """Whether an example's signal is there already."""
        return name in self._known

    def add(self, name: str, tokens: bytes, signal: TopK) -> None:
        """Append one example's signal.

        Args:
            name: the example's id.
            tokens: the digest of its tokens, `TokenBatch.digest`.
            signal: rows are its trained tokens in order.

        Raises:
            SignalStoreError: the id is there already, the signal holds NaN, or the disk is full.
        """
        if name in self._known:
            raise SignalStoreError(f"{self.folder} already holds a signal for example {name!r}; ids must be unique.")
        data = pack_record(self.header, name, _record(name, tokens, signal))
        try:
            self._append(self._shard(), data)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise SignalStoreError(
                f"The disk is full at {self.folder}. Every signal written before stands; free some space and give the "
                "same command again."
            ) from error
        self._known.add(name)

    def finish(self, fidelity: Mapping[str, float | None]) -> None:
        """Close the store: from now on it can be read."""
        self.close()
        shards = [{"name": path.name, "bytes": path.stat().st_size} for path in shard_paths(self.folder)]
        facts = {"records": len(self._known), "shards": shards, "fidelity": dict(fidelity)}
        write_facts(self.folder / "complete.json", facts)

    def bytes_written(self) -> int:
        """All shards together, those of earlier writers included."""
        return sum(path.stat().st_size for path in shard_paths(self.folder))

    def close(self) -> None:
        """Close the open shard."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _adopt(self) -> None:
        """Begin a store, or take stock of what a writer before this one left."""
        if not (self.folder / "header.json").exists():
            if orphans := shard_paths(self.folder):
                raise SignalStoreError(
                    f"{self.folder} holds {orphans[0].name}, and no header.json to say what was asked. {WAY_OUT}"
                )
            write_facts(self.folder / "header.json", self.header.facts())
            return
        found = read_header(self.folder)
        if found != self.header:
            raise SignalStoreError(
                f"{self.folder} holds other signals: {found.differences(self.header)}. Give this one a folder of its "
                "own, or move the old one away."
            )
        shards = shard_paths(self.folder)
        for number, path in enumerate(shards):
            good = self._take_stock(path, number, last=number == len(shards) - 1)
            with path.open("r+b") as stream:
                self.repaired += stream.seek(0, 2) - good
                stream.truncate(good)
        if shards and shards[-1].stat().st_size < SHARD_HEAD:
            shards.pop().unlink()
        self._number = len(shards) - 1
        (self.folder / "complete.json").unlink(missing_ok=True)  # it is about to grow

    def _take_stock(self, path: Path, number: int, *, last: bool) -> int:
        """Note the ids of a shard's records; where the last whole one ends. Only the last shard can be torn."""
        data = path.read_bytes()
        if last and len(data) < SHARD_HEAD:
            return 0
        check_shard_head(path, data, self.header, number)
        good = SHARD_HEAD
        try:
            for name, _, end in walk(path, data, check=True):
                self._known.add(name)
                good = end
        except SignalStoreError:
            if not (last and is_torn(data, good)):
                raise
        return good

    def _shard(self) -> FileIO:
        """The shard to append to. Unbuffered: what a full disk refused must not be tried again on closing."""
        if self._stream is None and self._number >= 0:
            self._stream = shard_path(self.folder, self._number).open("ab", buffering=0)
        if self._stream is None or self._stream.tell() >= self.shard_bytes:
            self.close()
            self._number += 1
            self._stream = shard_path(self.folder, self._number).open("ab", buffering=0)
            self._append(self._stream, shard_head(self.header, self._number))
        return self._stream

    @staticmethod
    def _append(stream: FileIO, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[stream.write(rest) :]


def _record(name: str, tokens: bytes, signal: TopK) -> Record:
    logprobs_NK, tail_N = signal.logprobs_NK.float().cpu().numpy(), signal.tail_N.float().cpu().numpy()
    wrong_N = np.isnan(logprobs_NK).any(-1) | np.isnan(tail_N)
    if wrong_N.any():
        raise SignalStoreError(
            f"The teacher says NaN about example {name!r} at its trained token {int(wrong_N.argmax())}. Nothing of "
            "this example was stored. Open the teacher in float32 (teacher.hf.dtype), or look at that example."
        )
    return Record(signal.ids_NK.cpu().numpy(), logprobs_NK, tail_N, tokens)


class SignalStore:
    """A finished store, memory-mapped. A record's checksum is verified the first time it is read; the epochs after that
    read the same pages again.

    Attributes:
        header: what was asked of whom.
        fidelity: how close the stored signal is to the teacher, as measured while it was written; None for what could
            not be measured.

    Raises:
        SignalStoreError: no store, not finished, of another format, or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.header = read_header(self.folder)
        facts = self._completeness()
        self.fidelity: dict[str, float | None] = facts["fidelity"]
        self._paths: list[Path] = []
        self._data: list[mmap.mmap] = []
        self._index: dict[str, tuple[int, int]] = {}
        self._verified: set[str] = set()
        for number, shard in enumerate(facts["shards"]):
            data = self._map(self.folder / shard["name"], shard["bytes"], number)
            self._index.update({name: (number, offset) for name, offset, _ in data})
        if len(self._index) != facts["records"]:
            raise SignalStoreError(
                f"{self.folder} holds {len(self._index)} signals, {facts['records']} were written. {WAY_OUT}"
            )

    def __len__(self) -> int:
        """How many examples it knows."""
        return len(self._index)

    def __contains__(self, name: str) -> bool:
        """Whether it holds a signal for an example."""
        return name in self._index

    def read(self, name: str, tokens: bytes | None = None) -> Record:
        """One example's signal, as views of the mapped file.

        Args:
            name: the example's id.
            tokens: the digest of its tokens now; None does not compare.

        Raises:
            SignalStoreError: there is none, its checksum does not hold, or the text is not the one that was scored.
        """
        if name not in self._index:
            raise SignalStoreError(
                f"{self.folder} holds no signal for example {name!r}. The data has changed since it was scored: give "
                "`stillhouse score` again."
            )
        number, offset = self._index[name]
        path, check = self._paths[number], name not in self._verified
        record = unpack_record(self.header, path, self._data[number], offset, check=check)[1]
        self._verified.add(name)
        if tokens not in (None, record.tokens):
            raise SignalStoreError(
                f"Example {name!r} is not the text that {self.folder} was scored on: its tokens, or which of them are "
                "trained, have changed. Give `stillhouse score` again with this data."
            )
        return record

    def verify(self) -> None:
        """Read every record and hold it against its checksum, those that were read before too.

        Raises:
            SignalStoreError: one is damaged.
        """
        self._verified.clear()
        for name in self._index:
            self.read(name)

    def _completeness(self) -> dict[str, Any]:
        place = self.folder / "complete.json"
        if not place.exists():
            raise SignalStoreError(
                f"{self.folder} is not finished: it has no complete.json. The same `stillhouse score` continues it."
            )
        facts = read_facts(place)
        found, written = [p.name for p in shard_paths(self.folder)], [shard["name"] for shard in facts["shards"]]
        if found != written:
            raise SignalStoreError(
                f"{self.folder} holds {', '.join(found) or 'no shard'}; {', '.join(written) or 'none'} were written. "
                f"{WAY_OUT}"
            )
        return facts

    def _map(self, path: Path, size: int, number: int) -> list[tuple[str, int, int]]:
        """Map a shard into memory; where its records are."""
        if path.stat().st_size != size:
            raise SignalStoreError(f"{path} has {path.stat().st_size} bytes, {size} were written. {WAY_OUT}")
        with path.open("rb") as stream:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        check_shard_head(path, data, self.header, number)
        self._paths.append(path)
        self._data.append(data)
        return list(walk(path, data, check=False))
