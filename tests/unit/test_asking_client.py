"""The client against real servers on the loopback: what it retries, what it gives up on, and what is never lost."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_server import SmallServer, chat_reply, echo_last, small_server

from stillhouse.asking.budget import Amount, Budget
from stillhouse.asking.client import Client, Manner
from stillhouse.asking.exchange import RefusedError, Server, UnreachableError
from stillhouse.asking.protocol import Reply, Request, Wording
from stillhouse.asking.store import RequestStore
from stillhouse.errors import BudgetError, NeedsError, TeacherError

KEY = "sk-very-secret"
WORDING = Wording(model="small", max_tokens=8)
Make = Callable[..., Client]


def questions(count: int, start: int = 0) -> Iterator[Request]:
    for n in range(start, start + count):
        yield Request(f"e{n}", "chat/completions", WORDING.chat([{"role": "user", "content": f"q{n}"}]), reads=10)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setenv("TEST_KEY", KEY)
    stores: list[RequestStore] = []

    def build(
        server: SmallServer | str, budget: Budget | None = None, key_env: str = "TEST_KEY", **manner: Any
    ) -> Client:
        url = server if isinstance(server, str) else server.url
        stores.append(RequestStore(tmp_path / "r.sqlite"))
        given = {"concurrency": 4, "timeout": 5.0, "retries": 3, **manner}
        return Client(Server.of(url, "small", key_env), stores[-1], budget or Budget(), Manner(**given))

    yield build
    for store in stores:
        store.close()


def texts(client: Client, requests: Iterator[Request]) -> dict[int, str]:
    return {number: reply.text for number, reply in client.ask(requests)}


def failing(status: int, body: Any, **headers: str) -> Callable[..., Any]:
    return lambda path, asked: (status, {k.replace("_", "-"): v for k, v in headers.items()}, body)


def first_then(times: int, *answer: Any) -> Callable[..., Any]:
    """Every request fails so often, then is answered."""
    seen: Counter[str] = Counter()

    def reply(path: str, body: dict[str, Any]) -> Any:
        what = body["messages"][-1]["content"]
        seen[what] += 1
        return answer if seen[what] <= times else echo_last(path, body)

    return reply


def test_all_are_answered_and_stored_and_none_is_asked_twice(make: Make) -> None:
    with small_server() as server:
        client = make(server)
        expected = {n: f"You said q{n}" for n in range(50)}
        assert texts(client, questions(50)) == expected
        assert len(server.seen) == 50
        assert server.most <= 4
        assert client.tally.paid == Amount(50, 350, 150)
        again = make(server)
        assert texts(again, questions(60)) == expected | {n: f"You said q{n}" for n in range(50, 60)}
        assert len(server.seen) == 60
        assert (again.tally.stored, again.tally.paid.calls) == (50, 10)
        assert again.store.counts() == (60, 0)


def test_the_same_question_is_asked_once_and_answered_as_often_as_it_was_put(make: Make) -> None:
    with small_server() as server:
        found = texts(make(server), itertools.chain(questions(3), questions(3), questions(3)))
        assert len(server.seen) == 3
        assert found == {n: f"You said q{n % 3}" for n in range(9)}


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (500, {"error": {"message": "boom"}}, "HTTP 500 (boom)"),
        (503, b"busy", "HTTP 503 (busy)"),
        (429, {"error": {"message": "slowly"}}, "HTTP 429 (slowly)"),
        (200, b"<html>", "a reply out of form: no JSON but '<html>'"),
        (200, {"choices": []}, "a reply out of form: 0 choices"),
        (0, None, "connection lost"),
    ],
)
def test_what_passes_is_tried_again(status: int, body: Any, reason: str, make: Make) -> None:
    with small_server(first_then(1, status, {}, body)) as server:
        client = make(server)
        assert len(texts(client, questions(4))) == 4
        assert [(r[: len(reason)], n) for r, n in client.tally.retried.items()] == [(reason, 4)]
        worked = status in (0, 200)  # it may stand on the bill
        assert client.store.spent(client.teacher).calls == (8 if worked else 4)


def test_the_last_error_tells_every_reason(make: Make) -> None:
    with small_server(failing(500, {"error": {"message": "boom"}})) as server:
        client = make(server, retries=2)
        with pytest.raises(
            TeacherError, match=r"did not answer example 'e0' in 3 tries: 3 x HTTP 500 \(boom\)"
        ) as caught:
            texts(client, questions(1))
        assert "0 answers are kept in" in str(caught.value)
        assert len(server.seen) == 3


def test_silence_ends_in_time_and_counts_in_full(make: Make) -> None:
    def silent(path: str, body: dict[str, Any]) -> Any:
        time.sleep(1.0)
        return echo_last(path, body)

    with small_server(silent) as server:
        client = make(server, timeout=0.2, retries=1)
        with pytest.raises(TeacherError, match=r"2 x no answer within 0.2 s"):
            texts(client, questions(1))
        assert client.store.spent(client.teacher) == Amount(2, 20, 16)


def test_nobody_there(make: Make) -> None:
    with small_server() as server:
        gone = server.url
    client = make(gone, retries=1)
    with pytest.raises(TeacherError, match=r"2 x no connection"):
        texts(client, questions(1))
    assert client.store.spent(client.teacher) == Amount()
    with pytest.raises(UnreachableError, match=r"does not answer.*Is the server up"):
        client.models()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (
            401,
            {"error": {"message": f"Incorrect API key: {KEY}."}},
            r"refuses the key \(HTTP 401: .*\*\*\*.*TEST_KEY is set",
        ),
        (403, b"", "refuses the key .*without a word.*TEST_KEY is set, and not accepted"),
        (
            404,
            {"error": {"message": "no such model"}},
            "is not found .*no such model.*The model is there, so the address",
        ),
        (
            400,
            {"error": {"message": "This model's maximum context length is 8 tokens."}},
            "Example 'e0' is too long.*10 tok",
        ),
        (400, {"error": {"message": "no", "code": "context_length_exceeded"}}, "Example 'e0' is too long"),
        (
            400,
            {"error": {"message": "max_tokens=9 cannot be greater than max_model_len=8.", "code": 400}},
            "Example 'e0' is too long.*10 tok",
        ),
        (422, {"detail": "bad temperature"}, "refuses example 'e0' .HTTP 422: bad temperature"),
        (429, {"error": {"message": "pay", "code": "insufficient_quota"}}, "account is empty .HTTP 429: pay"),
        (402, {}, "account is empty"),
        (301, b"", "refuses example 'e0' .HTTP 301"),
    ],
)
def test_what_no_retry_mends_ends_at_once(status: int, body: Any, message: str, make: Make) -> None:
    with small_server(failing(status, body)) as server:
        client = make(server)
        with pytest.raises(TeacherError, match=message) as caught:
            texts(client, questions(1))
        assert len(server.seen) == 1
        assert KEY not in str(caught.value)
        assert client.store.spent(client.teacher) == Amount()


def test_a_missing_key_is_named_by_its_variable(make: Make) -> None:
    with small_server(failing(401, {})) as server, pytest.raises(TeacherError, match="variable NO_KEY is not set"):
        texts(make(server, key_env="NO_KEY"), questions(1))


def test_a_key_that_no_header_may_hold(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "two words")
    with pytest.raises(TeacherError, match="TEST_KEY holds is no key") as caught:
        make("http://127.0.0.1:1/v1")
    assert "two words" not in str(caught.value)


def test_a_model_that_the_server_lacks_is_suggested(make: Make) -> None:
    with small_server(failing(404, {"error": "no such model"})) as server:
        server.models = ["smell", "other"]
        with pytest.raises(TeacherError, match="Did you mean 'smell'"):
            texts(make(server), questions(1))


def test_log_probabilities_that_are_missing_are_not_asked_for_again(make: Make) -> None:
    asked = Wording(model="small", max_tokens=4, logprobs=3).chat([{"role": "user", "content": "q"}])
    with small_server() as server:
        client = make(server)
        with pytest.raises(NeedsError, match="answered with no logprobs, which were asked for"):
            list(client.ask([Request("a", "chat/completions", asked, 5)]))
        assert len(server.seen) == 1
        assert client.store.counts() == (0, 0)


def test_retry_after_holds_everybody(make: Make) -> None:
    times: list[float] = []

    def limited(path: str, body: dict[str, Any]) -> Any:
        times.append(time.monotonic())
        return (429, {"retry-after": "0.6"}, {}) if len(times) == 1 else echo_last(path, body)

    with small_server(limited) as server:
        client = make(server, concurrency=1)
        assert len(texts(client, questions(6))) == 6
        assert times[1] - times[0] >= 0.55


def test_a_server_that_asks_for_an_hour_is_not_waited_for(make: Make) -> None:
    hour = failing(429, {}, retry_after="3600")
    with small_server(hour) as server, pytest.raises(TeacherError, match="asks to wait 60 minutes"):
        texts(make(server), questions(1))


def test_a_rate_limit_of_zero_ends(make: Make) -> None:
    zero = failing(429, {"error": {"message": "limit 0"}}, retry_after="0")
    with small_server(zero) as server, pytest.raises(TeacherError, match=r"3 x HTTP 429 \(limit 0\)"):
        texts(make(server, retries=2), questions(3))


def test_a_refusal_for_rate_is_no_try_while_others_are_answered(make: Make) -> None:
    """Twenty requests, one served at a time: far more refusals than a request has tries."""
    busy = threading.Lock()

    def one_at_a_time(path: str, body: dict[str, Any]) -> Any:
        if not busy.acquire(blocking=False):
            return 429, {}, {}
        try:
            time.sleep(0.03)
            return echo_last(path, body)
        finally:
            busy.release()

    with small_server(one_at_a_time) as server:
        assert len(texts(make(server, concurrency=8, retries=2), questions(20))) == 20


def test_when_one_fails_for_good_the_others_under_way_are_kept(make: Make) -> None:
    def one_bad(path: str, body: dict[str, Any]) -> Any:
        bad = body["messages"][-1]["content"] == "q0"
        time.sleep(0.1 if bad else 0.3)
        return (400, {}, {"error": {"message": "bad"}}) if bad else echo_last(path, body)

    with small_server(one_bad) as server:
        client = make(server)
        with pytest.raises(RefusedError, match=r"example 'e0'.*3 answers are kept in .*r.sqlite; the same command"):
            texts(client, questions(30))
        assert client.store.counts() == (3, 0)
        assert len(server.seen) == 4


def test_a_caller_that_stops_loses_nothing_that_was_under_way(make: Make) -> None:
    def slow(path: str, body: dict[str, Any]) -> Any:
        time.sleep(0.1)
        return echo_last(path, body)

    with small_server(slow) as server:
        client = make(server)
        replies = client.ask(questions(1000))
        next(replies)

        with pytest.raises(KeyboardInterrupt):
            replies.throw(KeyboardInterrupt())  # ty: ignore[unresolved-attribute]
        assert len(server.seen) < 20
        assert client.store.counts() == (len(server.seen), 0)


def test_an_error_of_the_caller_s_own_requests_comes_through(make: Make) -> None:
    def broken() -> Iterator[Request]:
        yield from questions(300)
        raise ZeroDivisionError

    with small_server() as server:
        client = make(server)
        with pytest.raises(ZeroDivisionError):
            texts(client, broken())
        assert client.store.counts().open == 0


def test_a_budget_is_hard_and_says_how_to_go_on(make: Make) -> None:
    with small_server() as server:
        client = make(server, Budget(calls=10, read_price=1.0, written_price=2.0))
        with pytest.raises(BudgetError) as caught:
            texts(client, questions(30))
        for words in (
            "budget of 'small' at",
            "calls: 0 of 10 are left, 1 more is needed",
            "It has cost 10 calls, 70 tokens read, 30 written, USD 0.00013 over all runs",
            "may take up to 1 calls, 10 tokens read, 8 written",
            "Raise the teacher's budget",
            "10 answers are kept in",
        ):
            assert words in str(caught.value)
        assert len(server.seen) == 10
        assert len(texts(make(server, Budget(calls=30)), questions(30))) == 30
        assert len(server.seen) == 30


def test_what_is_reserved_and_not_used_is_lent_on(make: Make) -> None:
    """Each takes 10 of at most 18 tokens: reserved at their most, only 5 of the 10 would fit."""
    with small_server() as server:
        client = make(server, Budget(tokens=108), concurrency=8)
        assert len(texts(client, questions(10))) == 10
        assert client.store.spent(client.teacher).tokens == 100


def test_a_server_that_reads_more_than_it_was_given_is_reckoned_with(make: Make) -> None:
    """Its template adds a page to every prompt: the first is a surprise, the next are not."""
    with small_server(lambda path, body: (200, {}, chat_reply("four", read=110))) as server:
        client = make(server, Budget(tokens=400), concurrency=1)
        with pytest.raises(BudgetError, match=r"tokens: 61 of 400 are left, 118 more are needed"):
            texts(client, questions(10))
        assert client.store.spent(client.teacher) == Amount(3, 330, 9)


def test_a_server_that_counts_nothing_is_taken_at_the_most(make: Make) -> None:
    def uncounted(path: str, body: dict[str, Any]) -> Any:
        reply = chat_reply("four")
        del reply["usage"]
        return 200, {}, reply

    with small_server(uncounted) as server:
        client = make(server)
        texts(client, questions(2))
        assert client.tally.paid == Amount(2, 20, 16)


def test_it_works_where_a_loop_runs(make: Make) -> None:
    async def notebook(client: Client) -> int:
        return len(texts(client, questions(5)))

    with small_server() as server:
        assert asyncio.run(notebook(make(server))) == 5


def test_requests_are_drawn_as_they_are_needed(make: Make) -> None:
    """A hundred thousand of them, stored or not, are never there at once."""
    drawn = 0

    def counted() -> Iterator[Request]:
        nonlocal drawn
        for request in questions(100_000):
            drawn += 1
            yield request

    with small_server() as server:
        client = make(server)
        replies = client.ask(counted())
        for _ in range(20):
            next(replies)
        replies.close()  # ty: ignore[unresolved-attribute]
    assert drawn <= 1024 + 2 * 256


def test_memory_is_flat_over_stored_replies(make: Make) -> None:
    client = make("http://127.0.0.1:1/v1")
    with client.store.transaction():
        for request in questions(6000):
            client.store.put(request.key(client.teacher), client.teacher, Reply("x" * 1000, True, "stop", 1, 1))
    tracemalloc.start()
    try:
        assert sum(1 for _ in client.ask(questions(6000))) == 6000
        assert tracemalloc.get_traced_memory()[1] < 4_000_000  # of 6 MB of text alone
    finally:
        tracemalloc.stop()


def test_concurrency_falls_to_what_the_server_bears(make: Make) -> None:
    under_way, lock, refused = [0], threading.Lock(), [0]

    def four_at_once(path: str, body: dict[str, Any]) -> Any:
        with lock:
            under_way[0] += 1
            full = under_way[0] > 4
        try:
            if full:
                refused[0] += 1
                return 503, {}, b"busy"
            time.sleep(0.02)
            return echo_last(path, body)
        finally:
            with lock:
                under_way[0] -= 1

    with small_server(four_at_once) as server:
        assert len(texts(make(server, concurrency=32, retries=9), questions(200))) == 200
    assert refused[0] < 150  # 32 at once throughout would be refused a thousand times
