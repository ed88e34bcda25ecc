"""The signal store's bytes: header, shards, records, and the checksum that guards each of them.

A shard is a head and then records, one after another. A record is a head (checksum of all that follows, bytes after the
head, bytes of the id, rows, hash of the tokens) and then the example's id and its arrays.

Shapes: N trained tokens of one example, K kept entries.
"""

from __future__ import annotations

import json
import mmap
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import SignalStoreError
from stillhouse.records import fingerprint, whole

FORMAT = 1
WAY_OUT = "Copy the store again from where it was made, or move it away and score again."

_MAGIC = b"STILLSIG"
_SHARD = struct.Struct("<8s16sII")  # magic, fingerprint of the header, number of the shard, checksum of these
_RECORD = struct.Struct("<IIHI8s")
SHARD_HEAD = _SHARD.size

Bytes = bytes | mmap.mmap


def ids_dtype(vocabulary: int) -> np.dtype[Any]:
    """The narrowest type that holds every token id."""
    return np.dtype("<u2" if vocabulary <= 2**16 else "<u4")


def bytes_per_token(vocabulary: int, k: int) -> int:
    """Of one row: ids, log-probabilities and the tail."""
    return k * (ids_dtype(vocabulary).itemsize + 4) + 4


@dataclass(frozen=True)
class StoreHeader:
    """What was asked of whom. Stores with equal headers hold equal signals for equal examples.

    Attributes:
        teacher: its identity, as `TeacherSession.identity` says.
        tokenizer: `signals.vocabulary.tokenizer_fingerprint`.
        vocabulary: true size, without the padding of heads.
        k: entries kept of each distribution; the mass of all others is one tail bucket.
        temperature: the kept log-probabilities were computed at.

    Raises:
        SignalStoreError: an impossible k or temperature.
    """

    teacher: Mapping[str, Any]
    tokenizer: str
    vocabulary: int
    k: int
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.vocabulary:
            raise SignalStoreError(
                f"k is {self.k}; it must lie between 1 and the vocabulary, which has {self.vocabulary} tokens."
            )
        if not self.temperature > 0:
            raise SignalStoreError(f"temperature is {self.temperature}; it must be positive.")

    @property
    def ids_dtype(self) -> np.dtype[Any]:
        """The narrowest type that holds every token id."""
        return ids_dtype(self.vocabulary)

    def bytes_per_token(self) -> int:
        """Of one row."""
        return bytes_per_token(self.vocabulary, self.k)

    def facts(self) -> dict[str, Any]:
        """As it stands in header.json."""
        return {"format": FORMAT, "kind": "top_k", "tail": "bucket", **asdict(self)}

    def differences(self, other: StoreHeader) -> str:
        """In words, for errors: this one is there, the other one is here."""
        there, here = asdict(self), asdict(other)
        return "; ".join(
            f"{key} is {there[key]!r} there, {here[key]!r} here" for key in there if there[key] != here[key]
        )


class Record(NamedTuple):
    """One example's signal, and the hash of the tokens that it speaks of."""

    ids_NK: NDArray[Any]
    logprobs_NK: NDArray[np.float32]
    tail_N: NDArray[np.float32]
    tokens: bytes


def pack_record(header: StoreHeader, name: str, record: Record) -> bytes:
    """A record as bytes, its checksum first."""
    arrays = (record.ids_NK.astype(header.ids_dtype), record.logprobs_NK.astype("<f4"), record.tail_N.astype("<f4"))
    payload = name.encode() + b"".join(array.tobytes() for array in arrays)
    rest = _RECORD.pack(0, len(payload), len(name.encode()), len(record.tail_N), record.tokens)[4:] + payload
    return struct.pack("<I", zlib.crc32(rest)) + rest


def unpack_record(
    header: StoreHeader, path: Path, data: Bytes, offset: int, *, check: bool = True
) -> tuple[str, Record]:
    """Id and signal of the record at an offset. Nothing is copied: the arrays are views of the data, read-only and
    where they happen to lie, aligned or not.

    Raises:
        SignalStoreError: no whole record of this header's shape begins there, or, where asked, its checksum does not
            hold.
    """
    name, start, end = record_span(path, data, offset, check=check)
    _, _, _, rows, tokens = _RECORD.unpack_from(data, offset)
    k, wide = header.k, header.ids_dtype.itemsize
    if end - start != rows * header.bytes_per_token():
        raise _damaged(path, offset)
    logprobs, tail = start + rows * k * wide, start + rows * k * (wide + 4)
    return name, Record(
        np.frombuffer(data, header.ids_dtype, rows * k, start).reshape(rows, k),
        np.frombuffer(data, "<f4", rows * k, logprobs).reshape(rows, k),
        np.frombuffer(data, "<f4", rows, tail),
        tokens,
    )


