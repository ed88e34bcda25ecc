"""Selectors of vectors against what can be worked out by hand or by brute force."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import nnls

from stillhouse.errors import DataError
from stillhouse.features.base import Features, Matrix
from stillhouse.records import Example
from stillhouse.selection import k_center, k_means_medoids, kernel_herding
from stillhouse.selection._distances import blocks, squared_distances, squared_norms
from stillhouse.selection.base import Picked, SelectionBench, VectorSelector
from stillhouse.selection.facility_location import FacilityLocation
from stillhouse.selection.gradient_match import GradientMatch
from stillhouse.selection.herding import Herding
from stillhouse.selection.k_center import KCenter
from stillhouse.selection.k_means_medoids import KMeansMedoids
from stillhouse.selection.kernel_herding import KernelHerding

SELECTORS = [Herding, KernelHerding, KMeansMedoids, KCenter, FacilityLocation, GradientMatch]
WEIGHTED = [KMeansMedoids, FacilityLocation, GradientMatch]
SEEDS = range(12)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def cloud(rows: int, width: int, seed: int = 0) -> Matrix:
    return rng(seed).standard_normal((rows, width)).astype(np.float32)


def topics(rows: int, width: int, seed: int = 0) -> Matrix:
    """Unit vectors around a few directions, as texts are."""
    draws = rng(seed)
    found = draws.standard_normal((6, width))[draws.integers(6, size=rows)] + draws.standard_normal((rows, width))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def pick(selector: type[VectorSelector], vectors: Matrix, count: int, **options: object) -> Picked:
    return selector(budget=count, **options).pick(vectors, count, rng())


# What holds for all of them.


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize(
    ("vectors", "count"),
    [
        (cloud(40, 5), 1),
        (cloud(40, 5), 13),
        (cloud(40, 5), 40),
        (cloud(1, 3), 1),
        (np.ones((9, 3), np.float32), 4),
        (np.ones((9, 3), np.float32), 9),
        (np.ones((60, 3), np.float32), 59),
        (np.zeros((9, 3), np.float32), 4),
        (np.repeat(cloud(3, 2), 5, axis=0), 8),
        (cloud(12, 1), 7),
    ],
    ids=["one", "some", "all", "one-row", "alike", "all-alike", "many-alike", "zeros", "repeated", "thin"],
)
def test_as_many_different_rows_as_the_budget(selector: type[VectorSelector], vectors: Matrix, count: int) -> None:
    before = vectors.copy()
    first, second = (pick(selector, vectors, count) for _ in range(2))
    assert len(set(first.rows.tolist())) == count
    assert set(first.rows.tolist()) <= set(range(len(vectors)))
    for one, other in zip(first, second, strict=True):
        assert (one is None) == (other is None)
        assert one is None or one.tobytes() == other.tobytes()
    assert (vectors == before).all()
    if selector in WEIGHTED:
        assert first.weights is not None
        assert first.weights.sum() == pytest.approx(len(vectors))
        assert (first.weights >= 0).all()


@pytest.mark.parametrize("selector", [Herding, KernelHerding, KCenter, FacilityLocation, GradientMatch])
def test_the_order_of_the_rows_does_not_matter(selector: type[VectorSelector]) -> None:
    vectors, order = cloud(60, 6), rng(1).permutation(60)
    plain, shuffled = pick(selector, vectors, 9), pick(selector, vectors[order], 9)
    assert order[shuffled.rows].tolist() == plain.rows.tolist()


@pytest.mark.parametrize("selector", [Herding, KernelHerding, KCenter, FacilityLocation])
def test_a_smaller_budget_is_a_prefix(selector: type[VectorSelector]) -> None:
    vectors = topics(150, 6)
    assert pick(selector, vectors, 7).rows.tolist() == pick(selector, vectors, 90).rows[:7].tolist()


class Given(Features):
    """Vectors as they stand in the examples' texts."""

    def blocks(self, examples: object, bench: object) -> Iterator[Matrix]:
        yield np.array([[float(word) for word in example.text.split()] for example in examples], np.float32)


@pytest.mark.parametrize("selector", SELECTORS)
def test_groups_are_served_alike(selector: type[VectorSelector]) -> None:
    rows = [
        Example(id=str(place), text=" ".join(map(str, vector)), meta={"kind": "ab"[place % 3 == 0]})
        for place, vector in enumerate(cloud(30, 3).tolist())
    ]
    chosen = list(selector(budget=8, by="kind", features=Given()).select(rows))
    assert [example.meta["kind"] for example in chosen].count("a") == 4
    assert len({example.id for example in chosen}) == 8


