"""Templates filled: every value escaped for HTML, or for Markdown as GitHub reads it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stillhouse.records import whole
from stillhouse.report.svg import printable

# What means something in GitHub's Markdown: markup, table cells, links, emoji, then mentions and references to issues.
MARKUP = re.compile(r"[\\`*_\[\]|~$]|:(?=\S)|(?<=www)\.")
REFERENCE = re.compile(r"[@#](?=\w)")


def fill(template: str, context: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]] | None = None) -> str:
    """A template of this room, `NAME.html` or `NAME.md`, with every value in it escaped unless it is `Markup`."""
    settings: dict[str, Any] = {"autoescape": True}
    if template.endswith(".md"):
        settings = {
            "autoescape": False,  # it is Markdown: `finalize` escapes every value for it
            "finalize": lambda value: value if isinstance(value, Markup) else markdown(value),
        }
    loader = PackageLoader("stillhouse.report", "")
    env = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **settings)
    env.filters.update(filters or {})
    return env.get_template(template).render(context)


def write_pages(folder: Path, html: str, markdown: str) -> tuple[Path, Path]:
    """Write `report.html` and `report.md` into a folder, each whole or not at all; answers both paths."""
    pages = (folder / "report.html", folder / "report.md")
    for page, text in zip(pages, (html, markdown), strict=True):
        with whole(page) as partial:
            partial.write_text(printable(text), encoding="utf-8")
    return pages


def markdown(value: object) -> str:
    """Text that GitHub shows as it is: no markup, table cells, mentions or HTML; line ends become spaces.

    >>> print(markdown("a|b <i> @me"))
    a\\|b &lt;i&gt; @<!-- -->me
    """
    text = MARKUP.sub(lambda found: "\\" + found[0], " ".join(str(value).split()))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return REFERENCE.sub(lambda found: found[0] + "<!-- -->", text)
