"""How models fare on less familiar data, and the signatures of failure, on measurements made for the purpose: each
signature where it holds, just short of its margin, and where noise hides it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from stillhouse.errors import DataError
from stillhouse.generalising import shifts
from stillhouse.results import ModelResult, summarize
from stillhouse.signatures import CALIBRATED, FLUENT, NEAR, OVERCONFIDENT, OVERFITTED, WRONG, Signature, find_signatures
from stillhouse.statistics import Measurement, Metric, changes, compare, estimate

LOSS = "likelihood.loss"
BITS, SEEN = "likelihood.bits_per_byte", "generalisation.train_bits_per_byte"
ECE, EXCESS, TASK = "calibration.ece", "calibration.overconfidence", "tasks.accuracy"
METRICS = {TASK: Metric("Accuracy", "share", "higher"), "tasks.wer": Metric("Word error rate", "share", "lower")}
Models = dict[str, dict[str, Measurement]]


def ratio(mean: float, *, n: int = 100, noise: float = 0.02, name: str = "h", seed: int = 0) -> Measurement:
    """Values about a mean that they have exactly."""
    drawn = np.random.default_rng([seed, int(1000 * abs(mean))]).normal(0, noise, n)
    values = mean + drawn - drawn.mean()
    return Measurement(tuple(f"{name}{i:03}" for i in range(n)), np.stack([values, np.ones(n)], axis=1))


def found(models: Models) -> dict[str, Signature]:
    return {s.name: s for s in find_signatures(models, METRICS, shifts(models))}


class TestChanges:
    def test_the_unpaired_difference_has_the_textbook_error(self) -> None:
        home, away = ratio(1.0, n=150, noise=0.5), ratio(1.4, n=90, noise=0.8, name="a")
        (moved,) = changes([home], [away], [[1]])
        assert moved.difference == pytest.approx(0.4)
        errors = [m.sums_EM[:, 0].std(ddof=1) / np.sqrt(len(m.ids)) for m in (home, away)]
        assert moved.stderr == pytest.approx(np.hypot(*errors), rel=0.05)
        assert moved.low is not None
        assert moved.high is not None
        assert moved.low < 0.4 < moved.high
        assert moved.n == 90

    def test_between_models_it_is_paired_within_each_set(self) -> None:
        """Both models share the examples' noise, which then drops out of how much more one of them changes."""
        home, away = ratio(1.0, noise=0.5), ratio(1.5, noise=0.5, name="a")
        other_home, other_away = (
            Measurement(m.ids, m.sums_EM + np.array([by, 0.0])) for m, by in ((home, 0.1), (away, 0.3))
        )
        alone, more = changes([other_home, home], [other_away, away], [[1, 0], [1, -1]])
        assert more.difference == pytest.approx(0.2)
        assert more.stderr == pytest.approx(0.0, abs=1e-12)
        assert alone.stderr is not None
        assert alone.stderr > 0.05
        assert more.resolved

    def test_the_order_of_rows_does_not_matter_and_equal_models_do_not_differ(self) -> None:
        home, away = ratio(1.0), ratio(1.5, name="a")
        turned = Measurement(home.ids[::-1], home.sums_EM[::-1])
        assert changes([home], [away], [[1]]) == changes([turned], [away], [[1]])
        (none,) = changes([home, turned], [away, away], [[1, -1]])
        assert (none.difference, none.resolved) == (0.0, False)

    def test_the_interval_covers_the_truth_as_often_as_it_says(self) -> None:
        inside = 0
        for seed in range(100):
            rng = np.random.default_rng(seed)
            one, other = (
                Measurement(tuple(map(str, range(n))), np.stack([rng.normal(mean, 1, n), np.ones(n)], axis=1))
                for n, mean in ((60, 0.0), (40, 0.5))
            )
            (moved,) = changes([one], [other], [[1]], seed=seed)
            assert moved.low is not None
            assert moved.high is not None
            inside += moved.low <= 0.5 <= moved.high
        assert 88 <= inside <= 99

    @pytest.mark.parametrize(("n", "resolved"), [(1, False), (5, False), (6, True)])
    def test_a_handful_resolves_nothing(self, n: int, resolved: bool) -> None:
        (moved,) = changes([ratio(1.0, n=n, noise=0.0)], [ratio(2.0, n=50, noise=0.0, name="a")], [[1]])
        assert moved.resolved is resolved
        assert moved.difference == pytest.approx(1.0)
        assert (moved.low is None) == (n == 1)

    def test_models_of_different_examples_are_refused(self) -> None:
        with pytest.raises(DataError, match="different held-out data"):
            changes([ratio(1.0), ratio(1.0, name="x")], [ratio(2.0), ratio(2.0)], [[1, -1]])


