"""Two thousand questions to a faulty server, killed ten times: everything once, nothing twice, and never too much."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import asker
import pytest

from stillhouse.asking.budget import Amount
from stillhouse.asking.client import Client
from stillhouse.asking.protocol import Request
from stillhouse.asking.store import RequestStore
from stillhouse.testing.server import Faults, Seen, Server, answering, serve

CONCURRENCY = 16
FAULTS = Faults(
    error=0.05, unavailable=0.03, limited=0.03, disconnect=0.03, truncate=0.03, garbage=0.03,
    latency=0.01, retry_after=0.0, seed=4,
)  # fmt: skip
"""A fifth of all attempts."""


WORKED = (None, "truncate", "garbage")
"""What the server did where it worked on a request."""


def whole(seen: Sequence[Seen]) -> Iterator[tuple[int, str | None]]:
    """The questions that came whole, with what was done instead of answering; the kill cuts some off in the middle."""
    for one in seen:
        with suppress(ValueError):
            yield one.body["seed"], one.fault


class Asking:
    """A process under way; the keys that were stored when it was killed must never be asked for again."""

    def __init__(self, server: Server, store: Path, count: int, **budget: int) -> None:
        self.server, self.store, self.teacher = server, store, Client.name_of(server.url, "teacher")
        settings = {
            "url": server.url,
            "store": str(store),
            "count": count,
            "concurrency": CONCURRENCY,
            "budget": budget,
        }
        self.command = [sys.executable, asker.__file__, json.dumps(settings)]
        self.keys = {request.body["seed"]: request.key(self.teacher) for request in asker.questions(count)}

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def kill_after(self, requests: int) -> set[str]:
        """Kill it once the server has seen so many more; what was stored by then."""
        seen = len(self.server.seen)
        process = self.start()
        while len(self.server.seen) < seen + requests and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
        return self.stored()

    def stored(self) -> set[str]:
        with RequestStore(self.store) as store:
            return set(store.get_many(list(self.keys.values())))

    def asked_since(self, seen: int) -> Counter[str]:
        """How often each question was asked since the server had seen so many."""
        return Counter(self.keys[seed] for seed, _ in whole(self.server.seen[seen:]))

    def spent(self) -> Amount:
        with RequestStore(self.store) as store:
            return store.spent(self.teacher)


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_killed_ten_times(count: int, tmp_path: Path) -> None:
    most = 2 * count
    with serve(answering(lambda asked: f"About {asked[-1]['content']}"), faults=FAULTS) as server:  # ty: ignore
        asking = Asking(server, tmp_path / "r.sqlite", count, calls=most)
        for _ in range(5):
            stored = asking.kill_after(count // 6)
            assert asking.spent().calls <= most
            seen = len(server.seen)
            again = asking.kill_after(count // 60)
            assert not stored & asking.asked_since(seen).keys()
            assert stored <= again
        seen, stored = len(server.seen), asking.stored()
        last = asking.start()
        out, errors = last.communicate(timeout=300)
        assert last.returncode == 0, errors
        told: dict[str, Any] = json.loads(out)
        assert not stored & asking.asked_since(seen).keys()
        assert told["answered"] == count
        assert told["grown_kb"] < 4 * 1024
        with RequestStore(tmp_path / "r.sqlite") as store:
            assert store.counts(asking.teacher).answers == count
            for request in asker.questions(count):
                key = request.key(asking.teacher)
                assert store.get_many([key])[key].text == f"About question {request.body['seed']}"
        # Answered twice is only what was under way at one of the ten kills.
        twice = Counter(seed for seed, fault in whole(server.seen) if fault is None)
        assert sum(n - 1 for n in twice.values()) <= 10 * CONCURRENCY
        # Whatever the server worked on stands in the ledger, and the ledger never passed the budget.
        assert sum(fault in WORKED for _, fault in whole(server.seen)) <= asking.spent().calls <= most


def test_a_budget_holds_over_kills(tmp_path: Path) -> None:
    most = 100
    with serve(answering(lambda asked: "yes"), faults=FAULTS) as server:
        asking = Asking(server, tmp_path / "r.sqlite", 400, calls=most)
        for _ in range(3):
            asking.kill_after(20)
            assert asking.spent().calls <= most
        process = asking.start()
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "calls: 0 of 100 are left" in errors
        worked = sum(fault in WORKED for _, fault in whole(server.seen))
        assert worked <= asking.spent().calls == most
        assert len(asking.stored()) >= most - 3 * CONCURRENCY - worked * 0.2


def test_an_interrupt_keeps_what_was_under_way(tmp_path: Path) -> None:
    with serve(answering(lambda asked: "yes"), faults=Faults(latency=0.3)) as server:
        asking = Asking(server, tmp_path / "r.sqlite", 400, calls=400)
        process = asking.start()
        while len(server.seen) < 2 * CONCURRENCY:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert "KeyboardInterrupt" in errors
        with RequestStore(tmp_path / "r.sqlite") as store:
            assert store.counts() == (len(server.seen), 0)
        assert len(server.seen) < 400


def test_two_processes_share_a_store_and_a_budget(tmp_path: Path) -> None:
    with serve(answering(lambda asked: "yes"), faults=FAULTS) as server:
        asking = Asking(server, tmp_path / "r.sqlite", 150, calls=400)
        both = [asking.start(), asking.start()]
        for process in both:
            assert json.loads(process.communicate(timeout=120)[0])["answered"] == 150
        assert len(asking.stored()) == 150
        assert asking.spent().calls <= 400


def test_the_questions_have_keys_of_their_own() -> None:
    keys = {request.key("t") for request in asker.questions(50)}
    assert len(keys) == 50
    assert Request("a", "completions", {"max_tokens": 1}, 3).key("t") == Request(
        "b", "completions", {"max_tokens": 1}, 9
    ).key("t")
