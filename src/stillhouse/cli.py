"""The command line: parse, call one stage, print; nothing else. Results go to stdout, progress to stderr."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse import __version__, registry, world
from stillhouse.errors import RecipeError, StillhouseError, did_you_mean
from stillhouse.recipe import Recipe, builtin_recipes
from stillhouse.recipe_file import find_recipe, load, load_recipe
from stillhouse.sweep_file import expand, is_sweep, load_sweep

if TYPE_CHECKING:
    from stillhouse.studies.base import Study

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Distil a teacher into a student, and prove that it helped.\n\nTry: stillhouse run quickstart",
)

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a built-in recipe.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Settings that replace the recipe's.")
]
Out = Annotated[Path | None, typer.Option("--out", help="The run's folder.  [default: runs/NAME]")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Folder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


@app.command()
def run(recipe: RecipeArgument, overrides: Overrides = None, out: Out = None, as_json: AsJson = False) -> None:
    """Teacher to student to report, all of it; the same command continues a run that was stopped.

    Example: stillhouse run quickstart train.steps=300 --out runs/short
    """
    from stillhouse import stages
    from stillhouse.terminal import Bars

    loaded = load(recipe, overrides or [], build=True)
    folder = out or Path("runs") / loaded.name
    if not isinstance(loaded, Recipe):
        _conduct(loaded, folder, as_json)
        return
    with Bars() as progress:
        outcome = stages.run(loaded, folder, progress)
    _print_outcome(outcome.folder, outcome.skipped, as_json)


def _conduct(study: Study, folder: Path, as_json: bool) -> None:
    from stillhouse.studies.base import conduct
    from stillhouse.terminal import Bars

    with Bars() as progress:
        found = conduct(study, folder, progress)
    told = study.show(found)
    places = f"Numbers: {folder / study.result}\nReport: {folder / 'report.html'}"
    _emit(found, as_json, f"{told.claim}. {told.evidence}\n{places}")


@app.command()
def sweep(
    recipe: Annotated[
        str, typer.Argument(metavar="SWEEP", help="A sweep file, a built-in sweep, or any recipe with --grid.")
    ],
    overrides: Overrides = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY.PATH=VALUE,VALUE", help="Values to try; several --grid make every combination."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="SEED,SEED", help="Seeds of every setting.  [default: the sweep's]")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs side by side.  [default: chosen, and said why]")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The sweep's folder.  [default: runs/NAME]")] = None,
    only_check: Annotated[bool, typer.Option("--check", help="Say what it would cost, and run nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """One recipe with several settings and seeds, and what they say together; the same command continues one that was
    stopped.

    Example: stillhouse sweep quickstart --grid objective.forward_kl.temperature=1,2,4 --seeds 0,1,2
    """
    from stillhouse.sweeping import check_sweep, run_sweep
    from stillhouse.terminal import Bars, sweep_check_text, sweep_text

    wanted = load_sweep(recipe, overrides or [], grid=grid or [], seeds=seeds)
    runs = expand(wanted, build=True)
    if only_check:
        result = check_sweep(wanted, runs, jobs)
        _emit(result, as_json, sweep_check_text(result))
        return
    folder = out or Path("runs") / wanted.name
    with Bars() as progress:
        found = run_sweep(wanted, runs, folder, jobs, progress)
    _emit(found, as_json, sweep_text(found, folder))
    if found["failed"]:
        raise typer.Exit(1)


@app.command()
def train(recipe: RecipeArgument, overrides: Overrides = None, out: Out = None, as_json: AsJson = False) -> None:
    """Only the data and the training; `evaluate` continues from there.

    Example: stillhouse train quickstart --out runs/a
    """
    from stillhouse import stages
    from stillhouse.terminal import Bars

    loaded = load_recipe(recipe, overrides or [], build=True)
    folder = out or Path("runs") / loaded.name
    with Bars() as progress:
        outcome = stages.train_only(loaded, folder, progress)
    _emit(
        {"run": str(folder), "student": str(folder / "student"), "skipped": outcome.skipped},
        as_json,
        f"{folder / 'student'}",
    )


@app.command()
def score(recipe: RecipeArgument, overrides: Overrides = None, out: Out = None, as_json: AsJson = False) -> None:
    """Ask the teacher about the training data once and store what it says, for `teacher: {stored: {path: ...}}`.

    Example: stillhouse score quickstart score.k=32 --out runs/scored
    """
    from stillhouse import stages
    from stillhouse.signals.store import SignalStore
    from stillhouse.terminal import Bars, store_text

    loaded = load_recipe(recipe, overrides or [], build=True)
    folder = out or Path("runs") / f"{loaded.name}-scored"
    with Bars() as progress:
        outcome = stages.score(loaded, folder, progress)
    store = SignalStore(folder / "signals")
    facts = {"store": str(store.folder), "examples": len(store), "skipped": outcome.skipped, **store.fidelity}
    _emit(facts, as_json, store_text(facts))


@app.command()
def evaluate(folder: Folder, as_json: AsJson = False) -> None:
    """Measure teacher, student before, control and student of a run, and write its report.

    Example: stillhouse evaluate runs/quickstart
    """
    from stillhouse import stages
    from stillhouse.terminal import Bars

    with Bars() as progress:
        outcome = stages.evaluate_run(folder, progress)
    _print_outcome(outcome.folder, outcome.skipped, as_json)


@app.command()
def report(folder: Folder, as_json: AsJson = False) -> None:
    """Write report.html and report.md again from what a run folder holds.

    Example: stillhouse report runs/quickstart
    """
    from stillhouse.report.page import write_report
    from stillhouse.runs import RunFolder

    RunFolder(folder).recipe()
    page, text = write_report(folder)
    _emit({"html": str(page), "markdown": str(text)}, as_json, str(page))


@app.command()
def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders; the first is what others are held against.")
    ],
    role: Annotated[
        str, typer.Option(help="Which model of each run: student, control, student_before or teacher.")
    ] = "student",
    as_json: AsJson = False,
) -> None:
    """The difference between runs, paired example by example, with its confidence interval.

    Example: stillhouse compare runs/a runs/b
    """
    from stillhouse.comparing import compare_runs
    from stillhouse.terminal import comparison_table

    result = compare_runs(folders, role)
    _emit(result, as_json, comparison_table(result))


@app.command()
def check(recipe: RecipeArgument, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """What a recipe would do, need and cost, before anything dear starts.

    Example: stillhouse check quickstart train.steps=2000
    """
    from stillhouse.terminal import check_text, study_check_text

    loaded = load(recipe, overrides or [], build=True)
    if isinstance(loaded, Recipe):
        from stillhouse.checking.check import check as look

        result = look(loaded)
        _emit(result, as_json, check_text(result))
        return
    from stillhouse.studies.base import foretell

    result = foretell(loaded)
    _emit(result, as_json, study_check_text(result))


@app.command(name="list")
def list_(
    family: Annotated[
        str | None,
        typer.Argument(
            metavar="[FAMILY]",
            help="teacher, objective, synthesizer, feature, selector, condenser, evaluator, tracker, consensus_rule, "
            "trace_signal, study or recipe.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Which components and recipes exist: all, or those of one family.

    Example: stillhouse list objective
    """
    known = [*registry.FAMILIES, "recipe"]
    if family is not None and family not in known:
        raise RecipeError(f"There is no family {family!r}. {did_you_mean(family, known)}")
    found = {kind: _members(kind) for kind in known if family in (None, kind)}
    width = max(len(name) for members in found.values() for name in members)
    lines = [
        f"{kind}\n" + "\n".join(f"  {name:{width}} {text}" for name, text in members.items())
        for kind, members in found.items()
    ]
    _emit(found, as_json, "\n\n".join(lines))


