"""Rendered examples on disk, memory-mapped: a data set of any size as a sequence of `Rendered`.

    tokens        of every example its inputs and the token after the last, so that the targets are the shift
    marks         of every target its role, and in the highest bit whether it is trained
    names         ids as UTF-8, one after another
    index         of every example where the three begin, its length, its size and its weight
    header.json   what was rendered how, what happened on the way, and the hash of each file above

The folder is a cache of what the `Renderer` says (contract C1) and appears whole or not at all; one that does not fit
the data or the renderer, or is damaged, is made again.
"""

from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from stillhouse.data.rendering import Rendered, Renderer
from stillhouse.errors import RunError
from stillhouse.records import Example, fingerprint, fingerprint_file, read_examples, whole

FORMAT = 2
"""Raised whenever the files, or what the renderer makes of an example, change."""

_INDEX = np.dtype(
    [
        ("start", "<i8"),
        ("name", "<i8"),
        ("size", "<i8"),
        ("length", "<i4"),
        ("name_length", "<i4"),
        ("weight", "<f8"),
    ]
)
_FILES: dict[str, np.dtype[Any]] = {
    "tokens": np.dtype("<i4"),
    "marks": np.dtype("u1"),
    "names": np.dtype("u1"),
    "index": _INDEX,
}
_TRAINED = 0x80

BYTES_PER_TOKEN = _FILES["tokens"].itemsize + _FILES["marks"].itemsize


class TokenFile(Sequence[Rendered]):
    """A data set as tokens; one example is read from disk when it is asked for. `open_tokens` makes one.

    Attributes:
        lengths: tokens of each example, in order; no example is built for it.
        weights: how many examples each stands for, likewise.
        notices: what happened while rendering, as `Renderer.notices`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = json.loads((folder / "header.json").read_text(encoding="utf-8"))
        self.notices: Counter[str] = Counter(facts["notices"])
        self._tokens, self._marks, self._names, self._index = (
            _map(folder / name, dtype) for name, dtype in _FILES.items()
        )
        self.lengths: NDArray[np.int32] = np.ascontiguousarray(self._index["length"])
        self.weights: NDArray[np.float64] = np.ascontiguousarray(self._index["weight"])

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, place: int) -> Rendered: ...
    @overload
    def __getitem__(self, place: slice) -> list[Rendered]: ...
    def __getitem__(self, place: int | slice) -> Rendered | list[Rendered]:
        chosen = range(len(self))[place]
        return self._build(chosen) if isinstance(chosen, int) else [self._build(i) for i in chosen]

    def _build(self, i: int) -> Rendered:
        start, name, size, length, name_length, weight = self._index[i].item()
        tokens = self._tokens[start + i : start + i + length + 1].tolist()  # every example before has one token more
        marks = self._marks[start : start + length]
        return Rendered(
            id=self._names[name : name + name_length].tobytes().decode(),
            tokens=tokens[:-1],
            targets=tokens[1:],
            trained=(marks >= _TRAINED).tolist(),
            role=(marks & ~np.uint8(_TRAINED)).tolist(),
            size=size,
            weight=weight,
        )


def lengths(rendered: Sequence[Rendered]) -> NDArray[np.int32]:
    """Tokens of each example, in order; of a `TokenFile` without reading one."""
    if isinstance(rendered, TokenFile):
        return rendered.lengths
    return np.fromiter((len(r.tokens) for r in rendered), np.int32, len(rendered))


def weights(rendered: Sequence[Rendered]) -> NDArray[np.float64]:
    """How many examples each stands for, in order; of a `TokenFile` without reading one."""
    if isinstance(rendered, TokenFile):
        return rendered.weights
    return np.fromiter((r.weight for r in rendered), np.float64, len(rendered))


def open_tokens(
    folder: Path,
    data: Path,
    renderer: Renderer,
    read: Callable[[Path], Iterable[Example]] = read_examples,
) -> TokenFile:
    """The tokens of a data file: those in `folder` if they were made of this data by such a renderer, else made now.

    Args:
        folder: where they lie; whatever else is there is replaced.
        data: examples as `write_examples` writes them.
        renderer: its own notices are left alone.
        read: how the examples are read.

    Raises:
        DataError: as `Renderer.render`.
        RunError: the disk is full.
    """
    made_of = {"data": fingerprint_file(data), **renderer.identity()}
    if not _fits(folder, made_of):
        fresh = replace(renderer, notices=Counter())
        write_tokens(folder, fresh.stream(read(data)), made_of, fresh.notices)
    return TokenFile(folder)


def write_tokens(
    folder: Path, rendered: Iterable[Rendered], made_of: Mapping[str, Any], notices: Mapping[str, int]
) -> None:
    """Write a token folder, one example in memory at a time; a reader sees the old one or the new one.

    Args:
        folder: replaced if it exists.
        rendered: what the renderer gives.
        made_of: what the tokens are known by.
        notices: read when `rendered` has ended.

    Raises:
        RunError: the disk is full.
        ValueError: an example whose targets are not the tokens that follow.
    """
    try:
        with whole(folder) as partial:
            partial.mkdir()
            _write_files(partial, rendered)
            files = {name: fingerprint_file(partial / name) for name in _FILES}
            facts = {"format": FORMAT, "made_of": dict(made_of), "notices": dict(notices), "files": files}
            header = json.dumps({**facts, "checksum": fingerprint(facts)}, indent=1, ensure_ascii=False)
            (partial / "header.json").write_text(header + "\n", encoding="utf-8")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise RunError(
            f"The disk is full at {folder}. Tokens take {BYTES_PER_TOKEN} bytes each; free some space and give the "
            "same command again."
        ) from error


def _write_files(folder: Path, rendered: Iterable[Rendered]) -> None:
    with ExitStack() as stack:
        tokens, marks, names, index = (stack.enter_context((folder / name).open("wb")) for name in _FILES)
        start = name_start = 0
        for example in rendered:
            if example.tokens[1:] != example.targets[:-1]:
                raise ValueError(f"example {example.id!r} has targets that are not the tokens that follow")
            name, length = example.id.encode(), len(example.tokens)
            trained, role = np.array(example.trained, np.uint8), np.array(example.role, np.uint8)
            tokens.write(np.array([*example.tokens, example.targets[-1]], _FILES["tokens"]).tobytes())
            marks.write((role | trained * np.uint8(_TRAINED)).tobytes())
            names.write(name)
            facts = (start, name_start, example.size, length, len(name), example.weight)
            index.write(np.array(facts, _INDEX).tobytes())
            start, name_start = start + length, name_start + len(name)


def _fits(folder: Path, made_of: Mapping[str, Any]) -> bool:
    """Whether a folder holds the tokens of this data by this renderer, whole and unchanged."""
    try:
        facts = json.loads((folder / "header.json").read_text(encoding="utf-8"))
        checksum = facts.pop("checksum")
        return (
            checksum == fingerprint(facts)
            and facts["format"] == FORMAT
            and facts["made_of"] == made_of
            and facts["files"] == {name: fingerprint_file(folder / name) for name in _FILES}
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, or whatever damage makes of it
        return False


def _map(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A file in memory when it is looked at; an empty one cannot be mapped."""
    return np.asarray(np.memmap(path, dtype, "r")) if path.stat().st_size else np.empty(0, dtype)
