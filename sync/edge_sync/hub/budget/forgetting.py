"""What of the money is not kept for ever: rows that no sum needs any more.

After ``KEEP_S`` go the gateways' rows of sealed leases, leases that came back whole, and pots of
periods that are over. Guarantees: nothing that was spent is forgotten, for a sealed lease keeps its
count; so every pot can be opened anew with the same sums, whatever the clock says. Any replica may
do it at any time, again and again.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Table, delete, exists, select

from edge_sync.hub.home import Hub
from edge_sync.money.periods import bounds
from edge_sync.store.schema import leases, pots, redemptions

KEEP_S = 100 * 86_400.0
"""Longer than the longest period that is shown, and than a device is waited for."""
EVERY_S = 300.0
_MOST = 1_000
"""Rows of a table in one transaction: devices that sync wait for it."""
_TURNS = 10
"""At once, so that what else is to be kept up gets its turn."""


def forget(hub: Hub) -> int:
    """Drop what is old enough, a little at a time; return the number of rows.

    Raises:
        StoreError: the database failed.

    """
    rows = 0
    for _ in range(_TURNS):
        gone = _some(hub)
        rows += gone
        if not gone:
            break
    return rows


def _some(hub: Hub) -> int:
    before = hub.clock() - KEEP_S
    # Looked up outside of the write, which then only touches what is found.
    with hub.store.reading() as connection:
        holds = _ids(connection, select(redemptions.c.hold_id).where(*_old_rows(before)))
        whole = _ids(connection, select(leases.c.lease_id).where(*_came_back(before)))
        over = [
            str(period)
            for period in connection.execute(select(pots.c.period).distinct()).scalars()
            if bounds(period)[1] < before
        ]
    if not (holds or whole or over):
        return 0

    def work(connection: Connection) -> int:
        rows = _drop(connection, redemptions, redemptions.c.hold_id.in_(holds), *_old_rows(before))
        rows += _drop(connection, leases, leases.c.lease_id.in_(whole), *_came_back(before))
        return rows + _drop(connection, pots, pots.c.period.in_(over), pots.c.open_microusd == 0)

    return hub.store.write(work)


def _old_rows(before: float) -> tuple[ColumnElement[bool], ...]:
    sealed = exists().where(leases.c.lease_id == redemptions.c.lease_id, leases.c.state == "sealed")
    closed = redemptions.c.state.in_(("settled", "released"))
    return redemptions.c.at < before, closed, sealed


def _came_back(before: float) -> tuple[ColumnElement[bool], ...]:
    return leases.c.state == "sealed", leases.c.used_microusd == 0, leases.c.not_after < before


def _ids(connection: Connection, query: Select[Any]) -> list[str]:
    return list(connection.execute(query.limit(_MOST)).scalars())


def _drop(connection: Connection, table: Table, *which: ColumnElement[bool]) -> int:
    return connection.execute(delete(table).where(*which)).rowcount
