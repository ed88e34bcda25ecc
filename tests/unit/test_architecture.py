"""The architecture as tests: who may import whom, how long things may get, what loads torch, what is documented.

A red test here says which line, why it is wrong and what to do. Change the rule only in one deliberate step, with a
decision in docs/decisions/.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
PACKAGE = SOURCE / "stillhouse"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS: list[set[str]] = [
    {
        "answers",
        "auroc",
        "contract",
        "errors",
        "generalising",
        "ledger",
        "registry",
        "recipe",
        "recipe_data",
        "recipe_parts",
        "recipe_file",
        "records",
        "replicates",
        "runs",
        "statistics",
        "sweep_file",
        "results",
        "signatures",
        "solutions",
        "world",
    },
    {"adapters", "locating"},
    {"asking", "classifiers", "consensus", "data", "signals", "models"},
    {"teachers", "objectives", "student", "pruning"},
    {"features"},
    {"synthesis", "selection", "condensation"},
    {"training", "evaluation", "report", "tracking", "traces"},
    {
        "cards",
        "checking",
        "comparing",
        "computing",
        "doctor",
        "making",
        "metrics",
        "preflight",
        "publishing",
        "samples",
        "scoring",
        "shortcuts",
        "stages",
        "stepping",
        "studies",
        "sweep_sharing",
        "sweep_summary",
        "sweeping",
        "terminal",
        "testing",
        "workshop",
    },
    {"cli", "__main__", "tethered"},
]
"""From the ground up. The registry imports components by name at run time, so it stands on the ground as well."""
PEERS = [0, 1, 7, 8]
"""Layers of single modules, which may import one another; elsewhere the rooms of a layer are strangers."""
FAMILIES = {
    "consensus",
    "teachers",
    "objectives",
    "features",
    "synthesis",
    "selection",
    "condensation",
    "evaluation",
    "tracking",
    "traces",
    "studies",
}
"""Rooms of components: each can be deleted with one `git rm`, so none imports another."""
LOOP_LINES = {"training/loop.py:train": 100}
HEAVY = {"torch", "transformers", "datasets", "tokenizers"}


class Import(NamedTuple):
    source: str
    target: str
    line: int


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_of(path): path for path in FILES}


def statements(node: ast.AST) -> Iterator[Any]:
    """All nodes but those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield child
            yield from statements(child)


def imports(path: Path) -> Iterator[Import]:
    """Imports of our own modules, those inside functions included."""
    for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the absolute import, `from stillhouse...`"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            target = name.removeprefix("stillhouse.")
            while target not in MODULES and "." in target:  # a name in a module: the module
                target = target.rpartition(".")[0]
            if name.startswith("stillhouse.") and target in MODULES:
                yield Import(module_of(path), target, node.lineno)


IMPORTS = [found for path in FILES for found in imports(path)]


def layer(module: str) -> int:
    room = module.partition(".")[0]
    places = [place for place, rooms in enumerate(LAYERS) if room in rooms]
    assert places, (
        f"{room} has no layer. Add it to LAYERS in {Path(__file__).name}: where it stands decides what it may import."
    )
    return places[0]


def objection(found: Import) -> str | None:
    """Why an import is wrong and what to do, or None."""
    source, target = found.source.partition("."), found.target.partition(".")
    here, there = layer(found.source), layer(found.target)
    if there > here:
        return (
            f"{source[0]} stands on layer {here}, {target[0]} on layer {there}; a module imports only lower layers. "
            f"Move what you need down, or let the caller pass it in."
        )
    if source[0] != target[0] and there == here and here not in PEERS:
        return f"{source[0]} and {target[0]} are siblings; they meet in a higher layer. Move what both need down."
    component = target[2] not in ("", "base") and not target[2].startswith("_")
    if source[0] == target[0] in FAMILIES and component:
        return (
            f"a component never imports a sibling, so that each can be deleted. Put what {source[2] or source[0]} "
            f"and {target[2]} share into {source[0]}/base.py, a helper with an underscore, or a lower layer."
        )
    return None


def test_imports_go_down() -> None:
    checked = [
        f for f in IMPORTS if f.source != "__init__"
    ]  # the package's front door names everything and loads nothing
    wrong = [(f, why) for f in checked if (why := objection(f))]
    assert not wrong, "\n".join(f"{f.source}:{f.line} imports {f.target}: {why}" for f, why in wrong)
    assert len(checked) > 50  # the rule above has seen the code


@pytest.mark.parametrize(
    ("source", "target", "word"),
    [
        ("objectives.forward_kl", "training.loop", "lower layers"),
        ("recipe", "models", "lower layers"),
        ("objectives.forward_kl", "teachers.base", "siblings"),
        ("data.rendering", "signals.kinds", "siblings"),
        ("report.page", "training.loop", "siblings"),
        ("objectives.forward_kl", "objectives.reverse_kl", "can be deleted"),
        ("evaluation._logits", "evaluation.tasks", "can be deleted"),
        ("objectives.forward_kl", "objectives.base", None),
        ("evaluation.tasks", "evaluation._logits", None),
        ("recipe", "registry", None),
        ("training.loop", "objectives.base", None),
        ("report.page", "report.svg", None),
        ("cli", "stages", None),
    ],
)
def test_the_rule_itself(source: str, target: str, word: str | None) -> None:
    why = objection(Import(source, target, 1))
    assert (why is None) == (word is None)
    assert word is None or word in (why or "")


