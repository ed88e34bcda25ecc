"""Rows with planted wrong labels: found by a teacher that never saw them, on points and on news."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stillhouse.errors import DataError
from stillhouse.features.tfidf import Tfidf
from stillhouse.records import Example
from stillhouse.selection.base import SelectionBench
from stillhouse.selection.confident_labels import ConfidentLabels, confident_joint, mislabelled

NEWS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "ag_news" / "pool.jsonl"
WORDS = {"cats": ["cat purrs", "kitten naps", "tabby meows"], "shares": ["stock falls", "bond rises", "fund gains"]}


def texts(rows: int) -> list[Example]:
    names = list(WORDS)
    return [
        Example(id=str(n), prompt=f"{WORDS[names[n % 2]][n // 2 % 3]} today", completion=names[n % 2])
        for n in range(rows)
    ]


def planted(examples: list[Example], share: float, seed: int = 0) -> tuple[list[Example], set[str]]:
    """The same rows, some of which bear the label of another class."""
    rng = np.random.default_rng(seed)
    names = sorted({str(e.completion) for e in examples})
    found, wrong = [], set()
    for example in examples:
        label = str(example.completion)
        if rng.random() < share:
            label = names[(names.index(label) + int(rng.integers(1, len(names)))) % len(names)]
            wrong.add(example.id)
        found.append(Example(id=example.id, prompt=example.prompt, completion=label))
    return found, wrong


def left_out(examples: list[Example], **settings: object) -> tuple[set[str], SelectionBench]:
    bench = SelectionBench()
    chosen = ConfidentLabels(**settings).choose(examples, bench)  # ty: ignore[invalid-argument-type]
    assert list(chosen.rows) == sorted(chosen.rows)
    return {e.id for e in examples} - {examples[row].id for row in chosen.rows}, bench


def test_planted_labels_are_found_and_hardly_any_other() -> None:
    examples, wrong = planted(texts(120), 0.1)
    found, bench = left_out(examples)
    assert wrong
    assert wrong <= found
    assert len(found - wrong) <= 0.2 * len(wrong)  # how many there are is an estimate
    assert bench.notes["confident_labels: likely mislabelled, left out"] == len(found)


def test_right_labels_all_stay_and_are_scored_by_themselves() -> None:
    examples = texts(60)
    chosen = ConfidentLabels().choose(examples, SelectionBench())
    assert len(chosen.rows) == 60
    assert (chosen.scores > 0.5).all()
    kept = list(ConfidentLabels().select(examples))
    assert [e.id for e in kept] == [e.id for e in examples]
    assert kept[0].meta["selected_by"][0]["score"] > 0.5


def test_labels_may_stand_in_a_column() -> None:
    examples, wrong = planted(texts(120), 0.1)
    columns = [Example(id=e.id, text=e.prompt, meta={"topic": e.completion}) for e in examples]
    assert left_out(columns, label="topic")[0] == left_out(examples)[0] >= wrong


def test_a_class_that_the_teacher_is_unsure_of_is_not_wrong_throughout() -> None:
    # Rows of class 1 are told with 0.45 at most: less likely than class 0, and yet as sure as class 1 ever gets.
    told = np.array([[0.9, 0.1]] * 4 + [[0.55, 0.45]] * 4)
    assert not mislabelled(told, np.array([0] * 4 + [1] * 4)).any()
    assert (told.argmax(axis=1) != [0] * 4 + [1] * 4).any()


def test_the_joint_adds_up_to_the_rows() -> None:
    rng = np.random.default_rng(0)
    told, labels = rng.dirichlet(np.ones(3), 90), np.arange(90) % 3
    assert np.allclose(confident_joint(told, labels).sum(axis=1), 30)


@pytest.mark.skipif(not NEWS.exists(), reason=f"AG News is not at {NEWS}")
def test_a_tenth_of_planted_labels_on_news() -> None:
    rows = [json.loads(line) for line in NEWS.read_text(encoding="utf-8").splitlines()[:1000]]
    news = [Example(id=str(n), prompt=row["text"], completion=row["label"]) for n, row in enumerate(rows)]
    examples, wrong = planted(news, 0.1)
    found, _ = left_out(examples, features=Tfidf(dimensions=100, pairs=False))
    recall, precision = len(found & wrong) / len(wrong), len(found & wrong) / len(found)
    print(f"recall {recall:.2f}, precision {precision:.2f}, {len(found)} of {len(examples)} left out")
    assert recall > 0.6
    assert precision > 0.3  # chance: 0.1; the news have wrong labels of their own


@pytest.mark.parametrize(
    ("examples", "settings", "word"),
    [
        (texts(4)[::2], {}, "two classes or more"),
        (texts(3), {}, "at least two rows each"),
        ([Example(id="a", text="a cat")], {}, "looks at 'completion', and example 'a' has none"),
        ([Example(id="a", text="a cat")], {"label": "topic"}, "looks at 'topic'"),
    ],
)
def test_rows_that_cannot_be_judged(examples: list[Example], settings: dict[str, str], word: str) -> None:
    with pytest.raises(DataError, match=word):
        left_out(examples, **settings)


def test_one_fold_judges_nothing() -> None:
    with pytest.raises(ValueError, match="folds is 1; it must be at least 2"):
        ConfidentLabels(folds=1)
