"""The policy of one device: the document in force, the one before it, and what vouches for them.

Guarantees: an activation is one durable transaction (rollback journal, ``synchronous=EXTRA``), so
that a crash at any moment leaves the old policy or the new one, each with its trusted metadata and
its etag; the revision in force never falls; ``stamp`` changes whenever any process has changed the
file. Verifies nothing and knows nothing of what a document says.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeAlias

import sqlite_utils

from edge.errors import InputError, StoreError, VersionRollback
from edge.store.db import Database, Migration, migrate, open_database, translated

Stamp: TypeAlias = tuple[int, int, int]
Stopped: TypeAlias = Mapping[str, Sequence[str]]
State: TypeAlias = dict[str, Any]

STOPPABLE = ("models", "tools", "tasks")
"""What a kill switch can name."""

_KEPT_REFUSALS = 100


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """A document with the switches that hold now.

    Attributes:
        revision: of the document, 1 or more.
        document: as it was signed.
        activated_at: seconds since the epoch.
        stopped: names under ``models``, ``tools`` and ``tasks``.
        tightened: the policy has expired, so nothing new may leave the device.

    """

    revision: int
    document: bytes = field(repr=False)
    activated_at: float
    stopped: dict[str, tuple[str, ...]]
    tightened: bool


@dataclass(frozen=True, slots=True)
class Switches:
    """What holds beside the document, also where there is none; see ``StoredPolicy``."""

    revision: int
    stopped: dict[str, tuple[str, ...]]
    tightened: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """A policy that this device did not take, and why; ``at`` is in seconds since the epoch."""

    revision: int
    reason: str
    at: float


def _create(tables: sqlite_utils.Database) -> None:
    tables.create_table(
        "policies",
        {"revision": int, "document": bytes, "activated_at": float},
        pk="revision",
        not_null={"document", "activated_at"},
        strict=True,
    )
    columns = {
        "id": int,
        "active": int,
        "previous": int,
        "stopped": str,
        "tightened": int,
        "etag": str,
        "agent": str,
    }
    tables.create_table(
        "now",
        columns,
        pk="id",
        not_null={"stopped", "tightened", "etag", "agent"},
        strict=True,
    )
    tables.execute("INSERT INTO now VALUES (1, NULL, NULL, '{}', 0, '', '{}')")
    tables.create_table(
        "trust", {"name": str, "body": bytes}, pk="name", not_null={"body"}, strict=True
    )
    tables.create_table(
        "refusals",
        {"seq": int, "revision": int, "reason": str, "at": float},
        pk="seq",
        not_null={"revision", "reason", "at"},
        strict=True,
    )


MIGRATIONS: tuple[Migration, ...] = (_create,)


class Policies:
    """The policy file of one state folder; safe to share between threads and processes."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._file = os.fspath(db.path)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open or create ``policy.db``.

        Raises:
            StoreError: the folder cannot be used.

        """
        db = open_database(folder / "policy.db", durable=True)
        try:
            migrate(db, MIGRATIONS)
        except BaseException:
            db.close()
            raise
        return cls(db)

    def active(self) -> StoredPolicy | None:
        """Return the policy in force, or ``None`` where the pack stands alone.

        Raises:
            StoreError: the file cannot be read.

        """
        return self._stored("active")

    def previous(self) -> StoredPolicy | None:
        """Return the policy that was in force before, with the switches of now."""
        return self._stored("previous")

    def switches(self) -> Switches:
        """Return the revision in force (0 for none) and the switches; the document is not read."""
        with self._db.reading() as connection:
            row = connection.execute("SELECT active, stopped, tightened FROM now").fetchone()
        return Switches(row[0] or 0, _names(row[1]), bool(row[2]))

    def activate(
        self,
        *,
        revision: int,
        document: bytes,
        stopped: Stopped | None,
        at: float,
        tightened: bool | None = False,
        trust: Mapping[str, bytes] | None = None,
        etag: str | None = None,
    ) -> None:
        """Put a document in force, with what vouches for it: all of it or nothing.

        The same document again changes only what stands beside it.

        Args:
            revision: of the document, 1 or more.
            document: its bytes.
            stopped: names under ``models``, ``tools`` and ``tasks``; ``None`` leaves them.
            at: seconds since the epoch.
            tightened: the policy has expired; ``None`` leaves it.
            trust: trusted metadata by name, which replaces all that was there; ``None`` leaves it.
            etag: what the hub calls this state; ``None`` leaves it.

        Raises:
            InputError: the revision is below 1, or ``stopped`` names something else.
            VersionRollback: a higher revision is in force, or another document of this one.
            StoreError: the file cannot be written; all is as before.

        """
        if revision < 1:
            raise InputError(f"The revision of a policy is {revision} but must be 1 or more.")
        with self._changing() as connection:
            (active,) = connection.execute("SELECT active FROM now").fetchone()
            if _is_new(connection, active, revision, document):
                connection.execute(
                    "INSERT INTO policies VALUES (?, ?, ?)", (revision, document, at)
                )
                connection.execute("UPDATE now SET previous = active, active = ?", (revision,))
                connection.execute(
                    "DELETE FROM policies WHERE revision NOT IN "
                    "(SELECT active FROM now UNION SELECT coalesce(previous, 0) FROM now)"
                )
            _put_beside(connection, trust, etag, stopped, tightened=tightened)

    def set_trust(
        self,
        trust: Mapping[str, bytes] | None,
        etag: str | None,
        *,
        stopped: Stopped | None,
        tightened: bool | None,
    ) -> None:
        """Change what stands beside the document, in one transaction; see ``activate``."""
        with self._changing() as connection:
            _put_beside(connection, trust, etag, stopped, tightened=tightened)

    def trust(self) -> dict[str, bytes]:
        """Return the trusted metadata by name."""
        with self._db.reading() as connection:
            return dict(connection.execute("SELECT name, body FROM trust ORDER BY name"))

    def etag(self) -> str:
        """Return what the hub calls the state of this device; empty at first."""
        with self._db.reading() as connection:
            return str(connection.execute("SELECT etag FROM now").fetchone()[0])

    def agent(self) -> State:
        """Return the state of the device's agent, a JSON object; empty at first."""
        with self._db.reading() as connection:
            return _agent(connection)

    def change_agent(self, step: Callable[[State], State]) -> State:
        """Replace the agent's state by what ``step`` makes of it, and return that.

        Nothing comes between; nothing is changed where ``step`` raises.

        Raises:
            StoreError: the file cannot be written.

        """
        with self._changing() as connection:
            after = step(_agent(connection))
            connection.execute("UPDATE now SET agent = ?", (json.dumps(after, allow_nan=False),))
        return after

    def refused(self, revision: int, reason: str, at: float) -> None:
        """Note a policy that was not taken; the last hundred are kept."""
        with self._changing() as connection:
            connection.execute(
                "INSERT INTO refusals (revision, reason, at) VALUES (?, ?, ?)",
                (revision, reason, at),
            )
            connection.execute(
                "DELETE FROM refusals WHERE seq <= (SELECT max(seq) FROM refusals) - ?",
                (_KEPT_REFUSALS,),
            )

    def refusals(self) -> list[Refusal]:
        """Return the policies that were not taken, newest first."""
        with self._db.reading() as connection:
            rows = connection.execute(
                "SELECT revision, reason, at FROM refusals ORDER BY seq DESC"
            ).fetchall()
        return [Refusal(*row) for row in rows]

    def stamp(self) -> Stamp:
        """Return a value that any process's change of the file changes; costs one ``stat``.

        Take it before reading what it stands for.

        Raises:
            StoreError: the file is gone.

        """
        try:
            found = os.stat(self._file)  # noqa: PTH116 - looked at once per call
        except OSError as error:
            with translated(self._db.path):
                raise error from None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def inspect(self) -> dict[str, Any]:
        """Return the file's path, SQLite version, journal mode and rows per table."""
        return self._db.inspect()

    def close(self) -> None:
        """Close the file; calling twice is harmless."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stored(self, which: str) -> StoredPolicy | None:
        with self._db.reading() as connection:
            row = connection.execute(
                "SELECT revision, document, activated_at, stopped, tightened "  # noqa: S608
                f"FROM now JOIN policies ON revision = {which}"
            ).fetchone()
        if row is None:
            return None
        revision, document, activated_at, stopped, tightened = row
        return StoredPolicy(revision, document, activated_at, _names(stopped), bool(tightened))

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """Change the file in one transaction, and its stamp.

        Two commits within one tick of the kernel's clock would leave the same time of change, so
        the exact time is written over it.
        """
        with self._db.transaction() as connection:
            yield connection
        now = time.time_ns()
        with suppress(OSError):
            os.utime(self._db.path, ns=(now, now))


def all_kinds(stopped: Stopped) -> dict[str, tuple[str, ...]]:
    """Return the names to stop under every kind, each once and sorted.

    Raises:
        InputError: another kind is named, or names are no list of names.

    """
    strange = sorted(set(stopped) - set(STOPPABLE))
    wrong = [kind for kind in stopped if isinstance(stopped[kind], str | bytes)]
    if strange or wrong:
        what = strange[0] if strange else f"{wrong[0]} that are no list"
        raise InputError(
            f"Nothing can be stopped under {what}.", hint="Pass lists of models, tools and tasks."
        )
    return {kind: tuple(sorted(set(stopped.get(kind, ())))) for kind in STOPPABLE}


def _is_new(
    connection: sqlite3.Connection, active: int | None, revision: int, document: bytes
) -> bool:
    """Whether a document may and must be put in place of the one in force."""
    if active is None or revision > active:
        return True
    if revision < active:
        raise VersionRollback(
            f"The policy of revision {revision} is older than revision {active}, which is in force."
        )
    query = "SELECT document FROM policies WHERE revision = ?"
    if connection.execute(query, (revision,)).fetchone()[0] != document:
        raise VersionRollback(f"There is another policy of revision {revision} in force.")
    return False


def _put_beside(
    connection: sqlite3.Connection,
    trust: Mapping[str, bytes] | None,
    etag: str | None,
    stopped: Stopped | None,
    *,
    tightened: bool | None,
) -> None:
    names = None if stopped is None else json.dumps(all_kinds(stopped))
    if trust is not None:
        connection.execute("DELETE FROM trust")
        connection.executemany("INSERT INTO trust VALUES (?, ?)", trust.items())
    connection.execute(
        "UPDATE now SET stopped = coalesce(?, stopped), tightened = coalesce(?, tightened), "
        "etag = coalesce(?, etag)",
        (names, tightened, etag),
    )


def _names(written: str) -> dict[str, tuple[str, ...]]:
    stopped = json.loads(written)
    return {kind: tuple(stopped.get(kind, ())) for kind in STOPPABLE}


def _agent(connection: sqlite3.Connection) -> State:
    body: State = json.loads(connection.execute("SELECT agent FROM now").fetchone()[0])
    if not isinstance(body, dict):
        raise StoreError("The state of the fleet's agent is damaged.", hint="Enrol again.")
    return body
