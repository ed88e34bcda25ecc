"""A data set of any size goes through a run in the same memory, and its tokens on disk train as those in memory do."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.data.batching import Batches, TokenBatch, in_order
from stillhouse.data.rendering import Rendered, Renderer
from stillhouse.data.sources import iter_source
from stillhouse.data.tokens import TokenFile, lengths, open_tokens, write_tokens
from stillhouse.recipe_data import Source
from stillhouse.records import Example, write_examples

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "streaming.py"

words = st.text(st.sampled_from("ab é😀\n1+= the cat"), min_size=1, max_size=60)
examples = st.lists(
    st.one_of(
        st.fixed_dictionaries({"prompt": words, "completion": words}),
        st.fixed_dictionaries({"prompt": words, "completion": words, "rationale": words}),
        st.fixed_dictionaries({"text": words.map(lambda text: text * 3)}),
    ),
    min_size=1,
    max_size=12,
)


def same(one: TokenBatch, two: TokenBatch) -> bool:
    names = [f.name for f in dataclasses.fields(TokenBatch)]
    pairs = [(getattr(one, name), getattr(two, name)) for name in names]
    return all(torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@given(made=examples, limit=st.integers(20, 60), seed=st.integers(0, 3))
def test_tokens_on_disk_give_the_very_same_batches(
    made: list[dict[str, str]], limit: int, seed: int, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Prompts, rationales, and texts cut into windows `id/0`, `id/1`; ids beyond ASCII; all roles and masks."""
    folder = tmp_path_factory.mktemp("run")
    rows = [Example(id=f"größe😀-{n}", **row) for n, row in enumerate(made)]
    write_examples(folder / "train.jsonl", rows)
    renderer = Renderer(tokenizer, limit, overflow="truncate", notices=Counter())
    expected = renderer.render(rows)
    tokens = open_tokens(folder / "tokens", folder / "train.jsonl", renderer)
    assert list(tokens) == expected
    if not expected:  # prompts that fill the whole window leave nothing to train on
        return
    live, stored = (Batches(r, tokens_per_batch=100, seed=seed) for r in (expected, tokens))
    for _ in range(2 * len(expected) + 2):  # beyond the end of the epoch
        assert same(next(live), next(stored))
        assert live.state_dict() == stored.state_dict()
    passes = zip(in_order(expected, 100), in_order(tokens, 100), strict=True)
    assert all(same(one, two) for one, two in passes)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 2**30)), min_size=1, max_size=40), st.integers(0, 5))
def test_any_lengths_and_masks_give_the_very_same_batches(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, int]], seed: int
) -> None:
    made = []
    for n, (length, bits) in enumerate(drawn):
        ids = [(bits + 7 * place) % 50000 for place in range(length + 1)]
        trained, role = [bool(bits >> t & 1) for t in range(length)], [bits >> t & 3 for t in range(length)]
        made.append(Rendered(f"x/{n}", ids[:-1], ids[1:], trained, role, bits))
    folder = tmp_path_factory.mktemp("run") / "tokens"
    write_tokens(folder, made, {}, {})
    live, stored = (Batches(r, tokens_per_batch=64, seed=seed) for r in (made, TokenFile(folder)))
    for _ in range(len(made) + 2):
        assert same(next(live), next(stored))


def allocated(folder: Path, rows: int, tokenizer: Any) -> int:
    """Peak bytes of Python's own objects while rows are read, shuffled, written, rendered and looked at."""
    folder.mkdir()
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n} + 1 =", "completion": f" {n + 1}"}) + "\n" for n in range(rows))
    )
    tracemalloc.start()
    try:
        examples = iter_source(Source(path=str(folder / "rows.jsonl"), shuffle=0))
        assert write_examples(folder / "train.jsonl", examples) == rows
        tokens = open_tokens(folder / "tokens", folder / "train.jsonl", Renderer(tokenizer, 64))
        assert int(lengths(tokens).sum()) == sum(len(r.tokens) for r in tokens)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_reading_and_rendering_keep_a_few_bytes_of_a_row(tmp_path: Path, tokenizer: Any) -> None:
    allocated(tmp_path / "warm", 10, tokenizer)  # what is imported and cached on first use
    few, many = (allocated(tmp_path / str(rows), rows, tokenizer) for rows in (1500, 6000))
    assert (many - few) / 4500 < 60


def peak_of(rows: int) -> float:
    """Megabytes at the end of rendering, in a process of its own; before the model, whose memory varies by more."""
    command = [sys.executable, str(BENCHMARK), f"--rows={rows}", "--steps=1", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["stages"]["render train"]["peak_mb"]


@pytest.mark.slow
def test_memory_of_a_run_does_not_follow_the_rows() -> None:
    """A row took kilobytes, as text and as lists of numbers; the hash of its id and a few numbers are left."""
    few, many = 1000, 13000
    grown = (peak_of(many) - peak_of(few)) * 2**20
    assert grown / (many - few) < 400