def test_imports_make_no_circle() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for found in IMPORTS:
        graph[found.source].add(found.target)
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(
            f"Modules import in a circle: {' <- '.join(error.args[1])}. Cut it at the smaller need."
        ) from error


def test_the_report_knows_no_model() -> None:
    text = {path: path.read_text(encoding="utf-8") for path in (PACKAGE / "report").glob("*.py")}
    heavy = [
        str(p.relative_to(SOURCE))
        for p, t in text.items()
        if re.search(r"^\s*(import|from) (torch|transformers)\b", t, re.M)
    ]
    assert text
    assert not heavy, f"{heavy} import torch or transformers; the report reads run folders only, on any machine."


# Budgets.


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path.relative_to(PACKAGE)}:{node.name}", node


def test_budgets() -> None:
    """A file that outgrows its budget wants a better cut, not a larger number."""
    over = []
    for path in FILES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > 400:
            over.append(
                f"{path.relative_to(PACKAGE)} has {lines} lines, the budget is 400: cut where its second subject begins"
            )
        for name, node in functions(path):
            length, limit = (node.end_lineno or 0) - node.lineno + 1, LOOP_LINES.get(name, 60)
            if length > limit:
                over.append(f"{name} has {length} lines, the budget is {limit}: name a part of it and move it out")
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = len([a for a in arguments if a.arg not in ("self", "cls")])
            if count > 8:
                over.append(f"{name} has {count} parameters, the budget is 8: group those that travel together")
    assert not over, "\n".join(over)


# Light import.

LIGHT = [
    "import stillhouse",
    "import stillhouse; assert 'train' in dir(stillhouse)",
    "import stillhouse.recipe_file as r; r.load_recipe('quickstart')",
    "from stillhouse import registry; [registry.names(f) for f in registry.FAMILIES]",
    "from stillhouse import registry; [registry.summary(f, n) for f in registry.FAMILIES for n in registry.names(f)]",
    "import stillhouse.asking.client",
    "import stillhouse.report.page",
    "import stillhouse.comparing, stillhouse.results, stillhouse.statistics, stillhouse.runs, stillhouse.terminal",
]
COMMANDS = [["--help"], ["--version"], ["list"], ["show", "quickstart"], ["run", "--help"], ["compare", "--help"]]


def loaded_after(code: str) -> set[str]:
    script = f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n{code}\nprint('\\nLOADED', *sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.rpartition("LOADED")[2].split()}


@pytest.mark.parametrize("code", LIGHT)
def test_import_is_light(code: str) -> None:
    heavy = loaded_after(code) & HEAVY
    assert not heavy, (
        f"`{code}` loads {sorted(heavy)}; import them inside the function that needs them, or one layer up."
    )


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_command_is_light(arguments: list[str]) -> None:
    if "cli" not in MODULES:
        pytest.skip("stillhouse.cli is not written yet")
    code = f"sys.argv = ['stillhouse', *{arguments!r}]\nfrom stillhouse.cli import main\n"
    code += "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
    heavy = loaded_after(code) & HEAVY
    assert not heavy, (
        f"`stillhouse {' '.join(arguments)}` loads {sorted(heavy)}: import them inside the command's function."
    )


def test_the_test_for_light_imports_would_notice() -> None:
    assert "torch" in loaded_after("import stillhouse; stillhouse.ForwardKL")


# Documentation.


def undocumented(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    name = str(path.relative_to(PACKAGE))
    if tree.body and not ast.get_docstring(tree):
        yield name

    def visit(node: ast.Module | ast.ClassDef, place: str) -> Iterator[str]:
        for child in node.body:
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or child.name.startswith(
                "_"
            ):
                continue
            stub = not isinstance(child, ast.ClassDef) and ast.unparse(child.body[-1]) == "..."  # of a Protocol
            if not ast.get_docstring(child) and not stub:
                yield f"{place}:{child.name}"
            if isinstance(child, ast.ClassDef):
                yield from visit(child, f"{place}:{child.name}")

    yield from visit(tree, name)


def test_everything_public_is_documented() -> None:
    missing = [name for path in FILES for name in undocumented(path)]
    assert not missing, f"No docstring: {', '.join(missing)}. Say in one line what it is for."


def test_every_public_name_of_the_package_exists() -> None:
    import stillhouse

    for name in stillhouse.__all__:
        assert getattr(stillhouse, name).__doc__, name
    assert set(stillhouse.__all__) <= set(dir(stillhouse))
    with pytest.raises(AttributeError, match="Did you mean 'ForwardKL'"):
        stillhouse.ForwadKL  # noqa: B018


# Machines.


def test_no_file_knows_one_machine() -> None:
    """A path that begins at the root of somebody's disk works on that disk alone."""
    pattern = re.compile(r"(?<![\w.:/<~])/(?:home|root|work|tmp|Users|mnt|opt|var)/\w")
    files = [
        p for p in PACKAGE.rglob("*") if p.suffix in {".py", ".yaml", ".json", ".html", ".md", ".txt", ".css", ".js"}
    ]
    found = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()[:80]}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)
    assert pattern.search('open("/home/somebody/data")')


def test_no_folder_in_the_root_hides_a_package() -> None:
    """Python looks in the working folder first: a `datasets` there would be imported instead of the library."""
    from importlib.metadata import packages_distributions

    ours = {"tests", "docs", "src", "tools", "benchmarks", "recipes", "runs"}
    hidden = {p.name for p in SOURCE.parent.iterdir() if p.is_dir()} & (set(packages_distributions()) - ours)
    assert not hidden, f"{sorted(hidden)} in the root bear the names of installed packages; rename them."