# Herding.


@pytest.mark.parametrize("seed", SEEDS)
def test_herding_keeps_the_mean_better_than_chance(seed: int) -> None:
    vectors = cloud(300, 8, seed)
    mean = vectors.mean(axis=0)
    errors = -pick(Herding, vectors, 60).scores
    chance = [
        np.mean([np.linalg.norm(vectors[rng(s).permutation(300)[:k]].mean(axis=0) - mean) for s in range(20)])
        for k in (10, 30, 60)
    ]
    assert (errors[[9, 29, 59]] < 0.3 * np.array(chance)).all()
    assert errors[9] > errors[29] > errors[59]


def test_herding_chooses_as_the_formula_says() -> None:
    vectors = cloud(25, 4)
    chosen: list[int] = []
    for k in range(1, 11):
        left = {
            row: np.linalg.norm(vectors.mean(axis=0) - vectors[[*chosen, row]].sum(axis=0) / k)
            for row in range(25)
            if row not in chosen
        }
        chosen.append(min(left, key=left.__getitem__))
    assert pick(Herding, vectors, 10).rows.tolist() == chosen


# Kernel herding.


def kernel(vectors: Matrix, sharpness: float) -> np.ndarray:
    away = ((vectors[:, None].astype(np.float64) - vectors) ** 2).sum(axis=2)
    return np.exp(-sharpness * away / away.mean())


def discrepancy(similar: np.ndarray, rows: object, shares: np.ndarray) -> float:
    """Squared distance of two means in the kernel's space: of the chosen rows, and of all rows by their shares."""
    chosen = list(rows)
    own = similar[np.ix_(chosen, chosen)].mean()
    return float(own - 2 * (similar[chosen] @ shares).mean() + shares @ similar @ shares)


@pytest.mark.parametrize("trusted", [False, True])
def test_kernel_herding_chooses_as_the_formula_says(trusted: bool) -> None:
    vectors, trust = cloud(30, 4), rng(1).random(30) if trusted else np.ones(30)
    similar, shares = kernel(vectors, 2.0), trust**2 / (trust**2).sum()
    rows = [
        Example(id=str(place), text=" ".join(map(str, vector)), meta={"sure": float(sure)})
        for place, (vector, sure) in enumerate(zip(vectors.tolist(), trust, strict=True))
    ]
    selector = KernelHerding(budget=6, features=Given(), trust="sure" if trusted else None)
    chosen: list[int] = []
    for k in range(1, 7):
        # |sum of k rows - k means|², as herding: the last row counts by what it adds.
        left = {
            row: discrepancy(similar, [*chosen, row], shares)
            for row in range(30)
            if row not in chosen and trust[row] >= 0.5
        }
        chosen.append(min(left, key=left.__getitem__))
        assert k == len(chosen)
    assert selector.choose(rows, SelectionBench()).rows.tolist() == chosen


def test_kernel_herding_looks_at_a_sample_of_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = topics(600, 6)
    similar, shares = kernel(vectors, 2.0), np.full(600, 1 / 600)
    exact = discrepancy(similar, pick(KernelHerding, vectors, 20).rows, shares)
    monkeypatch.setattr(kernel_herding, "_LOOKED_AT", 200)
    sampled = discrepancy(similar, pick(KernelHerding, vectors, 20).rows, shares)
    chance = np.mean([discrepancy(similar, rng(s).permutation(600)[:20], shares) for s in range(20)])
    assert exact < sampled < 0.5 * chance


def test_trust_is_asked_of_every_row_and_is_a_probability() -> None:
    rows = [Example(id=str(place), text=f"{place} 1", meta={"sure": place / 4}) for place in range(5)]
    with pytest.raises(DataError, match=r"'3'.*no 'faith'"):
        KernelHerding(budget=1, features=Given(), trust="faith").choose(rows[3:], SelectionBench())
    with pytest.raises(DataError, match=r"3 rows.*trusts 0.5 or more.*is 2"):
        KernelHerding(budget=3, features=Given(), trust="sure").choose(rows[1:4], SelectionBench())
    rows[2].meta["sure"] = 1.5  # ty: ignore[invalid-assignment]
    with pytest.raises(DataError, match=r"'2'.*1.5.*0 to 1"):
        KernelHerding(budget=1, features=Given(), trust="sure").choose(rows, SelectionBench())


# k-center.


