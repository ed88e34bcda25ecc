"""Alike in words: near-duplicates by MinHash, every candidate pair verified by its exact Jaccard similarity.

Shapes: M rows, best first; P hash functions; G buckets that several rows share, E memberships in them.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import MissingExtraError
from stillhouse.features.base import text_of
from stillhouse.records import Example
from stillhouse.selection._leaders import Found, Rows
from stillhouse.selection._text import runs_of_words

_FUNCTIONS, _SEED = 128, 1
_RECALL = 0.99
"""The probability with which a pair that is just alike enough becomes a candidate."""
_CROWD = 64
"""Leaders of one bucket that a row is compared with; a bucket with more holds what many rows share, not duplicates."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class _Buckets(NamedTuple):
    """Which rows share a band of their signatures.

    Attributes:
        starts_G: where a bucket's rows start among all memberships.
        shared_E: the buckets of the first row that shares any, then those of the next.
        rows: the rows that share any, best first.
        ends: where each of them has its last bucket.
    """

    starts_G: Rows
    shared_E: Rows
    rows: Rows
    ends: Rows


class MinHash:
    """Rows as sets of runs of words, alike by what they share of them (Broder 1997); MinHash finds who may be.

    Signatures stay in memory, 512 bytes a row; the runs themselves wait on disk until a pair is verified.
    """

    lowest = 0.2

    def __init__(self, examples: Sequence[Example], rows_M: Rows, length: int) -> None:
        """The rows `rows_M` of all examples, best first, as runs of `length` words.

        Raises:
            MissingExtraError: rensa is not installed.
        """
        if find_spec("rensa") is None:
            raise MissingExtraError(
                'deduplicate with how: minhash needs rensa, which is not installed: pip install "stillhouse[data]"'
            )
        rensa: Any = import_module("rensa")

        self._signatures_MP = np.empty((len(rows_M), _FUNCTIONS), np.uint32)
        self._places_M = np.argsort(rows_M, kind="stable")
        self._rank_M = np.argsort(self._places_M, kind="stable")
        wanted_N = np.zeros(len(examples), bool)
        wanted_N[rows_M] = True
        texts = (text_of(example) for example, wanted in zip(examples, wanted_N, strict=True) if wanted)
        ends, done = [np.zeros(1, np.int64)], 0
        with tempfile.TemporaryFile() as spill:
            for block in runs_of_words(texts, length):
                offsets = np.concatenate([[0], block.ends]).astype(np.uint64)
                signed = rensa.RMinHash.digest_matrix_from_flat_token_hashes(block.hashes_S, offsets, _FUNCTIONS, _SEED)
                size = len(block.ends)
                values = np.fromiter(chain.from_iterable(signed.to_rows()), np.uint32, size * _FUNCTIONS)
                self._signatures_MP[self._places_M[done : done + size]] = values.reshape(size, _FUNCTIONS)
                ends.append(block.ends + ends[-1][-1])
                done += size
                spill.write(block.hashes_S.tobytes())
            spill.flush()
            self._ends = np.concatenate(ends)
            some = self._ends[-1] > 0
            self._runs = np.memmap(spill, np.uint64, mode="r") if some else np.zeros(0, np.uint64)

    def __len__(self) -> int:
        return len(self._rank_M)

    def at(self, threshold: float) -> Found:
        """Leaders and followers: of the rows that share a bucket, those with this Jaccard similarity are alike."""
        buckets = self._buckets(threshold)
        leaders_M = np.arange(len(self))
        leading_E = np.empty(len(buckets.shared_E), np.int64)
        filled_G = np.zeros(len(buckets.starts_G), np.int64)
        notes = Counter[str]()
        for row, (start, end) in zip(buckets.rows.tolist(), pairwise([0, *buckets.ends.tolist()]), strict=True):
            mine = buckets.shared_E[start:end]
            met = mine[filled_G[mine] > 0]
            if len(met):
                places = buckets.starts_G[met]
                found = [leading_E[at : at + n] for at, n in zip(places, filled_G[met], strict=True)]
                candidates = np.unique(np.concatenate(found))
                alike = self._jaccard(row, candidates)
                notes["candidate pairs by MinHash"] += len(candidates)
                notes["pairs verified by their exact similarity"] += int((alike >= threshold).sum())
                best = int(alike.argmax())  # the better of equally alike ones
                if alike[best] >= threshold:
                    leaders_M[row] = candidates[best]
                    continue
            open_ = mine[filled_G[mine] < _CROWD]
            leading_E[buckets.starts_G[open_] + filled_G[open_]] = row
            filled_G[open_] += 1
            if len(open_) < len(mine):
                notes[f"rows in buckets so crowded that only {_CROWD} others of each were looked at"] += 1
        return Found(leaders_M, notes)

    def _buckets(self, threshold: float) -> _Buckets:
        width = _width(threshold)
        rows, starts, count = list[Rows](), list[Rows](), 0
        for first in range(0, _FUNCTIONS - width + 1, width):
            keys_M = self._keys(first, width)
            order_M = np.argsort(keys_M, kind="stable")
            sorted_M = keys_M[order_M]
            edges = np.flatnonzero(np.concatenate([[True], sorted_M[1:] != sorted_M[:-1], [True]]))
            sizes = np.diff(edges)
            shared = sizes > 1
            members = order_M[np.repeat(shared, sizes)]
            begins = np.cumsum(sizes[shared]) - sizes[shared]
            rows.append(members)
            starts.append(begins + count)
            count += len(members)
        rows_E, starts_G = np.concatenate(rows), np.concatenate(starts)
        buckets_E = np.repeat(np.arange(len(starts_G)), np.diff(np.append(starts_G, count)))
        by_row_E = np.argsort(rows_E, kind="stable")
        who, sizes = np.unique(rows_E, return_counts=True)
        return _Buckets(starts_G, buckets_E[by_row_E], who, np.cumsum(sizes))

    def _keys(self, first: int, width: int) -> NDArray[np.uint64]:
        """One number for the values of a band; two bands that meet in it by chance are told apart when verified."""
        keys_M = np.zeros(len(self), np.uint64)
        for column in range(first, first + width):
            keys_M = (keys_M ^ (keys_M >> np.uint64(31))) * _FACTOR + self._signatures_MP[:, column]
        return keys_M

    def _jaccard(self, row: int, others: Rows) -> NDArray[np.float64]:
        mine = self._set(row)
        found = np.zeros(len(others))
        for place, other in enumerate(others.tolist()):
            theirs = self._set(other)
            both = len(mine & theirs)
            found[place] = both / max(1, len(mine) + len(theirs) - both)
        return found

    def _set(self, row: int) -> set[int]:
        place = self._rank_M[row]
        return set(self._runs[self._ends[place] : self._ends[place + 1]].tolist())


def _width(threshold: float) -> int:
    """The most values a band that lets a pair which is just alike enough become a candidate often enough."""
    for width in range(_FUNCTIONS, 1, -1):
        if 1 - (1 - threshold**width) ** (_FUNCTIONS // width) >= _RECALL:
            return width
    return 1
