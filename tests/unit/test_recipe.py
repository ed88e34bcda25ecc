"""The recipe: what is accepted, and that everything else is refused with its line and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse import registry
from stillhouse.errors import RecipeError, SettingError
from stillhouse.recipe import Recipe, builtin_recipes
from stillhouse.recipe_file import apply_override, find_recipe, load, load_recipe

MINIMAL = """\
teacher: {hf: {model: some/teacher}}
student: {model: some/student}
data:
  train: {path: train.jsonl, prompt: question, completion: answer}
  heldout: test.jsonl
objective:
  - forward_kl: {weight: 0.9, temperature: 2.0}
  - cross_entropy
train:
  steps: 10
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def run(text: str = MINIMAL, name: str = "mine.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return run


def broken(path: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert "pydantic" not in str(caught.value)
    return str(caught.value)


def test_minimal_recipe(write: Any) -> None:
    recipe = load_recipe(write())
    assert recipe.name == "mine"
    assert recipe.teacher.name == "hf"
    assert [o.name for o in recipe.objective] == ["forward_kl", "cross_entropy"]
    assert recipe.objective[0].build("objective").temperature == 2.0
    assert recipe.data.heldout.path == "test.jsonl"
    assert recipe.train.steps == 10
    assert recipe.control


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("teacher: {hf: {model: some/teacher}}", "teacher: some/teacher"),
        ("teacher: {hf: {model: some/teacher}}", "teacher: {name: hf, settings: {model: some/teacher}}"),
        ("  - cross_entropy\n", "  - cross_entropy:\n"),
        ("  - cross_entropy\n", "  - cross_entropy: {}\n"),
    ],
)
def test_short_and_long_forms_are_the_same_recipe(write: Any, before: str, after: str) -> None:
    assert load_recipe(write(MINIMAL.replace(before, after))) == load_recipe(write(MINIMAL))


def test_one_objective_needs_no_list(write: Any) -> None:
    text = MINIMAL.partition("objective:")[0] + "objective: forward_kl\n"
    assert [o.name for o in load_recipe(write(text)).objective] == ["forward_kl"]


def test_learning_rate_in_scientific_notation(write: Any) -> None:
    assert load_recipe(write(MINIMAL + "  lr: 2e-5\n")).train.lr == 2e-5  # a string to YAML 1.1


# Unknown and wrong, with the line.


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        (MINIMAL + "tain: {}\n", "mine.yaml:11: tain", "unknown key 'tain'. Did you mean 'train'"),
        (MINIMAL + "  stepz: 5\n", "mine.yaml:11: train.stepz", "unknown key 'stepz'. Did you mean 'steps'"),
        (
            MINIMAL.replace("prompt: question", "promt: question"),
            "mine.yaml:4: data.train.promt",
            "unknown key 'promt'. Did you mean 'prompt'",
        ),
        (
            MINIMAL.replace("heldout: test.jsonl", "heldout: {arithmetic: {cuont: 5}}"),
            "mine.yaml:5: data.heldout.arithmetic.cuont",
            "Did you mean 'count'",
        ),
        (
            MINIMAL.replace("objective:", "  out_of_domain: {hard: {pathh: a}}\nobjective:"),
            "mine.yaml:6: data.out_of_domain.hard.pathh",
            "Did you mean 'path'",
        ),
        (MINIMAL.replace("{model: some/student}", "{mdl: a}"), "mine.yaml:2: student.mdl", "Did you mean 'model'"),
    ],
)
def test_unknown_key_at_any_depth(write: Any, text: str, place: str, message: str) -> None:
    found = broken(write(text))
    assert place in found
    assert message in found


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        (MINIMAL.replace("steps: 10", "steps: ten"), ":10: train.steps", "valid integer.*got 'ten'"),
        (MINIMAL.replace("steps: 10", "steps: 0"), ":10: train.steps", "greater than or equal to 1.*got 0"),
        (MINIMAL + "  schedule: linear\n", ":11: train.schedule", "'cosine' or 'constant'.*got 'linear'"),
        (MINIMAL + "seed: {a: 1}\n", ":11: seed", "valid integer"),
        (
            MINIMAL.replace("  - cross_entropy", "  - cross_entropy: 0.1"),
            ":8: objective.1",
            "must be a mapping, such as",
        ),
        (
            MINIMAL.replace("  - cross_entropy", "  - {a: {}, b: {}}"),
            ":8: objective.1",
            "name alone, or one key with its",
        ),
        (MINIMAL.replace("  - cross_entropy", "  - 5"), ":8: objective.1", "name alone, or one key with its settings"),
        (MINIMAL + "name: ../evil\n", ":11: name", "should match pattern"),
    ],
)
def test_wrong_value_with_its_line_and_what_was_given(write: Any, text: str, place: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(write(text))
    assert place in str(caught.value)


def test_missing_sections_are_all_named(write: Any) -> None:
    found = broken(write("train: {steps: 1}\n"))
    for key in ("teacher", "student", "data", "objective"):
        assert f"missing key '{key}'" in found


def test_empty_list_of_objectives(write: Any) -> None:
    assert "at least 1" in broken(write(MINIMAL.partition("objective:")[0] + "objective: []\n"))


@pytest.mark.parametrize(
    ("heldout", "found"),
    [
        ("{}", "found none"),
        ("{path: a, dataset: b}", "found path and dataset"),
        ("{dataset: b, arithmetic: {}}", "found dataset and arithmetic"),
        ("{prompt: question}", "found none"),
    ],
)
def test_a_source_has_exactly_one_origin(write: Any, heldout: str, found: str) -> None:
    message = broken(write(MINIMAL.replace("heldout: test.jsonl", f"heldout: {heldout}")))
    assert "exactly one of path, dataset, arithmetic or a synthesizer" in message
    assert found in message
    assert ":5: data.heldout" in message


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ("{}", "exactly one of model .*, config .* or from_teacher .*; found none"),
        ("{model: a, config: {model_type: llama}}", "found model and config"),
        ("{model: a, from_teacher: {layers: 2}}", "found model and from_teacher"),
        ("{config: {hidden_size: 8}}", "student.config needs model_type"),
    ],
)
def test_a_student_has_exactly_one_origin(write: Any, student: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(MINIMAL.replace("{model: some/student}", student)))


