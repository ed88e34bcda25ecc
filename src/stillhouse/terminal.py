"""What the command line shows: progress bars on stderr, results as plain text on stdout."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from stillhouse import registry, world
from stillhouse.runs import RunFolder


class Bars:
    """Progress of a run's stages, one bar each with rate and time left; says nothing when stderr is no terminal."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty() and world.is_main()
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description:16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not self._shown,
        )

    def __enter__(self) -> Self:
        from transformers.utils import logging

        logging.disable_progress_bar()  # theirs, for every model that is loaded
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        """The callback that stages report to."""
        if not self._shown:
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, note="", rate="")
        speed = self._progress.tasks[self._tasks[stage]].speed
        rate = f"{speed:.1f}/s" if speed else ""
        self._progress.update(self._tasks[stage], completed=done, total=total, note=note, rate=rate)


def number(value: float | None) -> str:
    """A number for people: four significant digits, thousands separated."""
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def verdict(comparison: Mapping[str, Any]) -> str:
    """A paired difference in words, such as `+0.12 [+0.08, +0.16], resolved`."""
    if comparison["low"] is None:
        return f"{comparison['difference']:+.4g}, from one example alone"
    word = "resolved" if comparison["resolved"] else f"unresolved (this test could see {number(comparison['mde'])})"
    interval = f"[{comparison['low']:+.4g}, {comparison['high']:+.4g}]"
    return f"{comparison['difference']:+.4g} {interval}, n = {comparison['n']:,}, {word}"


