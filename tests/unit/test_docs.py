"""Documentation that is executed: README code runs, the CLI reference equals the help, docstring examples hold."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import stillhouse

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def test_the_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("README.md", "python")
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "runs/example/student/model.safetensors").exists()


def test_the_readme_recipe_is_valid(tmp_path: Path) -> None:
    from stillhouse.recipe_file import load_recipe

    (text,) = blocks("README.md", "yaml")
    (tmp_path / "readme.yaml").write_text(text)
    recipe = load_recipe(str(tmp_path / "readme.yaml"))
    for family, items in {
        "objective": recipe.objective,
        "evaluator": recipe.evaluate,
        "teacher": [recipe.teacher],
    }.items():
        for item in items:
            item.build(family)


def test_the_readme_names_every_method() -> None:
    from stillhouse import registry

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for family in ("objective", "synthesizer", "selector", "condenser"):
        assert all(f"| `{name}` |" in readme for name in registry.names(family))


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_the_command_line_reference_equals_the_help() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/write_docs.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_extending_page_holds_itself_to_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    from stillhouse.testing import check_objective

    method, _, *others = blocks("docs/extending.md", "python")
    space: dict[str, object] = {"__name__": "total_variation"}
    exec(compile(method, "extending.md", "exec", flags=0, dont_inherit=True), space)
    check_objective(space["TotalVariation"]())  # ty: ignore[call-non-callable]
    assert len(others) == 4  # a synthesizer, features, a selector, a condenser: each ends with its own check
    for number, code in enumerate(others):
        assert re.search(r"^check_\w+\(", code, re.MULTILINE)
        exec(compile(code, "extending.md", "exec", flags=0, dont_inherit=True), {"__name__": f"extending_{number}"})


def test_the_extending_page_names_every_contract() -> None:
    from stillhouse import testing

    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(check_\w+)\(", page)) == set(testing.__all__)


@pytest.mark.parametrize(
    "name",
    [m.name for m in pkgutil.walk_packages(stillhouse.__path__, "stillhouse.") if not m.name.endswith("__main__")],
)
def test_examples_in_docstrings_hold(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