class TestShifts:
    def test_every_metric_of_two_data_sets_once(self) -> None:
        student = {
            BITS: ratio(1.0),
            SEEN: ratio(0.8, name="t"),
            f"oz:{BITS}": ratio(1.6, name="w"),
            TASK: ratio(0.5),
            f"oz:{ECE}": ratio(0.1, name="w"),
        }
        models = {"teacher": dict(student), "student_before": {BITS: ratio(2.0)}, "student": student}
        seen = {(s.metric, s.home, s.away): s for s in shifts(models)}
        assert list(seen) == [(BITS, "train", "heldout"), (BITS, "heldout", "oz")]
        abroad = seen[BITS, "heldout", "oz"]
        assert abroad.changes["student"].difference == pytest.approx(0.6)
        assert list(abroad.changes) == ["teacher", "student"]  # the student before was measured at home alone
        assert list(abroad.excess) == ["student - teacher"]
        assert not abroad.excess["student - teacher"].resolved

    def test_calibration_errors_move_too(self) -> None:
        rng = np.random.default_rng(0)
        home, away = (
            Measurement(
                tuple(f"{name}{i}" for i in range(50)), np.column_stack([rng.normal(gap, 0.01, 50), np.ones(50)]), "ece"
            )
            for name, gap in (("h", 0.02), ("w", 0.2))
        )
        (moved,) = shifts({"student": {ECE: home, f"oz:{ECE}": away}})
        assert moved.changes["student"].difference == pytest.approx(0.18, abs=0.01)
        assert moved.changes["student"].resolved

    def test_nothing_to_say(self) -> None:
        assert shifts({"student": {BITS: ratio(1.0)}}) == []
        assert shifts({}) == []


def gaps(**of: tuple[float, float]) -> Models:
    """Bits per byte on training data and on held-out data."""
    return {role: {SEEN: ratio(seen, name="t"), BITS: ratio(held)} for role, (seen, held) in of.items()}


class TestOverfitted:
    def test_wider_than_its_teachers(self) -> None:
        signature = found(gaps(teacher=(0.70, 0.72), control=(0.9, 1.0), student=(0.6, 0.8)))["overfitted"]
        assert signature.numbers["excess.student - teacher"] == pytest.approx(0.18)
        assert signature.numbers["excess.student - control"] == pytest.approx(0.10)
        assert signature.numbers["gap.control"] == pytest.approx(0.1)
        assert "more than its teacher" in signature.claim
        assert "teacher +0.020" in signature.evidence
        assert signature.source == "arXiv 2504.14772"

    @pytest.mark.parametrize(("beyond", "there"), [(0.02, True), (0.001, False)])
    def test_the_margin_holds_for_the_whole_interval(self, beyond: float, there: bool) -> None:
        gap = OVERFITTED * 1.0 + beyond
        assert ("overfitted" in found(gaps(teacher=(0.7, 0.7), student=(1.0 - gap, 1.0)))) is there

    def test_data_that_are_harder_for_all_are_no_sign(self) -> None:
        assert not found(gaps(teacher=(0.3, 0.8), student=(0.5, 1.0)))

    def test_noise_is_no_sign(self) -> None:
        loud: Any = {"noise": 2.0, "n": 30}
        models = {
            role: {SEEN: ratio(seen, name="t", seed=seed, **loud), BITS: ratio(held, seed=seed, **loud)}
            for seed, (role, seen, held) in enumerate([("teacher", 0.7, 0.7), ("student", 0.7, 1.0)])
        }
        assert not found(models)

    def test_without_a_teacher_the_control_is_the_measure(self) -> None:
        signature = found(gaps(control=(0.9, 0.9), student=(0.6, 0.9)))["overfitted"]
        assert "more than its control" in signature.claim
        assert not found(gaps(student=(0.1, 0.9)))


