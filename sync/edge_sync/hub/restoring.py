"""A backup put back into the hub's database, of either kind.

Guarantees: before anything of the backup is in force, the keys folder knows of a higher epoch, so
that no money is granted on the backup's word (``budget.recovery``); the database is changed in one
transaction, also under a server that runs; it is refused where the backup or what is in the
database is of another hub. Devices send again what the backup does not hold. Keys and model files
are not in it.
"""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from edge.errors import ConfigError, InputError
from edge_sync.hub import audit
from edge_sync.hub.budget import mirror, outside, recovery
from edge_sync.hub.home import Hub, newest_metadata, raise_fact, read_fact
from edge_sync.store.database import Store
from edge_sync.store.migration import migrate, version
from edge_sync.store.schema import metadata_files, tables
from edge_sync.trust.repository import Repository

_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class Held:
    """What a database holds.

    Attributes:
        root: digest of the hub's first root of trust, which tells hubs apart; empty for no hub.
        receipt: the last one.
        epoch, granted, changes: see ``budget.outside``.
        generation: of its changes.

    """

    root: str = ""
    receipt: int = 0
    epoch: int = 0
    granted: int = 0
    changes: int = 0
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Restored:
    """A backup that is in force.

    Attributes:
        receipt: the last one that it holds.
        before: the last one that the database had; 0 where it was empty.
        epoch: that leases will be granted in once all gateways have answered.

    """

    receipt: int
    before: int
    epoch: int


def held(hub: Hub) -> Held:
    """Return what the hub's database holds now."""
    with hub.store.reading() as connection:
        return _held(connection)


def restore(hub: Hub, path: Path, *, who: str, replace: bool = False) -> Restored:
    """Put a backup into the hub's database, and begin the recovery of the money.

    Args:
        hub: opened with ``migrating``; its database may be empty.
        path: what ``backup`` wrote, by this version or an older one.
        who: for the audit log.
        replace: what the database holds of this hub may be lost.

    Raises:
        InputError: the file is no backup of a hub, or something would be lost.
        ConfigError: the backup or the database is of another hub, or the keys folder is.
        StoreError: the database or the keys folder failed; nothing was changed but the epoch.

    """
    now = held(hub)
    with _opened(path.absolute(), hub.home) as source:
        with source.reading() as connection:
            told = _held(connection)
        _require_same(hub, path, told, now, replace=replace)
        known = outside.read(hub.keys)
        kept = recovery.claim(hub, above=max(told.epoch, now.epoch))

        def work(connection: Connection) -> None:
            before = audit.head(connection)
            _copy(source, connection)
            _require_keys(hub, connection)
            generation = max(told.generation, now.generation)
            mirror.set_facts(connection, [("generation", generation)])
            recovery.enter(
                connection,
                kept,
                outside_knows=known.epoch > 0
                and known.granted >= told.granted
                and known.changes >= told.changes,
                now=hub.clock(),
            )
            audit.append(
                connection,
                at=hub.clock(),
                who=who,
                what="hub.restore",
                about=path.name,
                detail={"receipt": told.receipt, "epoch": kept.epoch, "head_before": str(before)},
            )
            raise_fact(connection, "generation")

        hub.store.write(work)
    mirror.write(hub)
    return Restored(told.receipt, now.receipt, kept.epoch)


@contextmanager
def _opened(path: Path, folder: Path) -> Iterator[Store]:
    """Yield a copy of a backup, brought to this version's schema; it is deleted at the end."""
    with tempfile.TemporaryDirectory(prefix=".restore-", dir=folder) as beside:
        copy = Path(beside) / "backup.db"
        try:
            shutil.copyfile(path, copy)
            with closing(sqlite3.connect(copy)) as opened:
                whole = opened.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
        except OSError as error:
            raise InputError(
                f"The backup {path} cannot be read: {error.strerror or error}.",
                hint="Name a file that `edge-hub backup` wrote.",
            ) from error
        except sqlite3.Error as error:
            raise _no_backup(path) from error
        if not whole:
            raise _no_backup(path)
        store = Store.open(f"sqlite:///{copy}")
        try:
            if version(store) is None:
                raise _no_backup(path)
            migrate(store)
            yield store
        finally:
            store.close()


def _require_same(hub: Hub, path: Path, told: Held, now: Held, *, replace: bool) -> None:
    if not told.root:
        raise _no_backup(path)
    if now.root and now.root != told.root:
        raise ConfigError(
            f"The database {hub.store.url} holds another hub than the backup {path}.",
            hint="Name another database in hub.yaml, or the backup of this hub.",
        )
    if now.root and not replace:
        raise InputError(
            f"The database {hub.store.url} holds this hub up to receipt {now.receipt}; the backup "
            f"ends with {told.receipt}, and what came since would be lost.",
            hint="Back it up first, then confirm, or pass --yes.",
        )


def _require_keys(hub: Hub, connection: Connection) -> None:
    """See to it that devices will believe this hub: the key of the timestamp is here."""
    Repository.open(hub.keys, newest_metadata(connection)).sign_time("0" * 32, now=hub.clock())


def _copy(source: Store, connection: Connection) -> None:
    """Put all rows of a database in place of those of another, inside a write."""
    for table in reversed(tables.sorted_tables):
        connection.execute(delete(table))
    with source.reading() as rows:
        for table in tables.sorted_tables:
            found = rows.execute(select(table)).mappings()
            while part := [dict(row) for row in found.fetchmany(_ROWS)]:
                connection.execute(insert(table), part)


def _held(connection: Connection) -> Held:
    first = metadata_files.c.version == 1
    query = select(metadata_files.c.body).where(metadata_files.c.role == "root", first)
    body: Any = connection.execute(query).scalar()
    if body is None:
        return Held()
    names = {name: name for name in ("receipt", "epoch", "granted", "generation")}
    names["changes"] = mirror.CHANGES
    values = {name: read_fact(connection, fact) or 0 for name, fact in names.items()}
    return Held(hashlib.sha256(bytes(body)).hexdigest(), **values)


def _no_backup(path: Path) -> InputError:
    return InputError(
        f"{path} is no whole backup of a hub.", hint="Name a file that `edge-hub backup` wrote."
    )
