"""Data sources: every format reads back what was written, and every broken input says which row and what to do."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import datasets
import pytest

from stillhouse.data.sources import describe, iter_source, read_source
from stillhouse.errors import DataError
from stillhouse.recipe_data import ArithmeticSource, Source
from stillhouse.records import Example

ROWS = [{"prompt": f"{n} é\n+ 1 =", "completion": f"0{n + 1}", "level": n} for n in range(4)]


def jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in rows))
    return str(path)


def broken(**source: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_source(Source(**source))
    return str(caught.value)


# Round trips.


def as_jsonl(folder: Path) -> Path:
    jsonl(folder / "x.jsonl", ROWS)
    return folder / "x.jsonl"


def as_json(folder: Path) -> Path:
    (folder / "x.json").write_text(json.dumps(ROWS), encoding="utf-8")
    return folder / "x.json"


def as_csv(folder: Path) -> Path:
    datasets.Dataset.from_list(ROWS).to_csv(folder / "x.csv")
    return folder / "x.csv"


def as_parquet(folder: Path) -> Path:
    datasets.Dataset.from_list(ROWS).to_parquet(folder / "x.parquet")
    return folder / "x.parquet"


def as_arrow_folder(folder: Path) -> Path:
    datasets.Dataset.from_list(ROWS).save_to_disk(folder / "x")
    return folder / "x"


def as_arrow_file(folder: Path) -> Path:
    (file,) = as_arrow_folder(folder).glob("*.arrow")
    return file


def as_folder_of_files(folder: Path) -> Path:
    (folder / "x").mkdir()
    jsonl(folder / "x" / "train.jsonl", ROWS)
    return folder / "x"


FORMS = [as_jsonl, as_json, as_csv, as_parquet, as_arrow_folder, as_arrow_file, as_folder_of_files]


@pytest.mark.parametrize("write", FORMS, ids=lambda f: f.__name__)
def test_round_trip(write: Any, tmp_path: Path) -> None:
    path = write(tmp_path)
    examples = read_source(Source(path=str(path)))
    assert [(e.prompt, e.completion) for e in examples] == [(r["prompt"], r["completion"]) for r in ROWS]
    assert [int(e.meta["level"]) for e in examples] == [0, 1, 2, 3]
    assert len({e.id for e in examples}) == 4
    assert all(e.form == "prompt" for e in examples)


def test_csv_cells_are_text_as_they_stand(tmp_path: Path) -> None:
    """No leading zero is lost, no number gains a `.0` because another row has none, `NA` and `null` are words."""
    path = tmp_path / "x.csv"
    path.write_text('prompt,completion\na,007\nb,4\nc,NA\nd,null\ne,"x, ""y""\nz"\n', encoding="utf-8")
    examples = read_source(Source(path=str(path)))
    assert [e.completion for e in examples] == ["007", "4", "NA", "null", 'x, "y"\nz']


def test_csv_with_a_broken_row_says_which(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("prompt,completion\na,b\nc\n", encoding="utf-8")
    assert "x.csv: row 2 has no column 'completion'" in broken(path=str(tmp_path / "x.csv"))


def test_running_text_is_cut_at_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("one é\r\nstill one\r\n\r\n\r\n  two  \n\nthree".encode())
    examples = read_source(Source(path=str(tmp_path / "x.txt")))
    assert [e.text for e in examples] == ["one é\nstill one", "two", "three"]
    assert {e.form for e in examples} == {"text"}


def test_conversations(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    path = jsonl(tmp_path / "x.jsonl", [{"messages": turns, "source": "web"}])
    (example,) = read_source(Source(path=path))
    assert example.messages == tuple(turns)
    assert example.meta == {"source": "web"}


def test_blank_lines_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\n  \n{"text": "b"}')
    examples = read_source(Source(path=str(tmp_path / "x.jsonl")))
    assert [(e.id, e.text) for e in examples] == [("x-1", "a"), ("x-4", "b")]
    (tmp_path / "y.txt").write_bytes(b"\xef\xbb\xbfone\n\ntwo")
    assert [e.text for e in read_source(Source(path=str(tmp_path / "y.txt")))] == ["one", "two"]


# Columns.


def test_columns_are_mapped_and_the_others_are_kept_as_meta(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"question": "q", "answer": 5, "why": "w", "level": 3}])
    (example,) = read_source(Source(path=path, prompt="question", completion="answer", rationale="why"))
    assert example == Example(id="x-1", prompt="q", completion="5", rationale="w", meta={"level": 3})


def test_columns_of_the_ecosystem_need_no_mapping(tmp_path: Path) -> None:
    both = jsonl(tmp_path / "x.jsonl", [{"prompt": "p", "completion": "c", "text": "t"}])
    (example,) = read_source(Source(path=both))
    assert (example.prompt, example.completion, example.text) == ("p", "c", None)
    prompts = jsonl(tmp_path / "y.jsonl", [{"prompt": "p"}])
    assert read_source(Source(path=prompts))[0].completion is None


def test_mapping_a_column_that_is_not_there_suggests_one(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"question": "q", "answer": "a"}])
    message = broken(path=path, prompt="qestion", completion="answer")
    assert "has no column 'qestion' (asked for as prompt). Did you mean 'question'? Known: answer, question." in message


def test_columns_that_mean_nothing_name_the_mapping(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"question": "q", "answer": "a"}])
    message = broken(path=path)
    assert "has the columns question, answer; none is messages, prompt or text" in message
    assert "prompt: question, completion: answer" in message


def test_column_that_one_row_lacks_names_the_row(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [ROWS[0], {"prompt": "p"}, ROWS[1]])
    assert "x.jsonl: row 2 has no column 'completion'" in broken(path=path)
    path = jsonl(tmp_path / "y.jsonl", [ROWS[0], {"prompt": "p", "completion": None}])
    assert "y.jsonl: row 2 has no column 'completion'" in broken(path=path)


@pytest.mark.parametrize("empty", ["", "  \n\t"])
def test_empty_completion_names_the_row_and_three_ways_out(tmp_path: Path, empty: str) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"q": "a", "a": "b"}, {"q": "c", "a": empty}])
    message = broken(path=path, prompt="q", completion="a")
    assert "row 2 has an empty 'a' (used as completion), so there is nothing to learn from" in message
    assert "Fill it, remove the row, or map no completion where the teacher is to write it." in message


@pytest.mark.parametrize(
    "messages",
    [
        "hello",
        [],
        ["hello"],
        [{"role": "user"}],
        [{"content": "x"}],
        [{"role": "user", "content": None}],
        {"role": "a"},
    ],
)
def test_messages_that_are_no_conversation_name_the_row(tmp_path: Path, messages: Any) -> None:
    good = [{"role": "user", "content": "hi"}]
    path = jsonl(tmp_path / "x.jsonl", [{"messages": good}, {"messages": messages}])
    message = broken(path=path)
    assert "row 2" in message
    assert "role" in message
    assert "content" in message


# Prompts made by a template.

ABSTRACT = {
    "question": "Does it help?",
    "contexts": ["It was tried {twice}.", "It helped."],
    "long_answer": "It did.",
    "final_decision": "yes",
    "year": 2001,
}


def test_a_template_makes_the_prompt_of_columns_and_joins_lists_by_lines(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [ABSTRACT])
    (example,) = read_source(
        Source(
            path=path,
            template='{contexts}\n\n{question} ({year}) {"json": {}}\n',
            rationale="long_answer",
            completion="final_decision",
        )
    )
    assert example.prompt == 'It was tried {twice}.\nIt helped.\n\nDoes it help? (2001) {"json": {}}\n'
    assert (example.rationale, example.completion) == ("It did.", "yes")
    assert example.meta == {key: ABSTRACT[key] for key in ("question", "contexts", "year")}


@pytest.mark.parametrize("write", FORMS, ids=lambda f: f.__name__)
def test_a_template_fills_from_every_format_and_leaves_the_ecosystems_columns_as_they_are(
    write: Any, tmp_path: Path
) -> None:
    examples = read_source(Source(path=str(write(tmp_path)), template="{level}: {prompt}"))
    assert [e.prompt for e in examples] == [f"{r['level']}: {r['prompt']}" for r in ROWS]
    assert [e.completion for e in examples] == [r["completion"] for r in ROWS]


def test_lists_of_a_parquet_file_are_joined(tmp_path: Path) -> None:
    datasets.Dataset.from_list([ABSTRACT]).to_parquet(tmp_path / "x.parquet")
    (example,) = read_source(Source(path=str(tmp_path / "x.parquet"), template="{contexts}"))
    assert example.prompt == "It was tried {twice}.\nIt helped."
    assert example.completion is None


def test_a_template_works_with_steps_told_apart(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"q": "2 + 3", "a": "2 + 3 = 5\n#### 5"}])
    (example,) = read_source(Source(path=path, template="What is {q}?", completion="a", rationale_until="####"))
    assert (example.prompt, example.rationale, example.completion) == ("What is 2 + 3?", "2 + 3 = 5\n", "#### 5")


def test_a_placeholder_without_a_column_names_the_row_and_suggests_one(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [ABSTRACT, {"question": "q", "final_decision": "no"}])
    message = broken(path=path, template="{qestion}", completion="final_decision")
    assert "template uses {qestion}, and " in message
    assert "x.jsonl: row 1 has no such column. Did you mean 'question'?" in message
    message = broken(path=path, template="{contexts} {question}", completion="final_decision")
    assert "template uses {contexts}, and " in message
    assert "x.jsonl: row 2 has no such column." in message


@pytest.mark.parametrize(("value", "what"), [(None, "is empty"), ({"contexts": ["a"]}, "holds the columns contexts")])
def test_a_placeholder_whose_column_is_no_text_names_the_row(tmp_path: Path, value: Any, what: str) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"context": "a"}, {"context": value}])
    message = broken(path=path, template="{context}")
    assert f"template uses {{context}}, which {what} in " in message
    assert "row 2" in message
    assert "Mend or remove the row, or name another column." in message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "x", "template": "Say something."}, "the same for every row"),
        ({"path": "x", "template": "{q}", "prompt": "q"}, "prompt names a column for it"),
        ({"path": "x", "template": "{q}", "messages": "q"}, "messages names a column for it"),
        ({"arithmetic": {"count": 1}, "template": "{prompt}"}, "only the rows of a path or a dataset"),
    ],
)
def test_a_template_that_cannot_make_prompts_is_refused(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Source.model_validate(source)


# Files that are not what they should be.


def test_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", ROWS)
    message = broken(path=str(tmp_path / "trian.jsonl"))
    assert "There is no data file" in message
    assert "Did you mean 'train.jsonl'" in message


def test_missing_folder_is_named(tmp_path: Path) -> None:
    assert f"The folder {tmp_path / 'nowhere'} does not exist either" in broken(
        path=str(tmp_path / "nowhere" / "x.jsonl")
    )


@pytest.mark.parametrize("name", ["x.jsonl", "x.txt", "x.csv"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("\n" if name != "x.csv" else "prompt,completion\n")
    assert "holds no examples. A data set needs at least one row." in broken(path=str(tmp_path / name))


def test_empty_list_and_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    assert "holds no examples" in broken(path=str(tmp_path / "x.json"))
    (tmp_path / "empty").mkdir()
    assert "empty" in broken(path=str(tmp_path / "empty"))


def test_broken_line_in_the_middle_is_named_by_number_and_shown(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [ROWS[0], ROWS[1], '{"prompt": "cut of', ROWS[2]])
    message = broken(path=path)
    assert "x.jsonl:3 is not valid JSON" in message
    assert "cut of" in message


def test_line_that_is_no_object(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [ROWS[0], "[1, 2]"])
    assert "x.jsonl:2 is a JSON list; each row must be an object with named columns" in broken(path=path)


def test_line_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff\xfe"}\n')
    assert "x.jsonl:2 is not valid JSON" in broken(path=str(tmp_path / "x.jsonl"))


@pytest.mark.parametrize("name", ["x.txt", "x.csv", "x.json"])
def test_file_that_is_not_utf8(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"prompt,completion\n\xff\xfe\xfa,b\n")
    message = broken(path=str(tmp_path / name))
    assert name in message
    assert "utf-8" in message.lower()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": "b"}', "One object a line? Then name it .jsonl."),
        ('{"prompt": "a"}', "must hold a list of objects"),
        ("[1, 2]", "1 is a JSON int"),
        ('[{"text": "a"}, "b"]', "2 is a JSON str"),
    ],
)
def test_json_that_is_no_list_of_objects(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text)
    assert message in broken(path=str(tmp_path / "x.json"))


@pytest.mark.parametrize("name", ["x.xlsx", "x", "x.jsonl.gz"])
def test_unknown_ending_lists_the_known_ones(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"abc")
    message = broken(path=str(tmp_path / name))
    assert "has the ending" in message
    assert ".jsonl, .json, .txt, .csv, .parquet, .arrow and Arrow folders" in message


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_binary_file_that_is_damaged(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PAR1 this is no table")
    assert name in broken(path=str(tmp_path / name))


@pytest.fixture
def splits(tmp_path: Path) -> str:
    table = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": table, "test": table.select([3])}).save_to_disk(tmp_path / "x")
    return str(tmp_path / "x")


def test_split_is_chosen(splits: str) -> None:
    assert len(read_source(Source(path=splits, split="train"))) == 4
    assert len(read_source(Source(path=splits, split="test"))) == 1


def test_missing_split_lists_the_splits(splits: str) -> None:
    assert "has no split 'dev'. Set split to one of: train, test." in broken(path=splits, split="dev")
    assert "has several splits and the recipe names none. Set split to one of: train, test." in broken(path=splits)


def test_hub_data_set_that_cannot_be_reached_names_the_ways_out() -> None:
    message = broken(dataset="nobody/nothing-of-this-name")
    assert "'nobody/nothing-of-this-name' cannot be loaded" in message
    assert "A local file goes under path" in message


# Which rows.


def test_limit_takes_the_first_and_shuffle_comes_before_it(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"text": str(n)} for n in range(50)])
    assert [e.text for e in read_source(Source(path=path, limit=3))] == ["0", "1", "2"]
    shuffled = [e.text for e in read_source(Source(path=path, shuffle=7))]
    assert sorted(shuffled, key=lambda t: int(t or 0)) == [str(n) for n in range(50)]
    assert shuffled != [str(n) for n in range(50)]
    limited = read_source(Source(path=path, shuffle=7, limit=5))
    assert [e.text for e in limited] == shuffled[:5]
    assert [e.id for e in limited] == [f"x-{int(e.text or 0) + 1}" for e in limited]  # ids are the file's line numbers
    assert [e.text for e in read_source(Source(path=path, shuffle=8))] != shuffled
    assert len(read_source(Source(path=path, limit=500))) == 50


@pytest.mark.parametrize("write", FORMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("limit", [None, 2])
def test_shuffle_is_that_of_a_list_in_every_format(write: Any, limit: int | None, tmp_path: Path) -> None:
    path = str(write(tmp_path))
    expected = read_source(Source(path=path))
    random.Random(9).shuffle(expected)
    assert read_source(Source(path=path, shuffle=9, limit=limit)) == expected[:limit]


def test_examples_are_read_one_at_a_time(tmp_path: Path) -> None:
    """Before a broken line they come, behind a limit it is not reached, and a shuffle, which reads all, finds it."""
    path = jsonl(tmp_path / "x.jsonl", [{"text": "a"}, {"text": "b"}, "broken"])
    examples = iter_source(Source(path=path))
    assert [next(examples).text, next(examples).text] == ["a", "b"]
    with pytest.raises(DataError, match=r"x\.jsonl:3 is not valid JSON"):
        next(examples)
    assert len(read_source(Source(path=path, limit=2))) == 2
    assert "x.jsonl:3 is not valid JSON" in broken(path=path, limit=2, shuffle=1)


def test_shuffle_without_room_for_it_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "x.jsonl", ROWS)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: open("/dev/full", "w+b", buffering=0))  # noqa: SIM115
    assert "No space left on device. Point TMPDIR at a disk with room" in broken(path=path, shuffle=1)


def test_same_source_twice_is_the_same(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", ROWS)
    source = Source(path=path, shuffle=3)
    assert read_source(source) == read_source(source)


def test_arithmetic_is_the_same_every_time_and_its_halves_share_nothing() -> None:
    made = Source(arithmetic=ArithmeticSource(count=60, seed=3))
    train = read_source(made)
    assert train == read_source(made)
    assert len(train) == 60
    assert all(e.prompt and e.completion and e.meta["answer"] for e in train)
    heldout = read_source(Source(arithmetic=ArithmeticSource(count=60, seed=3, split="heldout")))
    assert not {e.prompt for e in train} & {e.prompt for e in heldout}
    assert len(read_source(Source(arithmetic=ArithmeticSource(count=60), limit=5))) == 5


def test_real_data_file(shared: Path) -> None:
    path = shared / "data" / "gsm8k" / "test.jsonl"
    if not path.exists():
        pytest.skip("../shared/data/gsm8k/test.jsonl is not there")
    examples = read_source(Source(path=str(path), prompt="question", completion="answer", limit=20))
    assert len(examples) == 20
    assert all("####" in (e.completion or "") for e in examples)


def test_a_source_in_a_few_words(tmp_path: Path) -> None:
    assert describe(Source(path="a/b.jsonl")) == "a/b.jsonl"
    assert describe(Source(dataset="openai/gsm8k")) == "openai/gsm8k"
    said = describe(Source(arithmetic=ArithmeticSource(count=7, seed=3, steps=(1, 2))))
    assert said == "7 arithmetic problems (train, 1 to 2 steps, seed 3)"


def test_worked_steps_are_told_apart_from_the_answer(tmp_path: Path) -> None:
    rows = [{"q": "2 + 3?", "a": "2 + 3 = 5\n#### 5"}, {"q": "1 + 1?", "a": "two"}]
    place = tmp_path / "rows.jsonl"
    place.write_text("\n".join(map(json.dumps, rows)))
    source = Source(path=str(place), prompt="q", completion="a", rationale_until="####", limit=1)
    (example,) = read_source(source)
    assert (example.rationale, example.completion) == ("2 + 3 = 5\n", "#### 5")
    with pytest.raises(DataError, match=r"row 2 does not have '####'.*rationale_until"):
        read_source(source.model_copy(update={"limit": None}))


def test_arithmetic_problems_have_a_rationale() -> None:
    (example,) = read_source(Source.model_validate({"arithmetic": {"count": 1}}))
    assert example.rationale is not None
    assert example.rationale.endswith(" ")
    assert example.completion == f"#### {example.meta['answer']}"


def test_half_a_surrogate_pair_names_the_row_and_the_column(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "cut.jsonl", [*map(json.dumps, ROWS), json.dumps({"prompt": "a \ud83d", "completion": "b"})]
    )
    said = broken(path=path)
    assert "row 5" in said
    assert "'prompt' (character 3)" in said
    assert "Mend the row, or remove it." in said


def test_a_column_of_ids_names_the_examples(tmp_path: Path) -> None:
    rows = [{**row, "id": f"q{n}", "key": f"k{n}"} for n, row in enumerate(ROWS)]
    path = jsonl(tmp_path / "named.jsonl", rows)
    assert [e.id for e in read_source(Source(path=path))] == ["q0", "q1", "q2", "q3"]
    found = read_source(Source(path=path, id="key"))
    assert [e.id for e in found] == ["k0", "k1", "k2", "k3"]
    assert found[0].meta == {"id": "q0", "level": 0}
    assert "no column 'name'" in broken(path=path, id="name")
