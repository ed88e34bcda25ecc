"""Components are found by their file's name, and their settings are checked."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stillhouse import registry
from stillhouse.errors import RecipeError
from stillhouse.objectives.forward_kl import ForwardKL
from stillhouse.objectives.generalized_jsd import GeneralizedJSD
from stillhouse.teachers.hf import HFTeacher
from stillhouse.testing import check_objective

EVERYTHING = [(family, name) for family in registry.FAMILIES for name in registry.names(family)]


def test_the_folder_is_the_list() -> None:
    package = Path(registry.__file__).parent / "objectives"
    files = {p.stem for p in package.glob("*.py")} - {"__init__", "base"}
    assert set(registry.names("objective")) == files
    assert {"cross_entropy", "forward_kl", "reverse_kl", "generalized_jsd"} <= files


@pytest.mark.parametrize(("family", "name"), EVERYTHING)
def test_every_file_holds_one_documented_component(family: str, name: str) -> None:
    cls = registry.component(family, name)
    assert cls.family == family
    assert cls.__doc__
    assert registry.summary(family, name)
    frozen = cls.model_config["frozen"] if family == "study" else cls.__dataclass_params__.frozen
    assert frozen, f"{cls.__name__} is not frozen; settings are a value (contract C6)"


def test_component_by_name() -> None:
    assert registry.component("objective", "forward_kl") is ForwardKL
    assert registry.component("teacher", "hf") is HFTeacher
    assert registry.name_of(ForwardKL()) == "forward_kl"


@pytest.mark.parametrize("name", ["foward_kl", "base", "_contract", "ForwardKL", ""])
def test_unknown_component_lists_those_that_exist(name: str) -> None:
    with pytest.raises(RecipeError, match=r"There is no objective named .*Known: cross_entropy, forward_kl"):
        registry.component("objective", name)


def test_misspelt_component_is_suggested() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'forward_kl'"):
        registry.component("objective", "foward_kl")


def test_settings_become_the_object() -> None:
    built = registry.build("objective", "generalized_jsd", {"beta": 0.25, "normalized": True, "weight": 2})
    assert built == GeneralizedJSD(beta=0.25, normalized=True, weight=2.0)
    assert isinstance(built.weight, float)


@pytest.mark.parametrize("text", ["2e-1", "0.2"])
def test_numbers_that_yaml_reads_as_text_are_numbers(text: str) -> None:
    assert registry.build("objective", "forward_kl", {"weight": text}).weight == 0.2


@pytest.mark.parametrize(
    ("family", "name", "settings", "message"),
    [
        ("objective", "forward_kl", {"temperature": -1}, "'forward_kl': temperature is -1.0; it must be positive"),
        ("objective", "forward_kl", {"temprature": 2}, "has no setting 'temprature'. Did you mean 'temperature'"),
        ("objective", "forward_kl", {"temperature": "hot"}, "temperature: Input should be a valid number.*got 'hot'"),
        ("objective", "forward_kl", {"family": "x"}, "has no setting 'family'. Known: temperature, weight"),
        ("objective", "generalized_jsd", {"beta": 0}, "use forward_kl, or normalized: true"),
        ("objective", "cross_entropy", {"temperature": 2}, "'cross_entropy' has no setting 'temperature'"),
        ("teacher", "hf", {}, "'hf': model: Field required"),
        ("teacher", "hf", {"model": "x", "dtype": "float8"}, "dtype: Input should be 'auto', 'float32'.*got 'float8'"),
    ],
)
def test_wrong_settings_say_which_and_why(family: str, name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        registry.build(family, name, settings)


def test_every_component_names_all_its_wrong_settings_at_once() -> None:
    with pytest.raises(RecipeError, match=r"beta: .*; weight: |weight: .*; beta: ") as caught:
        registry.build("objective", "generalized_jsd", {"beta": "a", "weight": "b"})
    assert "pydantic" not in str(caught.value)


PLUGIN = '''"""A divergence that somebody else wrote."""
from dataclasses import dataclass
from stillhouse.objectives.base import Divergence

@dataclass(frozen=True, kw_only=True)
class Theirs(Divergence):
    """Total variation."""
    def divergence(self, aligned):
        return 0.5 * (aligned.teacher_NK.exp() - aligned.student_NK.exp()).abs().sum(-1)
'''


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A real distribution with an entry point, on the path for the time of a test."""
    (tmp_path / "theirs.py").write_text(PLUGIN)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[stillhouse.objectives]\nmine = theirs:Theirs\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry._plugins.cache_clear()
    yield
    registry._plugins.cache_clear()
    sys.modules.pop("theirs", None)


@pytest.mark.usefixtures("theirs")
def test_components_of_other_distributions_are_found_through_entry_points() -> None:
    assert "mine" in registry.names("objective")
    assert registry.summary("objective", "mine") == "from theirs:Theirs"
    built = registry.build("objective", "mine", {"weight": 0.5})
    assert type(built).__name__ == "Theirs"
    assert registry.name_of(built) == "mine"  # the name in recipes, and not that of their file
    assert registry.name_of(ForwardKL()) == "forward_kl"
    check_objective(built)
    with pytest.raises(RecipeError, match=r"objective 'mine' has no setting 'wieght'. Did you mean 'weight'"):
        registry.build("objective", "mine", {"wieght": 1})


def test_they_are_gone_with_their_distribution() -> None:
    assert "mine" not in registry.names("objective")
