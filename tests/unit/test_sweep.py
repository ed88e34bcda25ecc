"""Sweeps: what a file expands to, which files are refused, statistics over seeds against answers known otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from stillhouse.errors import RecipeError, RunError
from stillhouse.recipe import builtin_recipes
from stillhouse.recipe_file import load_recipe
from stillhouse.replicates import difference, difference_of_values, mean_over_seeds, student_quantile
from stillhouse.report.findings import write_findings
from stillhouse.report.sweep_page import sweep_findings
from stillhouse.results import ModelResult, summarize
from stillhouse.runs import RunFolder
from stillhouse.statistics import Estimate, Measurement, Metric, compare
from stillhouse.sweep_file import Sweep, SweepRun, expand, is_sweep, load_sweep
from stillhouse.sweep_sharing import lend, lender_of, settle_precision, shared_seconds
from stillhouse.sweep_summary import summarize_sweep
from stillhouse.sweeping import choose_concurrency

Write = Callable[..., str]
TEMPERATURE = "objective.forward_kl.temperature"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(text: str | None = None, **keys: Any) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text or yaml.safe_dump({"sweep": "quickstart", **keys}, sort_keys=False))
        return str(path)

    return make


# What a file expands to.


def test_a_grid_is_every_combination_with_every_seed(write: Write) -> None:
    sweep = load_sweep(write(grid={TEMPERATURE: [1, 2], "train.lr": [1e-5, 0.1]}, seeds=[3, 7]))
    runs = expand(sweep)
    assert [setting.name for setting in sweep.settings()] == [
        "temperature-1-lr-1e-05",
        "temperature-1-lr-0.1",
        "temperature-2-lr-1e-05",
        "temperature-2-lr-0.1",
    ]
    assert [run.name for run in runs[:3]] == [
        "temperature-1-lr-1e-05-seed3",
        "temperature-1-lr-1e-05-seed7",
        "temperature-1-lr-0.1-seed3",
    ]
    assert [run.recipe.seed for run in runs] == [3, 7] * 4
    assert [run.recipe.train.lr for run in runs] == [1e-5, 1e-5, 0.1, 0.1] * 2
    assert [run.recipe.objective[0].settings["temperature"] for run in runs] == [1] * 4 + [2] * 4


def test_variants_override_what_is_common_and_keep_their_names(write: Write) -> None:
    variants = {"short": {"train.steps": 5, "control": False}, "long": {"train.clip": None, "evaluate": ["likelihood"]}}
    runs = expand(load_sweep(write(overrides={"train.steps": 9}, variants=variants, seeds=[0])))
    assert [run.name for run in runs] == ["short-seed0", "long-seed0"]
    assert [run.recipe.train.steps for run in runs] == [5, 9]
    assert [run.recipe.control for run in runs] == [False, True]
    assert runs[1].recipe.train.clip is None
    assert [component.name for component in runs[1].recipe.evaluate] == ["likelihood"]


def test_names_stay_apart_and_fit_for_a_folder(write: Write) -> None:
    same_ends = load_sweep(write(grid={"data.train.arithmetic.count": [8], "data.heldout.arithmetic.count": [9]}))
    assert [s.name for s in same_ends.settings()] == ["data.train.arithmetic.count-8-data.heldout.arithmetic.count-9"]
    spelt = load_sweep(write(grid={"student.model": ["a/b", "a b", "../c"]}))
    assert [s.name for s in spelt.settings()] == ["model-a-b", "model-a-b-1", "model-..-c"]


def test_the_command_line_makes_a_sweep_of_a_recipe_and_replaces_what_a_file_says(write: Write) -> None:
    made = load_sweep("quickstart", ["train.steps=7"], grid=[f"{TEMPERATURE}=1,2.5", "train.clip=null,1"], seeds="4,5")
    assert made.grid == {TEMPERATURE: [1, 2.5], "train.clip": [None, 1]}
    assert (made.name, made.seeds, made.overrides) == ("quickstart", [4, 5], {"train.steps": 7})
    file = write(variants={"a": {}}, overrides={"train.steps": 3, "samples": 1})
    replaced = load_sweep(file, ["train.steps=4"], grid=["train.lr=0.5"])
    assert (replaced.variants, replaced.grid) == (None, {"train.lr": [0.5]})
    assert replaced.overrides == {"train.steps": 4, "samples": 1}
    assert replaced.seeds == [0, 1, 2]


def test_the_recipe_is_looked_for_beside_the_sweep(write: Write, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(builtin_recipes()["quickstart"].read_text().replace("steps: 1300", "steps: 11"))
    sweep = load_sweep(write(sweep="base.yaml", grid={TEMPERATURE: [1]}))
    assert expand(sweep)[0].recipe.train.steps == 11
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(sweep.resolved()))
    assert load_sweep(str(tmp_path / "again.yaml")) == sweep


@pytest.mark.parametrize("name", sorted(name for name in builtin_recipes() if is_sweep(name)))
def test_builtin_sweeps_expand_and_every_component_builds(name: str) -> None:
    sweep = load_sweep(name)
    assert len(expand(sweep, build=True)) == len(sweep.settings()) * len(sweep.seeds)
    assert Sweep.model_validate(sweep.resolved()) == sweep


# Which are refused.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sweep: quickstart\nsedes: [0]\ngrid: {train.lr: [1]}", ["mine.yaml:2", "Did you mean 'seeds'"]),
        ("sweep: quickstart\ngrid:\n  train.lr: []", ["mine.yaml:3", "grid.train.lr", "at least 1 item"]),
        ("sweep: quickstart\ngrid: {train.lr: 3}", ["mine.yaml:2", "grid.train.lr", "valid list"]),
        ("sweep: quickstart\ngrid: {train.lr: [1, 1]}", ["mine.yaml:2", "names a value twice"]),
        ("sweep: quickstart\nseeds: [0, 0]\ngrid: {train.lr: [1]}", ["mine.yaml:2", "a seed stands twice"]),
        ("sweep: quickstart\nseeds: []\ngrid: {train.lr: [1]}", ["mine.yaml:2", "at least 1 item"]),
        ("sweep: quickstart\ngrid: {seed: [1, 2]}", ["name the seeds under seeds"]),
        ("sweep: quickstart\noverrides: [1]\ngrid: {train.lr: [1]}", ["mine.yaml:2", "overrides", "valid dictionary"]),
        ("sweep: quickstart", ["exactly one of grid", "found none"]),
        ("sweep: quickstart\ngrid: {train.lr: [1]}\nvariants: {a: {}}", ["found grid and variants"]),
        ("sweep: quickstart\nvariants: {a/b: {}}", ["mine.yaml:2", "variants.a/b"]),
    ],
)
def test_a_wrong_file_is_told_with_its_line(write: Write, text: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_sweep(write(text))
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"grid": {TEMPERATURE: [1, 0]}}, ["setting temperature-0", f"override {TEMPERATURE}=0", "must be positive"]),
        ({"grid": {"train.stpes": [1]}}, ["setting stpes-1", "Did you mean 'steps'"]),
        ({"variants": {"a": {"objective.reverse_kl.weight": 1}}}, ["setting a", "not in that list"]),
        ({"sweep": "quikstart", "grid": {"train.lr": [1]}}, ["Did you mean 'quickstart'"]),
        ({"sweep": "temperature", "grid": {"train.lr": [1]}}, ["temperature is a sweep"]),
        ({"grid": {"train.lr": [1]}, "metrics": ["taks.accuracy"]}, ["Did you mean 'tasks'"]),
        ({"grid": {"train.lr": [1]}, "metrics": ["books:tasks.accuracy"]}, ["no data 'books'"]),
    ],
)
def test_every_run_is_validated_before_any_starts(write: Write, keys: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        expand(load_sweep(write(**keys)), build=True)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "quickstart"}, "says nothing to vary"),
        ({"name": "quickstart", "grid": ["train.lr"]}, "not of the form"),
        ({"name": "quickstart", "grid": ["train.lr=[1"]}, "not valid YAML"),
        ({"name": "quickstart", "grid": ["train.lr=1"], "seeds": "a"}, "not of the form 0,1,2"),
        ({"name": "quickstart", "grid": ["train.lr=1"], "overrides": ["train.lr=2"]}, "the sweep varies just that"),
        ({"name": "quickstart", "grid": ["train={lr: 1}"], "overrides": ["train.lr=2"]}, "the sweep varies just that"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_sweep(**arguments)


def test_a_sweep_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="stillhouse sweep temperature"):
        load_recipe("temperature")
    with RunFolder.claim(tmp_path / "a", load_sweep("temperature")), pytest.raises(RunError, match="holds a sweep"):
        RunFolder(tmp_path / "a").recipe()


# Statistics.


@pytest.mark.parametrize(
    ("central", "df", "expected"),
    [  # scipy.stats.t.ppf((1 + central) / 2, df)
        (0.95, 1, 12.706204736174694),
        (0.95, 2, 4.3026527297494635),
        (0.95, 3, 3.18244630528371),
        (0.95, 4, 2.7764451051977987),
        (0.95, 9, 2.2621571628540993),
        (0.95, 30, 2.0422724563012373),
        (0.6, 2, 1.0606601717798214),
        (0.99, 7, 3.4994832973505),
        (0.95, 1000, 1.9623390808264078),
    ],
)
def test_quantiles_of_student(central: float, df: int, expected: float) -> None:
    assert student_quantile(central, df) == pytest.approx(expected, rel=1e-9)


def test_a_mean_over_seeds() -> None:
    mean = mean_over_seeds([0.5, 0.6, 0.7])
    assert mean.value == pytest.approx(0.6)
    assert mean.stderr == pytest.approx(0.1 / 3**0.5)
    assert (mean.low, mean.high) == (pytest.approx(0.6 - 0.2484138), pytest.approx(0.6 + 0.2484138))
    one = mean_over_seeds([0.5])
    assert (one.value, one.stderr, one.low, one.seeds) == (0.5, None, None, 1)


def test_a_difference_of_values_is_the_paired_t_test() -> None:
    found = difference_of_values([1.0, 2.0, 3.0], [0.0, 1.1, 1.9])
    assert found.difference == pytest.approx(1.0)
    assert found.high - found.difference == pytest.approx(4.3026527 * 0.1 / 3**0.5)
    assert found.resolved
    assert (found.seeds, found.examples, found.basis) == (3, 0, "seeds")
    alone = difference_of_values([1.0], [0.0])
    assert (alone.low, alone.resolved) == (None, False)


def measured(values_E: Any, ids: str = "e") -> Measurement:
    values_E = np.asarray(values_E, dtype=float)
    names = tuple(f"{ids}{place:05d}" for place in range(len(values_E)))
    return Measurement(names, np.stack([values_E, np.ones(len(values_E))], axis=1))


def test_with_one_seed_a_difference_is_the_comparison_of_two_runs() -> None:
    draw = np.random.default_rng(0)
    one, other = measured(draw.normal(0.3, 1, 300)), measured(draw.normal(0, 1, 300))
    found, expected = difference([one], [other]), compare(one, other)
    assert (found.low, found.high, found.mde) == (expected.low, expected.high, expected.mde)
    assert (found.resolved, found.basis) == (expected.resolved, "examples")


def test_where_seeds_alone_differ_it_is_the_t_test_over_seeds() -> None:
    """Every example moves by the same amount, so examples add no noise at all."""
    base_E = np.random.default_rng(0).normal(0, 1, 50)
    ones, others = [measured(base_E + shift) for shift in (0.9, 1.0, 1.2)], [measured(base_E)] * 3
    found, expected = difference(ones, others), difference_of_values([0.9, 1.0, 1.2], [0.0] * 3)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert found.basis == "seeds and examples"


def test_where_examples_alone_differ_it_is_their_standard_error() -> None:
    """All seeds agree, so three seeds are no more than one: their number must not narrow the interval."""
    gains_E = np.random.default_rng(0).normal(0.2, 1, 1000)
    found = difference([measured(gains_E)] * 3, [measured(np.zeros(1000))] * 3)
    assert found.stderr == pytest.approx(gains_E.std(ddof=1) / 1000**0.5, rel=0.05)
    assert found.high - found.low == pytest.approx(2 * 1.96 * found.stderr, rel=0.01)


def test_other_examples_are_paired_by_seed_alone_and_too_few_that_differ_resolve_nothing() -> None:
    apart = difference([measured([1.0, 1.1])] * 2, [measured([0.0, 0.1], ids="other")] * 2)
    assert (apart.basis, apart.examples, apart.difference) == ("seeds", 0, pytest.approx(1.0))
    few = np.zeros(200)
    few[:5] = 1000.0
    steady = [measured(few + shift) for shift in (0.0, 0.0, 0.0)]
    assert not difference(steady, [measured(np.zeros(200))] * 3).resolved


@pytest.mark.parametrize(
    ("of_seeds", "of_examples", "of_both"), [(0.1, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.4), (0.1, 1.0, 1.0)]
)
def test_intervals_cover_what_they_promise_with_three_seeds(
    monkeypatch: pytest.MonkeyPatch, of_seeds: float, of_examples: float, of_both: float
) -> None:
    """Differences whose truth is zero, with noise of each kind: 95 of 100 intervals hold it. A percentile bootstrap
    over seeds and examples holds it 74 times in the first case and 99 times in the third."""
    monkeypatch.setattr("stillhouse.replicates.RESAMPLES", 300)
    draw, seeds, examples, trials = np.random.default_rng(1), 3, 100, 300
    held = resolved = 0
    for _ in range(trials):
        base_SE = draw.normal(0, 1, (seeds, examples))
        gain_SE = draw.normal(0, of_seeds, (seeds, 1)) + draw.normal(0, of_examples, examples)
        gain_SE = gain_SE + draw.normal(0, of_both, (seeds, examples))
        found = difference([measured(row) for row in base_SE + gain_SE], [measured(row) for row in base_SE])
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0 <= found.high
        resolved += found.resolved
    assert 0.92 <= held / trials <= 0.98
    assert resolved / trials <= 0.05


# What a sweep's runs say together, on run folders whose numbers are known.

METRICS = {
    "tasks.accuracy": Metric("Accuracy", "share", "higher"),
    "efficiency.bytes": Metric("Size", "bytes", "lower"),
}


def finished_run(run: SweepRun, out: Path, accuracy: float, control: float) -> None:
    """A run folder as evaluation leaves it: 400 examples, the first of which are right."""
    folder = out / "runs" / run.name
    results: dict[str, ModelResult] = {}
    for role, share in (("teacher", 1.0), ("control", control), ("student", accuracy)):
        right_E = np.arange(400) < round(400 * share)
        results[role] = ModelResult(
            METRICS, {"tasks.accuracy": measured(right_E)}, {"efficiency.bytes": Estimate(1000.0 + run.seed, None, 1)}
        )
        results[role].save(folder / "evaluation" / role)
    written = RunFolder(folder)
    written.write_json("evaluation.json", summarize(results, None))
    written.finish(run.recipe)


def summary_of(
    sweep: Sweep, out: Path, accuracies: Mapping[str, list[float]], failed: Mapping[str, str] | None = None
) -> dict[str, Any]:
    runs = expand(sweep)
    for run in runs:
        if run.name not in (failed or {}):
            finished_run(run, out, accuracies[run.setting][run.seed], control=0.4)
    found = summarize_sweep(sweep, runs, out, failed or {})
    return json.loads(json.dumps({**found, "jobs": 2, "threads": 1, "reason": "--jobs"}))


def grid_sweep(write: Write) -> Sweep:
    return load_sweep(write(grid={TEMPERATURE: [1, 2, 4]}, metrics=["tasks.accuracy", "efficiency.bytes"]))


CLEAR = {"temperature-1": [0.5, 0.51, 0.52], "temperature-2": [0.8, 0.81, 0.82], "temperature-4": [0.6, 0.61, 0.62]}
LEVEL = {"temperature-1": [0.5, 0.6, 0.7], "temperature-2": [0.6, 0.5, 0.71], "temperature-4": [0.7, 0.62, 0.5]}


def test_a_clear_sweep(write: Write, tmp_path: Path) -> None:
    found = summary_of(grid_sweep(write), tmp_path, CLEAR)
    assert found["shown"] == ["tasks.accuracy", "efficiency.bytes"]
    mean = found["settings"]["temperature-2"]["means"]["student"]["tasks.accuracy"]
    assert (mean["value"], mean["seeds"]) == (pytest.approx(0.81), 3)
    gain = found["comparisons"]["temperature-2 - temperature-1"]["tasks.accuracy"]
    assert (gain["difference"], gain["resolved"], gain["examples"]) == (pytest.approx(0.3), True, 400)
    size = found["comparisons"]["temperature-2 - temperature-1"]["efficiency.bytes"]
    assert (size["difference"], size["basis"]) == (0.0, "seeds")
    over = found["settings"]["temperature-4"]["student - control"]["tasks.accuracy"]
    assert (over["difference"], over["resolved"]) == (pytest.approx(0.21), True)
    best = found["best"]["tasks.accuracy"]
    assert (best["setting"], list(best["against"])) == ("temperature-2", ["temperature-1", "temperature-4"])
    told = sweep_findings(found)
    assert told.claim.startswith("temperature-2 has the best accuracy, 81.0")
    assert "+20.0" in told.claim
    assert "against temperature-4, the next" in told.claim
    assert "3 seeds are few" in told.evidence
    assert "4.3 standard errors" in told.evidence


def test_an_unclear_sweep_says_so(write: Write, tmp_path: Path) -> None:
    found = summary_of(grid_sweep(write), tmp_path, LEVEL)
    assert "is told apart from none" in sweep_findings(found).claim
    html, text = write_findings(tmp_path, "mine", sweep_findings(found))
    assert "unresolved" in text.read_text()
    page = html.read_text()
    assert page.count("<svg") == 2
    assert "objective.forward_kl.temperature" in page
    assert all(f"runs/{setting}-seed{seed}" in page for setting in LEVEL for seed in (0, 1, 2))


def test_a_part_that_is_resolved_is_told_apart_from_the_rest(write: Write, tmp_path: Path) -> None:
    found = summary_of(grid_sweep(write), tmp_path, {**CLEAR, "temperature-4": [0.81, 0.8, 0.82]})
    assert sweep_findings(found).claim.endswith("is not told apart from temperature-4")


def test_variants_are_drawn_in_rows_and_failures_are_named(write: Write, tmp_path: Path) -> None:
    sweep = load_sweep(write(variants={"plain": {}, "short": {"train.steps": 3}, "gone": {"train.steps": 4}}))
    failed = {f"gone-seed{seed}": "DataError: no rain" for seed in (0, 1, 2)} | {"short-seed1": "RunError: no sun"}
    found = summary_of(sweep, tmp_path, {"plain": [0.5, 0.5, 0.6], "short": [0.3, 0.3, 0.2]}, failed)
    assert found["shown"] == ["tasks.accuracy"]  # the headline
    assert found["failed"] == failed
    assert list(found["comparisons"]) == ["short - plain"]
    assert found["comparisons"]["short - plain"]["tasks.accuracy"]["seeds"] == 2
    told = sweep_findings(found)
    assert "gone-seed0" in told.evidence
    html, _ = write_findings(tmp_path, "mine", told)
    assert html.read_text().count("<svg") == 1


def test_a_metric_nobody_measured_is_refused_when_the_runs_are_done(write: Write, tmp_path: Path) -> None:
    sweep = load_sweep(write(grid={TEMPERATURE: [1]}, metrics=["tasks.acuracy"]))
    with pytest.raises(RunError, match=r"Did you mean 'tasks.accuracy'.*The runs are kept"):
        summary_of(sweep, tmp_path, CLEAR)
    with pytest.raises(RunError, match="Every run of the sweep failed"):
        summarize_sweep(sweep, expand(sweep), tmp_path, {run.name: "RunError: no" for run in expand(sweep)})


# How runs share a machine and their work.


def checked(device: str, gibibytes: float) -> dict[str, Any]:
    return {"device": {"value": device}, "estimate": {"peak_memory_bytes": gibibytes * 2**30}}


def test_jobs_are_as_many_as_cores_and_memory_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert choose_concurrency(checked("cpu", 0.001), 100, None).jobs == 8
    few = choose_concurrency(checked("cpu", 0.001), 3, None)
    assert (few.jobs, few.threads) == (3, 2)
    assert "as many as there are runs" in few.reason
    large = choose_concurrency(checked("cpu", 1e6), 100, None)
    assert (large.jobs, large.threads) == (1, 8)
    assert "fit into memory" in large.reason
    assert choose_concurrency(checked("cuda", 0.1), 100, None).jobs == 1
    assert choose_concurrency({}, 100, 16).threads == 1


def test_one_precision_for_all_and_lenders_differ_in_their_objective_alone(write: Write) -> None:
    runs, reason = settle_precision(expand(load_sweep(write(grid={TEMPERATURE: [1, 2]}, seeds=[0, 1]))))
    assert len({run.recipe.train.precision for run in runs} - {"auto"}) == 1
    assert "in place of auto" in reason
    assert lender_of(runs[2], runs[:2]) is runs[0]
    assert lender_of(runs[1], runs[:1]) is None
    assert shared_seconds(runs, {"train-control": 10.0, "train-student": 7.0}) == 20.0
    others = expand(load_sweep(write(grid={"train.steps": [1, 2]}, seeds=[0])))
    assert lender_of(others[1], others[:1]) is None


def test_a_run_that_was_begun_is_lent_nothing(write: Write, tmp_path: Path) -> None:
    runs = expand(load_sweep(write(grid={TEMPERATURE: [1, 2]}, seeds=[0])))
    with RunFolder.claim(tmp_path / "b", runs[1].recipe):
        pass
    lend(tmp_path / "nowhere", tmp_path / "b", runs[1])
    assert not (tmp_path / "b" / "stages").exists()
