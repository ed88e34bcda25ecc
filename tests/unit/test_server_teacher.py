"""A teacher behind an API: the same answers as in this process, promises tested, and a key that goes nowhere."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from building import MakeStudent
from small_server import chat_reply, echo_last, small_server
from transformers import PreTrainedTokenizerBase

from stillhouse import registry
from stillhouse.asking.budget import Budget
from stillhouse.data.batching import TokenBatch
from stillhouse.data.rendering import Renderer
from stillhouse.errors import BudgetError, DataError, NeedsError, SettingError, TeacherError
from stillhouse.models import CausalLM, Sampling
from stillhouse.records import Example
from stillhouse.signals.kinds import Dense, TopK
from stillhouse.teachers._probe import said_after
from stillhouse.teachers._said import top_k
from stillhouse.teachers.base import Answer
from stillhouse.teachers.server import ServerTeacher
from stillhouse.testing import check_teacher
from stillhouse.testing.server import Faults, Server, serve

GREEDY = Sampling(max_new_tokens=12)
EXAMPLES = [Example(id=f"e{n}", prompt=f"Ann has {n} apples", completion=" and more.") for n in range(5)]
URL = "http://127.0.0.1:9/v1"


@pytest.fixture(scope="module")
def lm(make_student: MakeStudent, chat_tokenizer: PreTrainedTokenizerBase) -> CausalLM:
    return make_student(seed=4, using=chat_tokenizer).lm


@pytest.fixture(scope="module")
def folder(chat_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("tokenizer")
    chat_tokenizer.save_pretrained(place)
    return str(place)


@pytest.fixture(scope="module")
def honest(lm: CausalLM) -> Iterator[Server]:
    with serve(lm, max_logprobs=-1) as server:
        yield server


Make = Callable[..., ServerTeacher]


@pytest.fixture
def make(folder: str, tmp_path: Path) -> Make:
    def build(server: Any, **settings: Any) -> ServerTeacher:
        given = {"store": str(tmp_path / "r.sqlite"), "timeout": 20.0, "retries": 2, **settings}
        return ServerTeacher(server.url, given.pop("model", "teacher"), **given)

    return build


def in_process(lm: CausalLM, examples: list[Example]) -> list[str]:
    renderer = Renderer(lm.tokenizer, lm.context)
    written = lm.generate([renderer.prompt_ids(e) for e in examples], GREEDY)
    return [str(lm.tokenizer.decode(ids, skip_special_tokens=True)) for ids in written]


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_the_server_writes_what_the_model_writes(
    api: str, honest: Server, lm: CausalLM, folder: str, make: Make
) -> None:
    turns = (
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "abc"},
    )
    asked = [*EXAMPLES, Example(id="talk", messages=turns)]
    with make(honest, api=api, tokenizer=folder).open() as session:
        answers = session.answer(asked, GREEDY)
        assert [a.text for a in answers] == in_process(lm, asked)
        assert session.tokens_written == sum(a.tokens for a in answers)
        assert session.client.tally.paid.calls == len(asked)
    before = len(honest.seen)
    with make(honest, api=api, tokenizer=folder).open() as again:
        assert again.answer(asked[::-1], GREEDY) == answers[::-1]
        assert again.client.tally.paid.calls == 0
    assert len(honest.seen) == before


def test_text_alone_needs_no_tokenizer(honest: Server, make: Make) -> None:
    teacher = make(honest, api="completions")
    with teacher.open() as session:
        with pytest.raises(NeedsError, match="needs the tokenizer"):
            _ = session.tokenizer
        assert all(isinstance(a, Answer) for a in session.answer(EXAMPLES, GREEDY))
        assert honest.seen[-1].body["prompt"].startswith("Ann has")
        talk = Example(id="talk", messages=({"role": "user", "content": "abc"},))
        with pytest.raises(NeedsError, match="needs the tokenizer of"):
            session.answer([talk], GREEDY)
    assert teacher.load_tokenizer() is None


def test_draws_differ_by_example_and_seed_and_repeat(honest: Server, make: Make, tmp_path: Path) -> None:
    same = [Example(id=f"s{n}", prompt="abc") for n in range(4)]
    hot = Sampling(max_new_tokens=12, temperature=1.5)
    with make(honest).open() as session:
        first = session.answer(same, hot)
        other = session.answer(same, dataclasses.replace(hot, seed=1))
    with make(honest, store=str(tmp_path / "fresh.sqlite")).open() as session:
        assert session.answer(same[::-1], hot)[::-1] == first
    assert len({a.text for a in first}) > 1
    assert first != other


def test_what_is_asked(make: Make) -> None:
    with small_server() as server:
        extra = {"temperature": None, "chat_template_kwargs": {"enable_thinking": False}}
        teacher = make(server, model="small", system="Be brief.", limit="max_completion_tokens", extra=extra)
        with teacher.open() as session:
            given = (
                {"role": "system", "content": "Be long."},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
            )
            session.answer([EXAMPLES[0], Example(id="m", messages=given)], GREEDY)
        bodies = sorted((body for _, body, _ in server.seen), key=lambda body: len(body["messages"][0]["content"]))
        assert bodies[0]["messages"] == list(given[:2])
        assert bodies[1] == {
            "model": "small",
            "max_completion_tokens": 12,
            "chat_template_kwargs": {"enable_thinking": False},
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Ann has 0 apples"}],
        }


def test_answers_of_bad_form_come_back_as_they_are(make: Make) -> None:
    replies = [
        chat_reply(None, refusal="I will not."),
        chat_reply("", ended="stop"),
        chat_reply("Half an ans", ended="content_filter"),
        chat_reply("On and on", ended="length", written=12),
    ]

    def by_number(path: str, body: dict[str, Any]) -> Any:
        return 200, {}, replies[int(body["messages"][-1]["content"])]

    with small_server(by_number) as server, make(server, model="small").open() as session:
        found = session.answer([Example(id=str(n), prompt=str(n)) for n in range(4)], GREEDY)
        assert found == [
            Answer("", True, 3),
            Answer("", True, 3),
            Answer("Half an ans", False, 3),
            Answer("On and on", False, 12),
        ]
        assert session.client.tally.forms == {"refusal": 1, "empty": 1, "filtered": 1, "cut off": 1}
        assert len(server.seen) == 4


def test_running_text_is_no_question(honest: Server, make: Make) -> None:
    with make(honest).open() as session:
        with pytest.raises(DataError, match="Example 't' is running text"):
            session.answer([Example(id="t", text="abc")], GREEDY)
        with pytest.raises(DataError, match="'a' is a conversation in which nobody asks"):
            session.answer([Example(id="a", messages=({"role": "assistant", "content": "Hi"},))], GREEDY)


# Scores.


def batch_of(lm: CausalLM) -> TokenBatch:
    return TokenBatch.of(Renderer(lm.tokenizer, lm.context).render(EXAMPLES[:3]))


@pytest.mark.parametrize("k", [5, "all"])
def test_scores_are_the_model_s(k: int | str, honest: Server, lm: CausalLM, folder: str, make: Make) -> None:
    batch, size = batch_of(lm), lm.vocabulary
    count = size if k == "all" else int(k)
    teacher = make(honest, tokenizer=folder, logprobs=count)
    assert teacher.provides == {"text", "token_logprobs", "distribution"}
    with teacher.open() as session:
        assert session.found["scores by"] == "prompt_logprobs"
        check_teacher(session, batch, teacher.provides, live=True)
        said = session.score(batch)
    with torch.no_grad():
        logits = lm.head(lm.hidden(batch.tokens_BT, batch.positions_BT)).flatten(0, 1)
    wanted = TopK.of(Dense(logits, size), count)
    real = (batch.examples_BT() >= 0).flatten()
    torch.testing.assert_close(said.logprobs_NK[real], wanted.logprobs_NK[real], atol=1e-4, rtol=0)
    torch.testing.assert_close(said.tail_N[real].exp(), wanted.tail_N[real].exp(), atol=1e-5, rtol=0)
    assert said.logprobs_NK[~real].isnan().all()


@pytest.mark.parametrize(
    ("faults", "seen"),
    [
        (Faults(prompt_logprobs="shifted"), "off by a token, or tempers one of the two"),
        (Faults(logprobs="shifted"), "off by a token, or tempers one of the two"),
        (Faults(prompt_logprobs="tempered"), "off by a token, or tempers one of the two"),
        (Faults(logprobs="tempered"), "off by a token, or tempers one of the two"),
        (Faults(logprobs="missing"), "answered with no logprobs, which were asked for"),
        (
            Faults(prompt_logprobs="missing"),
            "scores no prompt. asked by prompt_logprobs, .* no prompt_logprobs.*by echo",
        ),
        (Faults(text_keys=True), "names tokens by their text"),
    ],
)
def test_a_promise_that_is_not_kept_is_noticed(
    faults: Faults, seen: str, lm: CausalLM, folder: str, make: Make
) -> None:
    with serve(lm, faults=faults) as server, pytest.raises(NeedsError, match=f"promises the 5 likeliest.*{seen}"):
        make(server, tokenizer=folder, logprobs=5).open()


def test_a_server_that_was_mended_is_believed(lm: CausalLM, folder: str, make: Make) -> None:
    with serve(lm, faults=Faults(prompt_logprobs="shifted")) as server:
        port = server.port
        with pytest.raises(NeedsError, match="off by a token"):
            make(server, tokenizer=folder, logprobs=5).open()
    with serve(lm, port=port) as server, make(server, tokenizer=folder, logprobs=5).open() as session:
        assert session.client.tally.stored == 0


def test_too_many_log_probabilities(honest: Server, lm: CausalLM, folder: str, make: Make) -> None:
    with (
        serve(lm) as server,
        pytest.raises(NeedsError, match=r"greater than max allowed: 20.*--max-logprobs 21 or more"),
    ):
        make(server, tokenizer=folder, logprobs=21).open()
    with pytest.raises(NeedsError, match=r"the vocabulary has \d+ tokens. Set a smaller logprobs"):
        make(honest, tokenizer=folder, logprobs=10_000).open()


def test_another_model_s_tokenizer_is_noticed(folder: str, make: Make) -> None:
    with serve("stillhouse:arithmetic") as server, pytest.raises(NeedsError, match="the tokenizer is not the server's"):
        make(server, tokenizer=folder, logprobs=5).open()


def test_without_a_promise_there_are_no_scores(honest: Server, lm: CausalLM, make: Make) -> None:
    with make(honest).open() as session, pytest.raises(NeedsError, match=r"provides text alone.*set logprobs"):
        session.score(batch_of(lm))


def test_a_server_that_adds_a_token_is_noticed() -> None:
    from stillhouse.asking.protocol import Reply

    entry = {"token_id:1": -0.1}
    reply = Reply("x", True, "length", logprobs=[entry], prompt_logprobs=[None, entry, entry], prompt_ids=[0, 1, 2])
    assert len(said_after(reply, [0, 1, 2], "prompt_logprobs")) == 3
    with pytest.raises(NeedsError, match="speaks of 3 tokens where it was given 2, and saw 3 of which some are others"):
        said_after(reply, [1, 2], "prompt_logprobs")


def test_the_text_s_own_token_beyond_the_top_is_left_out() -> None:
    ids, logprobs, tail = top_k([{"token_id:9": -5.0, "token_id:1": -0.1, "token_id:2": -3.0}], 2, 10)
    assert ids.tolist() == [[1, 2]]
    assert torch.cat([logprobs[0], tail]).exp().sum().item() == pytest.approx(1)
    assert top_k([{"token_id:1": 0.0}], 1, 10)[2].isfinite().all()  # a sure teacher's tail is small, not impossible


# Settings.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "url must be the API's"),
        ({"url": "http://me:pass@host/v1"}, "url holds a user or a password"),
        ({"url": "http://host/v1?key=secret"}, "url must be the API's, without a query"),
        ({"key_env": "sk-abc"}, "key_env must be the name of an environment variable"),
        ({"api": "speech"}, "Input should be 'chat' or 'completions'"),
        ({"concurrency": 0}, "concurrency is 0; it must be at least 1"),
        ({"timeout": 0}, "timeout is 0.0; it must be positive"),
        ({"logprobs": 5}, "logprobs needs the model's tokenizer"),
        ({"api": "completions", "system": "Be brief."}, "system belongs to conversations"),
        ({"extra": {"n": 3}}, "extra may not name n"),
        ({"extra": {"temperature": 1}}, "extra may leave temperature out"),
        ({"extra": {"max_tokens": None}}, "extra may not leave max_tokens out"),
        ({"budget": {"callz": 3}}, "budget.callz: Unexpected keyword"),
        ({"budget": {"cost": 3}}, "budget.cost needs budget.read_price"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        registry.build("teacher", "server", {"url": URL, "model": "m", **settings})
    for secret in ("sk-abc", "me:pass", "key=secret"):
        assert secret not in str(caught.value)


def test_a_recipe_s_settings_become_the_teacher() -> None:
    built = registry.build(
        "teacher", "server", {"url": URL, "model": "m", "budget": {"cost": 5, "read_price": 1, "written_price": "2e0"}}
    )
    assert built.budget == Budget(cost=5.0, read_price=1.0, written_price=2.0)
    assert built.provides == {"text"}
    assert hash(built) == hash(dataclasses.replace(built))
    assert built.identity() == {"name": "m", "url": URL, "api": "chat"}
    promised = registry.build("teacher", "server", {"url": URL, "model": "m", "logprobs": 5, "tokenizer": "t"})
    assert "distribution" in promised.provides
    assert promised.recorded_at == 1.0


def test_a_model_that_is_not_there(honest: Server, make: Make) -> None:
    with pytest.raises(TeacherError, match=r"does not list 'teach'.*not found .*Did you mean 'teacher'") as caught:
        make(honest, model="teach").open()
    assert str(caught.value).count("Did you mean") == 1


def test_a_server_that_is_not_there_is_needed_only_for_what_is_not_stored(lm: CausalLM, make: Make) -> None:
    with serve(lm) as server, make(server).open() as session:
        answers = session.answer(EXAMPLES, GREEDY)
    with make(server).open() as session:
        assert session.found["model"].startswith("not reached, what is stored is read")
        assert session.answer(EXAMPLES, GREEDY) == answers
    with pytest.raises(TeacherError, match="does not answer"):
        make(server, model="other").open()


def test_a_server_without_a_list_of_models(make: Make) -> None:
    with small_server() as server:
        server.models = None
        with make(server, model="small").open() as session:
            assert "lists no models" in session.found["model"]
            assert session.answer(EXAMPLES[:1], GREEDY)[0].text == "You said Ann has 0 apples"


def test_a_model_that_is_not_listed_is_given_a_trial(make: Make) -> None:
    def pinned(path: str, body: dict[str, Any]) -> Any:
        if body["model"] == "small":
            return echo_last(path, body)
        return 400, {}, {"detail": f"Server is pinned to 'small'; requested '{body['model']}'."}

    with small_server(pinned) as server:
        server.models = []
        with make(server, model="small").open() as session:
            assert session.found["model"] == "the server does not list it, and answers for it (listed: none)"
            assert session.client.tally.paid.calls == 1
        server.models = ["large"]
        with make(server, model="small").open() as session:
            assert "answers for it (listed: large)" in session.found["model"]
            assert session.client.tally.paid.calls == 0  # the trial is stored like every answer
        with pytest.raises(TeacherError, match=r"does not list 'smell'.*pinned to 'small'.*Known: large"):
            make(server, model="smell").open()


# Money.


def test_estimates_and_what_is_too_dear(honest: Server, make: Make) -> None:
    prices = Budget(cost=1.0, read_price=1.0, written_price=10.0)
    teacher = make(honest, budget=prices)
    (bill,) = teacher.afford(10, 1000, 5000)
    assert bill.pop("spent_before")["calls"] == 0
    assert bill == {
        "teacher": teacher.model,
        "calls": 10,
        "tokens_read": 1000,
        "tokens_written": 5000,
        "cost": pytest.approx(0.051),
        "currency": "USD",
    }
    with pytest.raises(BudgetError, match=r"too small for this recipe.*cost in USD: 1 of 1 are left, 1.001 more"):
        teacher.afford(10, 1000, 100_000)
    assert not Path(teacher.store).exists()  # looking costs nothing and leaves nothing
    with teacher.open() as session:
        session.answer(EXAMPLES, GREEDY)
    assert teacher.afford(10, 1000, 5000)[0]["spent_before"]["calls"] == 5


def test_a_budget_is_of_a_model_at_a_url_over_all_runs(honest: Server, make: Make) -> None:
    with make(honest, budget=Budget(calls=5)).open() as session:
        session.answer(EXAMPLES, GREEDY)
    with (
        make(honest, budget=Budget(calls=5), system="Be brief.").open() as session,
        pytest.raises(BudgetError, match=r"calls: 0 of 5 are left.*5 answers are kept"),
    ):
        session.answer(EXAMPLES, GREEDY)


# The key.


def test_the_key_goes_nowhere(
    lm: CausalLM,
    folder: str,
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    key = "sk-9f8e7d6c5b4a"
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", key)
    with serve(lm, key=key) as server:
        teacher = make(server, key_env="MY_KEY", tokenizer=folder, logprobs=5)
        with teacher.open() as session:
            session.answer(EXAMPLES, GREEDY)
            told = [repr(x) for x in (teacher, session, session.client.server, session.client.tally, vars(session))]
            told += [
                json.dumps(session.identity()),
                json.dumps(dataclasses.asdict(teacher)),
                session.client.server.name,
            ]
        monkeypatch.setenv("MY_KEY", f"{key}-wrong")
        with pytest.raises(TeacherError, match=r"refuses the key .*MY_KEY is set, and not accepted") as caught:
            make(server, key_env="MY_KEY").open()
    told += [str(caught.value), repr(caught.value), caplog.text]
    assert not [text for text in told if key in text]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if key.encode() in path.read_bytes()]
