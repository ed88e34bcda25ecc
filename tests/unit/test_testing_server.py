"""The server that other tests ask: it must be a true one where it is honest, and wrong in the way that was asked where
it is not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest
import torch
from building import MakeStudent
from transformers import PreTrainedTokenizerBase

from stillhouse.data.rendering import Renderer
from stillhouse.errors import SettingError
from stillhouse.models import CausalLM, Sampling
from stillhouse.records import Example
from stillhouse.testing._faults import FOREIGN, INSTEAD, REFUSAL
from stillhouse.testing.server import Faults, Server, answering, main, serve

PROMPT = "Ann has 2 apples"
GREEDY: dict[str, Any] = {"model": "teacher", "temperature": 0, "max_tokens": 12}
CHAT: dict[str, Any] = {**GREEDY, "messages": [{"role": "user", "content": PROMPT}]}
TEXT: dict[str, Any] = {**GREEDY, "prompt": PROMPT}


@pytest.fixture(scope="module")
def lm(make_student: MakeStudent) -> CausalLM:
    return make_student(seed=3).lm


@pytest.fixture(scope="module")
def chat_lm(make_student: MakeStudent, chat_tokenizer: PreTrainedTokenizerBase) -> CausalLM:
    return make_student(seed=4, using=chat_tokenizer).lm


@pytest.fixture(scope="module")
def honest(lm: CausalLM) -> Iterator[Server]:
    with serve(lm, max_logprobs=-1) as server:
        yield server


def post(server: Server, path: str, body: dict[str, Any], **settings: Any) -> httpx.Response:
    with httpx.Client(timeout=20, **settings) as client:
        return client.post(f"{server.url}/{path}", json=body)


def ask(server: Server, body: dict[str, Any]) -> dict[str, Any]:
    """The only choice of a good answer."""
    answer = post(server, "chat/completions" if "messages" in body else "completions", body)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    return choice


def written(lm: CausalLM, prompt: list[int], count: int = 12) -> list[int]:
    return lm.generate([prompt], Sampling(max_new_tokens=count))[0]


def text_of(lm: CausalLM, ids: list[int]) -> str:
    return str(lm.tokenizer.decode(ids, skip_special_tokens=True))


def prompt_ids(lm: CausalLM, **example: Any) -> list[int]:
    return Renderer(lm.tokenizer, lm.context).prompt_ids(Example(id="a", **example))


@torch.no_grad()
def logprobs(lm: CausalLM, ids: list[int]) -> torch.Tensor:
    """Row t is about the token after t."""
    return lm.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


# An honest server.


def test_models_are_listed_with_their_context(honest: Server, lm: CausalLM) -> None:
    answer = httpx.get(f"{honest.url}/models").json()
    assert [card["id"] for card in answer["data"]] == ["teacher"]
    assert answer["data"][0]["max_model_len"] == lm.context


def test_greedy_text_is_that_of_the_model_in_this_process(honest: Server, lm: CausalLM) -> None:
    ids = written(lm, prompt_ids(lm, prompt=PROMPT))
    choice = ask(honest, TEXT)
    assert choice["text"] == text_of(lm, ids) != ""
    assert choice["finish_reason"] == "length"
    assert ask(honest, CHAT)["message"]["content"] == choice["text"]  # without a template a user's text is the prompt


def test_a_conversation_goes_through_the_chat_template(chat_lm: CausalLM) -> None:
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT})
    parts = [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}]
    with serve(chat_lm) as server:
        ids = written(chat_lm, prompt_ids(chat_lm, messages=messages))
        assert ask(server, {**CHAT, "messages": messages})["message"]["content"] == text_of(chat_lm, ids)
        ids = written(chat_lm, prompt_ids(chat_lm, prompt=PROMPT))
        assert ask(server, {**CHAT, "messages": parts})["message"]["content"] == text_of(chat_lm, ids)
        plain = written(chat_lm, chat_lm.tokenizer(PROMPT)["input_ids"])
        assert ask(server, TEXT)["text"] == text_of(chat_lm, plain) != text_of(chat_lm, ids)  # a completion does not


def test_prompts_come_as_text_or_ids_alone_or_several(honest: Server, lm: CausalLM) -> None:
    one, two = prompt_ids(lm, prompt=PROMPT), prompt_ids(lm, prompt="the cat sat")
    expected = [text_of(lm, written(lm, ids)) for ids in (one, two)]
    for prompt in ([PROMPT, "the cat sat"], [one, two]):
        answer = post(honest, "completions", {**TEXT, "prompt": prompt}).json()
        assert [choice["text"] for choice in answer["choices"]] == expected
        assert [choice["index"] for choice in answer["choices"]] == [0, 1]
        assert answer["usage"]["prompt_tokens"] == len(one) + len(two)
    assert ask(honest, {**TEXT, "prompt": one})["text"] == expected[0]


def test_special_tokens_come_before_text_unless_told(
    make_student: MakeStudent, bos_tokenizer: PreTrainedTokenizerBase
) -> None:
    with serve(make_student(using=bos_tokenizer).lm) as server:
        asked = {**TEXT, "return_token_ids": True}
        with_bos = ask(server, asked)["prompt_token_ids"]
        assert with_bos[0] == bos_tokenizer.bos_token_id
        assert ask(server, {**asked, "add_special_tokens": False})["prompt_token_ids"] == with_bos[1:]


def test_usage_counts_the_end_token_which_the_text_does_not_show(make_student: MakeStudent) -> None:
    lm = make_student(seed=3).lm
    prompt = prompt_ids(lm, prompt=PROMPT)
    ids = written(lm, prompt)
    end = next(i for i in ids[2:] if i not in ids[:2])
    lm.model.generation_config.eos_token_id = [end, 0]
    cut = ids[: ids.index(end)]
    with serve(lm) as server:
        answer = post(server, "completions", {**TEXT, "return_token_ids": True}).json()
        exact = ask(server, {**TEXT, "max_tokens": len(cut) + 1})
        short = ask(server, {**TEXT, "max_tokens": len(cut)})
    (choice,) = answer["choices"]
    assert choice["text"] == text_of(lm, cut)
    assert choice["finish_reason"] == exact["finish_reason"] == "stop"
    assert short["finish_reason"] == "length"
    assert choice["token_ids"] == [*cut, end]
    assert choice["prompt_token_ids"] == prompt
    read, count = len(prompt), len(cut) + 1
    assert answer["usage"] == {"prompt_tokens": read, "completion_tokens": count, "total_tokens": read + count}


def test_a_stop_string_ends_the_text_before_it(honest: Server, lm: CausalLM) -> None:
    whole = ask(honest, TEXT)["text"]
    stop = whole[len(whole) // 2 :][:2]
    choice = ask(honest, {**TEXT, "stop": ["nowhere in it", stop], "return_token_ids": True})
    assert choice["text"] == whole[: whole.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert stop in text_of(lm, choice["token_ids"])
    assert stop not in text_of(lm, choice["token_ids"][:-1])


def test_a_seed_repeats_a_draw_and_without_one_every_answer_is_new(honest: Server) -> None:
    drawn = {**TEXT, "temperature": 1.0, "max_tokens": 20}
    texts = [ask(honest, {**drawn, "seed": seed})["text"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert ask(honest, drawn)["text"] != ask(honest, drawn)["text"]


def test_prompt_logprobs_are_the_models(honest: Server, lm: CausalLM) -> None:
    ids = prompt_ids(lm, prompt=PROMPT)
    choice = ask(honest, {**TEXT, "max_tokens": 1, "prompt_logprobs": 2})
    first, *rest = choice["prompt_logprobs"]
    assert first is None
    assert len(rest) == len(ids) - 1
    for row, token, said in zip(logprobs(lm, ids), ids[1:], rest, strict=False):
        own = said[str(token)]
        assert own["logprob"] == pytest.approx(float(row[token]), abs=1e-4)
        assert own["rank"] == int((row >= row[token]).sum())
        assert own["decoded_token"] == lm.tokenizer.decode([token])
        assert {int(i) for i in said} == {token, *row.topk(2).indices.tolist()}
    (everything,) = ask(honest, {**TEXT, "prompt": ids[:2], "max_tokens": 1, "prompt_logprobs": -1})["prompt_logprobs"][
        1:
    ]
    assert sum(torch.tensor([entry["logprob"] for entry in everything.values()]).exp()) == pytest.approx(1, abs=1e-4)


def test_logprobs_of_written_tokens_are_the_models(honest: Server, lm: CausalLM) -> None:
    prompt = prompt_ids(lm, prompt=PROMPT)
    ids = written(lm, prompt)
    rows = logprobs(lm, prompt + ids)[len(prompt) - 1 :]
    told = ask(honest, {**TEXT, "logprobs": 3, "return_tokens_as_token_ids": True})["logprobs"]
    assert told["tokens"] == [f"token_id:{i}" for i in ids]
    assert told["token_logprobs"] == pytest.approx([float(row[i]) for row, i in zip(rows, ids, strict=False)], abs=1e-4)
    assert [set(top) for top in told["top_logprobs"]] == [
        {f"token_id:{i}" for i in row.topk(3).indices.tolist()} for row in rows[:-1]
    ]
    chat = ask(honest, {**CHAT, "logprobs": True, "top_logprobs": 3})["logprobs"]["content"]
    assert [token["logprob"] for token in chat] == pytest.approx(told["token_logprobs"])
    assert [token["bytes"] for token in chat] == [list(lm.tokenizer.decode([i]).encode()) for i in ids]
    assert {len(token["top_logprobs"]) for token in chat} == {3}


def test_an_echo_without_writing_scores_a_prompt(honest: Server, lm: CausalLM) -> None:
    ids = prompt_ids(lm, prompt=PROMPT)
    answer = post(honest, "completions", {**TEXT, "max_tokens": 0, "echo": True, "logprobs": 1}).json()
    (choice,) = answer["choices"]
    assert choice["text"] == PROMPT
    assert answer["usage"]["completion_tokens"] == 0
    rows = logprobs(lm, ids)
    expected = [float(row[i]) for row, i in zip(rows, ids[1:], strict=False)]
    assert choice["logprobs"]["token_logprobs"] == [None, *(pytest.approx(value, abs=1e-4) for value in expected)]
    assert choice["logprobs"]["top_logprobs"][0] is None
    assert [PROMPT[at] for at in choice["logprobs"]["text_offset"]] == [
        token[0] for token in choice["logprobs"]["tokens"]
    ]
    echoed = ask(honest, {**TEXT, "echo": True, "logprobs": 0})
    assert echoed["text"].startswith(PROMPT)
    assert len(echoed["logprobs"]["tokens"]) == len(ids) + 12


@pytest.mark.parametrize(
    ("path", "changes", "status", "words"),
    [
        ("completions", {"model": "other"}, 404, "The model `other` does not exist."),
        ("embeddings", {}, 404, "Not Found"),
        ("completions", {"logprobs": 6}, 400, "Requested sample logprobs of 6, which is greater than max allowed: 5"),
        ("completions", {"prompt_logprobs": -1}, 400, "Requested prompt logprobs of"),
        ("completions", {"prompt": "a" * 500}, 400, "This model's maximum context length is 128 tokens. However, you"),
        (
            "completions",
            {"prompt": [5] * 120, "max_tokens": 9},
            400,
            "at least 120 input tokens, for a total of at least",
        ),
        ("chat/completions", {"messages": CHAT["messages"] * 0}, 400, "messages"),
        ("chat/completions", {"messages": [{"role": "assistant", "content": "5"}]}, 400, "nothing to answer"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "image_url"),
        ("chat/completions", {"messages": CHAT["messages"], "top_logprobs": 2}, 400, "`logprobs` must be set to true"),
        ("completions", {"prompt": ""}, 400, "must be provided and non-empty"),
        ("completions", {"prompt": [[1], []]}, 400, "prompt"),
        ("completions", {"prompt": [9999]}, 400, "Token id 9999 is out of vocabulary"),
        ("completions", {"max_tokens": 0}, 400, "max_tokens must be at least 1, got 0."),
        ("completions", {"temperature": -1}, 400, "temperature"),
        ("completions", {"n": 2}, 400, "n: "),
        ("completions", {"stream": True}, 400, "stream"),
    ],
)
def test_refusals_are_error_objects(lm: CausalLM, path: str, changes: dict[str, Any], status: int, words: str) -> None:
    with serve(lm, max_logprobs=5) as server:
        answer = post(server, path, {**TEXT, **changes})
        assert answer.status_code == status
        error = answer.json()["error"]
        assert words in error["message"]
        assert error["code"] == status
        assert error["type"] == {400: "BadRequestError", 404: "NotFoundError"}[status]
        assert ask(server, {**TEXT, "logprobs": None, "stop": None, "seed": None})["text"]  # and it goes on


def test_a_body_that_is_no_json_is_refused(honest: Server) -> None:
    assert httpx.post(f"{honest.url}/completions", content=b"{").status_code == 400


def test_a_wrong_key_is_told_back(lm: CausalLM) -> None:
    with serve(lm, key="right") as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            answer = post(server, "completions", TEXT, headers=headers)
            assert answer.status_code == httpx.get(f"{server.url}/models", headers=headers).status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert "wrong" in answer.json()["error"]["message"]
        assert post(server, "completions", TEXT, headers={"Authorization": "Bearer right"}).status_code == 200
        assert [seen.body for seen in server.seen] == [TEXT]


def test_a_connection_is_kept_and_what_was_asked_is_known(honest: Server) -> None:
    before = len(honest.seen)
    with httpx.Client() as client:
        streams = {
            id(client.post(f"{honest.url}/completions", json=TEXT).extensions["network_stream"]) for _ in range(3)
        }
    assert len(streams) == 1
    seen = honest.seen[before:]
    assert [(one.path, one.body, one.fault) for one in seen] == [("/v1/completions", TEXT, None)] * 3
    assert [one.attempt for one in seen] == [seen[0].attempt + more for more in range(3)]


# Without a model.


def test_a_function_answers_in_the_place_of_a_model() -> None:
    def answer(asked: Any) -> str:
        return f"{asked} is it" if isinstance(asked, str) else f"{len(asked)} turns of  talk"

    with serve(answering(answer)) as server:
        assert ask(server, TEXT)["text"] == f"{PROMPT} is it"
        reply = post(server, "chat/completions", {**CHAT, "max_tokens": 3}).json()
        assert reply["choices"][0]["message"]["content"] == "1 turns of"
        assert reply["choices"][0]["finish_reason"] == "length"
        assert reply["usage"] == {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
        assert ask(server, {**CHAT, "max_tokens": None})["finish_reason"] == "stop"
        for changes in ({"logprobs": 1}, {"prompt": [1, 2]}):
            assert post(server, "completions", {**TEXT, **changes}).status_code == 400


def test_many_clients_at_once() -> None:
    with serve(answering(str), faults=Faults(latency=0.05)) as server, httpx.Client(limits=httpx.Limits()) as client:

        def one(number: int) -> str:
            return client.post(f"{server.url}/completions", json={"prompt": f"{number}"}).json()["choices"][0]["text"]

        with ThreadPoolExecutor(64) as pool:
            begun = time.monotonic()
            texts = list(pool.map(one, range(256)))
            took = time.monotonic() - begun
    assert texts == [str(number) for number in range(256)]
    assert took < 256 * 0.05 / 4  # one after another they would take 12.8 seconds; a busy machine is given its due
    assert len(server.seen) == 256


# Faults instead of an answer.


def only(fault: str, **settings: Any) -> Faults:
    return Faults(**{fault: 1.0, "strikes": 1, **settings})


@pytest.mark.parametrize(("fault", "status"), [("error", 500), ("unavailable", 503), ("limited", 429)])
def test_an_error_by_status_and_the_next_attempt_is_answered(fault: str, status: int) -> None:
    with serve(answering(str), faults=only(fault, retry_after=1.5)) as server:
        failed = post(server, "completions", TEXT)
        assert failed.status_code == status
        assert failed.json()["error"]["message"]
        assert failed.headers.get("Retry-After") == ("1.5" if fault == "limited" else None)
        assert ask(server, TEXT)["text"] == PROMPT
        assert [(seen.attempt, seen.fault) for seen in server.seen] == [(0, fault), (1, None)]


def test_retry_after_as_a_date() -> None:
    with serve(answering(str), faults=only("limited", retry_after=30, retry_after_form="date")) as server:
        until = parsedate_to_datetime(post(server, "completions", TEXT).headers["Retry-After"])
        assert 29 < until.timestamp() - time.time() < 31.5


@pytest.mark.parametrize("fault", ["disconnect", "truncate"])
def test_a_connection_that_ends_too_early(fault: str) -> None:
    with serve(answering(str), faults=only(fault)) as server:
        words = {"disconnect": "without sending a response", "truncate": "without sending complete message"}[fault]
        with pytest.raises(httpx.RemoteProtocolError, match=words):
            post(server, "completions", TEXT)
        assert ask(server, TEXT)["text"] == PROMPT


def test_good_status_with_a_body_that_is_no_answer() -> None:
    with serve(answering(str), faults=only("garbage")) as server:
        answer = post(server, "completions", TEXT)
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/html")
        with pytest.raises(ValueError, match="Expecting value"):
            answer.json()
    with serve(answering(str), faults=only("choiceless")) as server:
        answer = post(server, "completions", TEXT)
        assert answer.status_code == 200
        assert "choices" not in answer.json()


def test_a_stalled_request_ends_with_its_client_or_with_the_server() -> None:
    with serve(answering(str), faults=Faults(stall=1.0)) as server, ThreadPoolExecutor(1) as pool:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/completions", json=TEXT, timeout=0.2)
        waiting = pool.submit(post, server, "completions", TEXT)
        while len(server.seen) < 2:
            time.sleep(0.01)
        begun = time.monotonic()
        server.close()
        assert time.monotonic() - begun < 5
        with pytest.raises(httpx.RemoteProtocolError):
            waiting.result()


def test_slow_answers_come_all_the_same() -> None:
    with serve(answering(str), faults=Faults(slow=1.0, slow_seconds=0.3)) as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/completions", json=TEXT, timeout=0.1)
        begun = time.monotonic()
        assert ask(server, TEXT)["text"] == PROMPT
        assert time.monotonic() - begun > 0.3


def test_so_many_a_second_and_no_more() -> None:
    with serve(answering(str), faults=Faults(per_second=3)) as server, httpx.Client() as client:
        answers = [client.post(f"{server.url}/completions", json={**TEXT, "seed": n}) for n in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        wait = float(answers[-1].headers["Retry-After"])
        assert 0 < wait <= 1
        time.sleep(wait + 0.01)
        assert client.post(f"{server.url}/completions", json=TEXT).status_code == 200
    with serve(answering(str), faults=Faults(per_second=0, retry_after=7)) as server:
        answer = post(server, "completions", TEXT)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "7")


def test_a_server_dies_after_so_many_answers_and_another_takes_its_port() -> None:
    with serve(answering(str), faults=Faults(die_after=3, latency=0.02)) as server, ThreadPoolExecutor(8) as pool:

        def one(number: int) -> int:
            try:
                return post(server, "completions", {**TEXT, "seed": number}).status_code
            except httpx.TransportError:
                return 0

        assert sorted(pool.map(one, range(8))) == [0] * 5 + [200] * 3
        assert server.wait(timeout=10)
        with pytest.raises(httpx.ConnectError):
            ask(server, TEXT)
        with serve(answering(str), port=server.port) as successor:
            assert ask(successor, TEXT)["text"] == PROMPT


def test_only_good_answers_bring_a_server_closer_to_its_death() -> None:
    with serve(answering(str), faults=only("garbage", die_after=2)) as server, httpx.Client() as client:
        bodies = [{**TEXT, "seed": seed} for seed in (0, 0, 1, 1)]
        answers = [client.post(f"{server.url}/completions", json=body) for body in bodies]
        assert ["choices" in answer.text for answer in answers] == [False, True, False, True]
        assert server.wait(timeout=10)


def test_the_same_requests_are_struck_in_whatever_order_they_come() -> None:
    faults = Faults(error=0.2, limited=0.1, garbage=0.1, seed=5)
    bodies = [{"prompt": f"{number}"} for number in range(60)]

    def struck(order: Callable[[list[dict[str, Any]]], Any], faults: Faults) -> dict[str, list[str | None]]:
        with serve(answering(str), faults=faults) as server, httpx.Client() as client:
            for _ in range(2):
                for body in order(bodies):
                    client.post(f"{server.url}/completions", json=body)
            found: dict[str, list[str | None]] = {}
            for seen in server.seen:
                found.setdefault(seen.body["prompt"], []).append(seen.fault)
        return found

    first = struck(list, faults)
    assert first == struck(lambda bodies: bodies[::-1], faults)
    assert first != struck(list, Faults(error=0.2, limited=0.1, garbage=0.1, seed=6))
    drawn = [fault for attempts in first.values() for fault in attempts]
    assert 30 <= sum(fault is not None for fault in drawn) <= 66  # of 120, at a rate of 0.4
    assert {*drawn} == {None, "error", "limited", "garbage"}
    assert any(len({*attempts}) == 2 for attempts in first.values())  # another attempt, another draw


def test_rates_are_kept() -> None:
    faults = Faults(**dict.fromkeys(INSTEAD, 0.05), seed=1)
    drawn = [faults.instead(str(number), 0) for number in range(4000)]
    for fault in INSTEAD:
        assert 0.035 < drawn.count(fault) / 4000 < 0.065


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"error": 1.5}, "error is a rate, from 0 to 1, and was 1.5"),
        ({"error": 0.6, "stall": 0.6}, "their rates sum to 1.2"),
        ({"logprobs": "shiftd"}, "Did you mean 'shifted'?"),
        ({"die_after": 0}, "at least 1"),
    ],
)
def test_faults_that_make_no_sense_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words.replace("?", r"\?")):
        Faults(**settings)


# Texts that are wrong.


def test_wrong_texts(lm: CausalLM) -> None:
    def of(fault: str, body: dict[str, Any]) -> dict[str, Any]:
        with serve(lm, faults=Faults(**{fault: 1.0})) as server:
            return ask(server, body)

    with serve(lm) as server:
        whole = ask(server, TEXT)["text"]
    long = {**CHAT, "max_tokens": 60}
    assert of("empty", CHAT)["message"]["content"] == ""
    assert of("empty", CHAT)["finish_reason"] == "stop"
    assert of("foreign", long)["message"]["content"] == FOREIGN
    refused = of("refusal", long)
    assert (refused["message"]["content"], refused["message"]["refusal"]) == (None, REFUSAL)
    cut = of("cut", TEXT)
    assert cut["finish_reason"] == "length"
    assert len(cut["text"]) < len(whole)
    assert whole.startswith(cut["text"])


def test_a_text_without_end_goes_up_to_the_limit() -> None:
    with serve(answering(str), faults=Faults(endless=1.0)) as server:
        answer = post(server, "completions", {**TEXT, "max_tokens": 30}).json()
        assert answer["usage"]["completion_tokens"] == 30
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["choices"][0]["text"].count("apples") > 5


def test_what_is_wrong_with_a_text_stays_wrong_when_asked_again() -> None:
    with serve(answering(str), faults=Faults(empty=0.5)) as server:
        texts = [[ask(server, {**TEXT, "seed": seed})["text"] for _ in range(3)] for seed in range(12)]
    assert all(len({*same}) == 1 for same in texts)
    assert {same[0] for same in texts} == {"", PROMPT}


# Lies about log-probabilities.


def compared(lm: CausalLM, faults: Faults) -> tuple[list[float], list[float]]:
    """The same tokens scored as a continuation and as a prompt, which is how a client finds liars."""
    with serve(lm, faults=faults) as server:
        asked = {**TEXT, "max_tokens": 4, "logprobs": 0, "return_token_ids": True}
        choice = ask(server, asked)
        ids = choice["prompt_token_ids"] + choice["token_ids"]
        scored = ask(server, {**TEXT, "prompt": ids, "max_tokens": 1, "prompt_logprobs": 0})["prompt_logprobs"][-4:]
    prompt = [entry[str(token)]["logprob"] for entry, token in zip(scored, ids[-4:], strict=True)]
    return choice["logprobs"]["token_logprobs"], prompt


@pytest.mark.parametrize("about", ["logprobs", "prompt_logprobs"])
@pytest.mark.parametrize("lie", ["shifted", "tempered"])
def test_a_lie_shows_where_continuation_and_prompt_are_compared(lm: CausalLM, about: str, lie: str) -> None:
    honest = compared(lm, Faults())
    assert honest[0] == pytest.approx(honest[1], abs=1e-4)
    settings: dict[str, Any] = {about: lie}
    continuation, prompt = compared(lm, Faults(**settings))
    assert max(abs(a - b) for a, b in zip(continuation, prompt, strict=True)) > 0.1
    assert (continuation if about == "prompt_logprobs" else prompt) == pytest.approx(honest[0], abs=1e-4)


def test_what_the_lies_say(lm: CausalLM) -> None:
    prompt = prompt_ids(lm, prompt=PROMPT)
    ids = written(lm, prompt, 4)
    model: Any = lm.model
    logits = model(input_ids=torch.tensor([prompt + ids])).logits[0].detach()
    shifted = logits.log_softmax(-1)[-4:]
    tempered = (logits[-5:-1] / 3).log_softmax(-1)
    for lie, rows in (("shifted", shifted), ("tempered", tempered)):
        settings: dict[str, Any] = {"logprobs": lie, "logprob_temperature": 3.0}
        told, _ = compared(lm, Faults(**settings))
        assert told == pytest.approx([float(row[i]) for row, i in zip(rows, ids, strict=True)], abs=1e-4)


def test_logprobs_that_are_promised_and_missing(lm: CausalLM) -> None:
    asked = {**TEXT, "logprobs": 1000, "prompt_logprobs": 1}
    with serve(lm, faults=Faults(logprobs="missing", prompt_logprobs="missing")) as server:
        choice = ask(server, asked)
        assert choice["logprobs"] is choice["prompt_logprobs"] is None
        assert choice["text"]
        assert ask(server, {**CHAT, "logprobs": True, "top_logprobs": 2})["logprobs"] is None
    with serve(lm, faults=Faults(prompt_logprobs="missing")) as server:
        choice = ask(server, {**asked, "logprobs": 1})
        assert choice["prompt_logprobs"] is None
        assert choice["logprobs"]["token_logprobs"]


def test_tokens_named_by_their_text_collide(lm: CausalLM) -> None:
    asked = {**TEXT, "max_tokens": 1, "logprobs": -1, "return_tokens_as_token_ids": True, "return_token_ids": True}
    with serve(lm, max_logprobs=-1) as server:
        assert len(ask(server, asked)["logprobs"]["top_logprobs"][0]) == lm.vocabulary
    with serve(lm, max_logprobs=-1, faults=Faults(text_keys=True)) as server:
        choice = ask(server, asked)
        assert len(choice["logprobs"]["top_logprobs"][0]) < lm.vocabulary
        assert choice["token_ids"] is None


# As a process of its own.


def test_it_runs_as_a_process_and_takes_faults_as_flags() -> None:
    command = [sys.executable, "-m", "stillhouse.testing.server", "--port", "0", "--answer", "You asked: {asked}"]
    command += ["--name", "tiny", "--key-env", "TEST_KEY", "--limited-rate", "1", "--strikes", "1", "--die-after", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TEST_KEY": "k"}) as process:
        assert process.stdout is not None
        url = process.stdout.readline().rpartition(" ")[2].strip()
        with httpx.Client(headers={"Authorization": "Bearer k"}, base_url=url) as client:
            assert client.get("/models").json()["data"][0]["id"] == "tiny"
            assert client.post("/completions", json={"prompt": "2 + 2"}).status_code == 429
            answer = client.post("/completions", json={"prompt": "2 + 2"})
            assert answer.json()["choices"][0]["text"] == "You asked: 2 + 2"
        assert process.wait(timeout=20) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--error-rate", "2"], "error is a rate, from 0 to 1"),
        (["--die-after", "soon"], "die_after: Input should be a valid integer"),
        (["--key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY, which the environment does not have"),
    ],
)
def test_wrong_flags(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
