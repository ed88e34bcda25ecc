"""Vectors on disk: computed once for a data set, found again by whoever asks for the same ones.

A table is a NumPy file named after the fingerprint of the features' settings, the examples and the bench; it appears
whole or not at all, and is read memory-mapped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stillhouse.errors import DataError
from stillhouse.features.base import FeatureBench, Features, Matrix
from stillhouse.records import Example, fingerprint, whole


def tabulate(features: Features, examples: Sequence[Example], bench: FeatureBench, store: Path | None) -> Matrix:
    """The vectors of all examples, [N, D]: from the store where they are there, else computed and stored.

    Raises:
        DataError: a vector that is not finite, named by its example.
    """
    if store is None:
        return _finite(features, features.compute(examples, bench), examples, 0)
    place = store / f"{_key(features, examples, bench)}.npy"
    if not place.exists():
        _write(features, examples, bench, place)
    return np.load(place, mmap_mode="r", allow_pickle=False)


def _write(features: Features, examples: Sequence[Example], bench: FeatureBench, place: Path) -> None:
    with whole(place) as partial:
        table: np.memmap | None = None
        start = 0
        for block in features.blocks(examples, bench):
            if table is None:
                shape = (len(examples), block.shape[1])
                table = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
            table[start : start + len(block)] = _finite(features, block, examples, start)
            start += len(block)
        if table is None or start != len(examples):
            raise DataError(f"{features!r} made {start} vectors of {len(examples)} examples.")
        table.flush()


def _finite(features: Features, vectors_ND: Matrix, examples: Sequence[Example], start: int) -> Matrix:
    wrong = ~np.isfinite(vectors_ND).all(axis=1)
    if wrong.any():
        name = examples[start + int(wrong.argmax())].id
        raise DataError(
            f"{type(features).__name__} gives example {name!r} a vector with NaN or infinity, and {int(wrong.sum())} "
            "such vectors in all. Look at that example, or use other features."
        )
    return vectors_ND


def _key(features: Features, examples: Sequence[Example], bench: FeatureBench) -> str:
    data = hashlib.sha256()
    for example in examples:
        data.update(example.to_json().encode())
        data.update(b"\n")
    about = None if features.of_text else bench.identity
    return fingerprint([repr(features), data.hexdigest(), about])
