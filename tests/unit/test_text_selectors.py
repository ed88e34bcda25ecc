"""Selectors that look at text or at nothing: by hand where it can be done by hand, else against the plain way."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.data.sources import read_source
from stillhouse.errors import DataError, MissingExtraError
from stillhouse.features.tfidf import Tfidf
from stillhouse.recipe_data import ArithmeticSource, Source
from stillhouse.records import Example
from stillhouse.selection._leaders import Found, down_to
from stillhouse.selection._minhash import MinHash
from stillhouse.selection._semantic import Semantic
from stillhouse.selection._text import normal, runs_of_words, words
from stillhouse.selection.base import SelectionBench, Selector
from stillhouse.selection.decontaminate import Decontaminate
from stillhouse.selection.deduplicate import Deduplicate
from stillhouse.selection.longest import Longest
from stillhouse.selection.random import Random

VOCABULARY = [f"word{n}" for n in range(400)]
LONE = "half a pair \ud800 of surrogates in a text"


def texts(*found: str) -> list[Example]:
    return [Example(id=f"t{number}", text=text) for number, text in enumerate(found)]


def planted(count: int = 60, copies: int = 3, length: int = 30, seed: int = 0) -> list[Example]:
    """Texts of drawn words, each followed by copies in which one or two words were replaced."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        said = draw.choices(VOCABULARY, k=length)
        for copy in range(copies):
            changed = list(said)
            for _ in range(copy):
                changed[draw.randrange(length)] = draw.choice(VOCABULARY)
            rows.append(Example(id=f"{number:03}-{copy}", text=" ".join(changed)))
    draw.shuffle(rows)
    return rows


def kept(selector: Selector, examples: Sequence[Example], bench: SelectionBench | None = None) -> list[str]:
    return [example.id for example in selector.select(examples, bench)]


class TestText:
    def test_what_is_the_same_and_what_is_not(self) -> None:
        assert normal(" A\tcafe\u0301 \n") == normal("a CAFÉ")
        assert len({normal(text) for text in ("2 + 2", "2 - 2", "22", "2²")}) == 4

    def test_words_are_words_symbols_and_ideographs(self) -> None:
        assert words("Don't: 3.5 漢字かな x_1") == ["don", "'", "t", ":", "3", ".", "5", *"漢字かな", "x_1"]

    @given(st.lists(st.lists(st.sampled_from("abcd"), max_size=7).map(" ".join), max_size=8), st.integers(1, 4))
    def test_runs_are_equal_where_their_words_are(self, given_texts: list[str], length: int) -> None:
        found: dict[tuple[str, ...], set[int]] = {}
        row = 0
        for block in runs_of_words(given_texts, length):
            start = 0
            for end in block.ends.tolist():
                said = given_texts[row].split()
                wanted = [tuple(said[k : k + length]) for k in range(max(1, len(said) - length + 1))] if said else []
                for run, value in zip(wanted, block.hashes_S[start:end].tolist(), strict=True):
                    found.setdefault(run, set()).add(value)
                start, row = end, row + 1
        assert row == len(given_texts)
        assert all(len(values) == 1 for values in found.values())
        assert len(set.union(set(), *found.values())) == len(found)

    def test_blocks_do_not_show(self) -> None:
        many = [f"row {number} of many" for number in range(20_000)]
        together = np.concatenate([block.hashes_S for block in runs_of_words(many, 2)])
        alone = np.concatenate([block.hashes_S for text in many[-3:] for block in runs_of_words([text], 2)])
        assert together[-len(alone) :].tolist() == alone.tolist()


class TestRandom:
    def test_the_seed_decides(self) -> None:
        rows = texts(*VOCABULARY)
        assert kept(Random(budget=9), rows) == kept(Random(budget=9), rows) != kept(Random(budget=9, seed=1), rows)

    def test_every_row_is_as_likely(self) -> None:
        rows = texts(*VOCABULARY[:10])
        drawn = [name for seed in range(600) for name in kept(Random(budget=3, seed=seed), rows)]
        counts = np.array([drawn.count(row.id) for row in rows])
        assert ((counts - 180) ** 2 / 180).sum() < 27.9  # chi-squared of nine degrees of freedom, p = 0.001

    def test_groups_get_equally_many(self) -> None:
        rows = [Example(id=str(n), prompt="?", completion="a" if n < 3 else "b") for n in range(40)]
        chosen = [row.completion for row in Random(budget=6, by="completion").select(rows)]
        assert chosen.count("a") == chosen.count("b") == 3
        with pytest.raises(DataError, match="which has 3"):
            kept(Random(budget=8, by="completion"), rows)


