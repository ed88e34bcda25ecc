"""What the draws of the study of coresets say together: means, and differences paired by draw and held-out row.

Shapes: S draws (seeds), K cells of a draw, E held-out rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillhouse.replicates import difference, mean_over_seeds
from stillhouse.statistics import FloatArray, Measurement
from stillhouse.studies._coreset_draw import FULL, RANDOM

HERDING = "herding"


class Key(NamedTuple):
    """Which cell."""

    selector: str
    weighted: bool
    labels: str
    student: str
    budget: int


def key_of(cell: Mapping[str, Any]) -> Key:
    """Of a cell as a draw writes it."""
    return Key(*(cell[field] for field in Key._fields))


def summarize(
    draws: Sequence[Mapping[str, Any]], hits_SKE: Sequence[NDArray[np.bool_]], ids: Sequence[str]
) -> list[dict[str, Any]]:
    """Every cell as plain data.

    A cell has its accuracy over draws; `retention`, its share of the accuracy of the same student on all rows of the
    draw with the same labels; its bytes; and how much better it is than random, than herding, than the same rows with
    hard labels, and than random at the same number of bytes. Comparisons that mean nothing for a cell are left out.
    """
    right: dict[Key, list[FloatArray]] = {}
    size: dict[Key, list[tuple[int, int]]] = {}
    for found, hits_KE in zip(draws, hits_SKE, strict=True):
        for cell, hits_E in zip(found["cells"], hits_KE, strict=True):
            right.setdefault(key_of(cell), []).append(hits_E.astype(np.float64))
            size.setdefault(key_of(cell), []).append((cell["text_bytes"], cell["label_bytes"]))
    return [_cell(key, right, size, ids) for key in right]


def _cell(
    key: Key,
    right: Mapping[Key, Sequence[FloatArray]],
    size: Mapping[Key, Sequence[tuple[int, int]]],
    ids: Sequence[str],
) -> dict[str, Any]:
    own = right[key]
    accuracy_S = [float(hits_E.mean()) for hits_E in own]
    whole_S = [float(hits_E.mean()) for hits_E in right[key._replace(selector=FULL, weighted=False, budget=0)]]
    text, label = np.mean(size[key], axis=0).tolist()
    cell = {
        **key._asdict(),
        "accuracy": asdict(mean_over_seeds(accuracy_S)),
        "retention": asdict(mean_over_seeds([a / w for a, w in zip(accuracy_S, whole_S, strict=True)])),
        "text_bytes": text,
        "label_bytes": label,
    }
    others = {
        "against_random": key._replace(selector=RANDOM, weighted=False),
        "against_herding": key._replace(selector=HERDING, weighted=False),
        "against_hard": key._replace(labels="hard"),
    }
    for name, other in others.items():
        if other != key and other in right and key.selector != FULL:
            cell[name] = _difference(own, right[other], ids)
    if key.selector not in (FULL, RANDOM):
        matched = _random_at_bytes(key, right, size)
        if matched is not None:
            cell["against_random_at_equal_bytes"] = _difference(own, matched, ids)
    return cell


def _difference(ones: Sequence[FloatArray], others: Sequence[FloatArray], ids: Sequence[str]) -> dict[str, Any]:
    both = ([_measured(hits_E, ids) for hits_E in hits] for hits in (ones, others))
    return asdict(difference(*both))


def _measured(hits_E: FloatArray, ids: Sequence[str]) -> Measurement:
    return Measurement(tuple(ids), np.stack([hits_E, np.ones_like(hits_E)], axis=1))


def _random_at_bytes(
    key: Key, right: Mapping[Key, Sequence[FloatArray]], size: Mapping[Key, Sequence[tuple[int, int]]]
) -> list[FloatArray] | None:
    """What random choice scores on each held-out row with as many bytes, between two of its budgets by the logarithm;
    None where some draw's bytes lie beyond its budgets."""
    budgets = sorted(
        other.budget for other in right if other == key._replace(selector=RANDOM, weighted=False, budget=other.budget)
    )
    found = []
    for draw, (text, label) in enumerate(size[key]):
        rivals = [key._replace(selector=RANDOM, weighted=False, budget=budget) for budget in budgets]
        bytes_B = np.log([sum(size[rival][draw]) for rival in rivals])
        wanted = np.log(text + label)
        if len(rivals) < 2 or not bytes_B[0] <= wanted <= bytes_B[-1]:
            return None
        above = min(max(1, int(np.searchsorted(bytes_B, wanted))), len(rivals) - 1)
        share = (wanted - bytes_B[above - 1]) / (bytes_B[above] - bytes_B[above - 1])
        low_E, high_E = (right[rival][draw] for rival in (rivals[above - 1], rivals[above]))
        found.append((1 - share) * low_E + share * high_E)
    return found
