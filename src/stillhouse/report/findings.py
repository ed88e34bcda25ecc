"""A page of findings: one answer, its tables and figures, as HTML and as Markdown; what studies and sweeps show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stillhouse.report.charts import Figure
from stillhouse.report.writing import fill, write_pages


@dataclass(frozen=True)
class Table:
    """Rows of text under their columns; the first column names the row, columns of numbers are right-aligned.

    Attributes:
        title: what the table shows.
        columns: their heads.
        rows: as many cells as columns, each as it is to be read.
        note: what a reader must know to read it: what an interval covers, where a figure comes from.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    @property
    def wordy(self) -> list[bool]:
        """Of each column, whether it holds words, which are read from the left."""
        return [any(row[place][:1].isalpha() for row in self.rows) for place in range(len(self.columns))]


@dataclass(frozen=True)
class Findings:
    """What was found out.

    Attributes:
        claim: the answer in a sentence, without a full stop.
        evidence: what it rests on: numbers, intervals, how many.
        parts: tables and figures in the order in which they are read; figures in a row stand side by side.
    """

    claim: str
    evidence: str
    parts: Sequence[Table | Figure]


def write_findings(folder: Path, name: str, found: Findings) -> tuple[Path, Path]:
    """Write `report.html` and `report.md` into a folder; answers both paths. The recipe is shown where the folder holds
    one."""
    recipe = folder / "recipe.yaml"
    context = {
        "name": name,
        "found": found,
        "blocks": _blocks(found.parts),
        "recipe": recipe.read_text(encoding="utf-8") if recipe.exists() else "",
    }
    return write_pages(folder, fill("findings.html", context), fill("findings.md", context))


def _blocks(parts: Sequence[Table | Figure]) -> list[tuple[str, list[Table | Figure]]]:
    """Figures that follow one another together; tables alone."""
    blocks: list[tuple[str, list[Table | Figure]]] = []
    for part in parts:
        kind = "table" if isinstance(part, Table) else "figures"
        if kind == "figures" and blocks and blocks[-1][0] == kind:
            blocks[-1][1].append(part)
        else:
            blocks.append((kind, [part]))
    return blocks