class TestLongest:
    def test_the_answer_counts_and_the_id_where_answers_are_equally_long(self) -> None:
        rows = [
            Example(id="z", prompt="q", completion="one two three"),
            Example(id="long question", prompt="a b c d e f g", completion="one"),
            Example(id="with steps", prompt="q", rationale="one two three", completion="four"),
            Example(id="a", prompt="q", completion="three two one"),
            Example(
                id="chat",
                messages=({"role": "user", "content": "x " * 9}, {"role": "assistant", "content": "one two"}),
            ),
            Example(id="text", text="one two three four five"),
        ]
        chosen = Longest(budget=6).choose(rows, SelectionBench())
        assert [rows[row].id for row in chosen.rows] == ["text", "with steps", "a", "z", "chat", "long question"]
        assert chosen.scores.tolist() == [5, 4, 3, 3, 2, 1]

    def test_of_each_group(self) -> None:
        rows = [Example(id=str(n), text="x " * n, meta={"kind": n % 2}) for n in range(10)]
        assert kept(Longest(budget=4, by="kind"), rows) == ["6", "7", "8", "9"]


class TestExact:
    def test_the_best_of_each_cluster_is_kept_with_its_reason(self) -> None:
        rows = [
            Example(id="b", prompt="Why?", completion="so it is"),
            Example(id="c", prompt=" why? ", completion="so"),
            Example(id="a", prompt="WHY?", completion="it is so"),
            Example(id="d", prompt="How?", completion="so"),
        ]
        bench = SelectionBench()
        chosen = Deduplicate().choose(rows, bench)
        assert [rows[row].id for row in chosen.rows] == ["a", "d"]
        assert list(chosen.reasons) == ["kept of a cluster of 3: b, c", "no other is like it"]
        assert chosen.clusters is not None
        assert chosen.clusters.tolist() == [0, 0, 0, 1]
        assert bench.notes == {"rows with the text of another left out": 2}
        assert [row.completion for row in Deduplicate().select(rows)] == ["it is so", "so"]  # no text is merged

    def test_a_long_cluster_is_not_told_in_full(self) -> None:
        told = Deduplicate().choose(texts(*["same"] * 9), SelectionBench()).reasons
        assert list(told) == ["kept of a cluster of 9: t1, t2, t3 and 5 more"]


def jaccard(first: str, second: str, length: int = 3) -> float:
    one, two = (
        {tuple(said[k : k + length]) for k in range(max(1, len(said) - length + 1))}
        for said in (words(first), words(second))
    )
    return len(one & two) / len(one | two)


