"""A backup of the hub's database: one file of SQLite, whichever database the hub has.

Guarantees: the file holds one moment; it is on disk under its name, whole, before the watermark
says so; nothing is overwritten. Devices forget what they reported only up to the watermark. Keys
and model files are not in it.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.engine import make_url

from edge.errors import InputError, StoreError
from edge_sync.hub.home import Hub, read_fact
from edge_sync.store.database import Store
from edge_sync.store.migration import migrate
from edge_sync.store.schema import facts, tables

_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that is on disk.

    Attributes:
        receipt: the last one that it holds.

    """

    path: Path
    bytes: int
    receipt: int


def backup(hub: Hub, path: Path, *, who: str) -> Backup:
    """Write a backup and raise the watermark.

    Raises:
        InputError: there is something of this name.
        StoreError: the database cannot be read, or the file cannot be written.

    """
    path = path.absolute()
    if path.exists():
        raise InputError(f"{path} is there already.", hint="Name a new file.")
    with _placed(path) as fresh:
        if hub.store.dialect == "sqlite":
            _copy_file(hub, fresh)
        else:
            _copy_rows(hub, fresh)
        receipt = _receipt(fresh)
    made = Backup(path, path.stat().st_size, receipt)

    def work(connection: Connection) -> None:
        # A backup that took longer than a later one must not set it back.
        if receipt > (read_fact(connection, "watermark") or 0):
            changed = update(facts).where(facts.c.name == "watermark")
            connection.execute(changed.values(value=str(receipt)))

    detail = {"receipt": receipt, "bytes": made.bytes}
    hub.change(who, "hub.backup", about=path.name, detail=detail, work=work)
    return made


@contextmanager
def _placed(path: Path) -> Iterator[Path]:
    """Yield a file beside ``path`` that becomes it at the end, once it is on disk."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        fresh = Path(name)
        try:
            yield fresh
            _sync(fresh)
            os.link(fresh, path)
            _sync(path.parent)
        finally:
            fresh.unlink(missing_ok=True)
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise StoreError(
            f"The backup {path} cannot be written: {reason}.",
            hint="Name a file in a folder that is there, can be written and has room.",
        ) from error


def _copy_file(hub: Hub, target: Path) -> None:
    """Copy page by page (https://sqlite.org/backup.html); writers go on meanwhile."""
    source = f"file:{make_url(hub.settings.database).database}?mode=ro"
    with (
        closing(sqlite3.connect(source, uri=True)) as old,
        closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)
        new.execute("PRAGMA journal_mode=delete")


def _copy_rows(hub: Hub, target: Path) -> None:
    """Copy row by row into a database of the same schema, from one moment of the hub's."""
    store = Store.open(f"sqlite:///{target}")
    try:
        migrate(store)
        with hub.store.reading() as source:

            def work(connection: Connection) -> None:
                for table in tables.sorted_tables:
                    found = source.execute(select(table)).mappings()
                    while rows := [dict(row) for row in found.fetchmany(_ROWS)]:
                        connection.execute(insert(table), rows)

            store.write(work)
    finally:
        store.close()


def _receipt(path: Path) -> int:
    with closing(sqlite3.connect(path)) as made:
        row = made.execute("SELECT value FROM facts WHERE name = 'receipt'").fetchone()
    return int(row[0]) if row else 0


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
