"""Examples as vectors: what the kinds of features make of ordinary and of awkward texts, and the store that keeps them.

Shapes: N examples, D the width of a vector.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from building import MakeStudent
from model2vec import StaticModel
from sklearn.linear_model import LogisticRegression
from transformers import PreTrainedTokenizerBase

from stillhouse.data.rendering import Renderer, Role
from stillhouse.errors import DataError, MissingExtraError, ModelError, NeedsError, RecipeError
from stillhouse.features import static_embeddings
from stillhouse.features._store import tabulate
from stillhouse.features.base import FeatureBench, Features, Matrix, as_features, text_of
from stillhouse.features.hidden_states import HiddenStates
from stillhouse.features.static_embeddings import StaticEmbeddings
from stillhouse.features.tfidf import Tfidf
from stillhouse.records import Example

BENCH = FeatureBench()
HALF = "half a \ud83d character"


def texts(*said: str) -> list[Example]:
    return [Example(id=f"row-{n}", text=text) for n, text in enumerate(said)]


def asked(*said: str) -> list[Example]:
    return [Example(id=f"row-{n}", prompt=text) for n, text in enumerate(said)]


@pytest.fixture(scope="module")
def static_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> str:
    """A model2vec folder with random vectors in sixteen bits."""
    raw: Any = tokenizer
    folder = tmp_path_factory.mktemp("static")
    vectors = np.random.default_rng(0).standard_normal((raw.backend_tokenizer.get_vocab_size(), 12))
    StaticModel(vectors.astype(np.float16), raw.backend_tokenizer, max_length=64).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def bench(make_student: MakeStudent, tokenizer: PreTrainedTokenizerBase) -> FeatureBench:
    student = make_student(seed=3)
    return FeatureBench(lambda: student, None, Renderer(tokenizer, 128), identity="tiny")


# Text.


def test_text_is_what_is_asked_and_not_the_answer() -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "And you?")]
    chat = Example(id="a", messages=tuple({"role": role, "content": said} for role, said in turns))
    assert text_of(chat) == "Be brief.\nHi\nAnd you?"
    assert text_of(Example(id="a", prompt="p", completion="c", rationale="r")) == "p"
    assert text_of(Example(id="a", text="running")) == "running"
    assert text_of(Example(id="a", prompt="")) == ""


def test_half_a_character_becomes_one_that_can_be_encoded() -> None:
    assert text_of(texts(HALF)[0]) == "half a \ufffd character"
    assert text_of(texts("Köln 天 \U0001f600")[0]) == "Köln 天 \U0001f600"


# Accuracy of a linear classifier on real texts.


def accuracy(features: Features, shared: Path) -> float:
    folder = shared / "data" / "ag_news"
    if not folder.is_dir():
        pytest.skip("../shared/data/ag_news is not there")
    pool, dev = (
        [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        for name in ("pool.jsonl", "dev.jsonl")
    )
    classes = ["World", "Sports", "Business", "Sci/Tech"]
    vectors_ND = features.compute(texts(*(row["text"] for row in [*pool, *dev])))
    learned = LogisticRegression(max_iter=300, tol=1e-3).fit(
        vectors_ND[: len(pool)], [classes.index(r["label"]) for r in pool]
    )
    return float(learned.score(vectors_ND[len(pool) :], [row["label"] for row in dev]))


# A thousand test texts: an accuracy has a standard error of 0.011.


def test_words_tell_news_apart(shared: Path) -> None:
    assert 0.81 < accuracy(Tfidf(dimensions=300, pairs=False, sample=3000), shared) < 0.90


def test_static_embeddings_tell_news_apart(shared: Path) -> None:
    model = shared / "models" / "potion-base-4M-int8"
    if not model.is_dir():
        pytest.skip("../shared/models/potion-base-4M-int8 is not there")
    assert 0.83 < accuracy(StaticEmbeddings(model=str(model)), shared) < 0.90


# Words.


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dimensions": 0}, "dimensions is 0; it must be at least 1"),
        ({"sample": 0}, "sample is 0; it must be at least 1"),
        ({"seed": -1}, "seed is -1; it must be from 0"),
    ],
)
def test_tfidf_settings_that_make_no_sense(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Tfidf(**settings)


def test_one_text_and_texts_that_are_all_alike_have_one_dimension() -> None:
    assert Tfidf().compute(texts("a cat sat")).shape == (1, 1)
    alike = Tfidf().compute(texts(*["a cat sat"] * 9))
    assert alike.shape == (9, 1)
    assert np.allclose(np.abs(alike), 1)


def test_texts_without_a_word_in_common_stand_apart() -> None:
    for said in (["cat", "shares"], ["2 + 2", "3 + 3"], ["天", "雨"]):
        first, second = Tfidf().compute(texts(*said))
        assert abs(float(first @ second)) < 1e-3
        assert np.allclose([first @ first, second @ second], 1)


def test_a_text_without_a_word_is_zero_and_none_with_one_is_an_error() -> None:
    vectors_ND = Tfidf().compute(texts("a cat", "", "?!", "a dog"))
    assert np.linalg.norm(vectors_ND, axis=1).round(5).tolist() == [1, 0, 0, 1]
    with pytest.raises(DataError, match="None of 2 examples has a word"):
        Tfidf().compute(texts("", "..."))


def test_words_that_the_sample_lacks_are_zero_and_not_rounding() -> None:
    said = [f"word{n % 5} word{n % 7} word{n % 3}" for n in range(40)]
    sampled = Tfidf(sample=20)._sampled(41)
    place = next(row for row in range(41) if row not in sampled)
    vectors_ND = Tfidf(sample=20).compute(texts(*said[:place], "zebra quagga", *said[place:]))
    assert not vectors_ND[place].any()
    assert np.allclose(np.linalg.norm(np.delete(vectors_ND, place, 0), axis=1), 1)


def test_a_sample_smaller_than_the_dimensions_bounds_them() -> None:
    said = [f"text {n} of {n * n} words, number {n % 7}" for n in range(60)]
    assert Tfidf(sample=10).compute(texts(*said)).shape == (60, 10)
    assert Tfidf(dimensions=16).compute(texts(*said)).shape == (60, 16)


def test_tfidf_gives_the_same_bytes_and_no_block_gets_in() -> None:
    said = [f"text {n % 50} of {n % 11} words" for n in range(5000)]
    first, second = (Tfidf(dimensions=8, sample=500).compute(texts(*said)) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert len(np.unique(first, axis=0)) <= 550
    assert np.array_equal(first[:550], first[4400:4950])  # the same texts on the other side of a block's end


# Awkward rows.


LONG_WORDS = f"{'internationalisation' * 5} of 7 " * 95_000


@pytest.mark.parametrize("long", [LONG_WORDS, "x" * 10_000_000], ids=["words", "one word"])
def test_ten_megabytes_in_one_row(long: str, static_model: str, bench: FeatureBench) -> None:
    rows = asked("a cat", long, "a mat")
    for features in (Tfidf(), StaticEmbeddings(model=static_model), HiddenStates(max_length=32)):
        vectors_ND = features.compute(rows, bench)
        assert len(vectors_ND) == 3
        assert np.isfinite(vectors_ND).all()
        assert vectors_ND[1].any()


def test_half_a_character_is_worked_through_or_named(static_model: str, bench: FeatureBench, tmp_path: Path) -> None:
    rows = texts("a cat", HALF)
    for features in (Tfidf(), StaticEmbeddings(model=static_model)):
        assert np.isfinite(tabulate(features, rows, BENCH, tmp_path)).all()
    chat = Example(id="row-1", messages=({"role": "user", "content": HALF},))
    for row in (rows[1], asked("", HALF)[1], chat):
        with pytest.raises(DataError, match=r"'row-1' holds half a character \('\\ud83d'"):
            HiddenStates().compute([row], bench)


# Static embeddings.


def test_static_embeddings_are_the_mean_of_their_pieces(
    static_model: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    said = ["the cat sat", "", "Ann has 2 apples"]
    vectors_ND = StaticEmbeddings(model=static_model).compute(texts(*said))
    assert vectors_ND.dtype == np.float32
    table = StaticModel.from_pretrained(static_model).embedding.astype(np.float64)
    for vector, text in zip(vectors_ND, said, strict=True):
        pieces = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert np.allclose(vector, table[pieces].mean(0) if pieces else 0, atol=1e-6)


def test_without_model2vec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_embeddings, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"model2vec.*stillhouse\[data\]"):
        StaticEmbeddings(model="anything")


def test_what_is_no_static_model_is_refused(static_model: str, tmp_path: Path) -> None:
    def damaged(name: str, change: Callable[[Path], object]) -> str:
        folder = tmp_path / name
        shutil.copytree(static_model, folder)
        change(folder)
        return str(folder)

    def cut(file: str) -> Callable[[Path], object]:
        return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:40])

    pickled = damaged("pickled", lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"))
    for model, said in [
        ("stillhouse:arithmetic", "cannot be loaded as static embeddings"),
        (damaged("weights", cut("model.safetensors")), "cannot be loaded as static embeddings"),
        (damaged("tokens", cut("tokenizer.json")), "cannot be loaded as static embeddings"),
        (damaged("settings", cut("config.json")), "cannot be loaded as static embeddings"),
        ("nobody/no-such-model", "cannot be loaded as static embeddings"),
        (pickled, "only pickled weights"),
        (str(tmp_path / "nowhere"), "There is no model folder"),
    ]:
        with pytest.raises(ModelError, match=said):
            StaticEmbeddings(model=model).compute(texts("a cat"))


# Hidden states.


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pool": "max"}, "pool is 'max'; it must be mean or last"),
        ({"max_length": 0}, "max_length is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
    ],
)
def test_hidden_settings_that_make_no_sense(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        HiddenStates(**settings)


@pytest.mark.parametrize("layer", [-1, -2, 0, 1, 2])
def test_hidden_states_are_those_of_the_model(layer: int, bench: FeatureBench, examples: list[Example]) -> None:
    assert bench.student
    lm = bench.student().lm
    found = {pool: HiddenStates(layer=layer, pool=pool, batch_size=5).compute(examples, bench) for pool in POOLS}
    for row, example in enumerate(examples):
        ids = torch.tensor([lm.tokenizer(example.prompt)["input_ids"]])
        with torch.no_grad(), lm.inference():
            state = lm.model(input_ids=ids, output_hidden_states=True).hidden_states[layer][0]
        assert np.allclose(found["last"][row], state[-1], atol=1e-5)
        assert np.allclose(found["mean"][row], state.mean(0), atol=1e-5)


POOLS: Sequence[Any] = ("last", "mean")


def test_hidden_states_read_the_end_of_a_prompt_and_the_beginning_of_text(bench: FeatureBench) -> None:
    assert bench.renderer
    features = HiddenStates(max_length=2)
    long, short = asked("zzzz the cat", " the cat")
    assert bench.renderer.prompt_ids(long)[-2:] == bench.renderer.prompt_ids(short)
    assert np.array_equal(*(features.compute([e], bench) for e in (long, short)))
    begun, whole = texts("the cat", "the cat sat on many more mats")
    assert np.array_equal(*(features.compute([e], bench) for e in (begun, whole)))
    assert not np.array_equal(*(HiddenStates().compute([e], bench) for e in (begun, whole)))


def test_hidden_states_of_a_conversation_see_its_turns(
    make_student: MakeStudent, chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    bench = FeatureBench(lambda: make_student(using=chat_tokenizer), None, Renderer(chat_tokenizer, 128))
    chat = Example(id="a", messages=({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}))
    prompt = Example(id="b", prompt="Hi", completion="Something else")
    other = Example(id="c", prompt="Ho")
    first, second, third = HiddenStates().compute([chat, prompt, other], bench)
    assert np.allclose(first, second, atol=1e-5)
    assert not np.allclose(first, third, atol=1e-2)


def test_hidden_states_leave_the_student_and_its_renderer_alone(bench: FeatureBench) -> None:
    assert bench.student
    assert bench.renderer
    model = bench.student().lm.model.train()
    HiddenStates().compute([*texts("the cat " * 200), *asked("the cat " * 200)], bench)
    assert model.training
    assert not bench.renderer.notices
    assert bench.renderer.train_on == {Role.RATIONALE, Role.ANSWER}


def test_hidden_states_teach_what_they_lack(bench: FeatureBench) -> None:
    with pytest.raises(NeedsError, match="hidden_states is computed with a student"):
        HiddenStates().compute(asked("a"))
    with pytest.raises(RecipeError, match=r"layer is 3; .* has 2 blocks, so it must be from -3 to 2"):
        HiddenStates(layer=3).compute(asked("a"), bench)
    with pytest.raises(DataError, match="'row-1' has no token"):
        HiddenStates().compute(asked("a", ""), bench)
    with pytest.raises(DataError, match="'row-1' has no token"):
        HiddenStates().compute(texts("a b", ""), bench)
    with pytest.raises(ModelError, match="There is no model folder"):
        HiddenStates(model="./nowhere").compute(asked("a"))


# What is promised of every kind.


@dataclass(frozen=True, kw_only=True)
class Lengths(Features):
    """The length of a text; made to break its promise at will."""

    faults: tuple[str, ...] = ()

    def blocks(self, examples: Sequence[Example], bench: FeatureBench) -> Iterator[Matrix]:
        for start in range(0, len(examples), 3):
            block = np.array([[len(text_of(e)), 1] for e in examples[start : start + 3]], np.float32)
            if start == 3 and "nan" in self.faults:
                block[1:, 0] = np.nan
            if start == 3 and "wider" in self.faults:
                block = np.tile(block, 2)
            if start == 3 and "stop" in self.faults:
                raise KeyboardInterrupt
            yield block[1:] if "short" in self.faults else block
        if "long" in self.faults:
            yield block


LENGTHS = texts(*["x" * n for n in range(7)])


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("nan", "example 'row-4' a vector with NaN or infinity, the first of 2 in a block of 3"),
        ("wider", r"a block of shape \(3, 4\) and float32; expected \[rows, 2\]"),
        ("short", "made 4 vectors or more of 7 examples"),
        ("long", "made 8 vectors or more of 7 examples"),
    ],
)
def test_broken_promises_are_named(fault: str, said: str, stored: bool, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        tabulate(Lengths(faults=(fault,)), LENGTHS, BENCH, tmp_path if stored else None)
    assert not list(tmp_path.iterdir())


def test_features_from_a_recipe() -> None:
    assert as_features("tfidf") == Tfidf()
    assert as_features({"hidden_states": {"pool": "last", "layer": "3"}}) == HiddenStates(pool="last", layer=3)
    with pytest.raises(RecipeError, match="Did you mean 'tfidf'"):
        as_features("tfdif")


# The store.


def test_a_table_is_computed_once(tmp_path: Path) -> None:
    first = tabulate(Lengths(), LENGTHS, BENCH, tmp_path)
    assert np.array_equal(first, Lengths().compute(LENGTHS))
    (file,) = tmp_path.glob("*/vectors.npy")
    about = json.loads((file.parent / "about.json").read_text())
    assert about["features"] == repr(Lengths())
    assert about["shape"] == [7, 2]
    made = file.stat().st_mtime_ns
    assert np.array_equal(tabulate(Lengths(), LENGTHS, BENCH, tmp_path), first)
    assert file.stat().st_mtime_ns == made


def test_other_settings_examples_or_models_are_another_table(tmp_path: Path, static_model: str) -> None:
    copied = tmp_path / "model"
    shutil.copytree(static_model, copied)
    store = tmp_path / "store"

    def tables(features: Features, examples: list[Example], bench: FeatureBench = BENCH) -> int:
        tabulate(features, examples, bench, store)
        return len(list(store.iterdir()))

    assert tables(Lengths(), LENGTHS) == 1
    assert tables(Lengths(faults=("none",)), LENGTHS) == 2
    assert tables(Lengths(), LENGTHS[::-1]) == 3
    assert tables(Lengths(), [*LENGTHS[1:], dataclasses.replace(LENGTHS[0], meta={"a": 1})]) == 4
    assert tables(Lengths(), LENGTHS, FeatureBench(identity="another student")) == 4
    assert tables(StaticEmbeddings(model=str(copied)), LENGTHS) == 5
    assert tables(StaticEmbeddings(model=str(copied)), LENGTHS) == 5
    (copied / "tokenizer.json").write_bytes((copied / "tokenizer.json").read_bytes() + b"\n")
    assert tables(StaticEmbeddings(model=str(copied)), LENGTHS) == 6


def test_a_table_of_a_student_belongs_to_it(bench: FeatureBench, tmp_path: Path) -> None:
    for identity in ("first", "second", "first"):
        tabulate(HiddenStates(), asked("a"), dataclasses.replace(bench, identity=identity), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "vectors.npy").write_bytes((folder / "vectors.npy").read_bytes()[:-4]),
        lambda folder: (folder / "vectors.npy").write_bytes((folder / "vectors.npy").read_bytes()[:-1] + b"!"),
        lambda folder: (folder / "vectors.npy").write_bytes(b""),
        lambda folder: (folder / "vectors.npy").unlink(),
        lambda folder: (folder / "about.json").write_text("{"),
        lambda folder: (folder / "about.json").write_text("[]"),
        lambda folder: (folder / "about.json").unlink(),
    ],
    ids=["cut", "flipped", "empty", "gone", "no json", "no table", "unsaid"],
)
def test_a_damaged_table_is_made_again(damage: Callable[[Path], object], tmp_path: Path) -> None:
    sound = np.array(tabulate(Lengths(), LENGTHS, BENCH, tmp_path))
    (folder,) = tmp_path.iterdir()
    damage(folder)
    assert np.array_equal(tabulate(Lengths(), LENGTHS, BENCH, tmp_path), sound)
    assert np.array_equal(np.load(folder / "vectors.npy"), sound)


def test_what_was_interrupted_leaves_no_table(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        tabulate(Lengths(faults=("stop",)), LENGTHS, BENCH, tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_examples_are_no_table(tmp_path: Path) -> None:
    for store in (None, tmp_path):
        for features in (Lengths(), Tfidf(), HiddenStates()):
            assert tabulate(features, [], BENCH, store).shape == (0, 0)
    assert not list(tmp_path.iterdir())
