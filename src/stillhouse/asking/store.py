"""Answered requests in one SQLite file: each asked once, kept for good, and what all of them cost.

    answers        one row an answered request, by the key of all that decides the answer; failures are never there
    names          what else an answer is found by, such as the tokens of its text
    spent          by teacher, what was used and what open reservations may still use
    reservations   requests that were sent and not heard of yet; those of a killed process stay, and stay counted

The journal is a write-ahead log, so that readers never wait, and it is synced at every commit (`synchronous=FULL`). To
outlive SIGKILL the sync is not needed, because what was written is the operating system's; it is there for power cuts,
after which a lost reservation would let a budget be spent twice. The client commits many answers at once, which makes
the sync cheap.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

from stillhouse.asking.budget import Amount, Budget
from stillhouse.asking.protocol import Reply
from stillhouse.errors import BudgetError, RequestStoreError

FORMAT = 2
"""Raised whenever a table changes; kept in the file as `user_version`."""

_APPLICATION = 0x57111  # marks the file as ours
_PATIENCE = 60.0  # seconds that one process waits for another one's commit
_AT_ONCE = 500  # keys of one query
_TABLES = """
CREATE TABLE answers (key TEXT PRIMARY KEY, teacher TEXT NOT NULL, reply TEXT NOT NULL, at REAL NOT NULL)
    WITHOUT ROWID;
