"""Many requests to one server: what is stored is not asked, what is asked is stored, and the budget holds.

`Client.ask` is an ordinary iterator. The event loop lives in a thread of its own, so that it works in a notebook, whose
loop already runs. Requests are drawn as they are needed and replies are handed out as they come: memory does not grow
with their number.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, NamedTuple

from stillhouse.asking.budget import Amount, Budget
from stillhouse.asking.exchange import Exchange, Outcome, Server
from stillhouse.asking.pace import Pace, backoff
from stillhouse.asking.protocol import Reply, Request
from stillhouse.asking.store import RequestStore, Reservation
from stillhouse.errors import BudgetError, TeacherError
from stillhouse.records import fingerprint

_DRAWN = 256  # requests looked up in the store at once
_UNREAD = 1024  # replies that the caller has not taken, beyond which no more requests are drawn
_IN_HAND = 4  # requests in hand, in units of those under way: one that waits for its retry holds up no other


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How a server is asked.

    Attributes:
        concurrency: requests under way at once, at most.
        timeout: seconds for an answer.
        retries: of a request; a refusal for its rate is no try while others are answered.
        seed: of the jitter between retries.
    """

    concurrency: int = 16
    timeout: float = 120.0
    retries: int = 6
    seed: int = 0


@dataclass
class Tally:
    """What asking came to in this process.

    Attributes:
        paid: calls, tokens read and written, as they count in the budget.
        stored: replies that were there already.
        forms: replies of each form, `Reply.form`.
        retried: reasons of retries.
    """

    paid: Amount = field(default_factory=Amount)
    stored: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    retried: Counter[str] = field(default_factory=Counter)