class TestMinHash:
    def test_nearly_all_pairs_are_found_and_each_is_a_pair(self) -> None:
        rows = planted(150)
        bench = SelectionBench()
        chosen = Deduplicate(how="minhash", threshold=0.6).choose(rows, bench)
        assert chosen.clusters is not None
        leader = {int(chosen.clusters[row]): rows[row] for row in chosen.rows}
        for row, cluster in zip(rows, chosen.clusters, strict=True):
            lead = leader[int(cluster)]
            assert lead.id == row.id or jaccard(lead.text or "", row.text or "") >= 0.6
        stay = {rows[row].id: rows[row].text or "" for row in chosen.rows}
        alike = [(a, b) for a in stay for b in stay if a < b and a[:3] == b[:3] and jaccard(stay[a], stay[b]) >= 0.6]
        assert len(alike) <= 0.03 * 300, "pairs missed"
        candidates = bench.notes["candidate pairs by MinHash"]
        verified = bench.notes["pairs verified by their exact similarity"]
        assert candidates >= verified >= len(rows) - len(chosen.rows) > 150

    def test_a_candidate_that_is_no_pair_is_refused(self) -> None:
        rows = planted(150)
        bench = SelectionBench()
        chosen = Deduplicate(how="minhash", threshold=0.95).choose(rows, bench)
        assert len(chosen.rows) == len({normal(row.text or "") for row in rows})
        assert bench.notes["pairs verified by their exact similarity"] == 0

    def test_a_chain_keeps_what_is_unlike_its_end(self) -> None:
        said = [f"w{n}" for n in range(20)]
        first, middle, last = " ".join(said), " ".join([*said[2:], "x", "y"]), " ".join([*said[4:], "x", "y", "u", "v"])
        assert jaccard(first, middle, 1) == jaccard(middle, last, 1) == 18 / 22
        rows = [Example(id=name, text=text) for name, text in zip("abc", (first, middle, last), strict=True)]
        assert kept(Deduplicate(how="minhash", threshold=0.8, ngram=1), rows) == ["a", "c"]

    def test_a_crowded_bucket_is_told_of_and_takes_no_quadratic_time(self) -> None:
        shared = "the very same long beginning of every row in this set before "
        rows = texts(*[shared + " ".join(f"{n}x{k}" for k in range(6)) for n in range(300)])
        bench = SelectionBench()
        assert len(kept(Deduplicate(how="minhash", threshold=0.7), rows, bench)) == 300
        assert bench.notes["candidate pairs by MinHash"] < 300 * 299 / 2
        Deduplicate(how="minhash", threshold=0.6, ngram=1).choose(rows, bench)
        assert any("crowded" in note for note in bench.notes)

    def test_without_rensa_it_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("stillhouse.selection._minhash.find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match=r"stillhouse\[data\]"):
            kept(Deduplicate(how="minhash"), texts("a", "b"))


def plain_leaders(similar_MM: np.ndarray, threshold: float) -> list[int]:
    """One row after another: who leads, and whom the others follow."""
    leaders: list[int] = []
    for row in range(len(similar_MM)):
        before = [other for other in range(row) if leaders[other] == other]
        best = max(before, key=lambda other: similar_MM[row, other], default=None)
        leaders.append(row if best is None or similar_MM[row, best] < threshold else best)
    return leaders


class TestSemantic:
    @pytest.mark.parametrize("threshold", [0.3, 0.8, 0.97])
    def test_blocks_find_what_one_row_after_another_finds(self, threshold: float) -> None:
        vectors_ND = np.random.default_rng(1).normal(size=(2300, 6)).astype(np.float32)
        units_ND = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        cosines_NN = units_ND @ units_ND.T
        found = Semantic(vectors_ND).at(threshold).leaders_M
        wanted = np.array(plain_leaders(cosines_NN, threshold - 1e-6))
        assert 0 < (wanted == np.arange(2300)).sum() < 2300
        # Where two leaders are equally near, rounding may decide between them; who leads is the same.
        assert np.array_equal(found == np.arange(2300), wanted == np.arange(2300))
        assert (found == wanted).mean() > 0.999

    def test_a_zero_vector_is_like_nothing_and_an_equal_one_like_itself(self) -> None:
        vectors_ND = np.array([[0, 0, 0], [0.1, 0.2, 0.3], [0, 0, 0], [0.1, 0.2, 0.3]], np.float32)
        assert Semantic(vectors_ND).at(1.0).leaders_M.tolist() == [0, 1, 2, 1]

    def test_topics_by_tfidf(self) -> None:
        rows = texts("the cat sat on the mat", "the cat sat on a mat", "shares of banks fell", "shares of a bank fell")
        assert kept(Deduplicate(how="semantic", threshold=0.6, features=Tfidf(dimensions=2)), rows) == ["t0", "t3"]


class TestOrder:
    """Points at 0, 20 and 40 degrees: whoever goes by order keeps two of them or one, as they happen to come."""

    @settings(max_examples=15, deadline=None)
    @given(st.permutations(range(45)), st.sampled_from(["exact", "minhash"]))
    def test_the_order_of_the_rows_decides_nothing(self, order: list[int], how: str) -> None:
        rows = planted(15)
        selector = Deduplicate(how=how, threshold=None if how == "exact" else 0.5)  # ty: ignore[invalid-argument-type]
        assert sorted(kept(selector, [rows[place] for place in order])) == sorted(kept(selector, rows))

    @settings(max_examples=10, deadline=None)
    @given(st.permutations(range(45)))
    def test_nor_for_what_is_alike_in_meaning(self, order: list[int]) -> None:
        rows = planted(15)
        for selector in (Deduplicate(how="semantic", threshold=0.7), Deduplicate(how="semantic", budget=11)):
            assert sorted(kept(selector, [rows[place] for place in order])) == sorted(kept(selector, rows))


class TestBudget:
    @pytest.mark.parametrize("budget", [1, 2, 37, 60, 61, 119, 120, 121, 180])
    def test_exactly_so_many_are_left(self, budget: int) -> None:
        rows = planted()
        assert len(kept(Deduplicate(how="semantic", budget=budget), rows)) == budget
        if budget >= 60:
            bench = SelectionBench()
            assert len(kept(Deduplicate(how="minhash", budget=budget), rows, bench)) == budget
            assert budget == 180 or any("at a threshold of" in note for note in bench.notes)

    def test_what_is_most_alike_goes_first(self) -> None:
        rows = planted()
        chosen = kept(Deduplicate(how="minhash", budget=60), rows)
        assert len({name[:3] for name in chosen}) == 60

    def test_of_rows_that_go_at_one_threshold_the_worst_go(self) -> None:
        rows = [Example(id=f"{n}", text=f"one two three four five six {n // 2} {'x' * (n % 2)}") for n in range(8)]
        chosen = kept(Deduplicate(how="semantic", budget=7), rows)
        assert len(chosen) == 7

    def test_followers_of_a_leader_that_follows_follow_on(self) -> None:
        class Steps:
            lowest = 0.0

            def __len__(self) -> int:
                return 4

            def at(self, threshold: float) -> Found:
                return Found(np.array([0, 1, 1, 2] if threshold > 0.5 else [0, 0, 0, 0]))

        found, _ = down_to(1, Steps(), "deduplicate")
        assert found.leaders_M.tolist() == [0, 0, 0, 0]

    def test_what_cannot_be_met_is_refused(self) -> None:
        rows = planted(20)
        with pytest.raises(DataError, match=r"the threshold 0\.2 it leaves 20"):
            kept(Deduplicate(how="minhash", budget=5), rows)
        with pytest.raises(DataError, match="was given 60 different ones"):
            kept(Deduplicate(how="minhash", budget=61), [*rows, Example(id="again", text=rows[0].text)])


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"how": "fuzzy"}, "exact, minhash or semantic"),
        ({"how": "minhash", "threshold": 0.5, "budget": 3}, "one of the two"),
        ({"threshold": 0.5}, "left out where how is exact"),
        ({"budget": 5}, "left out where how is exact"),
        ({"how": "minhash", "threshold": 0.1}, "between 0.2 and 1"),
        ({"how": "semantic", "threshold": 1.1}, "between 0.0 and 1"),
        ({"how": "semantic", "budget": 0}, "at least 1 row"),
        ({"ngram": 0}, "at least 1 word"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Deduplicate(**settings)  # ty: ignore[invalid-argument-type]


@pytest.mark.parametrize("settings", [{"ngram": 0}, {"threshold": 0.0}, {"threshold": 1.2}])
def test_settings_of_decontaminate_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="it must be"):
        Decontaminate(**settings)  # ty: ignore[invalid-argument-type]