CREATE TABLE spent (teacher TEXT PRIMARY KEY, calls INTEGER NOT NULL, read INTEGER NOT NULL, written INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE reservations (id INTEGER PRIMARY KEY AUTOINCREMENT, teacher TEXT NOT NULL, key TEXT NOT NULL,
    calls INTEGER NOT NULL, read INTEGER NOT NULL, written INTEGER NOT NULL, at REAL NOT NULL);
"""
_NAMES = "CREATE TABLE names (name TEXT PRIMARY KEY, key TEXT NOT NULL) WITHOUT ROWID"


class Reservation(NamedTuple):
    """A request's place in the budget: taken before it is sent, and settled when its outcome is known."""

    id: int
    teacher: str
    bound: Amount


class Counts(NamedTuple):
    """How much a store holds: answers, and requests sent and not heard of yet."""

    answers: int
    open: int


class RequestStore:
    """An opened store; threads of one process share it, processes open it each for themselves.

    Args:
        path: of the file; made if there is none, with the folders above it.

    Raises:
        RequestStoreError: the file is no store, is damaged, or was written by a newer version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        with self._translated():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> None:
        if self._is_empty():
            with self.transaction():
                if self._is_empty():  # another process did not make the tables meanwhile
                    self._make()
        if self._number("application_id") != _APPLICATION:
            raise RequestStoreError(f"{self.path} is an SQLite file of another program. Name another file.")
        if (found := self._number("user_version")) > FORMAT:
            raise RequestStoreError(
                f"{self.path} was written by a newer Stillhouse (request store format {found}; this version reads up "
                f"to {FORMAT}). Update Stillhouse, or name another file."
            )
        if found < FORMAT:
            self._upgrade()
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")

    def _is_empty(self) -> bool:
        return self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0

    def _make(self) -> None:
        for statement in (*_TABLES.split(";"), _NAMES):
            self._db.execute(statement)
        self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
        self._db.execute(f"PRAGMA user_version = {FORMAT}")

    def _upgrade(self) -> None:
        """Format 1 had no names."""
        with self.transaction():
            if self._number("user_version") < FORMAT:  # another process did not do it meanwhile
                self._db.execute(_NAMES)
                self._db.execute(f"PRAGMA user_version = {FORMAT}")

    def _number(self, pragma: str) -> int:
        return int(self._db.execute(f"PRAGMA {pragma}").fetchone()[0])

    @contextmanager
    def _translated(self) -> Generator[None, None, None]:
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            raise RequestStoreError(
                f"The request store {self.path} cannot be used: {error}. What it held before is untouched. If it is "
                "locked, another process is stuck in it; if the disk is full, free some space; if it is no database, "
                "name another file."
            ) from error

    @contextmanager
    def transaction(self) -> Generator[None, None, None]:
        """Everything in the block is on disk when it ends, or nothing is; blocks inside it belong to it."""
        with self._lock, self._translated():
            if self._db.in_transaction:
                yield
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite ends one itself where the disk is full
                    self._db.execute("ROLLBACK")
                raise

    def get_many(self, keys: Sequence[str]) -> dict[str, Reply]:
        """The answers that are there, by their keys."""
        return self._read("SELECT key, reply FROM answers WHERE key IN", keys)

    def get_named(self, names: Sequence[str]) -> dict[str, Reply]:
        """The answers that are there, by names that `name` gave them."""
        return self._read("SELECT name, reply FROM names JOIN answers USING (key) WHERE name IN", names)

    def _read(self, query: str, wanted: Sequence[str]) -> dict[str, Reply]:
        found: dict[str, Reply] = {}
        with self._lock, self._translated():
            for start in range(0, len(wanted), _AT_ONCE):
                some = wanted[start : start + _AT_ONCE]
                rows = self._db.execute(f"{query} ({','.join('?' * len(some))})", some)
                found.update((one, Reply.from_json(reply)) for one, reply in rows)
        return found

    def put(self, key: str, teacher: str, reply: Reply) -> Reply:
        """Keep an answer, durably when it returns; gives what is kept, which is another process's where that came
        first."""
        with self.transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", (key, teacher, reply.to_json(), time.time())
            )
            return self.get_many([key])[key]

    def name(self, named: Iterable[tuple[str, str]]) -> None:
        """Let answers be found by names as well, pairs of a name and a key; a name that is given keeps its answer.
        Durable when it returns."""
        with self.transaction():
            self._db.executemany("INSERT OR IGNORE INTO names VALUES (?, ?)", named)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop answers and their names, so that they are asked anew; what they cost stays counted."""
        gone = [(key,) for key in keys]
        with self.transaction():
            self._db.executemany("DELETE FROM answers WHERE key = ?", gone)
            self._db.executemany("DELETE FROM names WHERE key = ?", gone)

    def reserve(self, key: str, teacher: str, bound: Amount, budget: Budget) -> Reservation:
        """Take the most that a request may cost out of the budget, before it is sent.

        Raises:
            BudgetError: it does not fit; the message says which limit, and what is left.
        """
        with self.transaction():
            if lack := budget.shortfall(self.spent(teacher), bound):
                raise BudgetError(lack)
            self._add(teacher, bound)
            row = (teacher, key, bound.calls, bound.read, bound.written, time.time())
            made = self._db.execute(
                "INSERT INTO reservations (teacher, key, calls, read, written, at) VALUES (?, ?, ?, ?, ?, ?)", row
            )
            return Reservation(int(made.lastrowid or 0), teacher, bound)

    def settle(self, reservation: Reservation, used: Amount) -> None:
        """Put what was used in the place of what was reserved."""
        with self.transaction():
            if self._db.execute("DELETE FROM reservations WHERE id = ?", (reservation.id,)).rowcount != 1:
                raise RequestStoreError(f"{self.path}: reservation {reservation.id} was settled before.")
            self._add(reservation.teacher, used - reservation.bound)

    def spent(self, teacher: str) -> Amount:
        """What a teacher has cost over all runs, open reservations at their most."""
        with self._lock, self._translated():
            row = self._db.execute("SELECT calls, read, written FROM spent WHERE teacher = ?", (teacher,)).fetchone()
        return Amount(*row) if row else Amount()

    def _add(self, teacher: str, amount: Amount) -> None:
        self._db.execute(
            "INSERT INTO spent VALUES (?, ?, ?, ?) ON CONFLICT (teacher) DO UPDATE SET calls = calls + excluded.calls, "
            "read = read + excluded.read, written = written + excluded.written",
            (teacher, amount.calls, amount.read, amount.written),
        )

    def counts(self, teacher: str | None = None) -> Counts:
        """Of one teacher, or of all."""
        where, which = ("WHERE teacher = ?", (teacher,)) if teacher is not None else ("", ())
        with self._lock, self._translated():
            answers, unsettled = (
                self._db.execute(f"SELECT count(*) FROM {table} {where}", which).fetchone()[0]
                for table in ("answers", "reservations")
            )
        return Counts(answers, unsettled)

    def commit(self, changes: Sequence[Callable[[], Any]]) -> list[Any]:
        """Several changes in one commit: what each gives, or the `BudgetError` that it raised and that undid nothing
        else."""
        with self.transaction():
            return [self._attempt(change) for change in changes]

    def _attempt(self, change: Callable[[], Any]) -> Any:
        try:
            return change()
        except BudgetError as error:  # raised before anything was written
            return error

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
