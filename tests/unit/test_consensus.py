"""Choosing among teachers: by hand where it can be done by hand, against planted contradictions where it cannot."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.consensus._contradictions import MODES, Contradictions, Mode, wrong
from stillhouse.consensus._disagreements import pairs
from stillhouse.consensus.base import agreement, encode
from stillhouse.consensus.dawid_skene import DawidSkene
from stillhouse.consensus.majority import Majority
from stillhouse.consensus.most_agreed import MostAgreed
from stillhouse.consensus.weighted import Weighted
from stillhouse.errors import DataError
from stillhouse.solutions.steps import first_difference, steps

RULES = [Majority(), Weighted(), MostAgreed(), DawidSkene(), DawidSkene(difficulties=2)]
RIGHT = [100 + q for q in range(300)]


def test_votes_become_codes_and_agreement_is_counted_where_both_answered() -> None:
    codes_QK = encode([["a", "b", "a"], [None, "a", "a"], ["c", "c", None]])
    assert codes_QK.tolist() == [[0, 1, 0], [-1, 0, 0], [0, 0, -1]]
    assert agreement(codes_QK).tolist() == [2 / 3, 2 / 4, 2 / 3]


@pytest.mark.parametrize(("votes", "word"), [([["a"]], "at least two"), ([["a", "b"], ["a"]], "1 up to 2 teachers")])
def test_votes_that_are_no_committee_are_refused(votes: list[list[str]], word: str) -> None:
    with pytest.raises(DataError, match=word):
        Majority().decide(votes)


def test_a_majority_by_hand() -> None:
    decided = Majority().decide([["a", "b", "b"], ["c", "c", "c"], ["d", None, "e"]])
    # The third question is a tie of one against one: the first teacher agrees with others in 2 of 5 meetings, the
    # third in 3 of 5.
    assert decided.chosen == ("b", "c", "e")
    assert decided.confidence == (2 / 3, 1.0, 0.5)
    assert decided.reliability == (1 / 3, 1.0, 1.0)


def test_what_is_tied_in_every_way_goes_to_the_teacher_that_is_named_first() -> None:
    assert Majority().decide([["a", "b"], ["c", "d"]]).chosen == ("a", "c")
    assert Majority().decide([["b", "a"], ["d", "c"]]).chosen == ("b", "d")


def test_weights_let_one_who_agrees_outvote_two_who_never_do() -> None:
    votes = [["x", "y", "y", "z"], *[["r", "s", "t", "r"]] * 20]
    assert Majority().decide(votes).chosen[0] == "y"
    assert Weighted().decide(votes).chosen[0] == "x"
    assert MostAgreed().decide(votes).chosen[0] == "x"


def test_the_most_agreed_teacher_is_followed_and_replaced_where_it_is_silent() -> None:
    votes = [["a", "a", "b"], ["a", "a", "b"], ["c", "x", "c"], [None, "x", "y"], ["q", "r", "r"]]
    decided = MostAgreed().decide(votes)
    assert decided.chosen == ("a", "a", "c", "x", "q")
    assert decided.reliability == pytest.approx((3 / 8, 3 / 9, 2 / 9))


def test_nobody_answered_anything() -> None:
    for rule in RULES:
        decided = rule.decide([[None, None]])
        assert (decided.chosen, decided.confidence, decided.reliability) == ((None,), (0.0,), (0.0, 0.0))
        assert rule.decide([]).chosen == ()


def test_dawid_skene_finds_how_reliable_teachers_are() -> None:
    """Rates of 10, 20 and 30 % wrong, drawn at random: the estimate from agreement alone comes within five points."""
    votes, planted_QK = Contradictions(rate=0.2, seed=3).inject([[a] * 3 for a in RIGHT])
    decided = DawidSkene().decide(votes)
    assert np.abs(np.array(decided.reliability) - (1 - planted_QK.mean(axis=0))).max() < 0.05
    right = np.mean([c == a for c, a in zip(decided.chosen, RIGHT, strict=True)])
    assert right > (1 - planted_QK.mean(axis=0)).max() + 0.02  # better than its best member
    # The posterior means what it says: as often right as it is sure.
    assert np.mean(decided.confidence) == pytest.approx(right, abs=0.03)


def test_dawid_skene_doubts_where_everyone_differs_and_overrules_two_bad_by_one_good() -> None:
    votes, _ = Contradictions(rate=0.45, spread=1.0, pool=2, seed=1).inject([[a] * 3 for a in RIGHT])
    rule = DawidSkene()
    decided = rule.decide(votes)
    best = int(np.argmax(decided.reliability))
    alone = [
        q for q, row in enumerate(votes) if len(set(row)) == 2 and row.count(row[best]) == 1 and row[best] == RIGHT[q]
    ]
    overruled = [q for q in alone if decided.chosen[q] == RIGHT[q]]
    assert alone
    assert len(overruled) > len(alone) / 2
    spread_out = rule.decide([["a", "b", "c"], *[["r", "r", "r"]] * 20])
    assert spread_out.confidence[0] < 0.5 < 0.95 < spread_out.confidence[1]


def test_two_answers_to_choose_from_are_no_trouble() -> None:
    """With yes and no all wrong answers meet, so that somebody must be right."""
    votes = [["yes", "no", "yes"], ["no", "no", "no"], ["yes", "yes", "yes"], ["no", "no", "yes"]] * 30
    decided = DawidSkene().decide(votes)
    assert decided.chosen[:4] == ("yes", "no", "yes", "no")
    assert decided.reliability[0] == pytest.approx(1.0, abs=0.05)


def test_teachers_that_share_errors_are_taken_for_reliable_which_the_documentation_says() -> None:
    votes, planted_QK = Contradictions(rate=0.4, mode="correlated", shared=1.0, spread=0.2, seed=2).inject(
        [[a] * 3 for a in RIGHT]
    )
    decided = DawidSkene().decide(votes)
    assert max(decided.reliability) > (1 - planted_QK.mean(axis=0)).max() + 0.1
    assert "independently" in (DawidSkene.__doc__ or "")


@given(st.lists(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=3, max_size=3), min_size=1, max_size=12))
def test_any_votes_give_shares_and_given_answers(votes: list[list[str | None]]) -> None:
    for rule in RULES:
        decided = rule.decide(votes)
        for row, answer, sure in zip(votes, decided.chosen, decided.confidence, strict=True):
            assert 0 <= sure <= 1
            assert answer in row if any(v is not None for v in row) else answer is None
        assert all(0 <= share <= 1 for share in decided.reliability)


# Planted contradictions.


@pytest.mark.parametrize("mode", MODES)
def test_contradictions_come_at_their_rate_and_repeat_with_their_seed(mode: Mode) -> None:
    votes, topics = [[a] * 4 for a in RIGHT * 4], ["+", "-", "*"] * 400
    for rate in (0.0, 0.3):
        injector = Contradictions(rate=rate, mode=mode, honest=0.0, seed=1)
        found = injector.inject(votes, topics)
        again = injector.inject(votes, topics)
        assert found.votes == again.votes
        share = found.planted_QK.mean()
        # Half of four teachers collude, or are weak on a topic.
        assert share == pytest.approx(rate / 2 if mode in ("collusion", "topic") else rate, abs=0.02)
        differs = np.array([[v != a for v in row] for row, a in zip(found.votes, RIGHT * 4, strict=True)])
        assert (differs == found.planted_QK).all()
    assert votes == [[a] * 4 for a in RIGHT * 4]
    assert Contradictions(rate=0.3, mode=mode, seed=2).inject(votes, topics).votes != found.votes


@pytest.mark.parametrize("mode", ["independent", "correlated", "topic"])
def test_a_higher_rate_plants_more_in_the_same_places(mode: Mode) -> None:
    votes, topics = [[a] * 3 for a in RIGHT], ["+", "-", "*"] * 100
    found = [Contradictions(rate=r, mode=mode).inject(votes, topics).planted_QK for r in (0.1, 0.3, 0.6)]
    assert all((few <= many).all() for few, many in pairwise(found))


def test_modes_do_what_their_names_say() -> None:
    votes, topics = [[a] * 4 for a in RIGHT], ["+", "-", "*"] * 100

    def errors(mode: Mode, **settings: float) -> tuple[list[list[object]], np.ndarray]:
        found = Contradictions(rate=0.4, mode=mode, honest=0.0, **settings).inject(votes, topics)  # ty: ignore[invalid-argument-type]
        return [list(row) for row in found.votes], found.planted_QK

    def same_error(mode: Mode) -> float:
        """Of the questions on which two or more err, the share on which they say the same."""
        rows, planted_QK = errors(mode, spread=0.0)
        wrong_Q = [{v for v in row if v != a} for row, a in zip(rows, RIGHT, strict=True)]
        return float(np.mean([len(wrong_Q[q]) == 1 for q in np.flatnonzero(planted_QK.sum(axis=1) >= 2)]))

    assert same_error("independent") < 0.3 < same_error("correlated")
    _, colluding_QK = errors("collusion")
    assert set(colluding_QK.sum(axis=1)) == {0, 2}
    assert (colluding_QK.any(axis=0)).sum() == 2
    _, weak_QK = errors("topic")
    by_topic = [weak_QK[n::3].any(axis=0) for n in range(3)]
    assert all(weak.sum() == 2 for weak in by_topic)
    assert len({tuple(weak) for weak in by_topic}) == 3
    _, spread_QK = errors("independent", spread=0.5)
    assert np.allclose(sorted(spread_QK.mean(axis=0)), [0.2, 0.33, 0.47, 0.6], atol=0.07)


def test_wrong_answers_are_wrong_and_keep_their_kind() -> None:
    for answer in (7, Fraction(1, 2), 0.25, "Paris"):
        found = [wrong(answer, n) for n in range(8)]
        assert len({*found, answer}) == 9
        assert all(isinstance(w, type(answer)) for w in found)


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"rate": 1.5}, "rate"), ({"rate": 0.1, "mode": "odd"}, "one of independent"), ({"rate": 0.1, "pool": 0}, "pool")],
)
def test_wrong_settings_of_contradictions(settings: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Contradictions(**settings)  # ty: ignore[invalid-argument-type]


def test_contradictions_need_teachers_and_topics() -> None:
    with pytest.raises(DataError, match="at least two"):
        Contradictions(rate=0.1).inject([[1]])
    with pytest.raises(DataError, match="topic for each of 1"):
        Contradictions(rate=0.1, mode="topic").inject([[1, 1]])
    assert Contradictions(rate=1.0, spread=0.0).inject([[None, 1]]).votes[0][0] is None


# Where solutions part.


def test_steps_are_equations_in_one_form_and_then_the_answer() -> None:
    text = "He has 1,000 x $2 = $<<1000*2=2000>>2,000.\nThen 2000 - 3.50 = 1996.5. So (4 + 6) / 2 = 5\nA: 5"
    assert [step.text for step in steps(text)] == [
        "1,000 x $2 = $2,000",
        "2000 - 3.50 = 1996.5",
        "(4 + 6) / 2 = 5",
        "the answer 5",
    ]
    assert steps("2 × 1000 = 2000")[0].form == steps(text)[0].form
    assert steps("3 - 2 = 1")[0].form != steps("2 - 3 = 1")[0].form
    assert steps("50% * 8 = 4")[0].form != steps("50 * 8 = 4")[0].form
    assert [step.text for step in steps("Because it\n\nrains.")] == ["Because it", "rains."]
    assert steps("") == []


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        ("2+3=5 #### 5", "3 + 2 = 5. So 5.", None),
        ("2+3=5 #### 5", "2+3=6 #### 6", (1, "2+3=5", "2+3=6")),
        ("2+3=5 #### 5", "2+3=5 then 5*2=10 #### 10", (2, "the answer 5", "5*2=10")),
        ("Yes, it is.", "yes,  it is", None),
        ("Yes", "No", (1, "Yes", "No")),
        ("Yes\nBecause", "Yes", (2, "Because", "")),
    ],
)
def test_the_first_step_that_differs(one: str, other: str, found: tuple[int, str, str] | None) -> None:
    assert first_difference(one, other) == found
    reverse = first_difference(other, one)
    assert reverse == (None if found is None else (found[0], found[2], found[1]))


def test_pairs_are_counted_where_both_answered() -> None:
    assert pairs([["7", "7", "8"], ["1", None, "1"]]) == [(0, 1, 1, 0), (0, 2, 2, 1), (1, 2, 1, 1)]
    assert pairs([]) == []
