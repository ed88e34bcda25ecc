"""What lm-eval's tasks measure, as metrics, and what they measured on each example, as measurements.

Most of lm-eval's aggregations are a ratio of sums over examples, which is what a `Measurement` is: means, group means,
bits per byte. A perplexity is the exponential of one; its logarithm is kept by example and compared. What is a function
of the whole corpus alone (BLEU, F1, Matthews' correlation) becomes an `Estimate`. Shapes: E examples.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from lm_eval.api import metrics as known
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from sklearn.exceptions import UndefinedMetricWarning

from stillhouse.errors import RecipeError
from stillhouse.evaluation.base import Result
from stillhouse.statistics import Estimate, FloatArray, Measurement, Metric, estimate

Aggregation = Callable[[Sequence[Any]], Any]
Samples = Sequence[Mapping[str, Any]]

_RESAMPLES = 200
"""Of the standard errors that have no closed form: each costs one more BLEU or F1 of the corpus."""
_CORPUS = (
    known.median,
    known.f1_score,
    known.matthews_corrcoef,
    known.brier_score,
    known.bleu,
    known.chrf,
    known.chrfpp,
    known.ter,
)
"""Aggregations that may be computed again on resampled examples. A task's own may load a model each time."""

_TITLES = {
    "acc": "Accuracy",
    "acc_norm": "Length-normalized accuracy",
    "acc_bytes": "Byte-normalized accuracy",
    "acc_mutual_info": "Accuracy by mutual information",
    "exact_match": "Exact match",
    "f1": "F1",
    "mcc": "Matthews correlation",
    "bleu": "BLEU",
    "chrf": "chrF",
    "ter": "Translation edit rate",
}
_SHARES = {"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "em", "f1"}
_UNITS = {"word_perplexity": "nats/word", "byte_perplexity": "nats/byte", "perplexity": "nats/example"}


def mean_nats(items: Sequence[Any]) -> float:
    """The logarithm of a perplexity, of log-likelihoods or of pairs with their weights.

    lm-eval's own take the exponential, which stops everything where a bad model exceeds what a float holds.

    >>> mean_nats([-1.0, -3.0]), mean_nats([(-6.0, 1), (-6.0, 2)])
    (2.0, 4.0)
    """
    pairs = np.array([item if isinstance(item, tuple) else (item, 1) for item in items], dtype=np.float64)
    return float(-pairs[:, 0].sum() / pairs[:, 1].sum())


_PERPLEXITIES = (known.perplexity, known.weighted_perplexity, mean_nats)


@dataclass(frozen=True)
class Suite:
    """Tasks with their data, by name, and the groups they were named by."""

    tasks: Mapping[str, Task]
    groups: Mapping[str, Group]


@dataclass(frozen=True)
class Score:
    """One metric of one task under one filter (a way to read answers); `name` is what it is called in a result."""

    owner: str
    metric: str
    filter: str
    name: str
    aggregation: Aggregation | None
    better: Literal["higher", "lower", "none"]

    @property
    def key(self) -> str:
        """Its name in lm-eval's own results."""
        return f"{self.metric},{self.filter}"

    @property
    def logarithm(self) -> str:
        """The name of a perplexity's logarithm."""
        head, slash, metric = self.name.rpartition(self.metric)
        return f"{head}log_{slash}{metric}"

    def metrics(self) -> dict[str, Metric]:
        """What it is called and what it means; a perplexity comes with its logarithm."""
        said = _TITLES.get(self.metric, self.metric.replace("_", " ").capitalize())
        title = f"{said} on {self.owner.replace('_', ' ')}"
        if self.name.endswith(f"/{cleaned(self.filter)}"):
            title += f" ({self.filter})"
        if self.aggregation in _PERPLEXITIES:
            unit = _UNITS.get(self.metric, "nats")
            return {
                self.logarithm: Metric(f"Log {title[0].lower()}{title[1:]}", unit, self.better),
                self.name: Metric(title, "", self.better),
            }
        unit = "share" if self.metric in _SHARES else "bits/byte" if self.metric == "bits_per_byte" else ""
        return {self.name: Metric(title, unit, self.better)}

    def result(self, samples: Samples, whole: object) -> Result:
        """Of samples under this filter, `whole` being lm-eval's own value; nothing where there is no finite one."""
        mine = [sample for sample in samples if sample["filter"] == self.filter]
        sums_E2 = self._sums(mine)
        if sums_E2 is None:
            value = _number(whole)
            if value is None or not math.isfinite(value):
                return Result()
            items = [sample[self.metric] for sample in mine if self.metric in sample]
            return Result(estimates={self.name: Estimate(value, _stderr(self.aggregation, items), len(items))})
        if not np.isfinite(sums_E2).all() or sums_E2[:, 1].sum() <= 0:
            return Result()
        found = Measurement(tuple(map(name_of, mine)), sums_E2)
        if self.aggregation not in _PERPLEXITIES:
            return Result({self.name: found})
        nats = estimate(found)
        if nats.value > math.log(np.finfo(np.float64).max):  # its logarithm says how bad it is
            return Result({self.logarithm: found})
        value = math.exp(nats.value)
        spread = None if nats.stderr is None else value * nats.stderr  # the delta method
        return Result({self.logarithm: found}, {self.name: Estimate(value, spread, nats.n)})

    def _sums(self, samples: Samples) -> FloatArray | None:
        """Contributions, 0 over 0 where an example has none; None where the metric is no ratio of sums."""
        rows = [self._pair(sample[self.metric]) if self.metric in sample else (0.0, 0.0) for sample in samples]
        if any(row is None for row in rows):
            return None
        return np.array(rows, dtype=np.float64).reshape(-1, 2)

    def _pair(self, value: Any) -> tuple[float, float] | None:
        if self.aggregation is known.bits_per_byte:
            return -float(value[0]) / math.log(2), float(value[1])
        if self.aggregation in _PERPLEXITIES:
            nats, weight = value if isinstance(value, tuple) else (value, 1)
            return -float(nats), float(weight)
        if self.aggregation not in (None, known.mean, known.nanmean):
            return None
        number = _number(value)
        if number is None:
            return None
        return (0.0, 0.0) if self.aggregation is known.nanmean and math.isnan(number) else (number, 1.0)


@dataclass(frozen=True)
class GroupScore:
    """The mean of one metric over the tasks of a group."""

    group: str
    members: tuple[Score, ...]
    name: str
    by_size: bool

    @property
    def key(self) -> str:
        """Its name in lm-eval's own results."""
        return self.members[0].key

    def metrics(self) -> dict[str, Metric]:
        """As its members', under the group's name."""
        first = self.members[0]
        return Score(self.group, first.metric, first.filter, self.name, known.mean, first.better).metrics()

    def result(self, results: Mapping[str, Result], whole: object) -> Result:
        """Of the tasks' results: their examples together, or each task with the same weight whatever its size.

        The examples are taken as one sample, so that differences between tasks count in the standard error.
        """
        found = [
            (score.owner, results[score.owner].measurements[score.name])
            for score in self.members
            if score.name in results[score.owner].measurements
        ]
        if len(found) == len(self.members):
            ids = tuple(f"{task}/{name}" for task, m in found for name in m.ids)
            weights = [1.0 if self.by_size else 1 / m.sums_EM[:, 1].sum() for _, m in found]
            sums_E2 = np.concatenate([m.sums_EM * w for (_, m), w in zip(found, weights, strict=True)])
            return Result({self.name: Measurement(ids, sums_E2)})
        value = _number(whole)
        estimates = [results[s.owner].estimates[s.name] for s in self.members if s.name in results[s.owner].estimates]
        if value is None or not math.isfinite(value) or len(estimates) < len(self.members):
            return Result()
        sizes = np.array([e.n if self.by_size else 1 for e in estimates])
        errors = [e.stderr for e in estimates]
        spread = None if None in errors else float(np.linalg.norm(sizes * np.array(errors)) / sizes.sum())
        return Result(estimates={self.name: Estimate(value, spread, sum(e.n for e in estimates))})


def cleaned(part: str) -> str:
    """A name as part of a metric's: dots, colons and spaces mean something there.

    >>> cleaned("longproc_0.5k"), cleaned("strict-match"), cleaned("pass@1")
    ('longproc_0_5k', 'strict-match', 'pass@1')
    """
    return re.sub(r"[^\w@+-]+", "_", part)


def announced(suite: Suite, prefix: str) -> dict[str, Metric]:
    """Everything that tasks and groups measure, as their configurations say.

    Raises:
        RecipeError: two would have one name.
    """
    scores = {name: _scores_of(name, task, prefix, ()) for name, task in suite.tasks.items()}
    parts = [score.metrics() for several in scores.values() for score in several]
    parts += [score.metrics() for score in _group_scores(suite, scores, prefix)]
    parts += [dict([truncation(name, prefix)]) for name in suite.tasks]
    found: dict[str, Metric] = {}
    for part in parts:
        if twice := sorted(found.keys() & part.keys()):
            raise RecipeError(f"Two of the tasks give the metric {twice[0]}. Name them in entries of their own.")
        found |= part
    return found


def measured(suite: Suite, found: Mapping[str, Any], prefix: str) -> Result:
    """What lm-eval found, by example where that is possible.

    A task's own code may report what its configuration does not list, so the result brings all definitions along.
    """
    samples, whole, pooled = found["samples"], found["results"], found.get("groups", {})
    scores = {name: _scores_of(name, task, prefix, samples[name]) for name, task in suite.tasks.items()}
    results = {name: _merged(s.result(samples[name], whole[name].get(s.key)) for s in scores[name]) for name in scores}
    groups = list(_group_scores(suite, scores, prefix))
    total = _merged([*results.values(), *(g.result(results, pooled.get(g.group, {}).get(g.key)) for g in groups)])
    for score in [*(s for several in scores.values() for s in several), *groups]:
        total.metrics |= score.metrics()
    return total


def _scores_of(name: str, task: Task, prefix: str, samples: Samples) -> list[Score]:
    filters = [f["name"] for f in task.get_config("filter_list") or [{"name": "none"}]]
    aggregations: dict[str, Aggregation | None] = dict.fromkeys(m for sample in samples for m in sample["metrics"])
    aggregations |= cast(dict[str, Aggregation], task.aggregation())
    higher = cast(Mapping[str, Any], task.higher_is_better())
    return [
        Score(
            name,
            metric,
            filter_,
            _joined(prefix, name, metric, filter_ if len(filters) > 1 else ""),
            aggregation,
            _better(higher.get(metric)),
        )
        for metric, aggregation in aggregations.items()
        for filter_ in filters
    ]


def _group_scores(suite: Suite, scores: Mapping[str, Sequence[Score]], prefix: str) -> Iterator[GroupScore]:
    """What groups say about all of their tasks together, where they say anything."""
    for group in suite.groups.values():
        own = [score for task in group.get_all_tasks() for score in scores[task.task_name]]
        for wanted in group.aggregate_metric_list or []:
            of_metric = [score for score in own if score.metric == wanted.metric]
            filters = wanted.filter_list or sorted({score.filter for score in of_metric})
            for filter_ in filters:
                members = tuple(score for score in of_metric if score.filter == filter_)
                if members:
                    name = _joined(prefix, group.name, wanted.metric, filter_ if len(filters) > 1 else "")
                    yield GroupScore(group.name, members, name, wanted.weight_by_size)


def truncation(name: str, prefix: str) -> tuple[str, Metric]:
    """How many prompts lost their beginning, because lm-eval cuts what exceeds the model's context."""
    return _joined(prefix, name, "truncated"), Metric(
        f"Prompts cut to fit on {name.replace('_', ' ')}", "share", "lower"
    )


def name_of(sample: Mapping[str, Any]) -> str:
    """An example's id: its number, and a hash of it, so that two runs on different data are not taken for a pair."""
    return f"{sample['doc_id']}-{sample['doc_hash'][:8]}"


def _joined(*parts: str) -> str:
    return "/".join(cleaned(part) for part in parts if part)


def _better(higher: object) -> Literal["higher", "lower", "none"]:
    return "none" if higher is None else "higher" if higher else "lower"


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float | np.number | np.bool_) else None


def _stderr(aggregation: Aggregation | None, items: Sequence[Any]) -> float | None:
    """By bootstrap over examples, seeded."""
    if aggregation is None or aggregation not in _CORPUS or len(items) < 2:
        return None
    draw, n = np.random.default_rng(0), len(items)
    with warnings.catch_warnings():
        # A resample without one of the classes has an F1 of 0, which is what it should count as.
        warnings.filterwarnings("ignore", category=UndefinedMetricWarning)
        values = [aggregation([items[i] for i in draw.integers(n, size=n)]) for _ in range(_RESAMPLES)]
    return float(np.std(values) * np.sqrt(n / (n - 1)))


def _merged(results: Iterable[Result]) -> Result:
    """One result of several with different names."""
    total = Result()
    for result in results:
        total.measurements |= result.measurements
        total.estimates |= result.estimates
    return total
