"""Write `docs/cli.md` from the command line's own help, so that the two cannot differ; `--check` only compares."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import typer

from stillhouse.cli import app

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"


def cli_reference() -> str:
    """Every command's help, in the order of `stillhouse --help`."""
    group = typer.main.get_command(app)
    context = typer.Context(group, info_name="stillhouse", terminal_width=100, max_content_width=100)
    parts = [
        "# Command line",
        "",
        "Written by `make docs` from the program itself.",
        "",
        *_block("stillhouse", group.get_help(context)),
    ]
    for name, command in group.commands.items():  # ty: ignore[unresolved-attribute]
        inner = typer.Context(command, info_name=name, parent=context, terminal_width=100, max_content_width=100)
        parts += _block(f"stillhouse {name}", command.get_help(inner))
    return "\n".join(parts)


def _block(title: str, text: str) -> list[str]:
    return [f"## {title}", "", "```text", *(line.rstrip() for line in text.splitlines()), "```", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 if the page is stale")
    wanted = cli_reference()
    if parser.parse_args().check:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == wanted else f"{PAGE.name} is stale: run `make docs`")
    PAGE.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