def test_settings_of_components_are_validated_when_they_are_built(write: Any) -> None:
    wrong = load_recipe(write(MINIMAL.replace("temperature: 2.0", "temperature: -1")))
    with pytest.raises(RecipeError, match=r"temperature is -1.0; it must be positive"):
        wrong.objective[0].build("objective")


def test_a_wrong_setting_of_a_component_is_refused_with_its_line(write: Any) -> None:
    text = MINIMAL.replace("{weight: 0.9, temperature: 2.0}", "\n      weight: 0.9\n      temprature: 2.0")
    with pytest.raises(SettingError, match=r"mine.yaml:9: objective 'forward_kl' has no setting 'temprature'. Did you"):
        load_recipe(write(text), build=True)


@pytest.mark.parametrize(
    "override",
    ["objective.forward_kl.weight=-1", "objective.0.forward_kl.weight=-1", "objective=[{forward_kl: {weight: -1}}]"],
)
def test_a_wrong_setting_from_the_command_line_is_refused_with_its_override(write: Any, override: str) -> None:
    with pytest.raises(SettingError) as caught:
        load_recipe(write(), [override], build=True)
    assert str(caught.value).startswith(f"override {override}: objective 'forward_kl': weight is -1")


def test_an_unknown_component_is_refused_with_its_line(write: Any) -> None:
    with pytest.raises(
        RecipeError, match=r":\d+: objective.1: there is no objective named 'cros_entropy'. Did you mean"
    ):
        load_recipe(write(MINIMAL.replace("cross_entropy", "cros_entropy")))


def test_synthesizer_as_a_source(write: Any) -> None:
    name = registry.names("synthesizer")[0]
    text = MINIMAL.replace("{path: train.jsonl, prompt: question, completion: answer}", f"{{{name}: {{count: 5}}}}")
    source = load_recipe(write(text)).data.train
    assert source.synthesizer is not None
    assert source.synthesizer.name == name
    assert source.synthesizer.settings == {"count": 5}


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text\n", "5\n"])
def test_file_that_is_no_mapping(write: Any, text: str) -> None:
    assert "must hold a mapping with the keys" in broken(write(text))


@pytest.mark.parametrize("text", ["teacher: {hf: {model: a}\n", "a: b: c\n", "a:\n\t- b\n"])
def test_broken_yaml_says_where(write: Any, text: str) -> None:
    found = broken(write(text))
    assert "is not valid YAML" in found
    assert "line" in found


def test_yaml_runs_no_code(write: Any) -> None:
    assert "is not valid YAML" in broken(write("teacher: !!python/object/apply:os.getcwd []\n"))


def test_no_such_recipe_suggests_the_builtin_one() -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'quikstart'.*Did you mean 'quickstart'"):
        find_recipe("quikstart")


# Overrides.


def test_overrides_reach_everywhere(write: Any) -> None:
    recipe = load_recipe(
        write(),
        [
            "train.steps=5",
            "train.lr=3e-4",
            "objective.forward_kl.weight=0.5",
            "objective.1.cross_entropy.weight=0.25",
            "objective.cross_entropy.weight=0.75",
            "teacher.hf.dtype=bfloat16",
            "data.train.limit=7",
            "data.heldout={arithmetic: {count: 3}}",
            "headline=likelihood",
            "control=false",
        ],
    )
    assert (recipe.train.steps, recipe.train.lr) == (5, 3e-4)
    assert recipe.objective[0].settings == {"weight": 0.5, "temperature": 2.0}
    assert recipe.objective[1].settings == {"weight": 0.75}
    assert recipe.teacher.settings == {"model": "some/teacher", "dtype": "bfloat16"}
    assert recipe.data.train.limit == 7
    assert recipe.data.heldout.arithmetic is not None
    assert recipe.control is False