class Client:
    """One server, one store, one budget.

    Args:
        server: who is asked.
        store: where answers are looked up and kept.
        budget: what all answers of this server in the store may cost.
        manner: how it is asked.

    Attributes:
        teacher: what the store knows the server by.
        tally: what was paid, and what came.
        unforeseen: tokens that the server read beyond a request's most, at worst; later requests reserve them too.
    """

    def __init__(self, server: Server, store: RequestStore, budget: Budget, manner: Manner) -> None:
        self.server, self.store, self.budget, self.manner = server, store, budget, manner
        self.teacher = self.name_of(server.url, server.model)
        self.tally = Tally()
        self.unforeseen = 0

    @staticmethod
    def name_of(url: str, model: str) -> str:
        """What a store knows a teacher by: answers and bills belong to a model at a url."""
        return fingerprint([url.rstrip("/"), model])

    def ask(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
        """The number of each request and its reply, stored ones at once and others as they arrive.

        When one fails for good, or the caller stops (KeyboardInterrupt included), no more are sent; those under way are
        let to finish, and what they bring is stored.

        Raises:
            TeacherError: a request failed for good.
            BudgetError: the next request does not fit.
            NeedsError: log-probabilities were asked for, and left out in silence.
            RequestStoreError: the store cannot be read or written.
        """
        try:
            yield from self._ask(requests)
        except (TeacherError, BudgetError) as error:
            count = self.store.counts(self.teacher).answers
            raise type(error)(
                f"{error} {count:,} answers are kept in {self.store.path}; the same command goes on from there."
            ) from error

    def _ask(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
        run = _Run(self, iter(requests))
        with ThreadPoolExecutor(1, "asking") as thread:
            ended = thread.submit(lambda: asyncio.run(run.all()))
            try:
                while (item := run.arrived.get()) is not None:
                    yield item
            finally:
                run.stop_soon()
                ended.exception()  # wait; an error is raised below, unless the caller's own ended the block
            ended.result()

    def ask_one(self, request: Request) -> Reply:
        """The reply to one request.

        Raises:
            StillhouseError: as `ask`.
        """
        ((_, reply),) = self._ask([request])
        return reply

    def models(self) -> list[str] | None:
        """Names of the models that the server lists, None where it has no list.

        Raises:
            UnreachableError: nobody answers.
            TeacherError: the key is refused.
        """

        async def look() -> list[str] | None:
            async with Exchange(self.server, 1, min(30.0, self.manner.timeout)) as exchange:
                return await exchange.models()

        with ThreadPoolExecutor(1, "asking") as thread:
            return thread.submit(lambda: asyncio.run(look())).result()


class _Job(NamedTuple):
    """A request that is not stored."""

    request: Request
    key: str


class _Run:
    """One call of `Client.ask`, in its event loop."""

    def __init__(self, client: Client, requests: Iterator[Request]) -> None:
        self.client, self.arrived = client, SimpleQueue[tuple[int, Reply] | None]()
        self._requests = enumerate(requests)
        self._jobs: deque[_Job] = deque()
        self._wanted: dict[str, list[int]] = {}  # of each key in hand, the numbers of the requests that wait for it
        self._draws = random.Random(client.manner.seed)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = False

    def stop_soon(self) -> None:
        """From any thread: send nothing more."""
        self._stopped = True
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop ended meanwhile
                self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        self._stopped = True
        self._pace.stop()
        self._halt.set()

    async def all(self) -> None:
        """Until every request is answered, or one has failed."""
        try:
            manner = self.client.manner
            self._loop = asyncio.get_running_loop()
            self._pace, self._halt, self._drawing = Pace(manner.concurrency), asyncio.Event(), asyncio.Lock()
            async with Exchange(self.client.server, manner.concurrency, manner.timeout) as exchange, _Desk(
                self.client
            ) as desk:  # fmt: skip
                self._exchange, self._desk = exchange, desk
                working = [asyncio.create_task(self._work()) for _ in range(_IN_HAND * manner.concurrency)]
                done, rest = await asyncio.wait(working, return_when=asyncio.FIRST_EXCEPTION)
                self._stop()
                if rest:
                    await asyncio.wait(rest)
                errors = [error for task in (*done, *rest) if (error := task.exception())]  # the first one first
                if errors:
                    raise errors[0]
        finally:
            self.arrived.put(None)

    async def _work(self) -> None:
        while (job := await self._draw()) is not None:
            reply = await self._answer(job)
            if reply is None:
                return
            for number in self._wanted.pop(job.key):
                self._hand_out(number, reply)

    async def _draw(self) -> _Job | None:
        """The next request that is not stored; None at the end, or when nothing more is to be sent."""
        async with self._drawing:
            while not self._jobs and not self._stopped:
                while self.arrived.qsize() > _UNREAD and not self._stopped:
                    await asyncio.sleep(0.005)
                some = [(n, r, r.key(self.client.teacher)) for n, r in self._some()]
                if not some:
                    return None
                found = self.client.store.get_many([key for *_, key in some])
                for number, request, key in some:
                    if key in found:
                        self.client.tally.stored += 1
                        self._hand_out(number, found[key])
                    elif key in self._wanted:
                        self._wanted[key].append(number)
                    else:
                        self._wanted[key] = [number]
                        self._jobs.append(_Job(request, key))
            return None if self._stopped else self._jobs.popleft()

    def _some(self) -> Iterator[tuple[int, Request]]:
        for _, item in zip(range(_DRAWN), self._requests, strict=False):
            yield item

    def _hand_out(self, number: int, reply: Reply) -> None:
        self.client.tally.forms[reply.form] += 1
        self.arrived.put((number, reply))

    async def _answer(self, job: _Job) -> Reply | None:
        """The reply, asked for until it comes; None where it was stopped before."""
        reasons: Counter[str] = Counter()
        tries = alone = 0
        answered = self._pace.answered  # when it was last refused, or first in hand
        while True:
            async with self._pace.turn(first=bool(reasons)) as era:
                if self._stopped:
                    return None
                taken = await self._desk.reserve(job, lambda: self._stopped)
                if taken is None or isinstance(taken, Reply):  # stopped, or another process was quicker
                    return taken
                outcome = await self._exchange.send(job.request)
                self._heed(outcome, era)  # before anybody else takes the turn
            kept = await self._desk.settle(job, taken, outcome)
            if kept is not None:
                self._pace.answered += 1
                return kept
            if outcome.error is not None:
                raise outcome.error
            reasons[outcome.reason] += 1
            self.client.tally.retried[outcome.reason] += 1
            alone = alone + 1 if self._pace.answered == answered else 0  # a server that answers others is not down
            answered = self._pace.answered
            tries += not (outcome.limited and not alone)
            if tries > self.client.manner.retries:
                raise TeacherError(self._gave_up(job.request, reasons))
            await self._rest(backoff(alone, self._draws))

    def _heed(self, outcome: Outcome, era: int) -> None:
        self._pace.heard(era, overload=outcome.overload)
        if outcome.pause is not None:
            self._pace.pause(outcome.pause)
        if outcome.error is not None:
            self._stop()

    def _gave_up(self, request: Request, reasons: Counter[str]) -> str:
        told = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
        return (
            f"{self.client.server.name} did not answer example {request.id!r} in {sum(reasons.values())} tries: "
            f"{told}. Is the server up, and is concurrency ({self.client.manner.concurrency}) more than it bears?"
        )

    async def _rest(self, seconds: float) -> None:
        """Sleep, unless there is nothing left to do."""
        try:
            await asyncio.wait_for(self._halt.wait(), seconds)
        except TimeoutError:
            return


class _Desk:
    """Where requests are booked: all that ask in the same moment share one commit. Use it as `async with`."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._thread = ThreadPoolExecutor(1, "store")
        self._changes: list[tuple[Callable[[], Any], asyncio.Future[Any]]] = []
        self._came = asyncio.Event()
        self._booked = 0  # requests that hold, or ask for, a reservation
        self._settled = asyncio.Condition()
        self._settlements = 0

    async def __aenter__(self) -> _Desk:
        self._clerk = asyncio.create_task(self._commit())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._clerk.cancel()
        self._thread.shutdown()

    async def _commit(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._came.wait()
            self._came.clear()
            changes, self._changes = self._changes, []
            committing = loop.run_in_executor(self._thread, self.client.store.commit, [c for c, _ in changes])
            await asyncio.wait([committing])
            error = committing.exception()
            results = [error] * len(changes) if error else committing.result()
            for (_, waiting), result in zip(changes, results, strict=True):
                if isinstance(result, BaseException):
                    waiting.set_exception(result)
                else:
                    waiting.set_result(result)

    async def _book(self, change: Callable[[], Any]) -> Any:
        """Make a change to the store; it is on disk when this returns."""
        waiting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._changes.append((change, waiting))
        self._came.set()
        return await waiting

    async def reserve(self, job: _Job, stopped: Callable[[], bool]) -> Reservation | Reply | None:
        """Take the request's most out of the budget; the answer, where it came meanwhile. While others are under way,
        which will use less than their most, it waits for them instead of failing.

        Raises:
            BudgetError: it does not fit, and nothing is under way.
        """
        client = self.client
        bound = Amount(1, job.request.reads + client.unforeseen, job.request.writes)

        def take() -> Reservation | Reply:
            there = client.store.get_many([job.key])
            return there[job.key] if there else client.store.reserve(job.key, client.teacher, bound, client.budget)

        while not stopped():
            before = self._settlements
            self._booked += 1
            try:
                taken = await self._book(take)
            except BudgetError as error:
                await self._leave(settled=False)
                if self._booked == 0 and self._settlements == before:
                    raise BudgetError(self._over(error, bound)) from error
                async with self._settled:
                    await self._settled.wait_for(
                        lambda before=before: self._settlements > before or self._booked == 0 or stopped()
                    )
                continue
            if isinstance(taken, Reply):
                await self._leave(settled=False)
            return taken
        return None

    async def settle(self, job: _Job, reservation: Reservation, outcome: Outcome) -> Reply | None:
        """Book what a request used, and keep its answer; gives the answer that is kept."""
        client, bound, reply = self.client, reservation.bound, outcome.reply
        used = bound if outcome.billed else Amount()
        if reply is not None:  # what a server does not count, counts as the most it can be
            read = bound.read if reply.read is None else reply.read
            client.unforeseen = max(client.unforeseen, read - job.request.reads)
            used = Amount(1, read, bound.written if reply.written is None else reply.written)

        def book() -> Reply | None:
            client.store.settle(reservation, used)
            return None if reply is None else client.store.put(job.key, client.teacher, reply)

        kept = await self._book(book)
        client.tally.paid += used
        await self._leave(settled=True)
        return kept

    async def _leave(self, *, settled: bool) -> None:
        async with self._settled:
            self._booked -= 1
            self._settlements += settled
            self._settled.notify_all()

    def _over(self, lack: BudgetError, bound: Amount) -> str:
        client = self.client
        spent = client.store.spent(client.teacher)
        return (
            f"The budget of {client.server.name} is used up. {lack}. It has cost {client.budget.describe(spent)} over "
            f"all runs that share {client.store.path}; the next request may take up to "
            f"{client.budget.describe(bound)}. Raise the teacher's budget to go on."
        )
