"""The record, its JSON, and fingerprints."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import DataError, StillhouseError, did_you_mean
from stillhouse.records import Example, fingerprint, fingerprint_file, read_examples, write_examples

texts = st.text(max_size=20)
metas = st.dictionaries(
    texts, st.one_of(texts, st.integers(), st.none(), st.lists(st.integers(), max_size=3)), max_size=3
)


@st.composite
def any_example(draw: st.DrawFn) -> Example:
    form = draw(st.sampled_from(["messages", "prompt", "text"]))
    fields: dict[str, Any] = {form: draw(texts)}
    if form == "messages":
        turn = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": texts})
        fields[form] = tuple(draw(st.lists(turn, min_size=1, max_size=3)))
    if form == "prompt":
        fields |= {"completion": draw(st.none() | texts), "rationale": draw(st.none() | texts)}
    return Example(id=draw(texts), meta=draw(metas), **fields)


@given(any_example())
def test_json_and_back_is_the_same_example(example: Example) -> None:
    line = example.to_json()
    assert "\n" not in line
    assert Example.from_json(line) == example


def test_absent_fields_take_no_room() -> None:
    assert Example(id="a", text="é").to_json() == '{"id": "a", "text": "é"}'


def test_meta_of_any_kind_is_written(tmp_path: Path) -> None:
    """Parquet has dates and bytes; a column nobody maps must not stop a run at its end."""
    example = Example(id="a", text="b", meta={"when": datetime.date(2026, 1, 2)})
    write_examples(tmp_path / "x.jsonl", [example])
    assert next(read_examples(tmp_path / "x.jsonl")).meta == {"when": "2026-01-02"}


@pytest.mark.parametrize(
    ("fields", "found"),
    [({}, "none"), ({"prompt": "a", "text": "b"}, "prompt.*text"), ({"completion": "a"}, "none")],
)
def test_exactly_one_form(fields: dict[str, Any], found: str) -> None:
    with pytest.raises(DataError, match=f"'row-3' has .*{found}.* of messages, prompt, text; exactly one"):
        Example(id="row-3", **fields)


def test_examples_are_values() -> None:
    example = Example(id="a", prompt="b")
    with pytest.raises(dataclasses.FrozenInstanceError):
        example.prompt = "c"  # ty: ignore[invalid-assignment]
    assert example == Example(id="a", prompt="b")
    assert [Example(id="a", prompt="").form, Example(id="a", text="").form] == ["prompt", "text"]


def test_files_round_trip_and_leave_no_partial_file(tmp_path: Path) -> None:
    examples = [Example(id=str(n), prompt=f"line\n{n}\u2028", completion="ok") for n in range(5)]
    path = tmp_path / "deep" / "folder" / "x.jsonl"
    assert write_examples(path, iter(examples)) == 5
    assert list(read_examples(path)) == examples
    assert [p.name for p in path.parent.iterdir()] == ["x.jsonl"]


def test_writer_that_is_interrupted_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write_examples(path, [Example(id="old", text="t")])

    def broken() -> Any:
        yield Example(id="new", text="t")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_examples(path, broken())
    assert [e.id for e in read_examples(path)] == ["old"]


def test_fingerprints_know_the_value_and_not_the_order_of_keys(tmp_path: Path) -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint({"a": 1, "b": [1, 2]}) == "e6f20bdc3757e5e7"  # on every machine
    (tmp_path / "f").write_bytes(b"stillhouse")
    assert fingerprint_file(tmp_path / "f") == "77542eb101bdebf9"


def test_did_you_mean() -> None:
    assert did_you_mean("foward_kl", ["forward_kl", "cross_entropy"]) == (
        "Did you mean 'forward_kl'? Known: cross_entropy, forward_kl."
    )
    assert did_you_mean("xyz", ["forward_kl"]) == "Known: forward_kl."
    assert did_you_mean("xyz", []) == "Known: none."


def test_every_error_is_one_family_and_is_what_the_standard_library_calls_it() -> None:
    from stillhouse import errors

    kinds = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, StillhouseError)]
    assert len(kinds) >= 8
    for kind in kinds:
        assert kind.exit_code in (1, 2)
        assert kind.__doc__
    assert issubclass(errors.DataError, ValueError)
    assert issubclass(errors.MissingExtraError, ImportError)
    assert errors.RecipeError("x").exit_code == 2
    assert errors.TrainingDivergedError("x").exit_code == 1
