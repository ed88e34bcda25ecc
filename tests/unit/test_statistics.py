"""Statistics against closed forms, simulation and their own invariances.

Shapes: E examples, M sums.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from stillhouse.errors import DataError
from stillhouse.statistics import FloatArray, Measurement, compare, estimate, gap_closed, recovery


def ratio(above: ArrayLike, below: ArrayLike | None = None, ids: tuple[str, ...] | None = None) -> Measurement:
    above = np.asarray(above, dtype=np.float64)
    below = np.ones(len(above)) if below is None else np.asarray(below, dtype=np.float64)
    return Measurement(ids or tuple(f"e{i:04}" for i in range(len(above))), np.stack([above, below], axis=1))


def scores(share: float, count: int, seed: int) -> FloatArray:
    return (np.random.default_rng(seed).random(count) < share).astype(np.float64)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Measurement, Measurement]:
    """Two models' losses on the same examples of different lengths."""
    count = draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tokens = rng.integers(1, 50, count)
    return ratio(rng.normal(2, 1, count) * tokens, tokens), ratio(rng.normal(2, 1, count) * tokens, tokens)


class TestEstimate:
    def test_a_mean_has_the_textbook_standard_error(self) -> None:
        values = np.random.default_rng(0).normal(size=50)
        found = estimate(ratio(values))
        assert found.value == pytest.approx(values.mean())
        assert found.stderr == pytest.approx(values.std(ddof=1) / np.sqrt(50))
        assert found.n == 50

    def test_the_error_of_a_ratio_is_that_of_its_bootstrap(self) -> None:
        rng = np.random.default_rng(1)
        tokens = rng.integers(1, 60, 300)
        loss = ratio(tokens * rng.normal(2, 0.5, 300), tokens)
        drawn = loss.sums_EM[rng.integers(300, size=(4000, 300))].sum(1)
        assert estimate(loss).stderr == pytest.approx((drawn[:, 0] / drawn[:, 1]).std(), rel=0.05)

    def test_tokens_of_one_example_are_not_independent(self) -> None:
        # Every token of an example alike: ten copies of each token add nothing to what is known.
        values = np.random.default_rng(2).normal(size=80)
        assert estimate(ratio(10 * values, np.full(80, 10))).stderr == pytest.approx(estimate(ratio(values)).stderr)

    def test_calibration_error_by_hand(self) -> None:
        gaps = np.array([[0.5, -0.2, 2.0], [-0.1, -0.4, 3.0]])  # two bins, then tokens
        found = estimate(Measurement(("a", "b"), gaps, "ece"))
        assert found.value == pytest.approx((0.4 + 0.6) / 5)
        assert found.stderr is not None
        assert found.stderr > 0

    def test_one_example_has_no_standard_error(self) -> None:
        assert estimate(ratio([3.0], [2.0])).stderr is None

    def test_nothing_to_divide_by(self) -> None:
        with pytest.raises(DataError, match="positive count"):
            estimate(ratio([0.0, 0.0], [0.0, 0.0]))

    def test_same_measurement_same_estimate(self) -> None:
        m = Measurement(("a", "b", "c"), np.random.default_rng(3).normal(size=(3, 4)) ** 2, "ece")
        assert estimate(m) == estimate(m)


