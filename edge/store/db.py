"""SQLite files of the state folder: opening, transactions, migrations, inspection.

Guarantees: a transaction is all or nothing and, in a durable file, on disk when it returns
(rollback journal, ``synchronous=EXTRA``); a migration and its record are one transaction; every
failure of SQLite or the file system arrives as ``StoreError`` and leaves the file as it was. One
connection per file and process, safe to share between threads, refused after a fork. Knows nothing
of what the tables mean.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import sqlite_utils

from edge.errors import StoreError

Migration: TypeAlias = Callable[[sqlite_utils.Database], None]

BUSY_TIMEOUT_S = 10.0
_WAL_ATTEMPTS = 50
_WAL_PAUSE_S = 0.02
_CREATING = threading.Lock()
# https://sqlite.org/wal.html#walresetbug
_WAL_BUG_FIRST, _WAL_BUG_FIXED = (3, 7, 0), (3, 51, 3)

_WRITABLE = "Make the state folder writable."
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

# Primary result code of SQLite -> (reason, remedy).
_REASONS: dict[int, tuple[str, str]] = {
    sqlite3.SQLITE_FULL: ("the disk is full", "Free some space; nothing was changed."),
    sqlite3.SQLITE_IOERR: (
        "the disk refused a read or a write",
        "Free some space, check the quota and the disk; nothing was changed.",
    ),
    sqlite3.SQLITE_BUSY: (
        "another process keeps it locked",
        "Try again, or end the process that holds the file open.",
    ),
    sqlite3.SQLITE_READONLY: ("it is read-only", _WRITABLE),
    sqlite3.SQLITE_PERM: ("access is denied", _WRITABLE),
    sqlite3.SQLITE_CANTOPEN: (
        "it cannot be opened or created",
        "Make the state folder writable, or pass another `state`.",
    ),
    sqlite3.SQLITE_NOTADB: (
        "it is not a database",
        "Move the file away; it is never overwritten.",
    ),
    sqlite3.SQLITE_CORRUPT: (
        "the database is damaged",
        "Move the file away and restore a backup; it is never overwritten.",
    ),
}


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn errors of SQLite and the file system about ``path`` into ``StoreError``."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        reason, hint = _REASONS.get(code, (str(error).rstrip("."), None))
        raise StoreError(f"State file {path} cannot be used: {reason}.", hint=hint) from error
    except OSError as error:
        reason = error.strerror or str(error)
        hint = _WRITABLE if error.errno in _DENIED else None
        raise StoreError(f"State file {path} cannot be used: {reason}.", hint=hint) from error


class Database:
    """One open SQLite file: a connection, its lock, and a sqlite-utils view of it.

    Attributes:
        path: the file.
        tables: the same connection through sqlite-utils, for schema, inspection and reports;
            use it inside ``transaction()`` or ``query()``.

    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self.tables = sqlite_utils.Database(
            connection, recursive_triggers=False, execute_plugins=False
        )
        self._connection = connection
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._closed = False

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection under its lock, for single statements.

        Raises:
            StoreError: SQLite failed, the file was closed, or this process is a fork of the one
                that opened it.

        """
        with self._lock, translated(self.path):
            if os.getpid() != self._pid:
                raise StoreError(
                    f"State file {self.path} was opened before this process was forked.",
                    hint="Open the state folder again in the new process.",
                )
            if self._closed:
                raise StoreError(
                    f"State file {self.path} cannot be used: the runtime is closed.",
                    hint="Open the runtime again.",
                )
            yield self._connection

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection inside BEGIN IMMEDIATE; commit at the end, undo on any error.

        Inside another transaction of the same thread it is a savepoint of that one.

        Raises:
            StoreError: as in ``reading``; nothing of the transaction remains.

        """
        with self.reading() as connection:
            nested = connection.in_transaction
            connection.execute("SAVEPOINT nested" if nested else "BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("RELEASE nested" if nested else "COMMIT")
            except BaseException:
                # SQLite may have rolled back by itself; a failing undo must not hide the cause.
                with suppress(sqlite3.Error):
                    if connection.in_transaction:
                        connection.execute("ROLLBACK TO nested" if nested else "ROLLBACK")
                        if nested:
                            connection.execute("RELEASE nested")
                raise

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Return the rows of a report, one dict each, read through sqlite-utils."""
        with self.reading():
            return list(self.tables.query(sql, list(parameters)))

    def inspect(self) -> dict[str, Any]:
        """Return path, SQLite version, journal mode, rows per table, and the WAL-bug flag."""
        with self.reading() as connection:
            version = sqlite3.sqlite_version_info
            mode = str(connection.execute("PRAGMA journal_mode").fetchone()[0])
            return {
                "path": str(self.path),
                "sqlite": sqlite3.sqlite_version,
                "journal_mode": mode,
                "rows": {table.name: table.count for table in self.tables.tables},
                "wal_reset_bug": mode == "wal" and _WAL_BUG_FIRST <= version < _WAL_BUG_FIXED,
            }

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock, translated(self.path):
            if os.getpid() == self._pid:
                self._closed = True
                self._connection.close()


def open_database(path: Path, *, durable: bool, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Database:
    """Open or create a SQLite file (mode 0600, new folders 0700).

    Args:
        path: the file.
        durable: rollback journal and ``synchronous=EXTRA``, so that a commit survives a power
            cut; else WAL and ``NORMAL``, where the last commits before a power cut can be lost.
        busy_timeout_s: how long to wait for another process's lock.

    Raises:
        StoreError: the file cannot be opened, written or is no database.

    """
    with translated(path):
        with _CREATING:
            _create(path)
        connection = sqlite3.connect(
            path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False
        )
        try:
            _configure(connection, path, durable=durable)
        except BaseException:
            connection.close()
            raise
    return Database(path, connection)


def _create(path: Path) -> None:
    """Create the file and its folder where missing; refuse what cannot be written.

    Never opens a file that exists: closing any descriptor of it would drop the POSIX locks that
    SQLite holds for another connection of this process.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, f"{path.parent} is not a folder") from error
    if not path.exists():
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        _sync_folder(path.parent)
        _sync_folder(path.parent.parent)
    for needed in (path, path.parent):
        if not os.access(needed, os.W_OK):
            raise PermissionError(errno.EACCES, f"{needed} is read-only")