def radius(vectors: Matrix, rows: object) -> float:
    away = np.linalg.norm(vectors[:, None] - vectors[list(rows)], axis=2)
    return float(away.min(axis=1).max())


@given(
    points=arrays(np.int8, st.tuples(st.integers(4, 9), st.just(2)), elements=st.integers(-9, 9)),
    count=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_k_center_is_within_twice_the_best_radius(points: np.ndarray, count: int) -> None:
    vectors = points.astype(np.float32)
    best = min(radius(vectors, rows) for rows in combinations(range(len(vectors)), count))
    assert radius(vectors, pick(KCenter, vectors, count).rows) <= 2 * best + 1e-4


@pytest.mark.parametrize("candidates", [1, 7, 2000])
def test_k_center_takes_the_farthest_each_time(candidates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k_center, "_CANDIDATES", candidates)
    vectors = cloud(400, 5)
    picked = pick(KCenter, vectors, 120)
    chosen = [int(np.linalg.norm(vectors - vectors.mean(axis=0), axis=1).argmin())]
    nearest = np.linalg.norm(vectors - vectors[chosen[0]], axis=1)
    for score in picked.scores[1:]:
        chosen.append(int(nearest.argmax()))
        assert score == pytest.approx(nearest.max(), abs=1e-4)
        nearest = np.minimum(nearest, np.linalg.norm(vectors - vectors[chosen[-1]], axis=1))
    assert picked.rows.tolist() == chosen
    assert np.isnan(picked.scores[0])


# k-means medoids.


def test_medoids_stand_nearest_their_centres_and_weigh_what_is_around_them() -> None:
    vectors = np.concatenate([cloud(rows, 3, rows) * 0.1 + place for rows, place in [(30, 0), (20, 10), (10, 20)]])
    picked = pick(KMeansMedoids, vectors, 3)
    assert picked.weights.tolist() == [30, 20, 10]
    for row, (start, stop) in zip(picked.rows, [(0, 30), (30, 50), (50, 60)], strict=True):
        away = np.linalg.norm(vectors[start:stop] - vectors[start:stop].mean(axis=0), axis=1)
        assert row == start + away.argmin()


def test_medoids_of_equal_rows_share_their_weight() -> None:
    picked = pick(KMeansMedoids, np.array([[0.0]] * 6 + [[9.0]] * 2, np.float32), 4)
    assert sorted(zip(picked.rows.tolist(), picked.weights.tolist(), strict=True)) == [(0, 2), (1, 2), (2, 2), (6, 2)]


def test_medoids_of_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k_means_medoids, "_LARGE", 100)
    vectors = np.concatenate([cloud(200, 2) * 0.1, cloud(100, 2) * 0.1 + 9])
    assert pick(KMeansMedoids, vectors, 2).weights.tolist() == [200, 100]


# Facility location.


def similarities(vectors: Matrix, kind: str) -> np.ndarray:
    if kind == "cosine":
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.maximum(unit @ unit.T, 0)
    away = np.linalg.norm(vectors[:, None] - vectors, axis=2)
    return 2 * np.linalg.norm(vectors, axis=1).max() - away


def value(similar: np.ndarray, rows: object) -> float:
    return float(similar[list(rows)].max(axis=0).sum())


def greedy(similar: np.ndarray, count: int) -> list[int]:
    chosen: list[int] = []
    for _ in range(count):
        left = [row for row in range(len(similar)) if row not in chosen]
        chosen.append(max(left, key=lambda row: value(similar, [*chosen, row])))
    return chosen


@pytest.mark.parametrize("kind", ["cosine", "distance"])
@pytest.mark.parametrize("seed", SEEDS)
def test_facility_location_is_near_the_best(kind: str, seed: int) -> None:
    vectors = topics(11, 3, seed)
    similar = similarities(vectors, kind)
    rows = pick(FacilityLocation, vectors, 3, similarity=kind).rows
    best = max(value(similar, chosen) for chosen in combinations(range(11), 3))
    assert (1 - 1 / np.e) * best <= value(similar, rows) <= best + 1e-3


@pytest.mark.parametrize("kind", ["cosine", "distance"])
@pytest.mark.parametrize("count", [5, 90])
def test_facility_location_is_the_plain_greedy_choice(kind: str, count: int) -> None:
    vectors = topics(160, 8)
    similar = similarities(vectors, kind)
    picked = pick(FacilityLocation, vectors, count, similarity=kind)
    assert value(similar, picked.rows) == pytest.approx(value(similar, greedy(similar, count)), rel=1e-5)
    gains = np.diff([0, *(value(similar, picked.rows[: k + 1]) for k in range(count))])
    assert picked.scores == pytest.approx(gains, abs=1e-2)
    assert (np.diff(picked.scores) < 1e-3).all()
    nearest = similar[picked.rows].argmax(axis=0)
    assert picked.weights.tolist() == np.bincount(nearest, minlength=count).tolist()


