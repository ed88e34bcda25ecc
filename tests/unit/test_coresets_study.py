"""The study of coresets: numbers that a small data set lets one foresee, a page, and every bad input by its words."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import DataError, NeedsError, RecipeError, StillhouseError
from stillhouse.recipe_file import load
from stillhouse.studies.base import Study, conduct

WORDS = {"sea": "wave tide harbour sail anchor gull", "field": "plough barn wheat furrow tractor hay"}


def rows(count: int, seed: int, names: tuple[str, str] = ("sea", "field")) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    found = []
    for number in range(count):
        kind = ("sea", "field")[number % 2]
        filler = draw.choices(["the", "a", "of", "and", "some", "by"], k=5)
        said = [*draw.choices(WORDS[kind].split(), k=4), *filler, str(number)]
        draw.shuffle(said)
        found.append({"text": f"{seed} {' '.join(said)}", "label": names[number % 2]})
    return found


def write(place: Path, found: list[dict[str, Any]]) -> Path:
    place.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return place


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "train.jsonl", rows(80, 1)), write(tmp_path / "dev.jsonl", rows(40, 2))


def study(train: Path, heldout: Path, *overrides: str) -> Study:
    small = ["budgets=[2, 5]", "seeds=2", "features=[{tfidf: {dimensions: 8}}]"]
    paths = [f"data.train.path={train}", f"data.heldout.path={heldout}"]
    found = load("coresets", [*paths, *small, *overrides])
    assert isinstance(found, Study)
    return found


def test_every_selector_stands_beside_random_with_both_kinds_of_labels(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    found = conduct(study(*files), tmp_path / "run")
    (features,) = found["features"]
    cells = features["cells"]
    names = {cell["selector"] for cell in cells}
    assert {"random", "herding", "k_center", "facility_location", "gradient_match (KD)", "full data"} <= names
    key = ("selector", "weighted", "labels", "student", "budget")
    assert len({tuple(cell[k] for k in key) for cell in cells}) == len(cells)
    for cell in cells:
        assert 0 <= cell["accuracy"]["value"] <= 1
        assert cell["text_bytes"] > 0
        if cell["selector"] not in ("random", "full data"):
            assert {"low", "high", "resolved"} <= set(cell["against_random"])
    full = next(cell for cell in cells if cell["selector"] == "full data" and cell["labels"] == "hard")
    assert full["accuracy"]["value"] > 0.9  # the two kinds share no word that tells
    hard, soft = (
        next(c for c in cells if (c["selector"], c["labels"], c["budget"]) == ("random", labels, 5))
        for labels in ("hard", "soft")
    )
    assert soft["label_bytes"] > hard["label_bytes"]
    assert soft["text_bytes"] == hard["text_bytes"]
    page = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "from random rows on" in page
    assert json.loads((tmp_path / "run" / "coresets.json").read_text())["format"] == 1


def test_the_same_settings_give_the_same_numbers(files: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = (
        conduct(study(*files, "students=[linear]", "selectors=[herding, k_center]"), tmp_path / name)
        for name in ("one", "two")
    )
    assert one["features"] == two["features"]


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (["budgets=[5, 50]"], DataError, r"class '(sea|field)'.*budgets"),
        (["budgets=[5, 2]"], RecipeError, "budgets must rise"),
        (["selectors=[herdin]"], RecipeError, "herding"),
        (["selectors=[deduplicate]"], NeedsError, "rows of each class"),
        (["selectors=[herding, herding]"], RecipeError, "twice"),
        (["features=[hidden_states]"], NeedsError, "texts alone"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_drawn(
    files: tuple[Path, Path], tmp_path: Path, overrides: list[str], error: type[StillhouseError], words: str
) -> None:
    with pytest.raises(error, match=words):
        conduct(study(*files, *overrides), tmp_path / "run")
    assert not (tmp_path / "run" / "draws").exists()


def test_an_evaluation_set_that_is_the_training_set_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="stand in the training data"):
        conduct(study(files[0], files[0]), tmp_path / "run")


def test_labels_that_the_training_data_lack_are_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", rows(20, 3, ("0", "1")))
    with pytest.raises(DataError, match="sea"):
        conduct(study(files[0], other), tmp_path / "run")
    found = conduct(
        study(files[0], other, "data.labels={'0': sea, '1': field}", "selectors=[herding]"), tmp_path / "ok"
    )
    assert found["classes"] == ["field", "sea"]


def test_one_class_alone_and_an_empty_file_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    alone = write(tmp_path / "alone.jsonl", [row for row in rows(40, 4) if row["label"] == "sea"])
    for train in (alone, write(tmp_path / "empty.jsonl", [])):
        with pytest.raises(DataError):
            conduct(study(train, files[1]), tmp_path / train.stem)