def record_span(path: Path, data: Bytes, offset: int, *, check: bool) -> tuple[str, int, int]:
    """Id of the record at an offset, and where its arrays begin and end.

    Raises:
        SignalStoreError: no whole record begins there, or, where asked, its checksum does not hold.
    """
    if offset + _RECORD.size > len(data):
        raise _damaged(path, offset)
    checksum, length, id_length, _, _ = _RECORD.unpack_from(data, offset)
    start = offset + _RECORD.size
    end = start + length
    if end > len(data) or id_length > length or (check and zlib.crc32(memoryview(data)[offset + 4 : end]) != checksum):
        raise _damaged(path, offset)
    try:
        name = bytes(data[start : start + id_length]).decode()
    except UnicodeDecodeError as error:
        raise _damaged(path, offset) from error
    return name, start + id_length, end


def walk(path: Path, data: Bytes, *, check: bool) -> Iterator[tuple[str, int, int]]:
    """Id, beginning and end of every record of a shard, in the order they were written.

    Raises:
        SignalStoreError: as `record_span`.
    """
    offset = SHARD_HEAD
    while offset < len(data):
        name, _, end = record_span(path, data, offset, check=check)
        yield name, offset, end
        offset = end


def is_torn(data: Bytes, offset: int) -> bool:
    """Whether what begins here is a record that was cut off, rather than one that was changed."""
    head = _RECORD.size
    return offset + head > len(data) or offset + head + _RECORD.unpack_from(data, offset)[1] > len(data)


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"shard-{number:05d}"


def shard_paths(folder: Path) -> list[Path]:
    """All shards in order."""
    return sorted(folder.glob("shard-*"))


def shard_head(header: StoreHeader, number: int) -> bytes:
    """The first bytes of a shard: which one it is, and of which store."""
    facts = struct.pack("<8s16sI", _MAGIC, fingerprint(header.facts()).encode(), number)
    return facts + struct.pack("<I", zlib.crc32(facts))


def check_shard_head(path: Path, data: Bytes, header: StoreHeader, number: int) -> None:
    """Refuse a shard that is not the one its name says.

    Raises:
        SignalStoreError: it is another one, of another store, or damaged.
    """
    expected = shard_head(header, number)
    if data[:SHARD_HEAD] == expected:
        return
    if len(data) >= SHARD_HEAD:
        magic, key, found, checksum = _SHARD.unpack_from(data)
        if magic == _MAGIC and checksum == zlib.crc32(data[: SHARD_HEAD - 4]):
            what = f"is shard {found}" if key == expected[8:24] else "belongs to another store"
            raise SignalStoreError(f"{path} {what}; shard {number} of this store was expected. {WAY_OUT}")
    raise SignalStoreError(f"{path} is damaged at its beginning. {WAY_OUT}")


def write_facts(place: Path, facts: Mapping[str, Any]) -> None:
    """JSON with a checksum of its own, written atomically."""
    text = json.dumps({**facts, "checksum": fingerprint(facts)}, indent=1)
    with whole(place) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read_facts(place: Path) -> dict[str, Any]:
    """The inverse of `write_facts`.

    Raises:
        SignalStoreError: its checksum does not hold.
    """
    try:
        facts = json.loads(place.read_text(encoding="utf-8"))
        checksum = facts.pop("checksum", None)
    except (ValueError, AttributeError, TypeError) as error:
        raise SignalStoreError(f"{place} is damaged: {error}. {WAY_OUT}") from error
    if checksum != fingerprint(facts):
        raise SignalStoreError(f"{place} is damaged: its checksum does not hold. {WAY_OUT}")
    return facts


def read_header(folder: Path) -> StoreHeader:
    """The header of a store.

    Raises:
        SignalStoreError: there is no store, it is damaged, or of another format.
    """
    place = folder / "header.json"
    if not place.exists():
        raise SignalStoreError(f"{folder} is no signal store: it has no header.json. `stillhouse score` makes one.")
    facts = read_facts(place)
    if facts.pop("format") != FORMAT or (facts.pop("kind"), facts.pop("tail")) != ("top_k", "bucket"):
        raise SignalStoreError(
            f"{place} is of a format that this version does not read ({FORMAT} is the one it does). Score again, or "
            "use the version that wrote it."
        )
    return StoreHeader(**facts)


def _damaged(path: Path, offset: int) -> SignalStoreError:
    return SignalStoreError(f"{path} is damaged at byte {offset}. {WAY_OUT}")
