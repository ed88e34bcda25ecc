"""A process that asks a server many questions and can be killed at any instant: `python asker.py '{"url": ...}'`.

It prints one line of JSON when it has all answers, or the error that ended it.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillhouse.asking.budget import Budget
from stillhouse.asking.client import Client, Manner
from stillhouse.asking.exchange import Server
from stillhouse.asking.protocol import Request, Wording
from stillhouse.asking.store import RequestStore
from stillhouse.errors import StillhouseError

MOST = 8
"""Tokens of an answer at most."""


def questions(count: int, model: str = "teacher") -> Iterator[Request]:
    """Which are sampled, each with a seed of its own."""
    wording = Wording(model=model, max_tokens=MOST, temperature=1.0)
    for n in range(count):
        body = wording.chat([{"role": "user", "content": f"question {n}"}], seed=n)
        yield Request(f"e{n}", "chat/completions", body, reads=20)


def resident_kb() -> int:
    """Memory now; the peak that the system tells is inherited from the process that started this one."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


def ask(settings: dict[str, Any]) -> dict[str, Any]:
    """All questions, and what asking them took."""
    with RequestStore(settings["store"]) as store:
        server = Server.of(settings["url"], "teacher", "NO_KEY")
        manner = Manner(concurrency=settings["concurrency"], timeout=settings.get("timeout", 10.0), retries=12)
        client = Client(server, store, Budget(**settings["budget"]), manner)
        answered = early = 0
        for _ in client.ask(questions(settings["count"])):
            answered += 1
            if answered == settings["count"] // 4:
                early = resident_kb()
        return {"answered": answered, "grown_kb": resident_kb() - early, "spent": client.tally.paid.calls}


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start background processes without it
    try:
        print(json.dumps(ask(json.loads(sys.argv[1]))))
    except StillhouseError as error:
        sys.exit(str(error))
