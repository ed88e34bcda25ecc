"""Where condensing starts: real rows of each class, at random or the medoids of k-means.

Shapes: N real rows, R condensed rows, T places, D width, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch import Tensor

from stillhouse.condensation.base import Real, Start
from stillhouse.errors import DataError


def start_rows(real: Real, per_class: int, start: Start, seed: int) -> Tensor:
    """Rows of each class, class after class, [R].

    Raises:
        DataError: no rows, or a class smaller than its budget.
    """
    if not len(real.classes_N):
        raise DataError("There are no rows to condense. Look at the step before this one.")
    chosen = []
    for number, rows in enumerate(rows_of_classes(real)):
        if len(rows) < per_class:
            raise DataError(
                f"Class {number} has {len(rows)} rows, and {per_class} a class were asked for. Lower per_class, or "
                "give more rows of that class."
            )
        rng = np.random.default_rng([seed, number])
        pick = _medoids(real, rows, per_class, rng) if start == "medoids" else rng.choice(rows, per_class, False)
        chosen.append(torch.as_tensor(pick))
    return torch.cat(chosen)


def rows_of_classes(real: Real) -> list[NDArray[np.int64]]:
    """Of each class its rows; a class is a column of the labels."""
    classes = real.classes_N.numpy()
    return [np.flatnonzero(classes == number) for number in range(real.labels_NC.shape[1])]


def _medoids(real: Real, rows: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The rows nearest to the means of clusters of the rows' mean vectors, each row once."""
    mask = real.mask_NT[rows].double()
    vectors = ((real.inputs_NTD[rows] * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)).numpy()
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    means = KMeans(count, n_init=1, random_state=int(rng.integers(2**31))).fit(vectors).cluster_centers_
    distance = (means**2).sum(1)[None] - 2 * vectors @ means.T  # squared, but for a constant of each row
    chosen: list[int] = []
    for number in range(count):
        distance[chosen, number] = np.inf
        chosen.append(int(distance[:, number].argmin()))
    return rows[chosen]