@pytest.mark.parametrize(
    ("raw", "override", "expected"),
    [
        ({"a": 1}, "a=2", {"a": 2}),
        ({}, "a.b.c=x", {"a": {"b": {"c": "x"}}}),
        ({"a": [1, 2]}, "a.1=5", {"a": [1, 5]}),
        ({"a": [[1, 2], 3]}, "a.0.1=5", {"a": [[1, 5], 3]}),
        ({"a": ["x", {"y": {"z": 1}}]}, "a.x.w=2", {"a": [{"x": {"w": 2}}, {"y": {"z": 1}}]}),
        ({"a": ["x"]}, "a.x=y", {"a": ["y"]}),
        ({"a": "x"}, "a.x.w=2", {"a": {"x": {"w": 2}}}),
        ({"a": [{"y": None}]}, "a.y.z=1", {"a": [{"y": {"z": 1}}]}),
        ({"a": {"y": None}}, "a.y.z=1", {"a": {"y": {"z": 1}}}),
        ({"a": 1}, "a=", {"a": None}),
        ({"a": 1}, "a=b=c", {"a": "b=c"}),
        ({"a": 1}, "a=[1, {b: 2}]", {"a": [1, {"b": 2}]}),
        ({"a": [1.5, True, None]}, "a.2=0", {"a": [1.5, True, 0]}),
    ],
)
def test_override_on_plain_data(raw: dict[str, Any], override: str, expected: dict[str, Any]) -> None:
    apply_override(raw, override)
    assert raw == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "not of the form key.path=value, such as train.steps=100"),
        ("=5", "not of the form key.path=value"),
        ("train.steps=[1", "is not valid YAML"),
        ("train.steps.more=5", "goes below train.steps, which is the plain value 10"),
        (
            "objective.revers_kl.weight=1",
            "names 'revers_kl', which is not in that list. Known: cross_entropy, forward_kl",
        ),
        ("objective.foward_kl.weight=1", "Did you mean 'forward_kl'"),
        ("objective.7.weight=1", "names '7', which is not in that list"),
        ("objective.7=forward_kl", "names '7', which is not in that list"),
        ("data.train.arithmetic.seed=5", "exactly one of path"),
        ("train.stepz=5", "override train.stepz=5: train.stepz: unknown key 'stepz'. Did you mean 'steps'"),
        ("train.steps=many", "override train.steps=many: train.steps: Input should be a valid integer"),
    ],
)
def test_bad_override_says_what_was_meant(write: Any, override: str, message: str) -> None:
    assert message in broken(write(), override)


@pytest.mark.parametrize(
    "override", ["objective.0.1.2=5", "data.train_on.0.x=1", "data.train_on.x.y=1", "train.lr.0=1"]
)
def test_overrides_that_lead_nowhere_are_recipe_errors_and_not_crashes(write: Any, override: str) -> None:
    broken(write(MINIMAL.replace("objective:", "  train_on: [answer]\nobjective:") + "  lr: 1.0\n"), override)


def test_override_of_a_list_of_numbers(write: Any) -> None:
    text = MINIMAL.replace("heldout: test.jsonl", "heldout: {arithmetic: {steps: [2, 4]}}")
    recipe = load_recipe(write(text), ["data.heldout.arithmetic.steps.1=6"])
    assert recipe.data.heldout.arithmetic is not None
    assert recipe.data.heldout.arithmetic.steps == (2, 6)


# The resolved form.


def test_resolved_recipe_is_plain_data_that_reads_back_the_same(write: Any) -> None:
    text = MINIMAL.replace("objective:", "  steps: [{teacher_text: {temperature: 0.5}}]\nobjective:", 1)
    recipe = load_recipe(write(text))
    resolved = recipe.resolved()
    assert Recipe.model_validate(resolved) == recipe
    assert Recipe.model_validate(yaml.safe_load(yaml.safe_dump(resolved))) == recipe
    assert resolved["train"]["clip"] == 1.0  # defaults are written out
    assert Recipe.model_validate(resolved).resolved() == resolved


def test_switched_off_settings_survive_the_resolved_form(write: Any) -> None:
    """`clip: null` means no clipping; a resolved recipe that left it out would clip at the default when run again."""
    recipe = load_recipe(write(), ["train.clip=null"])
    assert recipe.train.clip is None
    assert Recipe.model_validate(recipe.resolved()).train.clip is None


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
def test_builtin_recipes_resolve_and_every_component_builds(name: str) -> None:
    recipe = load(name)
    assert type(recipe).model_validate(recipe.resolved()) == recipe
    if not isinstance(recipe, Recipe):  # a study, which has neither teacher nor student
        return
    recipe.teacher.build("teacher")
    for family, chosen in [("objective", recipe.objective), ("synthesizer", recipe.data.steps)]:
        assert [registry.name_of(c.build(family)) for c in chosen] == [c.name for c in chosen]
    known = registry.names("evaluator")
    if known:
        assert {component.name for component in recipe.evaluate} <= set(known)


def test_recipes_are_final(write: Any) -> None:
    recipe = load_recipe(write())
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.steps = 5  # ty: ignore[invalid-assignment]