def calibrated(teacher: float, student: float, *, surer: float = 0.05, noise: float = 0.005, n: int = 100) -> Models:
    def ece(error: float, seed: int) -> Measurement:
        m = ratio(error, noise=noise, n=n, seed=seed)
        return Measurement(m.ids, m.sums_EM, "ece")

    return {
        "teacher": {ECE: ece(teacher, 1), EXCESS: ratio(0.0, n=n)},
        "student": {ECE: ece(student, 2), EXCESS: ratio(surer, n=n)},
    }


class TestOverconfident:
    def test_under_a_calibrated_teacher(self) -> None:
        signature = found(calibrated(0.01, 0.08))["overconfident"]
        assert signature.numbers["difference"] == pytest.approx(0.07)
        assert "calibration error 8.0%, its teacher's 1.0%" in signature.evidence
        assert any("temperature" in line for line in signature.advice)

    @pytest.mark.parametrize(
        ("teacher", "student", "there"),
        [
            (CALIBRATED - 0.001, 0.2, True),
            (CALIBRATED + 0.001, 0.2, False),
            (0.01, 0.01 + OVERCONFIDENT + 0.003, True),
            (0.01, 0.01 + OVERCONFIDENT + 0.0005, False),  # the interval reaches below
            (0.01, 0.01 + OVERCONFIDENT - 0.003, False),
        ],
    )
    def test_the_margins(self, teacher: float, student: float, there: bool) -> None:
        assert ("overconfident" in found(calibrated(teacher, student))) is there

    def test_a_student_that_doubts_too_much_is_not_overconfident(self) -> None:
        assert not found(calibrated(0.01, 0.08, surer=-0.07))
        assert not found(calibrated(0.01, 0.08, surer=0.001))

    def test_noise_is_no_sign(self) -> None:
        models = calibrated(0.04, 0.1, noise=0.4, n=30)
        assert compare(models["student"][ECE], models["teacher"][ECE]).difference >= OVERCONFIDENT
        assert not found(models)

    def test_nothing_without_a_teacher_or_a_curve(self) -> None:
        models = calibrated(0.01, 0.08)
        assert not found({"student": models["student"]})
        assert not found({"student": {ECE: models["student"][ECE]}, "teacher": models["teacher"]})


def writing(way: float, kept: float, *, before: float = 0.6, task: str = TASK, n: int = 400) -> Models:
    """A student that has gone so much of the way to its teacher's 0.4 bits per byte and keeps so much of its 80 %;
    there are four bytes to a token."""
    right = {"teacher": 0.8, "student": 0.8 * kept, "student_before": 0.0}
    bits = {"teacher": 0.4, "student": before + way * (0.4 - before), "student_before": before}
    ids, tokens = tuple(f"h{i:03}" for i in range(n)), np.array([math.log(2), 1 / 4])
    found: Models = {}
    for role, share in right.items():
        m = ratio(bits[role], n=n, noise=0.001)
        answers = np.stack([np.arange(n) % 100 < round(100 * share), np.ones(n)], axis=1).astype(float)
        found[role] = {BITS: m, LOSS: Measurement(m.ids, m.sums_EM * tokens), task: Measurement(ids, answers)}
    return found


