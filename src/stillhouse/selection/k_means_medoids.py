"""k-means medoids: of each k-means cluster the real row nearest its centre, with the cluster's size as its weight.

Shapes: N examples, D the width of a vector, K clusters.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning

from stillhouse.features.base import Matrix
from stillhouse.selection._distances import blocks, squared_norms
from stillhouse.selection.base import Picked, VectorSelector

_LARGE = 100_000


@dataclass(frozen=True, kw_only=True)
class KMeansMedoids(VectorSelector):
    """k-means (Lloyd 1982; k-means++, Arthur and Vassilvitskii 2007), then real rows.

    Of more than 100 000 rows the centres are found on mini-batches (Sculley 2010). Largest cluster first; a row's
    score is minus its distance to its centre. Where rows repeat, so that clusters are empty, the largest clusters give
    further rows, those nearest their centres, and the rows of a cluster share its weight; the weights sum to N.

    >>> line = np.array([[0.0], [1], [2], [9], [10]], np.float32)
    >>> picked = KMeansMedoids(budget=2).pick(line, 2, np.random.default_rng(0))
    >>> picked.rows.tolist(), picked.weights.tolist()
    ([1, 3], [3.0, 2.0])
    """

    reason: ClassVar[str] = "nearest the centre of its cluster"

    def pick(self, vectors_ND: Matrix, count: int, rng: np.random.Generator) -> Picked:
        """One row a cluster, or more where clusters are empty."""
        labels_N, away_N = self._clusters(vectors_ND, count, int(rng.integers(2**31)))
        sizes_K = np.bincount(labels_N, minlength=count)
        quota_K = _rows_of_each(sizes_K, count)
        # Sorted by cluster, then by distance; the first rows of each cluster are its medoids.
        order = np.lexsort((np.arange(len(labels_N)), away_N, labels_N))
        begins_K = np.cumsum(sizes_K) - sizes_K
        largest_first = np.argsort(-sizes_K, kind="stable")
        rows = np.concatenate([order[begins_K[k] : begins_K[k] + quota_K[k]] for k in largest_first])
        weights = sizes_K[labels_N[rows]] / quota_K[labels_N[rows]]
        return Picked(rows, weights, -away_N[rows].astype(np.float64))

    def _clusters(self, vectors_ND: Matrix, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each row its cluster, and its distance to the cluster's centre."""
        large = len(vectors_ND) > _LARGE
        kind = MiniBatchKMeans(count, random_state=seed, n_init=1, batch_size=max(4096, 4 * count)) if large else None
        with warnings.catch_warnings():
            # Fewer different rows than clusters: `pick` shares the rows out.
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = (kind or KMeans(count, random_state=seed, n_init=1)).fit(vectors_ND)
        labels_N = found.labels_.astype(np.int64)
        away_N = np.empty(len(vectors_ND), np.float32)
        for part in blocks(len(vectors_ND), 4 * vectors_ND.shape[1]):
            away_N[part] = np.sqrt(squared_norms(vectors_ND[part] - found.cluster_centers_[labels_N[part]]))
        return labels_N, away_N


def _rows_of_each(sizes_K: np.ndarray, count: int) -> np.ndarray:
    """How many rows each cluster gives: one, none where it is empty, more where the rest is due to it."""
    quota_K = (sizes_K > 0).astype(np.int64)
    while quota_K.sum() < count:
        quota_K[np.argmax(np.where(quota_K < sizes_K, sizes_K / np.maximum(quota_K, 1), -1))] += 1
    return quota_K