def _members(kind: str) -> dict[str, str]:
    if kind == "recipe":
        return {
            name: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
            for name, path in builtin_recipes().items()
        }
    return {name: registry.summary(kind, name) for name in registry.names(kind)}


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A component, a recipe, or a run folder.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """A component's settings, a recipe with every default written out, or what a run folder holds; all that bear the
    name.

    Example: stillhouse show forward_kl
    """
    found = _named(name, overrides or [])
    if not found:
        known = [*(n for kind in registry.FAMILIES for n in registry.names(kind)), *builtin_recipes()]
        raise RecipeError(f"{name!r} is no component, recipe or run folder. {did_you_mean(name, known)}")
    facts = {kind: facts for kind, (facts, _) in found.items()}
    text = "\n\n".join(text for _, text in found.values())
    _emit(facts if len(facts) > 1 else facts.popitem()[1], as_json, text)


def _named(name: str, overrides: list[str]) -> dict[str, tuple[dict[str, Any], str]]:
    """All that bear a name, as facts and as text: a teacher, a study and a recipe may share one."""
    from stillhouse.terminal import component_facts, run_facts, yaml_text

    found = {kind: component_facts(kind, name) for kind in registry.FAMILIES if name in registry.names(kind)}
    if Path(name).is_file() or name in builtin_recipes():
        loaded = load_sweep(name, overrides) if is_sweep(name) else load(name, overrides)
        facts = loaded.resolved()
        found["recipe"] = facts, f"# recipe {name}\n{yaml_text(facts)}"
    if Path(name, "recipe.yaml").is_file() or (Path(name).is_dir() and not found):
        found["run"] = run_facts(Path(name))
    return found


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What is installed, what is missing, and what a run would choose on this machine and why.

    Example: stillhouse doctor
    """
    from stillhouse.doctor import examine
    from stillhouse.terminal import doctor_text

    facts = examine()
    _emit(facts, as_json, doctor_text(facts))
    if facts["problems"]:
        raise typer.Exit(1)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write the recipe.")] = Path("recipe.yaml"),
    like: Annotated[str, typer.Option(help="The built-in recipe to start from.")] = "quickstart",
    as_json: AsJson = False,
) -> None:
    """Write a recipe to start from.

    Example: stillhouse init mine.yaml --like gsm8k
    """
    text = find_recipe(like).read_text(encoding="utf-8")
    if path.exists():
        raise RecipeError(f"{path} exists already and is left as it is. Give another name.")
    lines = [f"name: {path.stem}" if line.startswith("name:") else line for line in text.splitlines()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    following = f"stillhouse sweep {path} --check" if is_sweep(like) else f"stillhouse check {path}"
    _emit({"recipe": str(path), "like": like}, as_json, f"Wrote {path}. Next: {following}")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stillhouse {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    # Workers of the tokenizers library and a forked process do not go together; set before it is imported.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _emit(result: Any, as_json: bool, text: str) -> None:
    if world.is_main():  # of several processes one speaks
        typer.echo(json.dumps(result, indent=1, ensure_ascii=False, default=str) if as_json else text)


def _print_outcome(folder: Path, skipped: list[str], as_json: bool) -> None:
    from stillhouse.terminal import outcome_text

    facts = {
        "run": str(folder),
        "skipped": skipped,
        "report": str(folder / "report.html"),
        "student": str(folder / "student"),
    }
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    _emit({**facts, "evaluation": evaluation}, as_json, outcome_text(facts, evaluation))


def _tell(error: StillhouseError) -> None:
    """Of several processes the first speaks for all; the others only of what they alone met."""
    told = f"{type(error).__name__}: {error}"
    if not world.is_main():
        if world.SHARED not in getattr(error, "__notes__", ()):
            print(f"process {world.rank()}: {told}", file=sys.stderr)
        return
    if "--json" in sys.argv:
        typer.echo(json.dumps({"error": {"kind": type(error).__name__, "message": str(error)}}, ensure_ascii=False))
    print(told, file=sys.stderr)


def main() -> None:
    """Entry point: errors meant for the user become a sentence on stderr and an exit code, not a traceback."""
    try:
        app()
    except StillhouseError as error:
        _tell(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("Stopped. The same command continues from the last checkpoint.", file=sys.stderr)
        sys.exit(1)
