"""Many requests to a faulty server from a process that is killed again and again: time, memory, what was paid twice.

    python benchmarks/requests_killed.py --json

The ideal is a client that keeps every place busy for as long as the server takes, faults included: all attempts that
the server saw, but those that a kill wasted, times its latency, over the concurrency. `ratio` holds the time of asking
against it, the starts of the processes left out (`startup_seconds`); `ratio_to_faultless` holds everything against
requests x latency / concurrency.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FAULTS = ("error", "unavailable", "limited", "disconnect", "truncate", "garbage")


def questions(count: int) -> Iterator[Any]:
    from stillhouse.asking.protocol import Request, Wording

    wording = Wording(model="teacher", max_tokens=8, temperature=1.0)
    for n in range(count):
        body = wording.chat([{"role": "user", "content": f"question {n}"}], seed=n)
        yield Request(f"e{n}", "chat/completions", body, reads=20)


def resident_mb() -> float:
    """Now; the peak that the system tells is inherited from the process that started this one."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def ask(url: str, store: str, args: argparse.Namespace, budget: int, pipe: Any) -> None:
    """One process: its first word says that it began, its last what it came to."""
    from stillhouse.asking.budget import Budget
    from stillhouse.asking.client import Client, Manner
    from stillhouse.asking.exchange import Server
    from stillhouse.asking.store import RequestStore

    pipe.send(None)
    with RequestStore(store) as opened:
        manner = Manner(concurrency=args.concurrency, timeout=10.0, retries=12)
        client = Client(Server.of(url, "teacher", "NO_KEY"), opened, Budget(calls=budget), manner)
        sizes = [resident_mb() for _ in client.ask(questions(args.requests))]
        spent, counts = opened.spent(client.teacher), opened.counts(client.teacher)
    grown = max(sizes) - sizes[len(sizes) // 4]
    pipe.send({"answers": counts.answers, "calls": spent.calls, "resident_mb": max(sizes), "grown_mb": grown})


def begin(*given: Any) -> tuple[Any, Any, float]:
    """A started process, its pipe, and the seconds until it began to ask."""
    context, before = multiprocessing.get_context("spawn"), time.perf_counter()
    ours, theirs = context.Pipe()
    process = context.Process(target=ask, args=(*given, theirs))
    process.start()
    theirs.close()
    ours.recv()
    return process, ours, time.perf_counter() - before


def run(args: argparse.Namespace, server: Any, store: str) -> dict[str, Any]:
    budget = 2 * args.requests
    given = (server.url, store, args, budget)
    before, startup = time.perf_counter(), 0.0
    for kill in range(args.kills):
        process, pipe, started = begin(*given)
        startup += started
        wanted = (kill + 1) * args.requests // (args.kills + 1)
        while len(server.seen) < wanted and process.is_alive():
            time.sleep(0.01)
        process.kill()
        process.join()
        pipe.close()
    process, pipe, started = begin(*given)
    told = pipe.recv()
    process.join()
    wall, startup = time.perf_counter() - before, startup + started
    answered = [one.raw for one in server.seen if one.fault is None and one.raw]
    struck = sum(one.fault is not None for one in server.seen)
    faultless = args.requests * args.latency / args.concurrency
    ideal = (args.requests + struck) * args.latency / args.concurrency
    return {
        "wall_seconds": wall,
        "startup_seconds": startup,
        "ideal_seconds": ideal,
        "ratio": (wall - startup) / ideal,
        "ratio_to_faultless": wall / faultless,
        "faults_struck": struck,
        "answered_and_lost_to_kills": len(answered) - len(set(answered)),
        "budget_calls": budget,
        **told,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"requests": 2000, "concurrency": 16, "kills": 5, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--faults", type=float, default=0.2, help="share of attempts, of six kinds alike")
    parser.add_argument("--latency", type=float, default=0.25, help="seconds of every answer and every fault")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    from stillhouse.testing.server import Faults, answering, serve

    rates = {name: args.faults / len(FAULTS) for name in FAULTS}
    faults = Faults(**rates, latency=args.latency, retry_after=0.0, seed=args.seed)
    with tempfile.TemporaryDirectory() as folder, serve(answering(lambda asked: "yes"), faults=faults) as server:
        found = run(args, server, str(Path(folder) / "requests.sqlite"))
    row = {"setting": {k: v for k, v in vars(args).items() if k != "json"}, **found}
    print(json.dumps(row) if args.json else json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