class TestCompare:
    def test_a_model_does_not_differ_from_itself(self) -> None:
        model = ratio(scores(0.5, 100, 0))
        found = compare(model, model)
        assert (found.difference, found.low, found.high, found.stderr, found.mde) == (0, 0, 0, 0, 0)
        assert not found.resolved

    def test_known_difference(self) -> None:
        a, b = scores(0.7, 2000, 1), scores(0.5, 2000, 2)
        found = compare(ratio(a), ratio(b))
        assert found.difference == pytest.approx(a.mean() - b.mean())
        assert found.stderr == pytest.approx((a - b).std(ddof=1) / np.sqrt(2000), rel=0.05)
        assert found.mde == pytest.approx(2.8 * (found.stderr or 0))
        assert found.resolved
        assert found.n == 2000

    def test_a_difference_below_what_could_be_seen_is_unresolved(self) -> None:
        # Its interval excludes 0, yet a test of this size finds such a difference less than 80 % of the time.
        values = np.random.default_rng(4).normal(size=400)
        values += 2.3 * values.std() / np.sqrt(400) - values.mean()
        found = compare(ratio(values), ratio(np.zeros(400)))
        assert found.low is not None
        assert found.low > 0
        assert found.mde is not None
        assert found.difference < found.mde
        assert not found.resolved

    def test_pairing_removes_the_noise_that_both_share(self) -> None:
        hard = np.random.default_rng(5).normal(size=300)
        a, b = ratio(hard + 0.1 + 0.1 * scores(0.5, 300, 6)), ratio(hard)
        unpaired = np.hypot(estimate(a).stderr or 0, estimate(b).stderr or 0)
        assert (compare(a, b).stderr or 1) < 0.1 * unpaired

    @pytest.mark.parametrize("count", [2, 3, 5])
    def test_a_handful_of_examples_resolves_nothing(self, count: int) -> None:
        found = compare(ratio(np.ones(count)), ratio(np.zeros(count)))
        assert (found.difference, found.low, found.high) == (1, 1, 1)
        assert not found.resolved

    def test_six_examples_that_agree_do(self) -> None:
        assert compare(ratio(np.ones(6)), ratio(np.zeros(6))).resolved

    def test_one_example_has_no_interval(self) -> None:
        found = compare(ratio([1.0]), ratio([0.0]))
        assert (found.difference, found.low, found.high, found.resolved) == (1, None, None, False)

    def test_calibration_errors_compare(self) -> None:
        rng = np.random.default_rng(7)
        tokens = np.full(200, 20.0)
        good, bad = rng.normal(0, 1, (200, 5)), rng.normal(-2, 1, (200, 5))
        a = Measurement(tuple(map(str, range(200))), np.column_stack([bad, tokens]), "ece")
        b = Measurement(tuple(map(str, range(200))), np.column_stack([good, tokens]), "ece")
        found = compare(a, b)
        assert found.difference == pytest.approx(estimate(a).value - estimate(b).value)
        assert found.resolved

    def test_the_interval_covers_the_truth_as_often_as_it_says(self) -> None:
        covered = []
        for seed in range(300):
            rng = np.random.default_rng(seed)
            tokens, hard = rng.integers(5, 40, 120), rng.normal(2, 0.5, 120)
            a = ratio(tokens * (hard + rng.normal(0.1, 0.3, 120)), tokens)
            b = ratio(tokens * (hard + rng.normal(0.0, 0.3, 120)), tokens)
            found = compare(a, b, resamples=400, confidence=0.9)
            assert found.low is not None
            assert found.high is not None
            covered.append(found.low <= 0.1 <= found.high)
        # 300 intervals at 90 %: three standard errors are 5 points; the percentile bootstrap is a little narrow.
        assert 0.84 < np.mean(covered) < 0.95

    def test_false_alarms_are_rarer_than_one_in_twenty(self) -> None:
        found = [
            compare(ratio(scores(0.5, 100, 2 * s)), ratio(scores(0.5, 100, 2 * s + 1)), resamples=300).resolved
            for s in range(200)
        ]
        assert np.mean(found) < 0.05

    def test_other_examples_are_refused_with_how_many_are_shared(self) -> None:
        a = ratio(np.ones(5), ids=("a", "b", "c", "d", "e"))
        b = ratio(np.ones(3), ids=("d", "e", "f"))
        with pytest.raises(DataError, match=r"different held-out data: 5 and 3 examples, 2 of them shared"):
            compare(a, b)

    def test_other_kinds_are_refused(self) -> None:
        a = ratio(np.ones(3))
        with pytest.raises(DataError, match="different kinds"):
            compare(a, Measurement(a.ids, a.sums_EM, "ece"))

    @given(pairs(), st.integers(0, 1000))
    def test_the_order_of_examples_does_not_matter(self, pair: tuple[Measurement, Measurement], seed: int) -> None:
        a, b = pair
        order = np.random.default_rng(seed).permutation(len(a.ids))
        shuffled = Measurement(tuple(a.ids[i] for i in order), a.sums_EM[order])
        assert compare(shuffled, b, resamples=100) == compare(a, b, resamples=100)

    @given(pairs())
    def test_turned_round_it_is_the_negative(self, pair: tuple[Measurement, Measurement]) -> None:
        a, b = pair
        there, back = compare(a, b, resamples=100), compare(b, a, resamples=100)
        assert there.difference == -back.difference
        assert there.low == pytest.approx(-(back.high or 0))
        assert (there.mde, there.resolved) == (pytest.approx(back.mde), back.resolved)

    @given(pairs(), st.floats(0.01, 100))
    def test_units_only_scale_it(self, pair: tuple[Measurement, Measurement], factor: float) -> None:
        a, b = pair
        small = compare(a, b, resamples=100)
        large = compare(*(Measurement(m.ids, m.sums_EM * [factor, 1]) for m in (a, b)), resamples=100)
        assert large.difference == pytest.approx(factor * small.difference)
        assert large.low == pytest.approx(factor * (small.low or 0))
        assert large.mde == pytest.approx(factor * (small.mde or 0))

    @given(pairs())
    def test_the_difference_lies_in_its_interval(self, pair: tuple[Measurement, Measurement]) -> None:
        found = compare(*pair, resamples=300, confidence=0.999)
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.difference <= found.high

    def test_many_examples_are_drawn_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        a, b = ratio(scores(0.6, 200, 8)), ratio(scores(0.5, 200, 9))
        whole = compare(a, b, resamples=100)
        monkeypatch.setattr("stillhouse.statistics._WEIGHTS", 7 * 200)
        assert compare(a, b, resamples=100).low == pytest.approx(whole.low, abs=0.03)


