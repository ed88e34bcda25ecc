"""From vectors back to text: the nearest readable pieces, and those that a language model likes."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from building import MakeStudent
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from stillhouse.condensation._projection import fluency_of, project
from stillhouse.condensation._tokens import Vocabulary, load_vocabulary
from stillhouse.condensation.base import Condensed
from stillhouse.errors import MissingExtraError, ModelError

WORDS = ["[UNK]", "a", "good", "bad", "film", "movie", "##s", "!"]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    """Eight pieces in the plane; nobody reads the first."""
    tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # ty: ignore[invalid-assignment]
    tokenizer.decoder = decoders.WordPiece()  # ty: ignore[invalid-assignment]
    table = torch.tensor([[0.0, 0.0], [1, 1], [4, 0], [-4, 0], [0, 4], [0, 4.5], [0, -4], [3, 3]])
    return Vocabulary(tokenizer, table, torch.tensor([False] + [True] * 7))


def condensed(vectors: Sequence[Sequence[Sequence[float]]], mask: Sequence[Sequence[int]]) -> Condensed:
    rows = torch.zeros(len(vectors), dtype=torch.long)
    labels = torch.ones(len(vectors), 1)
    return Condensed(torch.tensor(vectors), torch.tensor(mask, dtype=torch.float32), labels, rows, rows - 1)


def test_texts_are_vectors_and_come_back(vocabulary: Vocabulary) -> None:
    texts = ["a good film", "bad movies!", "unheard"]
    vectors, mask = vocabulary.vectors(texts, 4)
    assert mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert vectors[0, 1].tolist() == [4, 0]
    assert not vectors[0, 3].any()
    labels = torch.ones(3, 1)
    made = Condensed(vectors, mask, labels, torch.zeros(3, dtype=torch.long), torch.arange(3))
    found = project(made, vocabulary)
    assert found.texts[:2] == ("a good film", "bad movies!")
    assert found.moved_R[:2].tolist() == [0, 0]
    assert all(math.isnan(value) for value in found.log_probs_R)


def test_a_long_text_is_cut_and_an_empty_one_has_a_place(vocabulary: Vocabulary) -> None:
    pieces, mask = vocabulary.encode(["a good bad film", ""], 2)
    assert pieces.tolist() == [[1, 2], [0, 0]]
    assert mask.tolist() == [[1, 1], [1, 0]]


def test_what_cannot_be_read_is_never_chosen_and_the_way_is_measured(vocabulary: Vocabulary) -> None:
    found = project(condensed([[[0.0, 0.0], [4.0, 3.0]]], [[1, 0]]), vocabulary)
    assert found.pieces == ((1,),)  # the unknown piece is nearer
    assert found.moved_R.tolist() == pytest.approx([math.sqrt(2)])


def test_a_judge_turns_near_ties_and_its_weight_decides_how_near(vocabulary: Vocabulary) -> None:
    """'movie' is nearer than 'film'; the judge likes 'film', and sees words rather than pieces."""
    seen: list[str] = []

    def judge(texts: Sequence[str]) -> Tensor:
        seen.extend(texts)
        return torch.tensor([0.0 if "film" in text else -10.0 for text in texts])

    made = condensed([[[4.0, 0.0], [0.0, 4.4]]], [[1, 1]])
    assert project(made, vocabulary).texts == ("good movie",)
    kind = project(made, vocabulary, judge, weight=0.1, candidates=3, beams=3)
    assert kind.texts == ("good film",)
    assert kind.log_probs_R.tolist() == [0]
    assert project(made, vocabulary, judge, weight=0.001, candidates=3, beams=3).texts == ("good movie",)
    assert "good film" in seen


def test_beams_look_beyond_the_next_place(vocabulary: Vocabulary) -> None:
    """The best beginning alone leads to a text that the judge refuses."""

    def judge(texts: Sequence[str]) -> Tensor:
        return torch.tensor([0.0 if text in ("good", "bad", "bad film", "a film") else -100.0 for text in texts])

    made = condensed([[[1.0, 0.0], [0.0, 4.0]]], [[1, 1]])
    wide = project(made, vocabulary, judge, weight=1.0, candidates=7, beams=7)
    narrow = project(made, vocabulary, judge, weight=1.0, candidates=7, beams=1)
    assert wide.texts == ("a film",)
    assert narrow.texts != wide.texts


def test_a_language_model_judges_texts_in_its_own_pieces(make_student: MakeStudent) -> None:
    lm = make_student().lm
    judge = fluency_of(lm)
    texts = ["Ann has apples.", "7"]
    together, apart = judge(texts), torch.cat([judge([text]) for text in texts])
    assert torch.allclose(together, apart, atol=1e-4)
    ids = lm.tokenizer.encode(texts[0], add_special_tokens=False)
    logits = lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = sum(float(logits[place, piece].detach()) for place, piece in enumerate(ids[1:]))
    assert float(together[0]) == pytest.approx(expected, abs=1e-3)


def test_a_trained_model_prefers_sentences(stories: str) -> None:
    from stillhouse.models import CausalLM

    judge = fluency_of(CausalLM.load(stories))
    sense, nonsense = judge(["Once upon a time there was a girl.", "girl a was there time a upon Once."]).tolist()
    assert sense > nonsense + 10


def test_a_real_table_reads_back_what_it_was_given(shared: Path) -> None:
    pytest.importorskip("model2vec")
    folder = shared / "models" / "potion-base-4M-int8"
    if not folder.is_dir():
        pytest.skip("../shared/models/potion-base-4M-int8 is not there")
    vocabulary = load_vocabulary(str(folder))
    assert float(vocabulary.table_VD.square().mean(1).sqrt().mean()) == pytest.approx(1, abs=0.01)
    vectors, mask = vocabulary.vectors(["stirring film"], 5)
    made = Condensed(
        vectors, mask, torch.ones(1, 1), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    )
    assert project(made, vocabulary).texts == ("stirring film",)
    articles = vocabulary.encode(["a"], 1)[0]
    assert not vocabulary.readable_V[articles].any()  # this table gives the commonest words no vector
    with pytest.raises(ModelError, match="There is no model folder"):
        load_vocabulary(str(folder.parent / "nothing-here"))


def test_without_model2vec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model2vec", None)
    with pytest.raises(MissingExtraError, match=r"stillhouse\[data\]"):
        load_vocabulary("anything")
