"""The report's tables as plain rows of text: models, comparisons, efficiency, samples, cost, choices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.report.numbers import ABSENT, NBSP, Metric, count, duration, in_bytes, is_number, significant
from stillhouse.report.reading import Comparison, Evaluation, Run, detail, model_name
from stillhouse.report.story import CONTROL, Verdict, verdict_of

SAMPLES = 8
REFERENCES = ("teacher", "control")  # what the student's changes between data sets are held against
ARTEFACTS = ("data", "signals", "student")
FOLD = 420  # characters of a text that are shown without unfolding
COST_TITLES = {
    "teacher_tokens_read": "Tokens the teacher read",
    "teacher_tokens_written": "Tokens the teacher wrote",
    "teacher_calls": "Requests sent to the teacher",
    "teacher_answers_stored": "Answers that were stored before",
    "teacher_signals_kept": "Examples whose signals were kept with their text",
    "teacher_signals_asked": "Examples whose signals were asked for",
    "student_tokens_trained": "Tokens the student trained on",
    "control_tokens_trained": "Tokens the control trained on",
    "random_tokens_trained": "Tokens the student on random rows trained on",
    "random_control_tokens_trained": "Tokens the control on random rows trained on",
}
# What a pair of models shows when they disagree, in the order in which samples are drawn from the kinds in turn.
DISAGREEMENTS = (
    ("student", "control", "The student is right where plain training is wrong"),
    ("control", "student", "Plain training is right where the student is wrong"),
    ("teacher", "student", "The teacher is right where the student is wrong"),
    ("student", "teacher", "The student is right where its teacher is wrong"),
)


@dataclass(frozen=True)
class Cell:
    """One model's value in the table."""

    value: str
    spread: str = ""


ABSENT_CELL = Cell(ABSENT)


@dataclass(frozen=True)
class Change:
    """A comparison in words."""

    amount: str
    interval: str
    verdict: Verdict
    smallest: str = ABSENT
    n: str = ABSENT

    @property
    def word(self) -> str:
        """The verdict as it is printed."""
        known = {"better": "resolved, better", "worse": "resolved, worse", "unresolved": "unresolved"}
        return known.get(self.verdict, "no direction")


@dataclass(frozen=True)
class Row:
    """One metric of the table of models."""

    metric: Metric
    n: str
    cells: list[Cell]
    change: Change | None


def heading(evaluation: Evaluation, metric: Metric) -> str:
    """The data that a metric was measured on."""
    return f"On {metric.dataset.replace('_', ' ')}" if metric.dataset else "On the held-out data"


def model_tables(evaluation: Evaluation) -> dict[str, list[Row]]:
    """The rows of the table of models, by the data they were measured on."""
    tables: dict[str, list[Row]] = {}
    for metric in evaluation.metrics:
        if metric.family == "efficiency":
            continue
        found = [evaluation.measurement(model, metric.id) for model in evaluation.models]
        cells = [Cell(metric.value(m.value, m.stderr), metric.stderr(m.stderr)) if m else ABSENT_CELL for m in found]
        counts = sorted({m.n for m in found if m and is_number(m.n)})
        n = " to ".join(dict.fromkeys(count(value) for value in (counts[:1] + counts[-1:])))
        change = change_of(evaluation.comparison(CONTROL, metric.id), metric)
        tables.setdefault(heading(evaluation, metric), []).append(Row(metric, n, cells, change))
    return tables


def change_of(comparison: Comparison | None, metric: Metric) -> Change | None:
    """A comparison ready to print."""
    if comparison is None:
        return None
    width = comparison.half_width
    return Change(
        amount=metric.difference(comparison.difference, width, unit=metric.unit == "share"),
        interval=spread(comparison, metric),
        verdict=verdict_of(comparison, metric),
        smallest=metric.difference(comparison.mde, width, signed=False),
        n=count(comparison.n),
    )


def comparison_tables(evaluation: Evaluation) -> dict[str, list[tuple[Metric, Change]]]:
    """Every comparison of the run, by its pair of models."""
    tables = {}
    for pair in evaluation.raw.get("comparisons") or {}:
        found = [(metric, change_of(evaluation.comparison(pair, metric.id), metric)) for metric in evaluation.metrics]
        rows = [(metric, change) for metric, change in found if change is not None]
        if rows:
            tables[" − ".join(detail(model_name(model))[0] for model in pair.split(" - "))] = rows
    return tables


