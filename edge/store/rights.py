"""Single leases in the money file, through a connection that somebody else holds."""

from __future__ import annotations

import sqlite3

from edge.errors import StoreError

USED = (
    "kept_microusd + (SELECT coalesce(sum(cost_microusd + held_microusd), 0) FROM holds "
    "WHERE holds.lease_id = leases.lease_id)"
)
"""What the calls of a lease cost and hold, forgotten ones included."""


def is_leased(connection: sqlite3.Connection, pool: str) -> bool:
    """Return whether the hub ever gave a right for a pool: nothing is spent there without one."""
    row = connection.execute("SELECT 1 FROM leases WHERE pool = ? LIMIT 1", (pool,)).fetchone()
    return row is not None


def choose(
    connection: sqlite3.Connection, *, pool: str, task: str, worst_case_microusd: int, now: float
) -> str | None:
    """Return the first lease with room for a call, one for this task alone before any other.

    Args:
        connection: inside a transaction.
        pool: that is asked.
        task: that asks.
        worst_case_microusd: what the call may cost.
        now: a lease past its end is passed over; the gateway of a pool judges by its own clock,
            so ``0`` leaves that to it.

    """
    row = connection.execute(
        f"SELECT lease_id FROM leases WHERE pool = ? AND task IN (?, '') AND state = 'open' "  # noqa: S608 - constants
        f"AND not_after >= ? AND amount_microusd - ({USED}) >= ? "
        "ORDER BY task = '', place LIMIT 1",
        (pool, task, now, worst_case_microusd),
    ).fetchone()
    return None if row is None else str(row[0])


def left(connection: sqlite3.Connection) -> list[tuple[str, str, int, int]]:
    """Return (pool, task, amount, left) of each open lease, in micro-dollars."""
    rows = connection.execute(
        f"SELECT pool, task, amount_microusd, max(0, amount_microusd - ({USED})) "  # noqa: S608 - constants
        "FROM leases WHERE state = 'open' ORDER BY pool, task, place"
    )
    return [tuple(row) for row in rows]


def end(connection: sqlite3.Connection, lease_id: str, *, why: str) -> None:
    """Make no new hold on a lease, for ever."""
    connection.execute(
        "UPDATE leases SET state = 'done', why = ? WHERE lease_id = ? AND state = 'open'",
        (why, lease_id),
    )


def text_of(connection: sqlite3.Connection, lease_id: str) -> str:
    """Return a lease as it was signed.

    Raises:
        StoreError: it is not here.

    """
    row = connection.execute("SELECT text FROM leases WHERE lease_id = ?", (lease_id,)).fetchone()
    if row is None:
        raise StoreError(f"Lease {lease_id} is not in the ledger.", hint="Sync with the hub.")
    return str(row[0])
