"""Several teachers as one: distributions mixed by their formulas, answers chosen, disagreements kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from building import build_tokenizer

from stillhouse import registry
from stillhouse.consensus._disagreements import write_disagreements
from stillhouse.consensus.dawid_skene import DawidSkene
from stillhouse.data.batching import TokenBatch
from stillhouse.errors import DataError, NeedsError, RecipeError
from stillhouse.models import Sampling
from stillhouse.objectives.forward_kl import ForwardKL
from stillhouse.records import Example
from stillhouse.signals import Dense, Mixture, TopK, align
from stillhouse.signals.kinds import Combine
from stillhouse.teachers.committee import CommitteeSession, CommitteeTeacher, final_answer
from stillhouse.teachers.hf import HFTeacher
from stillhouse.testing import check_teacher
from stillhouse.training.loop import train

COMBINES: tuple[Combine, ...] = ("mean", "confidence", "product")


@pytest.fixture(scope="module")
def folders(make_student: Any, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three tiny models on disk."""
    home = tmp_path_factory.mktemp("teachers")
    for seed in range(3):
        make_student(seed=seed).save(home / f"model-{seed}")
    return [str(home / f"model-{seed}") for seed in range(3)]


@pytest.fixture(scope="module")
def batch(render: Any, examples: Any) -> TokenBatch:
    return TokenBatch.of(render(examples[:5]))


def committee(folders: list[str], **settings: Any) -> CommitteeTeacher:
    return registry.build("teacher", "committee", {"teachers": [{"hf": {"model": f}} for f in folders], **settings})


@pytest.mark.parametrize("combine", COMBINES)
def test_a_committee_keeps_the_contract_of_teachers(combine: str, folders: list[str], batch: TokenBatch) -> None:
    teacher = committee(folders, combine=combine)
    with teacher.open() as session:
        check_teacher(session, batch, teacher.provides)


def test_a_committee_of_text_alone_keeps_what_it_promises(folders: list[str], batch: TokenBatch) -> None:
    teacher = committee(folders, combine=None)
    assert teacher.provides == {"text"}
    with teacher.open() as session, pytest.raises(NeedsError, match="gives text alone"):
        session.score(batch)


def oracle(probabilities_KNV: torch.Tensor, combine: str) -> torch.Tensor:
    """The three formulas, as they are written down."""
    if combine == "mean":
        return probabilities_KNV.mean(0)
    if combine == "product":
        product_NV = probabilities_KNV.log().mean(0).exp()
        return product_NV / product_NV.sum(-1, keepdim=True)
    entropy_KN = -(probabilities_KNV * probabilities_KNV.log()).sum(-1)
    weight_KN = 1 - entropy_KN / torch.log(torch.tensor(float(probabilities_KNV.shape[-1])))
    return (weight_KN[..., None] * probabilities_KNV).sum(0) / weight_KN.sum(0)[..., None]


@pytest.mark.parametrize("combine", COMBINES)
def test_mixtures_follow_their_formulas_whatever_the_heads_are_padded_to(combine: Combine) -> None:
    vocabulary, rows = 11, torch.tensor([3, 0, 2])
    draw = torch.Generator().manual_seed(0)
    logits = [torch.randn(4, vocabulary + pad, generator=draw, dtype=torch.float64) * 3 for pad in (0, 5, 2)]
    mixture = Mixture(tuple(Dense(one, vocabulary) for one in logits), vocabulary, combine)
    wanted = oracle(torch.stack([one[:, :vocabulary].softmax(-1) for one in logits]), combine)[rows]
    assert torch.allclose(mixture.select(rows).logits_NV.exp(), wanted, atol=1e-12)
    # A temperature softens the mixture, not the members.
    softened = align(torch.zeros(3, vocabulary, dtype=torch.float64), mixture.select(rows), 2.0).teacher_NK
    assert torch.allclose(softened, (wanted.log() / 2).log_softmax(-1))


def test_a_sure_teacher_outweighs_one_that_guesses() -> None:
    sure, guessing = torch.tensor([[9.0, 0, 0, 0]]), torch.zeros(1, 4)
    members = (Dense(sure, 4), Dense(guessing, 4))
    mean, confident = (Mixture(members, 4, how).select(torch.tensor([0])).logits_NV.exp() for how in COMBINES[:2])
    assert 0.6 < mean[0, 0] < 0.65
    assert confident[0, 0] > 0.99
    even = Mixture((Dense(guessing, 4), Dense(guessing, 4)), 4, "confidence").select(torch.tensor([0]))
    assert torch.allclose(even.logits_NV.exp(), torch.full((1, 4), 0.25))