@dataclass(frozen=True)
class Moved:
    """One metric of the table of changes between data sets: of each model, and the student's beside others'."""

    metric: Metric
    cells: list[Cell]
    excess: dict[str, Change | None]


def shift_tables(evaluation: Evaluation) -> dict[str, list[Moved]]:
    """How metrics change from one data set to a less familiar one, by the two; without those that have no direction,
    and those of how answers differ, which hangs on what is asked and not on how familiar it is."""
    tables: dict[str, list[Moved]] = {}
    for shift in evaluation.shifts():
        metric = evaluation.metric(shift.metric)
        if metric.better == "none" or metric.family == "diversity":
            continue
        cells = [
            Cell(metric.difference(change.difference, change.stderr), metric.stderr(change.stderr))
            if (change := shift.changes.get(model))
            else ABSENT_CELL
            for model in evaluation.models
        ]
        excess = {other: change_of(shift.excess.get(f"student - {other}"), metric) for other in REFERENCES}
        tables.setdefault(f"From {known_as(shift.home)} to {known_as(shift.away)}", []).append(
            Moved(metric, cells, excess)
        )
    return tables


def spread(comparison: Comparison, metric: Metric) -> str:
    """The interval of a difference, without a unit."""
    if not is_number(comparison.low) or not is_number(comparison.high):
        return ""
    low, high = (metric.difference(end, comparison.half_width) for end in (comparison.low, comparison.high))
    return f"{low} to {high}"


def known_as(data: str) -> str:
    """A data set's name inside a sentence."""
    return {"train": "training data", "heldout": "held-out data"}.get(data, data.replace("_", " "))


@dataclass(frozen=True)
class Failure:
    """A failure signature ready to print."""

    name: str
    claim: str
    evidence: str
    rule: str
    advice: list[str]
    source: str


def failures(evaluation: Evaluation) -> list[Failure]:
    """The failure signatures that the run shows."""
    found = []
    for signature in evaluation.signatures():
        name, claim, evidence, rule, source = (
            str(signature.get(part) or "") for part in ("name", "claim", "evidence", "rule", "source")
        )
        advice = [str(line) for line in signature.get("advice") or []]
        found.append(Failure(name.replace("_", " "), claim, evidence, rule, advice, source))
    return found


def efficiency_rows(evaluation: Evaluation) -> list[tuple[Metric, str, str, str, Verdict]]:
    """Teacher beside student on size, speed and memory, with the ratio in words and what it is."""
    rows = []
    for metric in (metric for metric in evaluation.metrics if metric.family == "efficiency"):
        teacher, student = (evaluation.measurement(model, metric.id) for model in ("teacher", "student"))
        said = [metric.value(m.value, m.stderr) if m else ABSENT for m in (teacher, student)]
        share = student.over(teacher) if student and teacher else None
        ratio = times(share) if share else ABSENT
        rows.append((metric, said[0], said[1], ratio, ratio_verdict(share, metric) if share else "unknown"))
    return rows


def times(share: float) -> str:
    """A ratio in words.

    >>> times(0.11), times(3.2), times(1.001)
    ('9.1\xa0× less', '3.2\xa0× more', 'the same')
    """
    if 0.995 < share < 1.005:
        return "the same"
    return f"{significant(1 / share, 2)}{NBSP}× less" if share < 1 else f"{significant(share, 2)}{NBSP}× more"


def ratio_verdict(share: float, metric: Metric) -> Verdict:
    """Whether a ratio of student to teacher is for the better."""
    if metric.better == "none" or 0.995 < share < 1.005:
        return "unknown"
    return "better" if (share > 1) == (metric.better == "higher") else "worse"


@dataclass(frozen=True)
class Answer:
    """One model's output for a sample; `correct` is None where nobody judged it."""

    model: str
    text: str
    correct: bool | None


@dataclass(frozen=True)
class Sample:
    """One prompt, with the models' answers side by side."""

    prompt: str
    reference: str
    answers: list[Answer]


@dataclass(frozen=True)
class Kind:
    """One way to disagree: how many samples show it, and the first of them."""

    why: str
    count: int
    samples: list[Sample]