QUESTION = (
    "A farmer keeps forty sheep on a hill behind the old mill and sells a quarter of them each autumn at the market "
    "in town. How many are left after two years?"
)
OTHER = "The orchestra rehearses in a hall near the river on every second Tuesday of the month, and nobody is late."


def against(*items: str) -> SelectionBench:
    return SelectionBench(heldout=[Example(id=f"q{number}", prompt=item) for number, item in enumerate(items)])


class TestDecontaminate:
    def test_verbatim_edited_and_leaked_rows_go_and_the_notes_say_against_what(self) -> None:
        rows = [
            Example(id="same", prompt=QUESTION.upper() + "  "),
            Example(id="edited", prompt=QUESTION.replace("forty", "sixty").replace("town", "the city")),
            Example(id="in the answer", prompt="Ask me something.", completion=f"Gladly! {QUESTION}"),
            Example(
                id="in a talk",
                messages=({"role": "user", "content": "Go."}, {"role": "assistant", "content": QUESTION}),
            ),
            Example(id="clean", prompt=OTHER),
            Example(id="a phrase of it", prompt="He was in town. How many are left after two years of this?"),
        ]
        bench = against(QUESTION, "What else?")
        chosen = Decontaminate().choose(rows, bench)
        assert [rows[row].id for row in chosen.rows] == ["clean", "a phrase of it"]
        assert chosen.reasons[0] == "shares no 8 words in a row with an evaluation item"
        assert "less than 50%" in chosen.reasons[1]
        assert chosen.scores[0] == 1 > chosen.scores[1] > 0.5
        assert bench.notes == {
            "rows that ask the same as an evaluation item left out (q0)": 1,
            "rows that hold most of an evaluation item left out (q0)": 3,
        }

    def test_a_short_item_is_found_whole_alone(self) -> None:
        rows = texts("Who are you?", "Tell me: who are you?")
        assert kept(Decontaminate(), rows, against("who are  YOU?")) == ["t1"]

    def test_the_template_of_the_prompts_is_no_overlap(self) -> None:
        frame = "Read the review below and say whether the one who wrote it liked the film or not. Review: {} Answer:"
        reviews = planted(80, copies=1, length=12)
        rows = [Example(id=row.id, prompt=frame.format(row.text)) for row in reviews[:40]]
        bench = against(*[frame.format(row.text) for row in [*reviews[40:], reviews[3]]])
        assert kept(Decontaminate(), rows, bench) == [row.id for row in rows if row.id != reviews[3].id]

    def test_what_a_source_adds_to_many_rows_is_no_overlap(self) -> None:
        footer = " This story was sent by the wire service of the town and may not be printed again without its leave."
        rows = [Example(id=row.id, text=f"{row.text}{footer}") for row in planted(300, copies=1, length=10)]
        others = [" ".join(random.Random(n).choices(VOCABULARY, k=12)) for n in range(90, 100)]
        assert len(kept(Decontaminate(), rows, against(*others, f"Just in. {footer}"))) == 300

    def test_the_training_set_itself_is_refused(self) -> None:
        rows = planted(5)
        with pytest.raises(DataError, match="The training data and the evaluation set are the same rows: each of 15"):
            kept(Decontaminate(), rows, SelectionBench(heldout=rows))
        with pytest.raises(DataError, match="All 1 training rows overlap"):
            kept(Decontaminate(), [Example(id="a", prompt=f"Well: {QUESTION}")], against(QUESTION))

    def test_no_evaluation_set_is_refused(self) -> None:
        with pytest.raises(DataError, match="no evaluation set"):
            kept(Decontaminate(), texts("a"))

    def test_the_built_in_problems_do_not_overlap(self) -> None:
        train, heldout = (
            read_source(Source(arithmetic=ArithmeticSource(count=300, split=split))) for split in ("train", "heldout")
        )
        assert len(kept(Decontaminate(), train, SelectionBench(heldout=heldout))) == 300


