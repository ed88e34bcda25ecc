"""The distilled data set: what a run made or chose, as rows that anything can load, with the teacher's distributions
beside them.

    data/train.parquet    one row an example: its text, weight and lineage
    signals/              the teacher's distributions, where the run recorded them
    README.md             the card
    ledger.json           what each part weighs

`datasets.load_dataset(FOLDER)` reads the rows. With the record a student is trained without the teacher (a soft-label
coreset): `data.train.path=FOLDER/data/train.parquet "teacher={stored: {path: FOLDER/signals}}"`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from stillhouse import __version__
from stillhouse.data.sources import describe
from stillhouse.ledger import Tally, record_bytes
from stillhouse.recipe import Recipe
from stillhouse.records import Example, read_examples, whole
from stillhouse.runs import RunFolder
from stillhouse.signals.layout import StoreHeader, read_header

FOLDER = "dataset"
_LINEAGE = ("made_by", "selected_by")
_ROWS = 1024
_TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
_SAYS = {
    "prompt": pa.string(),
    "rationale": pa.string(),
    "completion": pa.string(),
    "text": pa.string(),
    "messages": pa.list_(_TURN),
}


def write_dataset(folder: RunFolder, recipe: Recipe) -> Path | None:
    """Write a finished run's `dataset/`; None where the training data are a source's own, as they came."""
    if not recipe.data.steps and recipe.data.train.synthesizer is None:
        return None
    place = folder.path / FOLDER
    with whole(place) as partial:
        tally, how = Tally(), Counter[str]()
        source = folder.path / "data" / "train.jsonl"
        _write_rows(
            partial / "data" / "train.parquet", _watched(tally.over(read_examples(source)), how), _schema(source)
        )
        signals = folder.path / "signals"
        record = None
        if (signals / "complete.json").exists():
            shutil.copytree(signals, partial / "signals", copy_function=_linked)
            record = read_header(signals)
        ledger = {
            "examples": tally.examples,
            "text_bytes": tally.text,
            "distribution_bytes": record_bytes(partial / "signals"),
            "file_bytes": (partial / "data" / "train.parquet").stat().st_size,
        }
        (partial / "ledger.json").write_text(json.dumps(ledger, indent=1) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(_card(recipe, ledger, how, record), encoding="utf-8")
    return place


def _linked(source: str, target: str) -> None:
    """A file under a second name where the disk can, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _watched(examples: Iterable[Example], how: Counter[str]) -> Iterator[Example]:
    """The examples; counted is by which methods they came to be."""
    for example in examples:
        made, chosen = example.meta.get("made_by"), example.meta.get("selected_by", ())
        how.update([str(made["synthesizer"])] if isinstance(made, Mapping) else [])
        how.update(str(step["selector"]) for step in chosen)
        yield example


def _schema(source: Path) -> pa.Schema:
    """The columns that some row fills."""
    filled = {name for example in read_examples(source) for name in _SAYS if getattr(example, name) is not None}
    says = [(name, kind) for name, kind in _SAYS.items() if name in filled]
    return pa.schema(
        [("id", pa.string()), *says, ("weight", pa.float64()), ("lineage", pa.string()), ("meta", pa.string())]
    )


def _write_rows(place: Path, examples: Iterable[Example], schema: pa.Schema) -> None:
    place.parent.mkdir(parents=True)
    rows = iter(examples)
    with pq.ParquetWriter(place, schema, compression="zstd") as writer:
        while block := [_row(example, schema) for example in islice(rows, _ROWS)]:
            writer.write_table(pa.Table.from_pylist(block, schema))


def _row(example: Example, schema: pa.Schema) -> dict[str, Any]:
    says: dict[str, Any] = {name: getattr(example, name) for name in _SAYS if name in schema.names}
    if "messages" in says:
        says["messages"] = [{key: turn[key] for key in ("role", "content")} for turn in example.messages or ()]
    if says.get("rationale", "") is None:
        says["rationale"] = ""  # a row without steps among rows with steps
    rest = {key: value for key, value in example.meta.items() if key not in (*_LINEAGE, "weight")}
    lineage = {key: example.meta[key] for key in _LINEAGE if key in example.meta}
    weight = float(example.meta.get("weight", 1.0))
    return {"id": example.id, **says, "weight": weight, "lineage": _json(lineage), "meta": _json(rest)}


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _card(recipe: Recipe, ledger: Mapping[str, int], how: Counter[str], record: StoreHeader | None) -> str:
    """Markdown with the metadata block that data hubs read."""
    header = {
        "tags": ["distillation", "stillhouse"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train.parquet"}]}],
    }
    steps = "\n".join(f"- `{name}`: {count:,} rows passed through it" for name, count in how.items())
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---

# {recipe.name}

{ledger["examples"]:,} examples distilled from {describe(recipe.data.train)}. How each row came to be stands in its
`lineage`, how many examples it stands for in its `weight`.

{steps}

| part | bytes |
| --- | ---: |
| text | {ledger["text_bytes"]:,} |
| the teacher's distributions | {ledger["distribution_bytes"]:,} |
| `data/train.parquet`, compressed, with lineage | {ledger["file_bytes"]:,} |

{_use(record)}
Made with stillhouse {__version__} by this recipe:

```yaml
{yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True).strip()}
```
"""


def _use(record: StoreHeader | None) -> str:
    if record is None:
        return "`datasets.load_dataset(FOLDER)` reads the rows.\n"
    return f"""`datasets.load_dataset(FOLDER)` reads the rows. `signals/` holds what the teacher says about every
trained token: the {record.k} likeliest tokens and the mass of all others, at temperature {record.temperature:g}. A
student is trained from both without the teacher by

```yaml
teacher: {{stored: {{path: FOLDER/signals}}}}
data:
  train: {{path: FOLDER/data/train.parquet}}
```
"""