def test_a_graph_of_all_neighbours_is_exact_and_of_few_is_near() -> None:
    vectors = topics(300, 8)
    similar = similarities(vectors, "cosine")
    exact = value(similar, pick(FacilityLocation, vectors, 60).rows)
    whole = pick(FacilityLocation, vectors, 60, dense_rows=1, neighbours=299).rows
    few = pick(FacilityLocation, vectors, 60, dense_rows=1, neighbours=20).rows
    assert value(similar, whole) == pytest.approx(exact, rel=1e-5)
    assert 0.97 * exact < value(similar, few) <= exact * (1 + 1e-5)


def test_a_graph_is_noted() -> None:
    rows = [Example(id=str(place), text=f"{place} {place % 3}") for place in range(1, 9)]
    bench = SelectionBench()
    FacilityLocation(budget=2, features=Given(), dense_rows=8).choose(rows, bench)
    assert not bench.notes
    FacilityLocation(budget=2, features=Given(), dense_rows=7, neighbours=3).choose(rows, bench)
    assert ["3 nearest neighbours" in note for note in bench.notes] == [True]


# Gradient matching.


def missing(vectors: Matrix, rows: np.ndarray, weights: np.ndarray) -> float:
    return float(np.linalg.norm(vectors.mean(axis=0, dtype=np.float64) - weights @ vectors[rows].astype(np.float64)))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("regularise", [0.0, 0.05])
def test_weights_are_the_least_squares_solution(seed: int, regularise: float) -> None:
    vectors = cloud(200, 20, seed) + 0.3
    picked = pick(GradientMatch, vectors, 12, regularise=regularise)
    ridge = np.sqrt(regularise * squared_norms(vectors).mean())
    table = np.vstack([vectors[picked.rows].T, ridge * np.eye(12)]).astype(np.float64)
    truth, _ = nnls(table, np.concatenate([vectors.mean(axis=0, dtype=np.float64), np.zeros(12)]))
    assert picked.weights == pytest.approx(truth * 200 / truth.sum(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_missing_never_grows(seed: int) -> None:
    vectors = cloud(100, 30, seed) + 0.2
    left = []
    for count in range(1, 20):
        rows = pick(GradientMatch, vectors, count).rows
        _, residual = nnls(vectors[rows].T.astype(np.float64), vectors.mean(axis=0, dtype=np.float64))
        left.append(residual)
    assert (np.diff(left) <= 1e-9).all()
    assert left[-1] < 0.2 * left[0]


def test_rounds_match_the_mean_again() -> None:
    vectors = cloud(100, 3) + 1
    picked = pick(GradientMatch, vectors, 20)
    assert (picked.weights > 0).all()
    sum_of_all = vectors.sum(axis=0, dtype=np.float64)
    found = picked.weights @ vectors[picked.rows].astype(np.float64)
    cosine = found @ sum_of_all / np.linalg.norm(found) / np.linalg.norm(sum_of_all)
    assert cosine > 0.999


def test_gradients_of_zero_fill_the_budget() -> None:
    picked = pick(GradientMatch, np.zeros((6, 2), np.float32), 3)
    assert (picked.rows.tolist(), picked.weights.tolist()) == ([0, 1, 2], [2, 2, 2])


# Distances.


def test_squared_distances_are_those_of_the_formula() -> None:
    one, other = cloud(30, 4), cloud(7, 4, 1)
    found = squared_distances(one, other, squared_norms(one), squared_norms(other))
    assert found == pytest.approx(((one[:, None] - other) ** 2).sum(axis=2), rel=1e-4, abs=1e-5)
    assert found.dtype == np.float32
    assert [part.stop - part.start for part in blocks(3, 2**30)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("selector", "wrong"),
    [
        (FacilityLocation, {"neighbours": 0}),
        (FacilityLocation, {"dense_rows": 0}),
        (GradientMatch, {"regularise": -1.0}),
        (GradientMatch, {"regularise": float("nan")}),
        (KernelHerding, {"sharpness": 0.0}),
        (Herding, {"budget": 0}),
    ],
)
def test_wrong_settings_are_refused(selector: type[VectorSelector], wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} is .*must be"):
        selector(**{"budget": 1, **wrong})