def outcome_text(facts: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """The end of a run: the models' numbers, the comparison that matters, and where the report is."""
    models = list(evaluation["models"])
    rows = [["", *models]]
    for name, metric in evaluation["metrics"].items():
        cells = [evaluation["models"][m].get(name) for m in models]
        shown = [
            f"{number(c['value'])}" + (f" ± {number(c['stderr'])}" if c["stderr"] else "") if c else "-" for c in cells
        ]
        rows.append([f"{name} ({metric['unit']})", *shown])
    lines = [_columns(rows), ""]
    headline = evaluation["headline"]
    for pair in ("student - control", "student - teacher"):
        if headline in evaluation["comparisons"].get(pair, {}):
            lines.append(f"{headline}, {pair}: {verdict(evaluation['comparisons'][pair][headline])}")
    for found in evaluation.get("signatures", []):
        lines += [f"Failure signature {found['name']}: {found['claim']}.", f"  {found['evidence']}"]
        lines += [f"  Try: {advice}" for advice in found["advice"]]
    if facts["skipped"]:
        lines.append(f"Done before and unchanged: {', '.join(facts['skipped'])}.")
    lines += [f"Report: {facts['report']}", f"Student: {facts['student']}"]
    return "\n".join(lines)


def store_text(facts: Mapping[str, Any]) -> str:
    """What a signal store holds and how close it is to its teacher."""
    kl = facts["kl_nats_per_token"]
    away = (
        f"{number(kl)} nats per token"
        if kl is not None
        else "not measurable (the teacher shows its likeliest tokens alone)"
    )
    return "\n".join(
        [
            f"{facts['examples']:,} examples, {facts['bytes_per_token']} bytes per token",
            f"KL(teacher, stored) {away}, kept mass "
            f"{facts['kept_mass']:.4%}, likeliest token kept {facts['top1_agreement']:.2%}, on "
            f"{facts['measured_tokens']:,} tokens",
            f"Use it: teacher: {{stored: {{path: {facts['store']}}}}}",
        ]
    )


def comparison_table(result: Mapping[str, Any]) -> str:
    """Every run's value and the paired differences to the first run."""
    runs = list(result["runs"])
    rows = [["", *runs]]
    for name, metric in result["metrics"].items():
        cells = [result["runs"][r].get(name) for r in runs]
        rows.append([f"{name} ({metric['unit']})", *(number(c["value"]) if c else "-" for c in cells)])
    lines = [_columns(rows)]
    for pair, found in result["comparisons"].items():
        lines += ["", f"{pair} ({result['role']}, paired by example, 95 % interval)"]
        lines.append(_columns([[f"  {name}", verdict(c)] for name, c in found.items()]))
    if result["not_compared"]:
        lines += ["", f"Not compared, because each run has its own training data: {', '.join(result['not_compared'])}"]
    return "\n".join(lines)


def check_text(result: Mapping[str, Any]) -> str:
    """What `check` found, in the order a person asks."""
    estimate, student, teacher = result["estimate"], result["student"], result["teacher"]
    share = f", {student['share_of_teacher']:.1%} of its teacher" if student["share_of_teacher"] else ""
    trained = f"; {number(student['trainable'])} of adapters are trained" if student["adapters"] else ""
    rows = [
        [
            "teacher",
            f"{teacher['is']}, {number(teacher['parameters'])} parameters, provides {', '.join(teacher['provides'])}",
        ],
        ["student", f"{number(student['parameters'])} parameters{share}{trained}"],
        [
            "vocabulary",
            f"{result['vocabulary']:,} tokens, {'with' if result['chat_template'] else 'without'} a chat template",
        ],
        ["device", f"{result['device']['value']} ({result['device']['reason']})"],
        ["longest example", f"{result['max_length']:,} tokens allowed"],
        ["objectives", ", ".join(result["objectives"])],
        ["control", "yes, the same training without the teacher" if result["control"] else "none"],
    ]
    for name, data in result["data"].items():
        rows.append(
            [
                f"data {name}",
                f"{data['source']}: {data['examples']:,} examples, {data['mean_tokens']:g} tokens on average",
            ]
        )
        rows += [["", f"{count} {notice}"] for notice, count in data.get("notices", {}).items()]
    for asking in estimate.get("asking", ()):
        price = f", {asking['cost']:.4g} {asking['currency']}" if "cost" in asking else ""
        rows.append(
            [
                "asks",
                f"{asking['teacher']} at most {asking['calls']:,} requests{price}; what is stored is not asked again",
            ]
        )
        before = asking["spent_before"]
        if before["calls"]:
            rows.append(["", f"{before['calls']:,} requests were paid before, which count in the budget"])
    rows += [
        ["updates", f"{estimate['steps']:,} in all, {estimate['epochs']:g} passes over the data each"],
        ["teacher reads", f"about {estimate['teacher_tokens_read']:,} tokens"],
        ["teacher writes", f"about {estimate['teacher_tokens_written']:,} tokens"],
        ["memory", f"about {estimate['peak_memory_bytes'] / 2**30:.2f} GiB at its peak{_within(estimate)}"],
        ["disk", f"about {estimate['disk_bytes'] / 2**20:,.0f} MiB"],
        ["time", f"about {estimate['seconds']:,.0f} s: {estimate['note']}"],
    ]
    rows += [["", f"{seconds:,.1f} s {name}"] for name, seconds in estimate.get("stages", {}).items()]
    rows += [["warning", text] for text in result["warnings"]]
    return _columns(rows)


def study_check_text(result: Mapping[str, Any]) -> str:
    """What `check` found of a study."""
    rows = [[name, text] for name, text in result["facts"].items()]
    if result["stages"]:
        rows += [
            ["memory", f"about {result['peak_memory_bytes'] / 2**30:.2f} GiB at its peak"],
            [
                "time",
                f"about {result['seconds']:,.0f} s: tried with few rows and steps, on this machine as busy as now",
            ],
        ]
        rows += [
            ["", f"{stage['seconds']:,.1f} s and {stage['memory_bytes'] / 2**30:.2f} GiB {name}"]
            for name, stage in result["stages"].items()
        ]
    else:
        rows.append(["time", "not told of this study"])
    rows += [["warning", text] for text in result["warnings"]]
    return _columns(rows)


def _within(estimate: Mapping[str, Any]) -> str:
    return f", in {estimate['peak_memory_stage']}" if estimate["rehearsed"] else ""


def sweep_text(found: Mapping[str, Any], folder: Path) -> str:
    """The settings' means, the differences, what failed, and where the page is."""
    shown = found["shown"]
    rows = [["", *(f"{name} ({found['metrics'][name]['unit']})" for name in shown)]]
    for name, setting in found["settings"].items():
        means = setting["means"].get("student", {})
        rows.append([name, *(_mean_text(means[metric]) if metric in means else "-" for metric in shown)])
    lines = [_columns(rows), "", "Means over seeds, 95 % interval over seeds."]
    for pair, differences in found["comparisons"].items():
        lines += [
            f"{name}, {pair}: {verdict(_as_comparison(differences[name]))}" for name in shown if name in differences
        ]
    for name, setting in found["settings"].items():
        control = setting["student - control"]
        lines += [
            f"{m}, {name}, student - control: {verdict(_as_comparison(control[m]))}" for m in shown if m in control
        ]
    lines += [f"{found['jobs']} at a time, threads of each: {found['threads']} ({found['reason']})."]
    lines += [f"Numbers: {folder / 'sweep.json'}", f"Report: {folder / 'report.html'}"]
    if found["failed"]:
        lines += ["", f"{len(found['failed'])} failed; the same command tries them again:"]
        lines += [f"  {name}: {error}" for name, error in found["failed"].items()]
    return "\n".join(lines)


def _mean_text(mean: Mapping[str, Any]) -> str:
    if mean["low"] is None:
        return number(mean["value"])
    return f"{number(mean['value'])} [{number(mean['low'])}, {number(mean['high'])}]"


def _as_comparison(difference: Mapping[str, Any]) -> dict[str, Any]:
    """A difference as `verdict` reads a comparison: its n is what was paired."""
    return {**difference, "n": difference["examples"] or difference["seeds"]}


def sweep_check_text(result: Mapping[str, Any]) -> str:
    """What a sweep would do and cost."""
    seconds, count = result["seconds"], len(result["runs"])
    rows = [
        ["runs", f"{count}: {', '.join(result['runs'])}"],
        ["side by side", f"{result['jobs']}, threads of each: {result['threads']} ({result['reason']})"],
        [
            "time",
            f"about {seconds['all']:,.0f} s: {count} times the {seconds['one']:,.0f} s of the first{_less(seconds)}",
        ],
        ["disk", f"about {result['disk_bytes'] / 2**20:,.0f} MiB"],
        *(["warning", text] for text in result["first"]["warnings"]),
    ]
    return _columns(rows)


def _less(seconds: Mapping[str, float]) -> str:
    return f", less {seconds['shared']:,.0f} s that runs share" if seconds["shared"] else ""


def doctor_text(facts: Mapping[str, Any]) -> str:
    """What `doctor` found, problems last, where a person looks."""
    rows = [
        ["stillhouse", f"{facts['stillhouse']}, python {facts['python']} on {facts['platform']}"],
        ["processor", f"{facts['cpu']}, {facts['cores']} cores"],
        ["memory", _memory_text(facts)],
        ["disk", f"{facts['free_disk_bytes'] / 2**30:.1f} GiB free here"],
    ]
    if "device" in facts:
        speed = facts["operations_per_second"]
        rows += [
            ["device", f"{facts['device']} ({facts['device_reason']})"],
            ["threads", f"{facts['threads']} on {facts['usable_cores']} usable cores, {facts['cpu_capability']}"],
            [
                "precision",
                f"measured just now on matrix products: float32 {speed['float32'] / 1e9:,.0f} GFLOP/s, bfloat16 "
                f"{speed['bfloat16'] / 1e9:,.0f} ({speed['bfloat16'] / speed['float32']:.2g} times as fast)",
            ],
            ["", "a run (train.precision: auto) does not go by that: it times its own student on a real batch"],
        ]
    rows += _hub_rows(facts["hub"])
    rows += [["package" if not i else "", text] for i, text in enumerate(_package_lines(facts["packages"]))]
    for extra, found in facts["extras"].items():
        for name, package in found["packages"].items():
            have = package["version"] or f"not installed: {found['install']}"
            rows.append([f"extra {extra}", f"{name} {have}, for {found['for']}"])
    rows += [["note", text] for text in facts["notes"]]
    rows += [["PROBLEM", text] for text in facts["problems"]] or [["", "No problem found."]]
    return _columns(rows)


def _memory_text(facts: Mapping[str, Any]) -> str:
    text = f"{facts['memory_bytes'] / 2**30:.1f} GiB"
    if facts["memory_limit_bytes"]:
        text += f", this container may use {facts['memory_limit_bytes'] / 2**30:.1f}"
    available = facts["available_memory_bytes"]
    return text if available is None else f"{text}, {available / 2**30:.1f} free"


def _hub_rows(hub: Mapping[str, Any] | None) -> list[list[str]]:
    if hub is None:
        return []
    reach = "offline (HF_HUB_OFFLINE): only what is in the cache" if hub["offline"] else hub["endpoint"]
    token = "a token is there" if hub["token"] else "no token, which public models do not need (`hf auth login`)"
    return [["hub", f"{reach}; {token}"], ["", f"cache {hub['home']}, {hub['free_disk_bytes'] / 2**30:.1f} GiB free"]]


def _package_lines(packages: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names with versions, four to a line."""
    named = [f"{name} {found['version'] or 'MISSING'}" for name, found in packages.items()]
    return [", ".join(named[i : i + 4]) for i in range(0, len(named), 4)]


def component_facts(kind: str, name: str) -> tuple[dict[str, Any], str]:
    """A component's documentation and settings, as facts and as text."""
    cls = registry.component(kind, name)
    settings = {
        f.name: {
            "type": str(f.type),
            "default": None if f.default is dataclasses.MISSING else f.default,
            "required": f.default is dataclasses.MISSING,
        }
        for f in (dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ())
    }
    for key, field in getattr(cls, "model_fields", {}).items():  # a study is a section of a recipe
        required = field.is_required()
        default = None if required else field.get_default(call_default_factory=True)
        settings[key] = {"type": str(field.annotation), "default": default, "required": required}
    needs = sorted(getattr(cls, "needs", ())) if kind != "teacher" else []
    provides = sorted(cls.provides) if kind == "teacher" else []
    facts = {
        "family": kind,
        "name": name,
        "class": cls.__name__,
        "doc": inspect.getdoc(cls) or "",
        "settings": settings,
        "needs": needs,
        "provides": provides,
    }
    rows = [
        [f"  {key}", str(s["type"]), "required" if s["required"] else f"default {s['default']!r}"]
        for key, s in settings.items()
    ]
    text = f"{kind} {name}: {facts['doc']}\n\nSettings\n{_columns(rows)}"
    if needs:
        text += f"\n\nNeeds the teacher's {', '.join(needs)}."
    if provides:
        text += f"\n\nProvides {', '.join(provides)}."
    return facts, text


def run_facts(folder: Path) -> tuple[dict[str, Any], str]:
    """What a run folder holds: its stages, its bill, and whether it is whole."""
    run = RunFolder(folder)
    recipe = run.recipe()
    stages: dict[str, dict[str, Any]] = {
        r.name: {"seconds": round(r.seconds, 1), "cost": r.cost} for r in run.stage_records()
    }
    whole = (folder / "manifest.json").exists()
    facts = {"run": str(folder), "recipe": recipe.name, "whole": whole, "stages": stages}
    rows = [
        [f"  {name}", f"{s['seconds']} s", ", ".join(f"{k} {v:,}" for k, v in s["cost"].items())]
        for name, s in stages.items()
    ]
    state = "whole" if whole else "not finished; `stillhouse run` with its recipe continues it"
    return facts, f"{folder}: {recipe.name}, {state}\n{_columns(rows)}"


def yaml_text(value: object) -> str:
    """YAML as a person would write it."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip()


def _columns(rows: list[list[str]]) -> str:
    """Left-aligned columns, two spaces apart."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows), default=0))]
    return "\n".join("  ".join(cell.ljust(widths[i]) for i, cell in enumerate(row)).rstrip() for row in rows)
