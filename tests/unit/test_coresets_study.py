"""The study of coresets: random always beside, gradients against their definition, statistics, and every bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse import registry
from stillhouse.classifiers.fitting import one_hot, softmax_regression
from stillhouse.errors import DataError, NeedsError, RecipeError, SettingError
from stillhouse.features.base import Matrix
from stillhouse.recipe_file import load
from stillhouse.recipe_parts import Component
from stillhouse.records import Example
from stillhouse.selection.base import Picked, VectorSelector
from stillhouse.studies._classifier_gradients import CHECKPOINTS, gradients
from stillhouse.studies._coreset_draw import FULL, Plan, Pool, draw, measure
from stillhouse.studies._coreset_summary import summarize
from stillhouse.studies._given import Given
from stillhouse.studies._labelled import LABEL, LabelledData, checked, labelled, read_labelled
from stillhouse.studies.base import conduct
from stillhouse.studies.coresets import CoresetStudy

WORDS = {"sea": ["ship", "tide", "reef", "sail"], "land": ["hill", "road", "barn", "oak"]}
SMALL = [
    "features=[{tfidf: {dimensions: 6, pairs: false}}]",
    "budgets=[1, 3]",
    "seeds=2",
    "students=[linear]",
    "selectors=[k_center]",
    "gradients=false",
]


@dataclass(frozen=True, kw_only=True)
class Farthest(VectorSelector):
    """The longest vectors; the last one counts twice."""

    reason = "is long"

    def pick(self, vectors_ND: Matrix, count: int, rng: np.random.Generator) -> Picked:
        rows = np.argsort(-np.linalg.norm(vectors_ND, axis=1), kind="stable")[:count]
        return Picked(rows, np.where(np.arange(count) == count - 1, 2.0, 1.0))


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of four words, three of them of their class."""
    rng = np.random.default_rng(seed)
    found = []
    for place in range(count):
        name, other = ("sea", "land") if place % 2 else ("land", "sea")
        words = [*rng.choice(WORDS[name], 3), rng.choice(WORDS[other]), f"no{seed}x{place}"]
        found.append({"text": " ".join(words), "label": name})
    return found


