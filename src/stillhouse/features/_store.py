"""Vectors on disk: computed once for a data set, found again by whoever asks for the same ones.

    vectors.npy   a NumPy file of float32, [N, D], read memory-mapped
    about.json    whose vectors they are, for a person to read, and the hash of the file above

A table is a folder named after the fingerprint of the features' settings, the examples and the bench. It is a cache: it
appears whole or not at all, and one that is damaged is made again.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stillhouse.errors import RunError
from stillhouse.features.base import FeatureBench, Features, Matrix, checked
from stillhouse.records import Example, fingerprint, fingerprint_file, whole

FORMAT = 1
"""Raised whenever the files, or what features make of an example, change."""

_VECTORS, _ABOUT = "vectors.npy", "about.json"


def tabulate(features: Features, examples: Sequence[Example], bench: FeatureBench, store: Path | None) -> Matrix:
    """The vectors of all examples, [N, D]: from the store where they are there, else computed and stored.

    Raises:
        NeedsError, DataError: as `Features.compute`.
        RunError: the disk is full.
    """
    if store is None or not len(examples):
        return features.compute(examples, bench)
    folder = store / _key(features, examples, bench)
    if not _fits(folder):
        try:
            _write(features, examples, bench, folder)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise RunError(
                f"The disk is full at {folder}. A vector takes 4 bytes a dimension; free some space, use fewer "
                "dimensions, and give the same command again."
            ) from error
    return np.load(folder / _VECTORS, mmap_mode="r", allow_pickle=False)


def _write(features: Features, examples: Sequence[Example], bench: FeatureBench, folder: Path) -> None:
    with whole(folder) as partial:
        partial.mkdir()
        shape = (0, 0)
        # Written, not memory-mapped: a full disk is an error of write(), but kills a process that writes to a mapping.
        with (partial / _VECTORS).open("wb") as stream:
            for block in checked(features, examples, bench):
                if not shape[0]:
                    shape = (len(examples), block.shape[1])
                    facts = {"descr": "<f4", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(stream, facts)
                stream.write(np.ascontiguousarray(block, "<f4").data)
        about = {"format": FORMAT, "features": repr(features), "shape": shape}
        about["sha256"] = fingerprint_file(partial / _VECTORS)
        (partial / _ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _fits(folder: Path) -> bool:
    """Whether a folder holds a table, whole and unchanged."""
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        return about["sha256"] == fingerprint_file(folder / _VECTORS)
    except (OSError, ValueError, KeyError, TypeError):  # not there, or whatever damage makes of it
        return False


def _key(features: Features, examples: Sequence[Example], bench: FeatureBench) -> str:
    data = hashlib.sha256()
    for example in examples:
        data.update(example.to_json().encode("utf-8", "surrogatepass"))
        data.update(b"\n")
    about = None if features.of_text else bench.identity
    return fingerprint([FORMAT, features.identity(), data.hexdigest(), about])
