"""What is sent, what a reply says, what is kept, and what it may cost; without a server."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import multiprocessing
import random
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from asker import resident_kb
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.asking.budget import Amount, Budget
from stillhouse.asking.pace import LONGEST_WAIT, Pace, backoff, retry_after
from stillhouse.asking.protocol import (
    MalformedError,
    MissingLogprobsError,
    Reply,
    Request,
    Wording,
    complaint,
    parse,
    scoring_body,
)
from stillhouse.asking.store import FORMAT, RequestStore
from stillhouse.errors import BudgetError, RequestStoreError

CHAT = Request("a", "chat/completions", {"max_tokens": 8}, 10)
TEXT = Request("a", "completions", {"max_tokens": 8}, 10)
ANSWER = Reply("four", True, "stop", 7, 3)


# Bodies.


def test_a_greedy_answer_is_one_answer_whatever_the_seed() -> None:
    greedy, sampled = Wording(model="m", max_tokens=8), Wording(model="m", max_tokens=8, temperature=0.7)
    turns = [{"role": "user", "content": "2 + 2?"}]
    assert greedy.chat(turns, seed=1) == greedy.chat(turns, seed=2)
    assert sampled.chat(turns, seed=1) != sampled.chat(turns, seed=2)
    assert greedy.chat(turns) == {"model": "m", "max_tokens": 8, "temperature": 0.0, "messages": turns}


def test_extra_fields_are_sent_and_null_leaves_ours_out() -> None:
    wording = Wording(
        model="m", max_tokens=8, limit="max_completion_tokens", extra={"temperature": None, "reasoning_effort": "low"}
    )
    assert wording.completion("2 +") == {
        "model": "m",
        "max_completion_tokens": 8,
        "prompt": "2 +",
        "reasoning_effort": "low",
    }


def test_log_probabilities_are_asked_for_by_token_id() -> None:
    wording = Wording(model="m", max_tokens=8, logprobs=5)
    chat, text = wording.chat([]), wording.completion([1, 2])
    assert (chat["logprobs"], chat["top_logprobs"]) == (True, 5)
    assert text["logprobs"] == 5
    assert chat["return_tokens_as_token_ids"]
    assert text["return_tokens_as_token_ids"]
    assert scoring_body("m", [1, 2], 5, "echo")["echo"]
    assert scoring_body("m", [1, 2], 5, "prompt_logprobs")["prompt_logprobs"] == 5


def test_a_request_without_a_limit_has_no_price() -> None:
    with pytest.raises(ValueError, match="'a' limits its answer by none of max_tokens"):
        Request("a", "completions", {}, 3).writes  # noqa: B018
    assert Request("a", "completions", {"max_completion_tokens": 5}, 3).writes == 5


# Replies.


def reply(request: Request, **choice: Any) -> Reply:
    return parse(request, json.dumps({"choices": [{"finish_reason": "stop", **choice}]}).encode())


@pytest.mark.parametrize(
    ("message", "ended", "text", "form"),
    [
        ({"content": "four"}, "stop", "four", "answer"),
        ({"content": [{"type": "text", "text": "fo"}, {"type": "text", "text": "ur"}]}, "stop", "four", "answer"),
        ({"content": "fo"}, "length", "fo", "cut off"),
        ({"content": ""}, "stop", "", "empty"),
        ({"content": None}, "content_filter", "", "filtered"),
        ({"content": None, "refusal": "I will not."}, "stop", "", "refusal"),
        ({"content": None, "tool_calls": []}, "tool_calls", "", "empty"),
    ],
)
def test_forms_of_answers(message: dict[str, Any], ended: str, text: str, form: str) -> None:
    found = reply(CHAT, message=message, finish_reason=ended)
    assert (found.text, found.form) == (text, form)
    assert found.finished == (ended in ("stop", "tool_calls"))
    assert Reply.from_json(found.to_json()) == found


def test_thoughts_are_kept_apart() -> None:
    assert reply(CHAT, message={"content": "4", "reasoning_content": "2 + 2"}).reasoning == "2 + 2"


def test_three_ways_to_name_a_token_become_one() -> None:
    named = {"token": "token_id:7", "logprob": -0.5, "top_logprobs": [{"token": "token_id:9", "logprob": -1.5}]}
    chat = reply(CHAT, message={"content": "x"}, logprobs={"content": [named]})
    assert chat.logprobs == [{"token_id:9": -1.5, "token_id:7": -0.5}]
    listed = {"tokens": ["token_id:7"], "token_logprobs": [-0.5], "top_logprobs": [{"token_id:9": -1.5}]}
    assert reply(TEXT, text="x", logprobs=listed).logprobs == chat.logprobs
    vllm = [None, {"7": {"logprob": -0.5, "rank": 1}, "9": {"logprob": -1.5, "rank": 2}}]
    assert reply(TEXT, text="x", prompt_logprobs=vllm).prompt_logprobs == [None, *(chat.logprobs or [])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>busy</html>", "no JSON but '<html>busy"),
        (b"", "no JSON but nothing"),
        (b"[]", "no 'choices' but"),
        (b'{"status": "ok"}', "no 'choices' but.*status"),
        (b'{"choices": []}', "0 choices where one"),
        (b'{"choices": [{"text": "x"}]}', "no 'message' but"),
        (b'{"choices": [{"message": {}}]}', "a message without content"),
        (b'{"choices": [{"message": {"content": 5}}]}', "message.content is '5', expected str"),
        (b'{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": -1}}', "usage.prompt_tokens is -1"),
        (
            b'{"choices": [{"message": {"content": "x"}, "prompt_logprobs": [{"7": NaN}]}]}',
            "log-probability that is nan",
        ),
    ],
)
def test_what_is_malformed_is_told(content: bytes, message: str) -> None:
    with pytest.raises(MalformedError, match=message):
        parse(CHAT, content)


_PLACE = {"token": "token_id:7", "logprob": -0.5, "top_logprobs": [{"token": "token_id:9", "logprob": -1.5}]}
_PROMPT = [None, {"7": {"logprob": -0.5, "rank": 1}}]
_WRITTEN = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"a": -0.5}]}
WHOLE: list[tuple[Request, dict[str, Any]]] = [
    (CHAT, {"message": {"content": "x", "refusal": None, "reasoning": "y"}, "logprobs": {"content": [_PLACE]}}),
    (TEXT, {"text": "x", "logprobs": _WRITTEN, "prompt_logprobs": _PROMPT, "prompt_token_ids": [3, 7]}),
]


def mutants(value: Any) -> Iterator[Any]:
    """Every way to spoil one place of a reply."""
    yield from (None, 5, "x", [], {}, [5], {"x": 5}, True)
    parts = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    for place, inner in list(parts):
        for mutant in mutants(inner):
            spoilt = copy.copy(value)
            spoilt[place] = mutant
            yield spoilt
        if isinstance(value, dict):
            yield {k: v for k, v in value.items() if k != place}


def test_no_reply_is_a_surprise() -> None:
    kept = malformed = 0
    for request, choice in WHOLE:
        usage = {"prompt_tokens": 2, "completion_tokens": 1}
        for mutant in mutants({"choices": [{"finish_reason": "stop", **choice}], "usage": usage}):
            try:
                assert Reply.from_json(parse(request, json.dumps(mutant).encode()).to_json())
                kept += 1
            except MalformedError:
                malformed += 1
    assert kept > 50
    assert malformed > 50


@pytest.mark.parametrize("asked", [{"prompt_logprobs": 3}, {"logprobs": 3}, {"logprobs": True, "top_logprobs": 3}])
def test_log_probabilities_left_out_in_silence_are_no_answer(asked: dict[str, Any]) -> None:
    with pytest.raises(MissingLogprobsError, match="leaves the field out in silence"):
        reply(Request("a", "completions", {"max_tokens": 1, **asked}, 3), text="x")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"error": {"message": "no", "code": "bad"}}', ("no", "bad")),
        (b'{"object": "error", "message": "no", "type": "BadRequestError", "code": 400}', ("no", "400")),
        (b'{"detail": "no"}', ("no", "")),
        (b'{"error": "no"}', ("no", "")),
        (b"no", ("no", "")),
    ],
)
def test_complaints(content: bytes, told: tuple[str, str]) -> None:
    assert complaint(content) == told


# Store.


def test_what_is_put_is_there_once(tmp_path: Path) -> None:
    with RequestStore(tmp_path / "deep" / "r.sqlite") as store:
        assert store.put("a", "t", ANSWER) == ANSWER
        assert store.put("a", "t", Reply("five", True, "stop")) == ANSWER  # the first is kept
        assert store.get_many(["a", "b"]) == {"a": ANSWER}
        store.forget(["a"])
        assert store.get_many(["a"]) == {}


def test_processes_share_a_store(tmp_path: Path) -> None:
    with RequestStore(tmp_path / "r.sqlite") as one, RequestStore(tmp_path / "r.sqlite") as other:
        one.put("a", "t", ANSWER)
        assert other.get_many(["a"]) == {"a": ANSWER}
        other.reserve("b", "t", Amount(1, 5, 5), Budget())
        assert one.spent("t") == Amount(1, 5, 5)


def test_a_change_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with RequestStore(tmp_path / "r.sqlite") as store:

        def fail() -> None:
            store.put("a", "t", ANSWER)
            raise KeyError

        with pytest.raises(KeyError):
            store.commit([fail])
        assert store.counts().answers == 0


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    RequestStore(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {FORMAT + 1}")
    db.close()
    with pytest.raises(
        RequestStoreError, match=rf"r.sqlite was written by a newer.*format {FORMAT + 1}.*up to {FORMAT}"
    ):
        RequestStore(path)


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, " * 99)
    with pytest.raises(RequestStoreError, match="text cannot be used: file is not a database"):
        RequestStore(tmp_path / "text")
    with sqlite3.connect(tmp_path / "other.sqlite") as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    with pytest.raises(RequestStoreError, match="of another program"):
        RequestStore(tmp_path / "other.sqlite")


def test_reservations_count_until_they_are_settled(tmp_path: Path) -> None:
    with RequestStore(tmp_path / "r.sqlite") as store:
        held = store.reserve("a", "t", Amount(1, 10, 90), Budget(tokens=150))
        with pytest.raises(BudgetError, match="tokens: 50 of 150 are left, 100 more are needed"):
            store.reserve("b", "t", Amount(1, 10, 90), Budget(tokens=150))
        store.settle(held, Amount(1, 10, 5))
        assert store.spent("t") == Amount(1, 10, 5)
        store.reserve("b", "t", Amount(1, 10, 90), Budget(tokens=150))
        assert store.counts() == (0, 1)
        with pytest.raises(RequestStoreError, match="settled before"):
            store.settle(held, Amount())


def test_a_refused_reservation_does_not_undo_its_neighbours(tmp_path: Path) -> None:
    with RequestStore(tmp_path / "r.sqlite") as store:
        budget = Budget(calls=1)
        take = [lambda n=n: store.reserve(n, "t", Amount(1, 1, 1), budget) for n in ("a", "b")]
        held, refused = store.commit(take)
        assert held.bound == Amount(1, 1, 1)
        assert isinstance(refused, BudgetError)
        assert store.spent("t").calls == 1


def _fill(path: Path, rows: int, pipe: Any) -> None:
    with RequestStore(path) as store:
        for start in range(0, rows, 500):
            numbers = range(start, start + 500)
            store.commit([lambda n=n: store.put(str(n), "t", Reply("x" * 1000, True, "stop", 1, 1)) for n in numbers])
            assert len(store.get_many([str(n) for n in numbers])) == 500
            if start == 1000:
                before = resident_kb()
        pipe.send((resident_kb() - before, store.counts().answers))


@pytest.mark.parametrize("rows", [6_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_rows(rows: int, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_fill, args=(tmp_path / "r.sqlite", rows, theirs))
    process.start()
    grown, answers = ours.recv()
    process.join()
    assert answers == rows
    assert grown < 3 * 1024  # KiB; the rows themselves are 1 KiB each


# Budget.


def test_a_budget_in_money() -> None:
    budget = Budget(cost=1.0, currency="EUR", read_price=2.0, written_price=10.0)
    assert budget.shortfall(Amount(), Amount(1, 0, 100_000)) is None
    assert (
        budget.shortfall(Amount(9, 0, 99_999), Amount(1, 0, 2))
        == "cost in EUR: 1e-05 of 1 are left, 2e-05 more are needed"
    )
    assert "EUR 0.42" in budget.describe(Amount(2, 10_000, 40_000))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cost": 1.0}, "budget.cost needs budget.read_price"),
        ({"calls": -1}, "budget.calls is -1; it must be at least 0"),
    ],
)
def test_a_budget_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(**settings)


amounts = st.builds(Amount, st.just(1), st.integers(0, 50), st.integers(0, 50))


@given(st.lists(st.tuples(amounts, st.floats(0, 1), st.booleans()), max_size=30), st.integers(0, 400))
def test_no_order_of_events_exceeds_a_budget(events: list[tuple[Amount, float, bool]], limit: int) -> None:
    with RequestStore(":memory:") as store:
        budget, held = Budget(tokens=limit), []
        for bound, share, finishes in events:
            try:
                held.append((store.reserve("k", "t", bound, budget), bound, share))
            except BudgetError:
                assert store.spent("t").tokens + bound.tokens > limit
            if finishes and held:
                reservation, most, part = held.pop(0)
                store.settle(reservation, Amount(1, int(most.read * part), int(most.written * part)))
            assert store.spent("t").tokens <= limit


# Pace.


def test_retry_after_in_seconds_and_as_a_date() -> None:
    assert retry_after({"retry-after": "1.5"}) == 1.5
    assert retry_after({"retry-after": "-3"}) == 0
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert retry_after({"retry-after": later}) == pytest.approx(30, abs=2)
    assert retry_after({"retry-after": format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)}) == 0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


def test_backoff_is_seeded_full_and_bounded() -> None:
    waits = [backoff(tries, random.Random(7)) for tries in range(20)]
    assert waits == [backoff(tries, random.Random(7)) for tries in range(20)]
    draws = random.Random(0)
    assert max(backoff(0, draws) for _ in range(200)) <= 0.25
    long = [backoff(30, draws) for _ in range(200)]
    assert max(long) <= LONGEST_WAIT
    assert min(long) < 1


def test_the_pace_halves_under_load_and_comes_back_by_one() -> None:
    async def run() -> None:
        pace = Pace(16)

        def hear(count: int, *, overload: bool) -> None:
            for _ in range(count):
                pace.heard(pace._era, overload=overload)

        hear(5, overload=True)
        assert pace.limit == 8
        stale = pace._era - 1
        for _ in range(20):
            pace.heard(stale, overload=True)  # sent before the halving
        assert pace.limit == 8
        hear(8, overload=False)
        assert pace.limit == 9
        hear(200, overload=False)
        assert pace.limit == 16
        hear(99, overload=True)
        assert pace.limit == 1

    asyncio.run(run())


def test_one_refusal_in_ten_is_weather() -> None:
    async def run() -> float:
        pace, draws = Pace(16), random.Random(0)
        limits = []
        for _ in range(2000):
            pace.heard(pace._era, overload=draws.random() < 0.1)
            limits.append(pace.limit)
        return sum(limits) / len(limits)

    assert asyncio.run(run()) > 14


def test_a_pause_holds_everybody_and_the_longest_counts() -> None:
    async def run() -> float:
        pace, loop = Pace(4), asyncio.get_running_loop()
        begin = loop.time()
        pace.pause(0.2)
        pace.pause(0.05)

        async def one() -> float:
            async with pace.turn():
                return loop.time() - begin

        return min(await asyncio.gather(*(one() for _ in range(4))))

    assert asyncio.run(run()) >= 0.19


def test_a_store_of_the_version_without_names_gets_them(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    with RequestStore(path) as store:
        store.put("a", "t", ANSWER)
    with sqlite3.connect(path) as db:
        db.executescript("DROP TABLE names; PRAGMA user_version = 1;")
    db.close()
    with RequestStore(path) as store:
        store.name([("tokens", "a")])
    with RequestStore(path) as store:
        assert store.get_named(["tokens", "others"]) == {"tokens": ANSWER}


def test_a_name_is_of_one_answer_and_is_forgotten_with_it(tmp_path: Path) -> None:
    with RequestStore(tmp_path / "r.sqlite") as store:
        store.put("a", "t", ANSWER)
        store.put("b", "t", dataclasses.replace(ANSWER, text="another"))
        store.name([("tokens", "a"), ("tokens", "b"), ("more", "a"), ("nothing", "c")])
        assert store.get_named(["tokens", "more", "nothing"]) == {"tokens": ANSWER, "more": ANSWER}
        store.forget(["a"])
        store.put("a", "t", dataclasses.replace(ANSWER, text="drawn anew"))
        assert store.get_named(["tokens", "more"]) == {}
