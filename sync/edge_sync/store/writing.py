"""Group commit: writes that come at once share one transaction.

Guarantees: a write is over only after its commit; one that fails leaves nothing and does not hurt
the others; the order of the queue is kept. Knows no SQL but savepoints, and no database: it is
given what begins and commits.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from edge.errors import StoreError
from edge_sync.store.failures import store_error

Handler: TypeAlias = Callable[[Connection, list[Any]], Sequence[Any]]
Settle: TypeAlias = Callable[[Any, BaseException | None], None]
Transaction: TypeAlias = Callable[[], AbstractContextManager[tuple[Connection, Callable[[], None]]]]

MAX_GATHERED = 256
_ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class Write:
    """One queued write: what does it, with what, and whom to tell."""

    handler: Handler
    item: Any
    settle: Settle


class Writer:
    """A queue of writes and the one thread that runs them, started with the first.

    Args:
        transaction: opens a write transaction; yields a connection and what commits it.
        name: of the database, for messages.

    """

    def __init__(self, transaction: Transaction, *, name: str) -> None:
        self._transaction = transaction
        self._name = name
        self._queue: queue.SimpleQueue[Write | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many writes wait."""
        return self._queue.qsize()

    def submit(self, handler: Handler, item: Any, settle: Settle) -> None:
        """Queue a write; after ``close`` it fails at once."""
        with self._lock:
            if not self._closed:
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._run, name="edge-hub-writer", daemon=True
                    )
                    self._thread.start()
                self._queue.put(Write(handler, item, settle))
                return
        settle(None, StoreError(f"The hub's database {self._name} is closed."))

    def run(self, handler: Handler, item: Any) -> Any:
        """Queue a write and wait for its end.

        Raises:
            Exception: what the handler raised, or ``StoreError``.
            RuntimeError: it was called from inside another write, which would wait for ever.

        """
        if threading.current_thread() is self._thread:
            raise RuntimeError("A write was started inside another write.")
        over = threading.Event()
        outcome: list[Any] = []

        def settle(result: Any, error: BaseException | None) -> None:
            outcome.extend((result, error))
            over.set()

        self.submit(handler, item, settle)
        over.wait()
        result, error = outcome
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """Run what is queued, then end the thread."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
            if thread is not None:
                self._queue.put(None)
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            batch, ended = self._gather()
            if batch:
                for write, (result, error) in zip(batch, self._outcomes(batch), strict=True):
                    write.settle(result, self._translated(error))

    def _gather(self) -> tuple[list[Write], bool]:
        """Wait for one write, and take along what else is there."""
        first = self._queue.get()
        if first is None:
            return [], True
        batch = [first]
        while len(batch) < MAX_GATHERED:
            try:
                write = self._queue.get_nowait()
            except queue.Empty:
                break
            if write is None:
                return batch, True
            batch.append(write)
        return batch, False

    def _outcomes(self, batch: list[Write]) -> list[tuple[Any, BaseException | None]]:
        """Run a batch: at first all together; where that fails, each under a savepoint."""
        for run in (_together, *(_apart,) * _ATTEMPTS):
            committing = False
            try:
                with self._transaction() as (connection, commit):
                    outcomes = run(connection, batch)
                    committing = True
                    commit()
            except Exception as error:  # noqa: BLE001 - whatever it is belongs to the callers
                failure = error
                # Whether a commit that failed took effect is unknown: it is never repeated here.
                if committing:
                    break
            else:
                return outcomes
        return [(None, failure)] * len(batch)

    def _translated(self, error: BaseException | None) -> BaseException | None:
        return store_error(self._name, error) if isinstance(error, SQLAlchemyError) else error


def _together(connection: Connection, batch: list[Write]) -> list[tuple[Any, BaseException | None]]:
    """Run all writes, neighbours with the same handler in one call of it."""
    outcomes: list[tuple[Any, BaseException | None]] = []
    at = 0
    while at < len(batch):
        end = at
        while end < len(batch) and batch[end].handler is batch[at].handler:
            end += 1
        results = batch[at].handler(connection, [write.item for write in batch[at:end]])
        outcomes.extend(_outcome(result) for result in results)
        at = end
    return outcomes


def _apart(connection: Connection, batch: list[Write]) -> list[tuple[Any, BaseException | None]]:
    """Run each write under a savepoint, so that a bad one fails alone."""
    outcomes: list[tuple[Any, BaseException | None]] = []
    for write in batch:
        connection.exec_driver_sql("SAVEPOINT one")
        try:
            (result,) = write.handler(connection, [write.item])
        except Exception as error:  # noqa: BLE001 - it is handed to whom it belongs
            connection.exec_driver_sql("ROLLBACK TO SAVEPOINT one")
            outcomes.append((None, error))
        else:
            outcomes.append(_outcome(result))
        connection.exec_driver_sql("RELEASE SAVEPOINT one")
    return outcomes


def _outcome(result: Any) -> tuple[Any, BaseException | None]:
    return (None, result) if isinstance(result, BaseException) else (result, None)
