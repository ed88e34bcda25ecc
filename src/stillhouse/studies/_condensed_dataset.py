"""The condensed sets as a data set: rows that `datasets` loads, each with its distribution over the classes and its
lineage, and a card.

    data/METHOD.parquet   the sets of one method, every budget, both kinds of labels, every form
    README.md             the card
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from stillhouse import __version__
from stillhouse.records import whole
from stillhouse.studies._condensing import VECTORS, Set, Task

FOLDER = "dataset"
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("label", pa.string()),
        ("distribution", pa.list_(pa.float32())),
        ("vectors", pa.list_(pa.list_(pa.float32()))),
        ("per_class", pa.int32()),
        ("labels", pa.string()),
        ("form", pa.string()),
        ("lineage", pa.string()),
    ]
)


def write_sets(place: Path, task: Task, sets: Mapping[int, Sequence[Set]], made_for: Mapping[str, Any]) -> None:
    """Write the rows.

    Args:
        place: the folder, which appears whole.
        task: where the rows come from.
        sets: by rows of a class.
        made_for: of all sets: the learner, the seed, the embeddings.
    """
    by_method: dict[str, list[dict[str, Any]]] = {}
    for per_class, of_budget in sets.items():
        for made in of_budget:
            by_method.setdefault(made.method, []).extend(_rows(task, made, per_class, made_for))
    with whole(place) as partial:
        (partial / "data").mkdir(parents=True)
        for method, rows in by_method.items():
            table = pa.Table.from_pylist(rows, _SCHEMA)
            pq.write_table(table, partial / "data" / f"{method}.parquet", compression="zstd")


def _rows(task: Task, made: Set, per_class: int, made_for: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    inputs_RTD, mask_RT, labels_RC = made.rows
    for row, origin in enumerate(made.origins_R.tolist()):
        began = {"began_as": task.ids[origin], "its_text": task.texts[origin]}
        yield {
            "id": f"{made.method}-{made.labels}-{made.form.replace(' ', '_')}-{per_class}-{row}",
            "text": None if made.texts is None else made.texts[row],
            "label": task.classes[int(task.real.classes_N[origin])],
            "distribution": labels_RC[row].tolist(),
            "vectors": inputs_RTD[row][mask_RT[row].bool()].tolist() if made.form == VECTORS else None,
            "per_class": per_class,
            "labels": made.labels,
            "form": made.form,
            "lineage": json.dumps({"method": made.method, **made_for, **began}, ensure_ascii=False),
        }


def write_card(place: Path, name: str, found: Mapping[str, Any]) -> None:
    """Markdown with the metadata block that data hubs read, and what students learned from each set."""
    methods = sorted(path.stem for path in (place / "data").glob("*.parquet"))
    header = {
        "tags": ["distillation", "stillhouse"],
        "configs": [
            {"config_name": method, "data_files": [{"split": "train", "path": f"data/{method}.parquet"}]}
            for method in methods
        ],
    }
    student = found["settings"]["students"][0]
    told = [row for row in found["budgets"] if row["student"] == student]
    lines = [
        f"| {row['method']} | {row['labels']} | {row['form']} | {row['per_class']} | {row['bytes']:,.0f} | "
        f"{100 * row['accuracy']['value']:.1f} |"
        for row in told
    ]
    text = f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---

# {name}

Few rows in place of {found["rows"]:,}, condensed for a {student} student. `datasets.load_dataset(FOLDER, METHOD)` reads
the sets of one method; `per_class`, `labels` and `form` tell them apart, so that a set is one filter away.

`distribution` is over the classes {", ".join(found["classes"])}, in this order: what the set's learner is trained on.
`vectors` are places of static embeddings ({found["settings"]["embeddings"]}); `text` is what can be read. How each
row came to be, and the real row that it began as, stands in its `lineage`.

These are the sets of seed {found["settings"]["seed"]}; accuracy is the mean of {found["settings"]["seeds"]} seeds, of a
{student} student on {found["n"]:,} held-out texts, where all rows give {100 * found["full"][student]:.1f} %.

| method | labels | form | rows a class | bytes | accuracy, % |
| --- | --- | --- | ---: | ---: | ---: |
{chr(10).join(lines)}

Made with stillhouse {__version__} by this recipe:

```yaml
{yaml.safe_dump(found["settings"], sort_keys=False, allow_unicode=True).strip()}
```
"""
    (place / "README.md").write_text(text, encoding="utf-8")