def disagreements(samples: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The samples in which two models disagree, by kind; without verdicts those whose outputs differ at all."""
    samples = list(samples)
    found = []
    for right, wrong, why in DISAGREEMENTS:
        rows = [row for row in samples if judged(row, right) is True and judged(row, wrong) is False]
        if rows:
            found.append((why, rows))
    if not found and not any(row.get("correct") for row in samples):
        rows = [row for row in samples if len(set(map(str, (row.get("outputs") or {}).values()))) > 1]
        found = [("The models answer differently", rows)] if rows else []
    return found


def judged(row: Mapping[str, Any], model: str) -> bool | None:
    """Whether a model's output was judged correct."""
    verdict = (row.get("correct") or {}).get(model)
    return verdict if isinstance(verdict, bool) else None


def sample_kinds(run: Run) -> list[Kind]:
    """At most `SAMPLES` samples, drawn from the ways to disagree in turn, each in the order of the file."""
    found = disagreements(run.samples)
    queues = [iter(rows) for _, rows in found]
    chosen: list[list[Sample]] = [[] for _ in found]
    seen: set[int] = set()
    for place in [*range(len(found))] * SAMPLES:
        row = next((row for row in queues[place] if id(row) not in seen), None)
        if row is not None and len(seen) < SAMPLES:
            seen.add(id(row))
            chosen[place].append(sample_of(run.evaluation, row))
    return [Kind(why, len(rows), shown) for (why, rows), shown in zip(found, chosen, strict=True)]


def sample_of(evaluation: Evaluation, row: Mapping[str, Any]) -> Sample:
    """A row of samples.jsonl ready to print."""
    outputs = row.get("outputs") or {}
    known = [model for model in evaluation.models if model in outputs]
    answers = [Answer(model, str(outputs[model]), judged(row, model)) for model in known]
    return Sample(str(row.get("prompt") or ""), str(row.get("reference") or ""), answers)


def costs(run: Run) -> list[tuple[str, str]]:
    """What the run spent and left behind, summed over its stages."""
    spent: dict[str, float] = {}
    stored: dict[str, float] = {}
    for stage in run.stages:
        for total, part in ((spent, stage.get("cost")), (stored, stage.get("bytes"))):
            for name, value in (part if isinstance(part, dict) else {}).items():
                if is_number(value):
                    total[name] = total.get(name, 0) + value
    stored = stored or folder_bytes(run.path)
    seconds = [stage["seconds"] for stage in run.stages if is_number(stage.get("seconds"))]
    rows = [("Time, all stages", duration(sum(seconds)))] if seconds else []
    rows += [(title, count(spent.pop(name))) for name, title in COST_TITLES.items() if name in spent]
    rows += [(name.replace("_", " ").capitalize(), count(value)) for name, value in spent.items()]
    return rows + [(f"On disk: {name.replace('_', ' ')}", in_bytes(value)) for name, value in stored.items()]


def folder_bytes(run: Path) -> dict[str, float]:
    """The size of what a run leaves, counted in its folder."""
    found = {part: [file.stat().st_size for file in (run / part).rglob("*") if file.is_file()] for part in ARTEFACTS}
    return {part: sum(sizes) for part, sizes in found.items() if sizes}


def choices(run: Run) -> list[tuple[str, str, str, str]]:
    """Every automatic choice once: where it was made, its name, value and reason."""
    places = [("start", run.environment), *((str(stage.get("stage") or "stage"), stage) for stage in run.stages)]
    found: dict[tuple[str, str, str], str] = {}
    for place, holder in places:
        for choice in holder.get("choices") or []:
            if isinstance(choice, dict):
                made = tuple(str(choice.get(part, "")) for part in ("name", "value", "reason"))
                found.setdefault((made[0], made[1], made[2]), place)
    return [(place, *made) for made, place in found.items()]


def environment(run: Run) -> list[tuple[str, str]]:
    """The environment as names and values; packages apart."""
    known = run.environment
    rows = [
        (name, str(known[name]))
        for name in ("stillhouse", "python", "platform", "cpu", "cores", "device", "seed")
        if known.get(name) is not None
    ]
    if is_number(known.get("memory_bytes")):
        rows.insert(len(rows) - 1, ("memory", in_bytes(known["memory_bytes"])))
    git = known.get("git")
    if isinstance(git, dict) and git.get("commit"):
        rows.append(("git commit", f"{git['commit']}{', with uncommitted changes' if git.get('dirty') else ''}"))
    return rows
