"""Tokens on disk: what was rendered comes back, is made once, and is made again when anything about it has changed."""

from __future__ import annotations

import dataclasses
import errno
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from building import build_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.data.rendering import Rendered, Renderer, Role
from stillhouse.data.tokens import TokenFile, lengths, open_tokens, write_tokens
from stillhouse.errors import RunError
from stillhouse.records import Example, read_examples, write_examples

EXAMPLES = [
    Example(id="größe 😀", prompt="2 + 2 =", completion=" 4"),
    Example(id="long", text="abc abc the cat sat on the mat. " * 20),
    Example(id="a/1", prompt="Ann has 3 apples.", rationale="3", completion="three"),
]


@st.composite
def rendered_examples(draw: st.DrawFn) -> list[Rendered]:
    made = []
    for number, length in enumerate(draw(st.lists(st.integers(1, 30), max_size=20))):
        ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=length + 1, max_size=length + 1))
        trained = draw(st.lists(st.booleans(), min_size=length, max_size=length))
        role = draw(st.lists(st.sampled_from([int(r) for r in Role]), min_size=length, max_size=length))
        name = draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=6))
        size = draw(st.integers(0, 2**40))
        made.append(Rendered(f"{name}-{number}", ids[:-1], ids[1:], trained, role, size))
    return made


@given(made=rendered_examples())
def test_what_was_rendered_comes_back(made: list[Rendered], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tokens") / "x"
    write_tokens(folder, made, {}, {})
    tokens = TokenFile(folder)
    assert list(tokens) == made
    assert len(tokens) == len(made)
    assert lengths(tokens).tolist() == lengths(made).tolist() == [len(r.tokens) for r in made]
    assert tokens[1:3] == made[1:3]
    assert tokens[::-2] == made[::-2]
    assert [tokens[i - len(made)] for i in range(len(made))] == made
    with pytest.raises(IndexError):
        tokens[len(made)]


class Home:
    """A data file, a place for its tokens, and how often the data was read for them."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        self.data, self.folder, self.reads = folder / "train.jsonl", folder / "tokens" / "train", 0
        self.renderer = Renderer(tokenizer, 40, overflow="drop")
        write_examples(self.data, EXAMPLES)

    def open(self, **settings: Any) -> TokenFile:
        return open_tokens(self.folder, self.data, dataclasses.replace(self.renderer, **settings), self._read)

    def _read(self, path: Path) -> Iterator[Example]:
        self.reads += 1
        return read_examples(path)


@pytest.fixture
def home(tmp_path: Path, tokenizer: Any) -> Home:
    return Home(tmp_path, tokenizer)


def test_tokens_are_those_of_the_renderer_and_made_once(home: Home) -> None:
    fresh = dataclasses.replace(home.renderer, notices=Counter())
    expected = fresh.render(EXAMPLES)
    assert list(home.open()) == expected
    assert [r.id for r in expected if r.id.startswith("long")][:2] == ["long/0", "long/1"]
    again = home.open()
    assert home.reads == 1
    assert list(again) == expected
    assert again.notices == fresh.notices
    assert not home.renderer.notices


def test_notices_are_kept_with_the_tokens(home: Home) -> None:
    for _ in range(2):
        assert home.open(max_length=6).notices["examples longer than 6 tokens (dropped)"] == 2
    assert home.reads == 1


def test_anything_that_decides_about_tokens_makes_them_anew(home: Home) -> None:
    base = build_tokenizer()
    base.chat_template = "{{ messages[0]['content'] }}"
    other = build_tokenizer()
    other.add_tokens(["apples"])
    changes: list[dict[str, Any]] = [
        {},
        {"max_length": 39},
        {"overflow": "truncate"},
        {"train_on": frozenset({Role.ANSWER})},
        {"tokenizer": base},
        {"tokenizer": other},
    ]
    for count, change in enumerate(changes, start=1):
        assert list(home.open(**change)) == dataclasses.replace(home.renderer, **change).render(EXAMPLES)
        assert home.reads == count
    write_examples(home.data, EXAMPLES[:1])
    assert len(home.open()) == 1
    home.renderer.tokenizer(["a", "b b"], padding=True, truncation=True, max_length=8)  # leaves its mark on a tokenizer
    home.open()
    assert home.reads == len(changes) + 1


def test_data_that_was_dropped_whole_gives_no_tokens(home: Home) -> None:
    write_examples(home.data, [EXAMPLES[0]])
    tokens = home.open(max_length=2)
    assert list(tokens) == []
    assert not tokens
    assert lengths(tokens).tolist() == []


@pytest.mark.parametrize("seed", range(30))
def test_damage_of_any_kind_is_made_good(home: Home, seed: int) -> None:
    expected, draw = list(home.open()), random.Random(seed)
    file = draw.choice(sorted(home.folder.iterdir()))
    content = bytearray(file.read_bytes())
    match seed % 3:
        case 0:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            file.write_bytes(content)
        case 1:
            file.write_bytes(content[: draw.randrange(len(content) - 1)])  # the newline that ends a file is no content
        case 2:
            file.unlink()
    assert list(home.open()) == expected
    assert home.reads == 2


@pytest.mark.parametrize("header", ["", "[]", "null", "{}", '{"checksum": "x"}', '{"files": 3, "checksum": 0}'])
def test_a_header_that_is_none_is_made_good(home: Home, header: str) -> None:
    expected = list(home.open())
    (home.folder / "header.json").write_text(header)
    assert list(home.open()) == expected


def test_a_writer_that_was_stopped_leaves_what_was_there(home: Home) -> None:
    class StoppedHereError(Exception):
        pass

    def stopped() -> Iterator[Rendered]:
        yield from home.renderer.render(EXAMPLES[:1])
        raise StoppedHereError

    expected = list(home.open())
    with pytest.raises(StoppedHereError):
        write_tokens(home.folder, stopped(), {}, {})
    assert list(home.open()) == expected
    assert home.reads == 1
    with pytest.raises(StoppedHereError):
        write_tokens(home.folder.parent / "new", stopped(), {}, {})
    assert not (home.folder.parent / "new").exists()


def test_an_open_file_outlives_its_replacement(home: Home) -> None:
    tokens = home.open()
    expected = list(tokens)
    home.open(max_length=6)
    assert list(tokens) == expected


def test_targets_that_do_not_follow_are_refused(tmp_path: Path) -> None:
    wrong = Rendered("a", [1, 2], [9, 3], [True, True], [3, 3], 2)
    with pytest.raises(ValueError, match="targets that are not the tokens that follow"):
        write_tokens(tmp_path / "x", [wrong], {}, {})


def test_a_full_disk_is_said_to_be_full(home: Home) -> None:
    def filling() -> Iterator[Rendered]:
        yield from home.renderer.render(EXAMPLES)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match=r"The disk is full at .* Tokens take 5 bytes each; free some space"):
        write_tokens(home.folder, filling(), {}, {})
    assert not home.folder.exists()