def test_what_is_no_number_is_found_and_a_truncated_member_refused() -> None:
    fine, broken = torch.zeros(2, 4), torch.tensor([[0.0, 0, 0, 0], [0, torch.nan, 0, 0]])
    assert Mixture((Dense(fine, 4), Dense(broken, 4)), 4).broken().tolist() == [False, True]
    truncated = TopK.of(Dense(fine, 4), 2)
    with pytest.raises(NeedsError, match="whole distributions"):
        Mixture((Dense(fine, 4), truncated), 4).select(torch.tensor([0]))


def test_a_student_learns_from_a_committee(folders: list[str], make_student: Any, render: Any, examples: Any) -> None:
    student, rendered = make_student(seed=9), render(examples)
    with committee(folders, combine="product").open() as session:
        steps = train(student, iter([TokenBatch.of(rendered)] * 8), session, [ForwardKL()], steps=8)
        losses = [step.loss for step in steps]
    assert losses[-1] < losses[0]
    assert session.tokens_read == 8 * TokenBatch.of(rendered).real_count()


def test_two_teachers_with_one_name_are_refused_with_the_way_out(folders: list[str]) -> None:
    with pytest.raises(RecipeError, match=r"two that are called .*model-0'.*names: \[") as caught:
        committee([folders[0], folders[0]])
    assert "outvote" in str(caught.value)
    named = committee([folders[0], folders[0]], names=["first", "second"])
    assert named.member_names == ("first", "second")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"teachers": [{"hf": {"model": "a"}}]}, "at least two"),
        ({"names": ["a"]}, "give one each"),
        ({"names": ["a", "a", "b"]}, "called 'a'"),
        ({"combine": "median"}, "'mean', 'confidence' or 'product'"),
        ({"answers": "majorty"}, "Did you mean 'majority'"),
        ({"answers": {"majority": {"abstain_below": 2}}}, "confidence, from 0 to 1"),
        ({"teachers": [{"hf": {"modell": "a"}}, "hf"]}, "Did you mean 'model'"),
    ],
)
def test_wrong_settings_say_what_was_expected(settings: dict[str, Any], word: str, folders: list[str]) -> None:
    with pytest.raises(RecipeError, match=word):
        committee(folders, **settings)


def test_settings_are_a_value(folders: list[str]) -> None:
    one, other = committee(folders, answers="dawid_skene"), committee(folders, answers="dawid_skene")
    assert one == other
    assert hash(one) == hash(other)
    assert one.answers == DawidSkene()
    assert one != committee(folders)
    direct = CommitteeTeacher(tuple(HFTeacher(folder) for folder in folders), answers=DawidSkene())
    assert direct == one


def test_vocabularies_must_be_shared_unless_text_alone_is_wanted(
    folders: list[str], make_student: Any, tmp_path: Path
) -> None:
    make_student(using=build_tokenizer(bos=True)).save(tmp_path / "same")
    other = build_tokenizer()
    other.add_tokens(["<another>"])
    make_student(using=other).save(tmp_path / "other")
    mixed = [folders[0], str(tmp_path / "other")]
    for attempt in (committee(mixed).load_tokenizer, committee(mixed).open):
        with pytest.raises(NeedsError, match="combine to null"):
            attempt()
    assert committee(mixed, combine=None).load_tokenizer().get_vocab() == build_tokenizer().get_vocab()


def test_its_identity_names_all_members_and_its_fingerprint_follows_their_files(
    make_student: Any, tmp_path: Path
) -> None:
    for seed in range(2):
        make_student(seed=seed).save(tmp_path / str(seed))
    teacher = committee([str(tmp_path / "0"), str(tmp_path / "1")])
    with teacher.open() as session:
        identity = session.identity()
    assert set(identity["committee"]) == {str(tmp_path / "0"), str(tmp_path / "1")}
    assert identity["parameters"] == 2 * make_student().parameters()
    assert json.loads(json.dumps(identity)) == identity
    before = teacher.fingerprint()
    make_student(seed=5).save(tmp_path / "1")
    assert teacher.fingerprint() != before


