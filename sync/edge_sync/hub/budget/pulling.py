"""The gateways' own rows, read into the table ``redemptions``.

Guarantees: a row is kept as it was changed last, in whatever order replicas read it; what is seen
of a lease is the sum of its rows; a register that no longer has what was read of it is noticed. The
rows say what was spent on what; what is given back, only a seal says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection, func, select, update

from edge_sync.hub.budget.answers import Row
from edge_sync.hub.budget.asking import PAGE, Asking
from edge_sync.hub.budget.gateways import WRITTEN_OFF, Gateway, set_back
from edge_sync.hub.home import Hub
from edge_sync.store import bulk
from edge_sync.store.schema import gateways, leases, redemptions

_COLUMNS = ("hold_id", "pool_id", "lease_id", "device_id", "state", "held_microusd",
            "cost_microusd", "at", "seq")  # fmt: skip
_NEWER = (
    "UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[1:])
    + " WHERE excluded.seq > redemptions.seq"
)
_MOST_PAGES = 20
"""In one round, so that the other steps get their turn."""


def pull(hub: Hub, gate: Gateway, line: Asking) -> bool:
    """Read what changed since; return whether the hub knows every lease in it.

    Raises:
        SyncError: the gateway does not answer, or says what cannot be true.
        ConfigError: its register was lost or set back.
        StoreError: the database failed.

    """
    after = gate.rows_after
    for _ in range(_MOST_PAGES):
        # A hold is never forgotten, and a change gives it a higher number: what was read last, or
        # something behind it, is there.
        found = line.rows(after=max(0, after - 1))
        if after and not found:
            raise set_back(gate, f"has no row from {after} on, which it had")
        rows = [row for row in found if row.seq > after]
        if not rows:
            return True
        if not hub.store.write(partial(keep, pool_id=gate.pool_id, rows=rows)):
            return False
        if len(found) < PAGE:
            return True
        after = rows[-1].seq
    return True


def keep(connection: Connection, *, pool_id: str, rows: Sequence[Row]) -> bool:
    """Write rows, inside a write; return whether their leases are all known, else nothing is."""
    owners = _owners(connection, {row.lease_id for row in rows})
    if any(row.lease_id not in owners for row in rows):
        return False
    # A hold that was given back and asked for again may be another lease's since.
    keys = [(row.hold_id,) for row in rows]
    moved = bulk.find(connection, redemptions, keys=keys, by=("hold_id",), columns=("lease_id",))
    bulk.put(
        connection,
        redemptions,
        rows=[_values(row, pool_id, owners[row.lease_id]) for row in rows],
        columns=_COLUMNS,
        instead=_NEWER,
    )
    _see(connection, {lease_id for (lease_id,) in moved} | owners.keys())
    last = rows[-1].seq
    change = update(gateways).where(gateways.c.pool_id == pool_id, gateways.c.rows_after < last)
    connection.execute(change.values(rows_after=last))
    return True


def costs(connection: Connection, lease_ids: Iterable[str]) -> dict[str, int]:
    """Return what settled calls of leases cost, by the rows; it can only rise."""
    return _sums(connection, lease_ids, held=False)


def less_than_known(connection: Connection, pool_id: str, used: Mapping[str, int]) -> str:
    """Return a lease for which a gateway tells of less than its rows had; empty where none is.

    Args:
        connection: to read.
        pool_id: of the gateway.
        used: micro-dollars by lease, as it tells now. What was written off is not looked at, nor
            what was granted before the gateway was added: its register may be a new one since.

    """
    query = (
        select(redemptions.c.lease_id, func.sum(redemptions.c.cost_microusd))
        .join(leases, leases.c.lease_id == redemptions.c.lease_id)
        .join(gateways, gateways.c.pool_id == redemptions.c.pool_id)
        .where(
            redemptions.c.pool_id == pool_id,
            leases.c.why_closed != WRITTEN_OFF,
            leases.c.granted_at >= gateways.c.added_at,
        )
        .group_by(redemptions.c.lease_id)
    )
    for lease_id, known in connection.execute(query):
        if used.get(lease_id, 0) < known:
            return str(lease_id)
    return ""


def _see(connection: Connection, lease_ids: Iterable[str]) -> None:
    """Note what is seen of leases; what a sealed one came to stands."""
    seen = _sums(connection, lease_ids, held=True)
    keys = [(lease_id, state) for lease_id in set(lease_ids) for state in ("open", "closing")]
    unsealed = bulk.find(
        connection, leases, keys=keys, by=("lease_id", "state"), columns=("lease_id",)
    )
    rows = [(lease_id, seen.get(lease_id, 0)) for (lease_id,) in unsealed]
    bulk.change(connection, leases, rows=rows, columns=("lease_id", "seen_microusd"), by="lease_id")


def _sums(connection: Connection, lease_ids: Iterable[str], *, held: bool) -> dict[str, int]:
    still = redemptions.c.held_microusd if held else 0
    query = (
        select(redemptions.c.lease_id, func.sum(redemptions.c.cost_microusd + still))
        .where(redemptions.c.lease_id.in_(list(lease_ids)))
        .group_by(redemptions.c.lease_id)
    )
    return {lease_id: int(total) for lease_id, total in connection.execute(query)}


def _owners(connection: Connection, lease_ids: Iterable[str]) -> dict[str, str]:
    keys = [(lease_id,) for lease_id in lease_ids]
    columns = ("lease_id", "device_id")
    return dict(bulk.find(connection, leases, keys=keys, by=("lease_id",), columns=columns))


def _values(row: Row, pool_id: str, device_id: str) -> tuple[Any, ...]:
    return (row.hold_id, pool_id, row.lease_id, device_id, row.state, row.held_microusd,
            row.cost_microusd, row.begun_at, row.seq)  # fmt: skip
