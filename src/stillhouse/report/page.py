"""Writes a run's report: `report.html`, one file that needs nothing else, and `report.md` for a pull request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stillhouse.report import charts, tables
from stillhouse.report.committee import committee_of
from stillhouse.report.numbers import fixed, is_number
from stillhouse.report.reading import Run, detail, model_name, read_run
from stillhouse.report.story import tell
from stillhouse.report.svg import key
from stillhouse.report.weighing import weights_of
from stillhouse.report.writing import fill, write_pages


def write_report(run: Path) -> tuple[Path, Path]:
    """Write `report.html` and `report.md` into a run folder from what it holds; answers both paths.

    The same folder always gives the same bytes. Raises RunError if the run was not evaluated yet.
    """
    context = report_context(read_run(run))
    return write_pages(run, render_html(context), render_markdown(context))


def report_context(run: Run) -> dict[str, Any]:
    """Everything the templates show, as text and figures."""
    evaluation = run.evaluation
    losses, dropped = charts.training_figures(run)
    return {
        "name": str(run.recipe.get("name") or run.path.resolve().name),
        "subject": subject(run.recipe),
        "own_text": _learned_from_own_text(run),
        "seed": run.environment.get("seed", run.recipe.get("seed")),
        "headline": tell(evaluation),
        "headline_figure": charts.headline_figure(evaluation),
        "models": evaluation.models,
        "tables": tables.model_tables(evaluation),
        "comparisons": tables.comparison_tables(evaluation),
        "failures": tables.failures(evaluation),
        "shifts": tables.shift_tables(evaluation),
        "references": [model for model in tables.REFERENCES if model in evaluation.models],
        "kept": charts.kept_figures(evaluation),
        "losses": losses,
        "dropped": dropped,
        "quality": charts.quality_figures(run),
        "reliability": charts.reliability_figures(evaluation),
        "size": charts.size_figure(evaluation),
        "efficiency": tables.efficiency_rows(evaluation),
        "kinds": tables.sample_kinds(run),
        "sampled": len(run.samples),
        "committee": committee_of(run),
        "weights": weights_of(run),
        "costs": tables.costs(run),
        "stages": charts.stage_figure(run),
        "choices": tables.choices(run),
        "recipe": run.recipe_text,
        "environment": tables.environment(run),
        "packages": run.environment.get("packages") or {},
        "version": run.environment.get("stillhouse"),
    }


def render_html(context: Mapping[str, Any]) -> str:
    """The page."""
    filters = {"model_name": model_name, "capital": capital, "detail": detail}
    return fill("template.html", {**context, "key": key, "fold": tables.FOLD}, filters)


def render_markdown(context: Mapping[str, Any]) -> str:
    """The same story for a pull request."""
    filters = {"model_name": model_name, "capital": capital, "detail": detail, "fenced": fenced}
    return fill("template.md", context, filters)


def _learned_from_own_text(run: Run) -> bool:
    """Whether the control had other text than the student: where the teacher wrote it and nothing else was learned."""
    objectives = run.recipe.get("objective") or []
    names = [next(iter(item)) if isinstance(item, dict) else item for item in objectives]
    return (run.path / "data" / "control.jsonl").exists() and set(names) == {"cross_entropy"}


def capital(text: str) -> str:
    """The text with a capital in front and the rest as it was."""
    return text[:1].upper() + text[1:]


def fenced(text: str) -> Markup:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}yaml\n{text.rstrip()}\n{fence}")  # nothing leaves such a fence


def subject(recipe: Mapping[str, Any]) -> str:
    """What was distilled into what, how: one line from the recipe; empty where the recipe does not say."""
    teacher, student = (described(recipe.get(part)) for part in ("teacher", "student"))
    parts = [f"{teacher} → {student}"] if teacher and student else []
    if objective := weighted(recipe.get("objective")):
        parts.append(objective)
    train = recipe.get("train")
    if isinstance(train, dict) and is_number(train.get("steps")):
        parts.append(f"{fixed(train['steps'], 0)} steps")
    return " · ".join(parts)


def described(part: object) -> str:
    """A component of the recipe in a word: its model or path, else its name."""
    if isinstance(part, dict):
        for name in ("model", "path"):
            if isinstance(part.get(name), str):
                return part[name]
        config = part.get("config")
        if isinstance(config, dict):  # a student from scratch
            return f"{config.get('model_type', 'a model')} from scratch"
        cut = part.get("from_teacher")
        if isinstance(cut, dict):
            kept = ", ".join(f"{name} {value}" for name, value in cut.items() if name not in ("choose", "calibration"))
            return f"a cut of it ({kept or 'everything'})"
        inner = next(iter(part.values()), None)
        return (described(inner) if isinstance(inner, dict) else "") or str(next(iter(part), ""))
    return part if isinstance(part, str) else ""


def weighted(objective: object) -> str:
    """The objectives with their weights: `0.9 × forward_kl + 0.1 × cross_entropy`."""
    items = objective if isinstance(objective, list) else [objective]
    terms = []
    for item in items:
        for name, settings in item.items() if isinstance(item, dict) else [(item, None)]:
            weight = settings.get("weight") if isinstance(settings, dict) else None
            terms.append(f"{weight:g} × {name}" if is_number(weight) and weight != 1 else f"{name}")
    return " + ".join(term for term in terms if term != "None")