def write(place: Path, found: Sequence[dict[str, Any]]) -> Path:
    place.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return place


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Forty rows to choose from and twenty held out, as overrides."""
    train, heldout = write(tmp_path / "train.jsonl", rows(40)), write(tmp_path / "dev.jsonl", rows(20, seed=1))
    return [f"data.train.path={train}", f"data.heldout.path={heldout}"]


def study(*overrides: str) -> CoresetStudy:
    made = load("coresets", [*SMALL, *overrides], build=True)
    assert isinstance(made, CoresetStudy)
    return made


def pool(count: int = 60, classes: int = 3) -> Pool:
    rng = np.random.default_rng(0)
    labels_N = np.arange(count) % classes
    vectors_ND = (np.eye(classes, 5)[labels_N] + 0.4 * rng.normal(size=(count, 5))).astype(np.float32)
    heldout_E = np.arange(30) % classes
    heldout_ED = (np.eye(classes, 5)[heldout_E] + 0.4 * rng.normal(size=(30, 5))).astype(np.float32)
    examples = [labelled(f"t-{place}", "é" * (1 + place), str(label)) for place, label in enumerate(labels_N)]
    return Pool(examples, vectors_ND, labels_N, heldout_ED, heldout_E, classes)


def plan(folder: Path, *, students: Sequence[str] = ("linear",), **selectors: str) -> Plan:
    named = {name.replace("_on_", " on "): Component(name=value) for name, value in selectors.items()}
    return Plan(named, (1, 4), students, 0.8, {"hard": 1.0, "soft": 0.1}, folder)


def test_random_and_all_rows_stand_beside_whatever_is_asked_for(files: list[str], tmp_path: Path) -> None:
    found = conduct(study(*files), tmp_path / "out")
    cells = found["features"][0]["cells"]
    settings = {(c["selector"], c["labels"], c["budget"]) for c in cells}
    for labels in ("hard", "soft"):
        assert (FULL, labels, 0) in settings
        for budget in (1, 3):
            assert {("random", labels, budget), ("k_center", labels, budget)} <= settings
    for cell in cells:
        assert 0 <= cell["accuracy"]["value"] <= 1
        assert cell["accuracy"]["seeds"] == 2
        if cell["selector"] == "k_center":
            assert cell["against_random"]["basis"] == "seeds and examples"
            assert (cell["against_random"]["seeds"], cell["against_random"]["examples"]) == (2, 20)
        assert ("against_hard" in cell) == (cell["labels"] == "soft" and cell["selector"] != FULL)
    assert found == json.loads((tmp_path / "out" / "coresets.json").read_text())
    page = (tmp_path / "out" / "report.html").read_text()
    assert "beats random choice in" in page
    assert page.count("<svg") == 4  # two kinds of labels, by rows and by size
    assert (tmp_path / "out" / "manifest.json").exists()


def test_a_study_that_was_stopped_draws_no_draw_again(files: list[str], tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def watch(stage: str, done: int, total: int, note: str) -> None:
        seen.append((stage, done))

    first = conduct(study(*files), tmp_path / "out", watch)
    assert ("draws", 2) in seen
    seen.clear()
    (tmp_path / "out" / "stages" / "draw-0-1.json").unlink()
    again = conduct(study(*files), tmp_path / "out", watch)
    assert [done for stage, done in seen if stage == "draws"] == [1, 2]
    assert again == first


def test_the_same_settings_find_the_same(files: list[str], tmp_path: Path) -> None:
    one, same = (conduct(study(*files), tmp_path / name) for name in ("a", "b"))
    assert one == same
    other = conduct(study(*files, "seed=1"), tmp_path / "c")
    assert one["features"] != other["features"]


def test_all_selectors_that_choose_rows_of_classes_take_part(files: list[str]) -> None:
    named, left_out = study(*files, "selectors=[]", "gradients=true")._selectors()
    assert {"herding", "k_center", "gradient_match (KD)", "herding on KD gradients"} <= set(named)
    assert "random" not in named  # it stands beside in any case
    assert "does not choose a number of rows of each class" in left_out["confident_labels"]
    if "kernel_herding" in registry.names("selector"):
        assert named["kernel_herding (trust teacher)"].settings == {"trust": "teacher"}


# One draw.


def test_a_draw_keeps_a_share_of_every_class_and_differs_by_seed() -> None:
    everything = pool()
    one, same, other = (draw(everything, 0.8, seed) for seed in ((0, 0), (0, 0), (0, 1)))
    assert np.bincount(one.labels_N).tolist() == [16, 16, 16]
    assert [e.id for e in one.examples] == [e.id for e in same.examples] != [e.id for e in other.examples]
    assert [e.meta[LABEL] for e in one.examples] == [str(label) for label in one.labels_N]


def test_selectors_see_the_vectors_of_their_row_and_weights_reach_the_students(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = registry.component
    monkeypatch.setattr(registry, "component", lambda f, n: Farthest if n == "farthest" else find(f, n))
    seen: list[tuple[int, ...]] = []
    pick = Farthest.pick

    def watched(self: Farthest, vectors_ND: Matrix, count: int, rng: np.random.Generator) -> Picked:
        seen.append(vectors_ND.shape)
        return pick(self, vectors_ND, count, rng)

    monkeypatch.setattr(Farthest, "pick", watched)
    found, hits_KE = measure(
        pool(), plan(tmp_path, farthest="farthest", **{"herding_on_KD gradients": "farthest"}), (0, 0)
    )
    assert hits_KE.shape == (len(found["cells"]), 30)
    width = len(CHECKPOINTS) * 3 * 6  # checkpoints, classes, inputs and the bias
    assert set(seen) == {(16, 5), (16, width)}
    weighted = {(c["selector"], c["budget"]): c for c in found["cells"] if c["weighted"]}
    assert ("farthest", 4) in weighted
    assert ("farthest", 1) not in weighted  # one row a class: all weigh the same
    assert ("random", 4) not in weighted
    assert not list(tmp_path.iterdir())  # what is given is in memory already


def test_both_students_learn_and_text_is_counted_in_utf8(tmp_path: Path) -> None:
    found, hits_KE = measure(pool(), plan(tmp_path, k_center="k_center", students=("linear", "mlp")), (0, 0))
    for cell, hits_E in zip(found["cells"], hits_KE, strict=True):
        if cell["selector"] == FULL:
            assert hits_E.mean() > 0.7, cell
            assert cell["text_bytes"] % 2 == 0  # é takes two
        assert cell["label_bytes"] == (12 if cell["budget"] == 4 else 3 if cell["budget"] == 1 else 48) * (
            6 if cell["labels"] == "soft" else 1
        )
    assert 0.5 < found["teacher_accuracy"] <= 1


def test_gradients_are_those_that_autograd_finds() -> None:
    inputs_ND, targets_NC = np.random.default_rng(0).normal(size=(20, 4)), one_hot(np.arange(20) % 3, 3)
    found_NG = gradients(inputs_ND, targets_NC, penalty=0.5)
    assert found_NG.shape == (20, len(CHECKPOINTS) * 3 * 5)
    learner = softmax_regression(inputs_ND, targets_NC, penalty=0.5, iterations=CHECKPOINTS[1])
    weights = torch.tensor(learner.weights_DC, requires_grad=True)
    bias = torch.tensor(learner.bias_C, requires_grad=True)
    for row in (0, 7):
        logits = torch.tensor(inputs_ND[row : row + 1]) @ weights + bias
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(targets_NC[row : row + 1]))
        wanted = torch.cat([part.reshape(-1, 3) for part in torch.autograd.grad(loss, [weights, bias])]).T.numpy()
        assert np.allclose(found_NG[row].reshape(len(CHECKPOINTS), 3, 5)[1], wanted, atol=1e-5)


def test_wide_gradients_keep_their_angles() -> None:
    inputs_ND, targets_NC = np.random.default_rng(0).normal(size=(12, 699)), one_hot(np.arange(12) % 3, 3)
    found_NG = gradients(inputs_ND, targets_NC, penalty=1.0)
    assert found_NG.shape == (12, 4096)  # of 6300
    learners = [softmax_regression(inputs_ND, targets_NC, penalty=1.0, iterations=n) for n in CHECKPOINTS]
    apart = [learner.probabilities(inputs_ND) - targets_NC for learner in learners]
    products = sum(part @ part.T for part in apart) * (inputs_ND @ inputs_ND.T + 1)
    assert np.abs(found_NG @ found_NG.T - products).max() < 0.1 * products.max()


# Statistics.


def cells_of(budget: int, selector: str, text: int) -> dict[str, Any]:
    cell = {"selector": selector, "budget": budget, "labels": "hard", "weighted": False, "student": "linear"}
    return {**cell, "text_bytes": text, "label_bytes": 0}


def test_differences_are_paired_and_bytes_are_matched_between_two_sizes_of_random() -> None:
    ids = [f"h-{place}" for place in range(40)]
    cells = [
        cells_of(0, FULL, 1000),
        cells_of(1, "random", 100),
        cells_of(4, "random", 400),
        cells_of(1, "herding", 200),
        cells_of(4, "herding", 800),
    ]
    right = np.array([[p < n for p in range(40)] for n in (40, 10, 20, 30, 36)])
    hits = [right, right[:, ::-1]]
    found = {(c["selector"], c["budget"]): c for c in summarize([{"cells": cells}] * 2, hits, ids)}
    herding = found["herding", 1]
    assert herding["accuracy"]["value"] == 0.75 == herding["retention"]["value"]
    assert herding["against_random"]["difference"] == pytest.approx(0.5)
    assert herding["against_random"]["resolved"]
    # 200 bytes lie half-way between 100 and 400 by the logarithm, and random's accuracy between 10 and 20 of 40.
    assert herding["against_random_at_equal_bytes"]["difference"] == pytest.approx(0.75 - 0.375)
    assert "against_random_at_equal_bytes" not in found["herding", 4]  # beyond random's largest set
    assert "against_herding" not in herding
    assert found["random", 4]["against_herding"]["difference"] == pytest.approx(-0.4)
    assert "against_random" not in found["random", 4]


# Bad input.


def test_labels_may_be_names_in_one_file_and_numbers_in_the_other(files: list[str], tmp_path: Path) -> None:
    numbered = [row | {"label": ["land", "sea"].index(row["label"])} for row in rows(20, seed=1)]
    write(tmp_path / "dev.jsonl", numbered)
    with pytest.raises(DataError, match=r"Training data: land, sea\. Held-out data: 0, 1\. .*data\.labels=\{0: land"):
        conduct(study(*files), tmp_path / "out")
    made = study(*files, "data.labels={0: land, 1: sea}")
    assert read_labelled(made.data).classes == ("land", "sea")
    cells = conduct(made, tmp_path / "other")["features"][0]["cells"]
    assert max(cell["accuracy"]["value"] for cell in cells) > 0.6  # the right way round


@pytest.mark.parametrize(
    ("train", "heldout", "word"),
    [
        (rows(40), rows(40), "40 of 40 held-out texts of .* stand in the training data"),
        (rows(40), [*rows(19, 1), {"text": "a", "label": "air"}], "Training data: land, sea. Held-out data: air, land"),
        ([row | {"label": "sea"} for row in rows(40)], rows(9, 1), "one label alone, 'sea'"),
        (rows(6), rows(9, 1), "has 3 rows of class 'land', of which a draw keeps 2 .* asks for 3 .* at most 2"),
        ([*rows(40), *[r | {"label": "air"} for r in rows(2, 5)]], rows(9, 1), "has 2 rows of class 'air'"),
        ([], rows(9, 1), "holds no examples"),
        (rows(40), [], "holds no examples"),
        ([{"text": "a", "topic": "sea"}], rows(9, 1), "no column 'label'"),
        ([{"text": "a", "label": ""}], rows(9, 1), "row 1 has an empty 'label'"),
    ],
)
def test_files_that_cannot_be_used_say_why(
    files: list[str], tmp_path: Path, train: Any, heldout: Any, word: str
) -> None:
    write(tmp_path / "train.jsonl", train)
    write(tmp_path / "dev.jsonl", heldout)
    with pytest.raises(DataError, match=word):
        conduct(study(*files), tmp_path / "out")
    assert not (tmp_path / "out" / "stages").exists()  # before anything expensive


def test_the_same_file_for_both_is_refused(files: list[str], tmp_path: Path) -> None:
    shutil.copy(tmp_path / "train.jsonl", tmp_path / "dev.jsonl")
    with pytest.raises(DataError, match="accuracy would measure memory"):
        conduct(study(*files), tmp_path / "out")


def test_a_few_leaked_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", rows(40))
    heldout = write(tmp_path / "b.jsonl", [*rows(1), *rows(120, seed=1)])
    data = LabelledData.model_validate({"train": {"path": str(train)}, "heldout": {"path": str(heldout)}})
    found = read_labelled(data)
    assert (found.leaked, len(found.heldout)) == (1, 120)


def test_an_id_that_stands_twice_is_refused() -> None:
    one, other = labelled("a", "x", "sea"), labelled("b", "y", "land")
    with pytest.raises(DataError, match="train has two rows with the id 'a'"):
        checked([one, other, one], [labelled("c", "z", "sea")], ("train", "heldout"))


@pytest.mark.parametrize(
    ("override", "error", "word"),
    [
        ("selectors=[no_such]", RecipeError, "no selector named 'no_such'"),
        ("selectors=[k_center, k_center]", RecipeError, "names k_center twice"),
        ("selectors=[{k_center: {colour: 1}}]", SettingError, "no setting 'colour'"),
        ("selectors=[confident_labels]", NeedsError, "does not choose a number of rows of each class"),
        ("selectors=[{k_center: {features: gradients}}]", NeedsError, "looks at a student"),
        ("selectors=[random]", RecipeError, "always stands beside"),
        ("features=[hidden_states]", NeedsError, "this study has texts alone"),
        ("features=[tfidf, tfidf]", RecipeError, "names tfidf twice"),
    ],
)
def test_components_that_cannot_take_part(
    files: list[str], tmp_path: Path, override: str, error: type[Exception], word: str
) -> None:
    with pytest.raises(error, match=word):
        conduct(study(*files, override), tmp_path / "out")


@pytest.mark.parametrize("override", ["budgets=[5, 5]", "budgets=[0]", "seeds=1", "share=1.0", "students=[tree]"])
def test_settings_that_mean_nothing_are_refused(files: list[str], override: str) -> None:
    with pytest.raises(RecipeError, match=override.partition("=")[0]):
        study(*files, override)


def test_given_vectors_follow_ids_and_are_told_apart() -> None:
    vectors_ND = np.arange(6, dtype=np.float32).reshape(3, 2)
    given = Given(ids=("a", "b", "c"), vectors_ND=vectors_ND)
    assert given.compute([Example(id="c", text="x"), Example(id="a", text="y")]).tolist() == [[4, 5], [0, 1]]
    assert repr(given) != repr(Given(ids=("a", "b", "c"), vectors_ND=vectors_ND + 1))
    with pytest.raises(ValueError, match="ids are 2; they must be as many as the 3 vectors"):
        Given(ids=("a", "b"), vectors_ND=vectors_ND)