class TestShares:
    def test_recovery(self) -> None:
        found = recovery(ratio(scores(0.6, 3000, 1)), ratio(scores(0.8, 3000, 2)))
        assert found is not None
        assert found.low < 0.75 < found.high
        assert found.high - found.low < 0.1

    def test_no_share_of_a_teacher_that_scores_nothing(self) -> None:
        assert recovery(ratio(scores(0.5, 50, 1)), ratio([1.0] + [0.0] * 49)) is None

    def test_a_student_that_equals_its_teacher_recovers_all_of_it(self) -> None:
        same = ratio(scores(0.5, 50, 1))
        found = recovery(same, same)
        assert found is not None
        assert (found.value, found.low, found.high) == (1, 1, 1)

    @pytest.mark.parametrize("better", ["higher", "lower"])
    def test_gap_closed(self, better: str) -> None:
        sign = 1 if better == "higher" else -1
        hard = np.random.default_rng(0).normal(size=400)
        noise = np.random.default_rng(1).normal(0, 0.1, size=(3, 400))
        control, student, teacher = (ratio(hard + sign * at + noise[i]) for i, at in enumerate((0.0, 0.3, 1.0)))
        found = gap_closed(student, control, teacher)
        assert found is not None
        assert found.low < 0.3 < found.high
        assert found.value == pytest.approx(0.3, abs=0.03)

    def test_the_ends_of_the_gap(self) -> None:
        control, teacher = ratio(scores(0.3, 200, 1)), ratio(scores(0.8, 200, 2))
        none, whole = gap_closed(control, control, teacher), gap_closed(teacher, control, teacher)
        assert none is not None
        assert whole is not None
        assert (none.value, whole.value, whole.low) == (0, 1, 1)

    def test_no_share_of_an_unresolved_gap(self) -> None:
        same = ratio(scores(0.5, 100, 1))
        assert gap_closed(ratio(scores(0.6, 100, 2)), same, same) is None
        assert gap_closed(ratio(scores(0.6, 100, 2)), ratio(scores(0.5, 100, 3)), same) is None

    def test_no_share_of_one_example(self) -> None:
        assert recovery(ratio([1.0]), ratio([1.0])) is None

    def test_other_examples_are_refused(self) -> None:
        with pytest.raises(DataError, match="2 of them shared"):
            recovery(ratio(np.ones(3), ids=("a", "b", "c")), ratio(np.ones(3), ids=("b", "c", "d")))
