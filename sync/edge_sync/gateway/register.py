"""The register of a gateway: one durable SQLite file, and group commit.

Guarantees: a write is on disk when it is over, or has left nothing; writes that come at once share
one transaction, and one that fails does not hurt the others; one process has the file at a time.
What a process left held when it ended counts as unclear when the file is opened again.

Statements run where the writes are asked for, on the event loop or in a caller's thread; only the
commit, which waits for the disk, goes to a thread of its own: a thread that ran each statement
would wait for the interpreter's lock at each of them. The rules are in ``book``.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeAlias, TypeVar, cast

import sqlite_utils

from edge.errors import EdgeError, StoreError
from edge.store.db import Database, migrate, open_database
from edge_sync.gateway.book import Book
from edge_sync.gateway.records import SCHEMA
from edge_sync.gateway.refusals import Refused

T = TypeVar("T")
Work: TypeAlias = Callable[[Book], Any]
Outcome: TypeAlias = tuple[Any, BaseException | None]

MAX_GATHERED = 256


def _tables(tables: sqlite_utils.Database) -> None:
    for statement in SCHEMA:
        tables.conn.execute(statement)


class Register:
    """The register, open.

    Attributes:
        path: its file.
        left_unclear: how many holds the process before this one left behind.

    """

    def __init__(self, db: Database) -> None:
        self.path = db.path
        self.left_unclear = 0
        self._db = db
        with db.reading() as connection:
            self._connection = connection
        self._book = Book(connection)
        # Taken by whoever begins, given back by whoever commits, maybe in another thread.
        self._turn = threading.Lock()
        self._waiting: deque[_Waiting] = deque()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or create the file, and check that it adds up.

        Raises:
            StoreError: it cannot be used, another process has it, or it does not add up.

        """
        # Whoever has the file keeps it: waiting for it would not help.
        db = open_database(path, durable=True, busy_timeout_s=0.0)
        try:
            with db.reading() as connection:
                # One process alone: no lock to take for each transaction, and a journal whose
                # head is wiped in place of the file being made and deleted.
                connection.execute("PRAGMA locking_mode = exclusive").fetchone()
                connection.execute("PRAGMA cache_size = -32000")
            migrate(db, [_tables])
            register = cls(db)
            register.write(Book.check)
            register.left_unclear = register.write(Book.keep_all)
        except BaseException:
            db.close()
            raise
        return register

    def write(self, work: Callable[[Book], T]) -> T:
        """Run a write, with those that other threads ask for meanwhile, and wait for the disk.

        It may be run twice: where a write gathered with it failed, all are run again.

        Raises:
            Refused: the rules say no; nothing of it remains.
            StoreError: the file failed; nothing of it remains.

        """
        mine = _Waiting(work)
        self._waiting.append(mine)
        with self._turn:
            while mine.outcome is None:  # else another thread took it along
                self._run_waiting()
        result, error = mine.outcome
        if error is not None:
            raise error
        return cast("T", result)

    def begin(self, works: list[Work]) -> list[Outcome]:
        """Run writes without committing them; ``commit`` must follow unless this raises.

        Raises:
            StoreError: no transaction could be begun.

        """
        self._turn.acquire()
        try:
            return self._begin(works)
        except BaseException:
            self._turn.release()
            raise

    def commit(self) -> None:
        """Put on disk what ``begin`` ran.

        Raises:
            StoreError: it could not be; nothing of it remains.

        """
        try:
            self._commit()
        finally:
            self._turn.release()

    def close(self) -> None:
        """Close the file."""
        with self._turn:
            self._db.close()

    def _run_waiting(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_GATHERED))]
        try:
            outcomes = self._begin([each.work for each in batch])
            self._commit()
        except StoreError as error:
            outcomes = [(None, error)] * len(batch)
        for each, outcome in zip(batch, outcomes, strict=True):
            each.outcome = outcome

    def _begin(self, works: list[Work]) -> list[Outcome]:
        with self._db.reading() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                return [self._tried(work) for work in works]
            except Exception:  # noqa: BLE001 - which write it was is found out below
                self._undo()
            connection.execute("BEGIN IMMEDIATE")
            try:
                return [self._apart(work) for work in works]
            except BaseException:
                self._undo()
                raise

    def _tried(self, work: Work) -> Outcome:
        try:
            return work(self._book), None
        except Refused as refused:  # which has written nothing
            return None, refused

    def _apart(self, work: Work) -> Outcome:
        """Run a write under a savepoint, so that it fails alone."""
        self._connection.execute("SAVEPOINT one")
        try:
            outcome: Outcome = (work(self._book), None)
        except Exception as error:  # noqa: BLE001 - it is handed to whom it belongs
            self._connection.execute("ROLLBACK TO one")
            outcome = (None, self._translated(error))
        self._connection.execute("RELEASE one")
        return outcome

    def _commit(self) -> None:
        with self._db.reading() as connection:
            try:
                connection.execute("COMMIT")
            except BaseException:
                self._undo()
                raise

    def _undo(self) -> None:
        # SQLite may have rolled back by itself; a failing undo must not hide the cause.
        with suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _translated(self, error: Exception) -> Exception:
        if isinstance(error, EdgeError):
            return error
        return StoreError(
            f"The register {self.path} refused a write: {type(error).__name__}: {error}.",
            hint="Nothing of it remains; the gateway's log has more.",
        )


class _Waiting:
    """A write of a thread, and what became of it."""

    __slots__ = ("outcome", "work")

    def __init__(self, work: Work) -> None:
        self.work = work
        self.outcome: Outcome | None = None


class Turns:
    """Writes of one event loop, gathered while the disk is busy with those before.

    Args:
        register: open.

    """

    def __init__(self, register: Register) -> None:
        self._register = register
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="edge-gateway-commit")
        self._waiting: deque[tuple[Work, asyncio.Future[Any]]] = deque()
        self._busy = False

    @property
    def waiting(self) -> int:
        """How many writes wait."""
        return len(self._waiting)

    async def write(self, work: Callable[[Book], T]) -> T:
        """Run a write and wait for the disk; it may be run twice, as in ``Register.write``.

        Raises:
            Refused, StoreError: as ``Register.write``.

        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.append((work, future))
        if not self._busy:
            self._busy = True
            # Not at once: requests that are ready in this round of the loop come along.
            self._loop.call_soon(self._next)
        return await future

    def close(self) -> None:
        """End the thread once the last commit is over."""
        self._thread.shutdown()

    def _next(self) -> None:
        if not self._waiting:
            self._busy = False
            return
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_GATHERED))]
        try:
            outcomes = self._register.begin([work for work, _ in batch])
        except StoreError as error:
            self._over(batch, [(None, error)] * len(batch))
            return
        committed = self._loop.run_in_executor(self._thread, self._register.commit)
        committed.add_done_callback(lambda done: self._committed(batch, outcomes, done.exception()))

    def _committed(
        self,
        batch: list[tuple[Work, asyncio.Future[Any]]],
        outcomes: list[Outcome],
        error: BaseException | None,
    ) -> None:
        self._over(batch, outcomes if error is None else [(None, error)] * len(batch))

    def _over(self, batch: list[tuple[Work, asyncio.Future[Any]]], outcomes: list[Outcome]) -> None:
        for (_, future), (result, error) in zip(batch, outcomes, strict=True):
            if future.done():  # its request was given up
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        self._next()