def test_an_example_beyond_a_members_context_is_named(folders: list[str], render: Any) -> None:
    long = render([Example(id="long", prompt="12 " * 90, completion="13 " * 90)], max_length=900)
    with committee(folders).open() as session, pytest.raises(DataError, match=r"'long' has .* context of .*model-0"):
        session.prepare(long)


# Answers in text.

ONE, TWO, THREE = "2 + 3 = 5. 5 * 2 = 10. #### 10", "2 + 3 = 5\n5 * 3 = 15\n#### 15", "3 + 2 = 5, 2 * 5 = 10 #### 10"


def session_of(folders: list[str], **settings: Any) -> CommitteeSession:
    return committee(folders, names=["ann", "bob", "eve"], **settings).open()


def test_the_rule_chooses_and_the_disagreements_are_kept(folders: list[str], tmp_path: Path) -> None:
    session = session_of(folders)
    done = [True] * 3
    asked = [(TWO, ONE, THREE), (ONE, THREE, THREE), ("", "", ""), ("yes.", " YES", "no")]
    picks = session.settle([(name, f"{name}?") for name in "abcd"], asked, [done] * 4)
    assert picks == [1, 0, None, 0]
    summary = session.disagreements.summary()
    assert (summary["prompts"], summary["disagreed"], summary["undecided"]) == (4, 2, 1)
    assert summary["pairs"][0] == {"teachers": ["ann", "bob"], "both": 3, "differ": 1}
    assert summary["reliability"] == {"ann": 2 / 3, "bob": 1.0, "eve": 2 / 3}
    first = summary["examples"][0]
    assert first["answers"] == {"ann": "15", "bob": "10", "eve": "10"}
    assert (first["id"], first["prompt"], first["chosen"]) == ("a", "a?", "10")
    assert first["between"] == ["bob", "ann"]
    assert first["first_difference"] == {"step": 2, "texts": ["5 * 2 = 10", "5 * 3 = 15"]}
    assert json.loads(write_disagreements(tmp_path, summary).read_text()) == summary


def test_an_answer_that_was_cut_off_votes_only_where_all_were(folders: list[str]) -> None:
    session = session_of(folders)
    texts = [(ONE, ONE, TWO), (ONE, ONE, TWO)]
    assert session.settle([("a", "?"), ("b", "?")], texts, [[False, False, True], [False] * 3]) == [2, 0]


def test_where_the_rule_abstains_nothing_is_passed_on(folders: list[str]) -> None:
    session = session_of(folders, answers={"majority": {"abstain_below": 0.9}})
    texts = [(ONE, TWO, THREE), (ONE, ONE, THREE)]
    assert session.settle([("a", "?"), ("b", "?")], texts, [[True] * 3] * 2) == [None, 0]


def test_what_it_answers_is_what_a_member_answered(folders: list[str], examples: Any, tmp_path: Path) -> None:
    session = session_of(folders)
    sampling = Sampling(max_new_tokens=6)
    answers = session.answer(examples[:4], sampling)
    each = [member.answer(examples[:4], sampling) for member in session.members]
    assert all(answer in [of[place] for of in each] for place, answer in enumerate(answers))
    assert session.tokens_written == sum(answer.tokens for answer in answers)
    session.keep(tmp_path)
    assert json.loads((tmp_path / "disagreements.json").read_text())["prompts"] == 4


def test_asked_again_under_one_id_a_question_counts_once(folders: list[str]) -> None:
    session = session_of(folders)
    session.settle([("a", "?")], [(ONE, TWO, THREE)], [[True] * 3])
    session.settle([("a", "?")], [(ONE, ONE, THREE)], [[True] * 3])
    summary = session.disagreements.summary()
    assert (summary["prompts"], summary["disagreed"], summary["examples"]) == (1, 0, [])


def test_a_members_failure_to_open_closes_those_before(folders: list[str]) -> None:
    with pytest.raises(Exception, match="nowhere"):
        committee([folders[0], "nowhere"]).open()


@pytest.mark.parametrize(
    ("text", "answer"), [("so #### 1,000", 1000), ("It is  BLUE.", "it is blue"), ("", None), (" \n", None)]
)
def test_final_answers(text: str, answer: object) -> None:
    assert final_answer(text) == answer