EVERY = [
    Random(budget=1),
    Longest(budget=1),
    Deduplicate(),
    Deduplicate(how="minhash"),
    Deduplicate(how="semantic"),
    Decontaminate(),
]


@pytest.mark.parametrize("selector", EVERY, ids=repr)
class TestBadInput:
    def test_no_rows(self, selector: Selector) -> None:
        with pytest.raises(DataError, match="no examples"):
            kept(selector, [], against(QUESTION))

    def test_one_row(self, selector: Selector) -> None:
        assert kept(selector, texts("a single row"), against(QUESTION)) == ["t0"]

    def test_rows_that_are_all_alike(self, selector: Selector) -> None:
        left = kept(selector, texts(*["a row like all others"] * 30), against(QUESTION))
        assert len(left) == (30 if isinstance(selector, Decontaminate) else 1)

    def test_ids_that_occur_twice(self, selector: Selector) -> None:
        rows = [*texts("first row", "second row"), Example(id="t1", text="third row")]
        if isinstance(selector, Longest | Deduplicate):
            with pytest.raises(DataError, match="1 ids occur more than once: 't1'"):
                kept(selector, rows)
        else:
            assert kept(selector, rows, against(QUESTION))

    def test_half_a_surrogate_pair(self, selector: Selector) -> None:
        rows = texts("a sound row of words", LONE, LONE + " again and again")
        assert kept(selector, rows, against(LONE + " and on and on"))

    def test_a_row_without_a_word(self, selector: Selector) -> None:
        assert kept(selector, texts("some words here", "", "?!", " \n"), against(QUESTION, ""))


@pytest.mark.parametrize("selector", [Longest(budget=1), Deduplicate(how="minhash"), Decontaminate()], ids=repr)
def test_a_row_of_ten_megabytes_is_some_million_numbers(selector: Selector) -> None:
    huge = " ".join(random.Random(0).choices(VOCABULARY, k=1_300_000))
    assert len(huge) > 10_000_000
    left = kept(selector, texts("a short row", huge, huge + " more"), against(QUESTION))
    assert len(left) == {Longest: 1, Deduplicate: 2, Decontaminate: 3}[type(selector)]


def test_minhash_reads_rows_in_their_order() -> None:
    rows = planted(10)
    ranked = np.argsort([row.id for row in rows], kind="stable")
    found = MinHash(rows, ranked, 3).at(0.3)
    names = [rows[row].id for row in ranked]
    followers = [(names[k], names[lead]) for k, lead in enumerate(found.leaders_M) if k != lead]
    assert followers
    assert all(one[:3] == two[:3] for one, two in followers)