class TestFluentButWrong:
    def test_good_perplexity_with_poor_reasoning(self) -> None:
        signature = found(writing(0.97, 0.2))["fluent_but_wrong"]
        assert signature.numbers["way"] == pytest.approx(0.97)
        assert signature.numbers["recovery"] == pytest.approx(0.2)
        assert "good perplexity, poor reasoning (accuracy)" in signature.claim
        losses = [estimate(writing(0.97, 0.2)[role][LOSS]).value for role in ("student", "teacher")]
        assert signature.numbers["perplexity"] == pytest.approx(math.exp(losses[0] - losses[1]))
        assert any("rationales" in line for line in signature.advice)

    @pytest.mark.parametrize(
        ("way", "kept", "there"),
        [
            (FLUENT + 0.005, 0.25, True),
            (FLUENT - 0.005, 0.25, False),
            (0.97, WRONG - 0.125, True),
            (0.97, WRONG, False),  # the interval reaches beyond the half
            (0.97, 0.95, False),
        ],
    )
    def test_the_margins_hold_for_the_whole_interval(self, way: float, kept: float, there: bool) -> None:
        assert ("fluent_but_wrong" in found(writing(way, kept))) is there

    @pytest.mark.parametrize(("beyond", "there"), [(0.002, False), (-0.002, True)])
    def test_a_student_from_nothing_must_also_come_near(self, beyond: float, there: bool) -> None:
        """From 8 bits per byte nine tenths of the way are quickly gone, and leave it far more perplexed."""
        assert not found(writing(0.9, 0.2, before=8.0))
        more = (math.log(NEAR) + beyond) / (4 * math.log(2))  # bits per byte
        assert ("fluent_but_wrong" in found(writing(1 - more / 7.6, 0.2, before=8.0))) is there

    def test_a_teacher_of_other_tokens_is_held_against_by_the_byte(self) -> None:
        models = writing(0.97, 0.2)
        m = models["teacher"][LOSS]
        models["teacher"][LOSS] = Measurement(m.ids, m.sums_EM * np.array([1.0, 5.0]))  # a token a byte, nearly
        assert found(models)["fluent_but_wrong"] == found(writing(0.97, 0.2))["fluent_but_wrong"]

    def test_few_questions_resolve_nothing(self) -> None:
        models = writing(0.97, 0.4, n=400)
        assert estimate(models["student"][TASK]).value == pytest.approx(0.32)
        assert "fluent_but_wrong" in found(models)
        assert "fluent_but_wrong" not in found(writing(0.97, 0.4, n=100))

    def test_errors_and_other_evaluators_are_no_tasks(self) -> None:
        assert not found(writing(0.97, 0.2, task="tasks.wer"))
        assert not found(writing(0.97, 0.2, task="fidelity.top1_agreement"))

    def test_a_teacher_that_writes_worse_than_the_student_before_is_nothing_to_reach(self) -> None:
        assert not found(writing(0.97, 0.2, before=0.3))


class TestSummary:
    def test_evaluation_names_what_was_found_as_plain_data(self) -> None:
        models = gaps(teacher=(0.70, 0.72), control=(0.9, 1.0), student=(0.6, 0.8))
        metric = Metric("Bits per byte", "bits/byte", "lower")
        results = {role: ModelResult(dict.fromkeys(m, metric), m) for role, m in models.items()}
        summary = summarize(results, None)
        assert [s["name"] for s in summary["signatures"]] == ["overfitted"]
        (row,) = summary["generalisation"]
        assert (row["metric"], row["home"], row["away"]) == (BITS, "train", "heldout")
        assert row["changes"]["student"]["difference"] == pytest.approx(0.2)
        assert row["excess"]["student - teacher"]["resolved"]

    def test_a_sound_run_shows_none(self) -> None:
        models = gaps(teacher=(0.70, 0.71), control=(0.9, 0.93), student=(0.8, 0.82))
        for role, measured in calibrated(0.01, 0.02).items():
            models[role] |= measured
        for role, measured in writing(0.97, 0.9, n=100).items():
            models.setdefault(role, {BITS: measured[BITS]})[TASK] = measured[TASK]
        models["student"][LOSS] = models["student"][BITS]
        assert not found(models)
