"""All features that the registry finds, held to the public contract, and broken ones it must catch.

Shapes: N examples, D the width of a vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from building import MakeStudent
from model2vec import StaticModel
from transformers import PreTrainedTokenizerBase

from stillhouse import registry
from stillhouse.data.rendering import Renderer
from stillhouse.features._contract import check_features
from stillhouse.features.base import FeatureBench, Features, Matrix, text_of
from stillhouse.features.hidden_states import HiddenStates
from stillhouse.features.tfidf import Tfidf
from stillhouse.records import Example

FITTED = {"tfidf"}


@pytest.fixture(scope="session")
def static_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> str:
    """A model2vec folder with random vectors."""
    raw: Any = tokenizer
    folder = tmp_path_factory.mktemp("static")
    size = raw.backend_tokenizer.get_vocab_size()
    vectors = np.random.default_rng(0).standard_normal((size, 12)).astype(np.float16)
    StaticModel(vectors, raw.backend_tokenizer, normalize=True).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def bench(make_student: MakeStudent, tokenizer: PreTrainedTokenizerBase) -> FeatureBench:
    return FeatureBench(lambda: make_student(seed=3), None, Renderer(tokenizer, 128), identity="tiny")


@pytest.mark.parametrize("name", registry.names("feature"))
def test_features_keep_their_contract(name: str, bench: FeatureBench, static_model: str) -> None:
    settings = {"static_embeddings": {"model": static_model}}.get(name, {})
    check_features(registry.build("feature", name, settings), bench, fitted=name in FITTED)


@pytest.mark.parametrize(
    "features",
    [
        HiddenStates(pool="last", layer=1, batch_size=3),
        HiddenStates(layer=0, batch_size=1),
        HiddenStates(model="stillhouse:arithmetic", layer=-2, batch_size=4),
    ],
    ids=repr,
)
def test_hidden_states_keep_their_contract_with_other_settings(features: Features, bench: FeatureBench) -> None:
    check_features(features, bench)


@pytest.mark.parametrize(
    "features", [Tfidf(dimensions=2), Tfidf(pairs=False, seed=7), Tfidf(sample=6), Tfidf(dimensions=1)], ids=repr
)
def test_tfidf_keeps_its_contract_with_other_settings(features: Features) -> None:
    check_features(features, fitted=True)


@pytest.mark.parametrize("name", registry.names("feature"))
def test_every_kind_has_a_summary_and_is_called_by_its_file(name: str) -> None:
    assert registry.summary("feature", name).endswith(".")
    settings: dict[str, Any] = {"model": "nowhere/none"} if name == "static_embeddings" else {}
    assert registry.name_of(registry.component("feature", name)(**settings)) == name


def letters(texts: Sequence[str]) -> Matrix:
    """Sound vectors: how often each of eight letters comes up."""
    return np.array([[text.count(letter) for letter in "aeinorst"] for text in texts], np.float32)


@dataclass(frozen=True, kw_only=True)
class Letters(Features):
    """Sound; those below break it."""

    def blocks(self, examples: Sequence[Example], bench: FeatureBench) -> Iterator[Matrix]:
        for start in range(0, len(examples), 4):
            yield self.block(examples[start : start + 4], start)

    def block(self, examples: Sequence[Example], start: int) -> Matrix:
        return letters([text_of(example) for example in examples])


@dataclass(frozen=True, kw_only=True)
class Answering(Letters):
    """Looks at the answer."""

    def block(self, examples: Sequence[Example], start: int) -> Matrix:
        return letters([text_of(e) + (e.completion or "") for e in examples])


@dataclass(frozen=True, kw_only=True)
class Placed(Letters):
    """Looks at the place."""

    def block(self, examples: Sequence[Example], start: int) -> Matrix:
        return super().block(examples, start) + np.arange(start, start + len(examples), dtype=np.float32)[:, None]


@dataclass(frozen=True, kw_only=True)
class Centred(Letters):
    """Takes the mean of the block away."""

    def block(self, examples: Sequence[Example], start: int) -> Matrix:
        sound = super().block(examples, start)
        return sound - sound.mean(0)


@dataclass(frozen=True, kw_only=True)
class Fitted(Letters):
    """Takes the mean of all examples away, and does not say so."""

    def blocks(self, examples: Sequence[Example], bench: FeatureBench) -> Iterator[Matrix]:
        sound = np.concatenate(list(super().blocks(examples, bench)))
        yield sound - sound.mean(0)


@dataclass(frozen=True, kw_only=True)
class Doubled(Letters):
    """Its two ways to the vectors differ."""

    def compute(self, examples: Sequence[Example], bench: FeatureBench | None = None) -> Matrix:
        return 2 * super().compute(examples, bench)


@dataclass(frozen=True, kw_only=True)
class Moody(Letters):
    """Says something else every time."""

    def block(self, examples: Sequence[Example], start: int) -> Matrix:
        return super().block(examples, start) * np.random.default_rng().random(1, np.float32)


@dataclass(frozen=True, kw_only=True)
class Constant(Letters):
    """Says the same of everything."""

    def block(self, examples: Sequence[Example], start: int) -> Matrix:
        return np.ones((len(examples), 3), np.float32)


@dataclass(frozen=True, kw_only=True)
class Exact(Letters):
    """Gives float64."""

    def block(self, examples: Sequence[Example], start: int) -> Any:
        return super().block(examples, start).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Shares(Letters):
    """Divides by nothing where a text has none of the letters."""

    def block(self, examples: Sequence[Example], start: int) -> Matrix:
        sound = super().block(examples, start)
        with np.errstate(invalid="ignore"):
            return sound / sound.sum(1, keepdims=True)


@dataclass(frozen=True, kw_only=True)
class Short(Letters):
    """Forgets an example of each block."""

    def block(self, examples: Sequence[Example], start: int) -> Matrix:
        return super().block(examples, start)[1:]


@dataclass(frozen=True, kw_only=True)
class Marking(Letters):
    """Writes into the examples."""

    def block(self, examples: Sequence[Example], start: int) -> Matrix:
        for example in examples:
            example.meta["seen"].append(start)
        return super().block(examples, start)


@dataclass(frozen=True, kw_only=True)
class Several(Letters):
    """Wants more than one example."""

    def blocks(self, examples: Sequence[Example], bench: FeatureBench) -> Iterator[Matrix]:
        yield letters([text_of(example) for example in examples])[:, : len(examples) - 1]


def test_what_the_broken_ones_break_is_sound() -> None:
    check_features(Letters())
    check_features(Fitted(), fitted=True)


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (Answering(), "looks at the answer"),
        (Placed(), "the same question two vectors"),
        (Centred(), "the same question two vectors"),
        (Fitted(), "alone another vector"),
        (Doubled(), "together are not"),
        (Moody(), "second time"),
        (Constant(), "all questions the same vector"),
        (Exact(), "float64"),
        (Shares(), "NaN or infinity"),
        (Short(), "expected one each"),
        (Marking(), "changed the examples"),
        (Several(), "D of at least 1"),
    ],
    ids=repr,
)
def test_contract_catches(broken: Features, clause: str) -> None:
    with pytest.raises(AssertionError, match=clause):
        check_features(broken)
