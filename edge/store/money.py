"""The file ``money.db``: schema, owner, recovery, and the clock that never runs backwards.

Ledger, leases and queue share this file and its connection, so that settling a hold and completing
the queued task it paid for can be one transaction. Guarantees: the rows of a dead owner are put
right in one transaction (never sent: released; sent: unclear and still held; claimed: waiting
again).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import sqlite_utils

from edge.errors import StoreError
from edge.store import owners
from edge.store.db import BUSY_TIMEOUT_S, Database, Migration, migrate, open_database

_LATEST_TIME = 253_402_300_799.0  # the end of the year 9999, the last day a calendar can name


def _create_ledger(tables: sqlite_utils.Database) -> None:
    tables.create_table("clock", {"id": int, "highest": float}, pk="id", strict=True)
    tables.execute("INSERT INTO clock VALUES (1, 0.0)")
    columns = {
        "seq": int,
        "id": str,
        "trace_id": str,
        "task": str,
        "pool": str,
        "owner": str,
        "state": str,
        "worst_case_microusd": int,
        "held_microusd": int,
        "cost_microusd": int,
        "tokens_in": int,
        "tokens_out": int,
        "why": str,
        "reserved_at": float,
        "sent_after_seq": int,
    }
    holds = tables.create_table(
        "holds",
        columns,
        pk="seq",
        not_null=set(columns) - {"seq", "sent_after_seq"},
        defaults={"cost_microusd": 0, "tokens_in": 0, "tokens_out": 0, "why": ""},
        strict=True,
    )
    holds.create_index(["id"], unique=True)
    holds.create_index(["trace_id"])
    holds.create_index(["state"])
    holds.create_index(["reserved_at", "cost_microusd", "held_microusd"])


def _create_queue(tables: sqlite_utils.Database) -> None:
    columns = {
        "seq": int,
        "id": str,
        "task": str,
        "text": str,
        "payload": str,
        "reason": str,
        "provisional": str,
        "trace_id": str,
        "state": str,
        "attempts": int,
        "owner": str,
        "since": float,
        "until": float,
        "put_at": float,
        "result": str,
        "error": str,
    }
    queued = tables.create_table(
        "queued",
        columns,
        pk="seq",
        not_null=set(columns) - {"seq", "owner", "result"},
        defaults={"attempts": 0, "since": 0.0, "until": 0.0, "error": ""},
        strict=True,
    )
    queued.create_index(["id"], unique=True)
    queued.create_index(["state", "seq"])


def _add_leases(tables: sqlite_utils.Database) -> None:
    tables.execute("ALTER TABLE holds ADD COLUMN lease_id TEXT NOT NULL DEFAULT ''")
    tables.execute("CREATE INDEX holds_of_lease ON holds (lease_id, cost_microusd, held_microusd)")
    leases = {
        "lease_id": str,
        "pool": str,
        "task": str,
        "amount_microusd": int,
        "kept_microusd": int,
        "not_after": float,
        "place": int,
        "state": str,
        "why": str,
        "told": int,
        "text": str,
    }
    made = tables.create_table("leases", leases, pk="lease_id", not_null=set(leases), strict=True)
    made.create_index(["pool", "state"])
    forgotten = ("requests", "settled", "cost_microusd", "tokens_in", "tokens_out")
    needs = ("gateway", "call_microusd")
    refused = ("most_microusd", "total_microusd")
    for name, key, counts in (
        ("forgotten", {"day": int, "task": str, "pool": str}, forgotten),
        ("needs", {"pool": str, "task": str}, needs),
        ("refused", {"pool": str, "task": str}, refused),
    ):
        columns = key | dict.fromkeys(counts, int)
        tables.create_table(name, columns, pk=tuple(key), not_null=set(columns), strict=True)
    tables.create_table(
        "requests", {"hold_id": str, "body": bytes}, pk="hold_id", not_null={"body"}, strict=True
    )
    fleet = {"id": int, "synced_at": float, "declined": str}
    tables.create_table("fleet", fleet, pk="id", not_null={"declined"}, strict=True)
    tables.execute("INSERT INTO fleet VALUES (1, NULL, '[]')")


def _schedule_queue(tables: sqlite_utils.Database) -> None:
    for column in (
        "priority INTEGER NOT NULL DEFAULT 5",
        "answer_by REAL",
        "ended_at REAL",
        "late INTEGER NOT NULL DEFAULT 0",
        "told INTEGER NOT NULL DEFAULT 0",
    ):
        tables.execute(f"ALTER TABLE queued ADD COLUMN {column}")
    # Apps read what has ended so far by its id.
    tables.execute("UPDATE queued SET told = 1 WHERE state IN ('done', 'failed')")
    tables.execute(
        "CREATE INDEX queued_untold ON queued (state, seq) WHERE told = 0 AND reason <> 'audit'"
    )
    tables.execute(
        "CREATE INDEX queued_answer_by ON queued (answer_by) WHERE state IN ('waiting', 'claimed')"
    )
    tables.execute("CREATE INDEX queued_owner ON queued (owner) WHERE owner IS NOT NULL")
    tables.execute("CREATE INDEX queued_trace ON queued (trace_id)")
    repeats = {
        "seq": int,
        "key": str,
        "task": str,
        "input_sha256": str,
        "trace_id": str,
        "owner": str,
        "result": str,
        "at": float,
    }
    needed = set(repeats) - {"seq", "owner", "result"}
    made = tables.create_table("repeats", repeats, pk="seq", not_null=needed, strict=True)
    made.create_index(["key"], unique=True)
    made.create_index(["at"])
    tables.execute("CREATE INDEX repeats_owner ON repeats (owner) WHERE owner IS NOT NULL")


MIGRATIONS: tuple[Migration, ...] = (_create_ledger, _create_queue, _add_leases, _schedule_queue)


class MoneyFile:
    """The open money file of one owner.

    Attributes:
        db: the database.
        clock: seconds since the epoch, as given.

    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], float],
        busy_timeout_s: float = BUSY_TIMEOUT_S,
    ) -> None:
        self.clock = clock
        self._owners = folder / "owners"
        self.db: Database = open_database(
            folder / "money.db", durable=True, busy_timeout_s=busy_timeout_s
        )
        try:
            migrate(self.db, MIGRATIONS)
            with self.db.transaction():
                self._owner = owners.Owner(self._owners)
        except BaseException:
            self.db.close()
            raise
        try:
            self.recover()
        except BaseException:
            self.close()
            raise

    @property
    def owner(self) -> str:
        """The id that this opening writes into its rows."""
        return self._owner.id

    def transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """One durable, all-or-nothing change; see ``Database.transaction``."""
        return self.db.transaction()

    def now(self, connection: sqlite3.Connection) -> float:
        """Return the later of the clock and the latest time any owner stored.

        Raises:
            StoreError: the clock is outside the years 1970 to 9999.

        """
        now = self.clock()
        if not 0.0 <= now <= _LATEST_TIME:
            raise StoreError(
                f"The clock says {now!r} seconds, which is outside the years 1970 to 9999.",
                hint="Set the device's clock.",
            )
        (highest,) = connection.execute("SELECT highest FROM clock").fetchone()
        return max(now, float(highest))

    def tick(self, connection: sqlite3.Connection) -> float:
        """Return ``now`` and store it, so that no later clock goes below it."""
        now = self.now(connection)
        connection.execute("UPDATE clock SET highest = ? WHERE highest < ?", (now, now))
        return now

    def recover(self) -> int:
        """Put the rows of dead owners right; return how many changed."""
        with self.transaction() as connection:
            rows = connection.execute(
                "SELECT owner FROM holds WHERE state IN ('reserved', 'sent') "
                "UNION SELECT owner FROM queued WHERE owner IS NOT NULL "
                "UNION SELECT owner FROM repeats WHERE owner IS NOT NULL"
            )
            known = {str(owner) for (owner,) in rows} | owners.listed(self._owners)
            dead = [owner for owner in known if owners.is_dead(self._owners, owner)]
            changed = sum(_bury(connection, owner) for owner in dead)
        for owner in dead:
            owners.forget(self._owners, owner)
        return changed

    def close(self) -> None:
        """Give up the lock and close the file; open holds are put right by the next opening."""
        self.db.close()
        self._owner.leave()


def _bury(connection: sqlite3.Connection, owner: str) -> int:
    unsent = connection.execute(
        "UPDATE holds SET state = 'released', held_microusd = 0, "
        "why = 'its process ended before sending' WHERE owner = ? AND state = 'reserved'",
        (owner,),
    )
    sent = connection.execute(
        "UPDATE holds SET state = 'unclear', why = 'its process ended while waiting for an answer' "
        "WHERE owner = ? AND state = 'sent'",
        (owner,),
    )
    claimed = connection.execute(
        "UPDATE queued SET owner = NULL, since = 0, until = 0, "
        "state = CASE state WHEN 'claimed' THEN 'waiting' ELSE state END WHERE owner = ?",
        (owner,),
    )
    connection.execute("UPDATE repeats SET owner = NULL WHERE owner = ?", (owner,))
    return unsent.rowcount + sent.rowcount + claimed.rowcount