def _sync_folder(folder: Path) -> None:
    """Make new names in a folder survive a power cut; Windows journals them by itself."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _configure(connection: sqlite3.Connection, path: Path, *, durable: bool) -> None:
    wanted = "delete" if durable else "wal"
    if _set_journal(connection, wanted) != wanted:
        raise StoreError(f"State file {path} cannot use the journal mode {wanted!r}.")
    connection.execute(f"PRAGMA synchronous={'EXTRA' if durable else 'NORMAL'}")
    if durable:
        # macOS answers a plain fsync before the drive has written.
        connection.execute("PRAGMA fullfsync=1")
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()


def _set_journal(connection: sqlite3.Connection, wanted: str) -> str:
    """Set the journal mode and return the one in force.

    Two processes that switch a new file at once can meet SQLITE_BUSY without the busy timeout
    being asked, so a locked file is tried again for a second.
    """
    for attempt in range(_WAL_ATTEMPTS):
        try:
            return str(connection.execute(f"PRAGMA journal_mode={wanted}").fetchone()[0])
        except sqlite3.OperationalError as error:
            last = attempt == _WAL_ATTEMPTS - 1
            if last or error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            time.sleep(_WAL_PAUSE_S)
    raise AssertionError  # pragma: no cover


def open_migrated(path: Path, migrations: Sequence[Migration]) -> Database:
    """Open or create a file that is not durable, its schema up to date.

    Raises:
        StoreError: as ``open_database`` and ``migrate``.

    """
    db = open_database(path, durable=False)
    try:
        migrate(db, migrations)
    except BaseException:
        db.close()
        raise
    return db


def migrate(db: Database, migrations: Sequence[Migration]) -> None:
    """Bring the schema up to date: each missing migration and its record in one transaction.

    Migrations are numbered by position from 1 and are append-only; a record's name must match.

    Raises:
        StoreError: the file was written by a newer version, or by other migrations.

    """
    with db.transaction():
        if not db.tables["migrations"].exists():
            db.tables.create_table("migrations", {"number": int, "name": str}, pk="number")
    for number, migration in enumerate(migrations, start=1):
        with db.transaction() as connection:
            rows = connection.execute("SELECT number, name FROM migrations").fetchall()
            recorded: dict[int, str] = dict(rows)
            _check_recorded(db.path, recorded, migrations)
            if number not in recorded:
                migration(db.tables)
                connection.execute(
                    "INSERT INTO migrations VALUES (?, ?)", (number, migration.__name__)
                )


def _check_recorded(path: Path, recorded: dict[int, str], known: Sequence[Migration]) -> None:
    newest = max(recorded, default=0)
    if newest > len(known):
        raise StoreError(
            f"State file {path} has schema {newest}; this version knows {len(known)}.",
            hint="Install the newer edge-runtime that wrote it, or pass another `state`.",
        )
    for number, name in recorded.items():
        if known[number - 1].__name__ != name:
            raise StoreError(
                f"State file {path} has {name!r} as schema {number}, "
                f"not {known[number - 1].__name__!r}.",
                hint="The file belongs to something else: pass another `state`.",
            )
