"""One way to reach the hub's database, whether it is SQLite or PostgreSQL.

Guarantees: a write has been committed, durably, when it returns, or it has left nothing; one write
transaction runs at a time over all processes (SQLite's own lock; an advisory lock on PostgreSQL),
so that a read inside a write sees no race; every failure of a driver arrives as ``StoreError``.
Knows nothing of what the tables mean.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from edge.errors import ConfigError
from edge_sync.store.failures import translated
from edge_sync.store.writing import Handler, Settle, Writer

T = TypeVar("T")

BUSY_TIMEOUT_S = 30.0
READERS = 4
WRITE_LOCK = 0x65646765
"""Of PostgreSQL's advisory locks: held by the one write transaction; the letters ``edge``."""
_WAL_SAFE = (3, 51, 3)  # https://sqlite.org/wal.html#walresetbug
_STATEMENTS = (
    "SET lock_timeout = '30s'",
    # A replica that hangs inside a transaction must not keep the others from writing for ever.
    "SET idle_in_transaction_session_timeout = '30s'",
    "SET tcp_keepalives_idle = 30",
)


class Store:
    """The database, open.

    Attributes:
        url: where it is, without the password.
        dialect: which of the two it is.

    """

    def __init__(self, url: URL) -> None:
        self.url = url.render_as_string(hide_password=True)
        self.dialect: Literal["sqlite", "postgresql"] = (
            "sqlite" if url.get_backend_name() == "sqlite" else "postgresql"
        )
        self.engine = _engine(url)
        self._writer = Writer(self._transaction, name=self.url)

    @classmethod
    def open(cls, url: str) -> Self:
        """Open a database by URL: ``sqlite:///path`` or ``postgresql://…``.

        Raises:
            ConfigError: the URL names neither, or a database of SQLite that is not a file.
            StoreError: the database cannot be reached.

        """
        store = cls(_parsed(url))
        try:
            with store.reading():
                pass
        except BaseException:
            store.close()
            raise
        return store

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Yield a connection that sees one moment of the database and cannot change it.

        Raises:
            StoreError: the database cannot be read.

        """
        sqlite = self.dialect == "sqlite"
        start = "BEGIN" if sqlite else "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
        with translated(self.url), self.engine.connect() as connection:
            if sqlite:
                connection.exec_driver_sql("PRAGMA query_only=1")
            connection.exec_driver_sql(start)
            try:
                yield connection
            finally:
                _undo(connection)
                if sqlite:
                    connection.exec_driver_sql("PRAGMA query_only=0")

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in a write transaction and return its result after the commit.

        It may be run twice: where a write gathered with it failed, all of them are run again, each
        under a savepoint. Never call it from inside another write.

        Raises:
            StoreError: the database failed; nothing of the work remains.
            Exception: what ``work`` raised; nothing of it remains.

        """
        result: T = self._writer.run(_one_by_one, work)
        return result

    def submit(self, handler: Handler, item: Any, settle: Settle) -> None:
        """Queue one write; ``settle(result, error)`` is called from another thread when it is over.

        Args:
            handler: takes the connection and all items that were gathered for it, and returns a
                result for each, in order; a result that is an exception is that item's failure.
            item: of this write.
            settle: must not block and must not raise.

        """
        self._writer.submit(handler, item, settle)

    @property
    def waiting(self) -> int:
        """How many writes wait for their turn."""
        return self._writer.waiting

    def close(self) -> None:
        """Finish the writes that were queued, then close; a second call does nothing."""
        self._writer.close()
        self.engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[tuple[Connection, Callable[[], None]]]:
        """Yield a connection inside the one write transaction, and what commits it."""
        with translated(self.url), self.engine.connect() as connection:
            if self.dialect == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.exec_driver_sql("BEGIN")
            done = False

            def commit() -> None:
                nonlocal done
                connection.exec_driver_sql("COMMIT")
                done = True

            try:
                if self.dialect == "postgresql":
                    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITE_LOCK})")
                yield connection, commit
            finally:
                if not done:
                    _undo(connection)


def _undo(connection: Connection) -> None:
    """Roll back; a connection that cannot is thrown away, so that nothing of it is used again."""
    try:
        connection.exec_driver_sql("ROLLBACK")
    except SQLAlchemyError:
        connection.invalidate()


def _one_by_one(connection: Connection, works: list[Callable[[Connection], Any]]) -> list[Any]:
    return [work(connection) for work in works]


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise _unknown(url) from error
    backend = parsed.drivername.split("+")[0]
    if backend in {"postgres", "postgresql"}:
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise _unknown(parsed.render_as_string(hide_password=True))
    if not parsed.database or parsed.database == ":memory:":
        raise ConfigError(
            f"The hub's database {url!r} is no file.", hint="Name one: `sqlite:////folder/hub.db`."
        )
    return parsed


def _unknown(url: str) -> ConfigError:
    return ConfigError(
        f"The hub's database {url!r} is neither SQLite nor PostgreSQL.",
        hint="Write `sqlite:////folder/hub.db` or `postgresql://user@host/name`.",
    )


def _engine(url: URL) -> Engine:
    """Return an engine that never begins or commits by itself: this module does."""
    if url.get_backend_name() == "sqlite":
        engine = create_engine(
            url,
            isolation_level="AUTOCOMMIT",
            connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
            pool_size=READERS,
            max_overflow=READERS,
        )
        event.listen(engine, "connect", _configure_sqlite)
        return engine
    engine = create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        connect_args={"connect_timeout": 10},
        pool_size=READERS,
        max_overflow=READERS,
        pool_pre_ping=True,
    )
    event.listen(engine, "connect", _configure_postgres)
    return engine


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    journal = "wal" if sqlite3.sqlite_version_info >= _WAL_SAFE else "delete"
    path = connection.execute("PRAGMA database_list").fetchone()[2]
    if path:
        Path(path).chmod(0o600)
    for pragma in (
        f"journal_mode={journal}",
        f"synchronous={'FULL' if journal == 'wal' else 'EXTRA'}",
        "fullfsync=1",
        "foreign_keys=1",
        "cache_size=-32000",
        "temp_store=memory",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()


def _configure_postgres(connection: Any, _record: object) -> None:
    with connection.cursor() as cursor:
        for statement in _STATEMENTS:
            cursor.execute(statement)
