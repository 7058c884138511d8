"""What the database says of the money, and its copy in the keys folder.

Guarantees: a database that was set back is noticed before it is copied; then the file keeps what it
had, and caps and gateways are not changed before the recovery has taken them from there. Asks no
gateway; what follows from a database that was set back is ``recovery``'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select

from edge.errors import StoreError
from edge_sync.hub.budget import outside
from edge_sync.hub.budget.outside import Gate, Outside
from edge_sync.hub.home import Hub, raise_fact, read_fact
from edge_sync.money.caps import Cap, Scope
from edge_sync.store import bulk
from edge_sync.store.schema import budgets, facts, gateways

CHANGES = "money_changes"
"""The fact that counts changes of caps and gateways."""


def read(connection: Connection) -> Outside:
    """Return what the database holds of what is kept outside of it too."""
    caps = select(budgets.c.scope, budgets.c.kind, budgets.c.amount_microusd)
    gates = select(gateways.c.pool_id, gateways.c.url, gateways.c.grade)
    return Outside(
        read_fact(connection, "epoch") or 0,
        read_fact(connection, "granted") or 0,
        bool(read_fact(connection, "recovering")),
        tuple(
            Cap(Scope.parse(scope), kind, amount)
            for scope, kind, amount in connection.execute(
                caps.order_by(budgets.c.scope, budgets.c.kind)
            )
        ),
        tuple(Gate(*row) for row in connection.execute(gates.order_by(gateways.c.pool_id))),
        read_fact(connection, CHANGES) or 0,
    )


def write(hub: Hub) -> bool:
    """Copy what the database says into the file; return whether the database was set back.

    Call it after each change of caps, gateways or epoch. Where it was set back, nothing is copied.

    Raises:
        ConfigError: the file cannot be read.
        StoreError: the database or the file failed.

    """
    behind = False

    def step(before: Outside) -> Outside:
        nonlocal behind
        with hub.store.reading() as connection:
            now = read(connection)
        behind = before.ahead_of(epoch=now.epoch, granted=now.granted, changes=now.changes)
        return before if behind else now

    outside.change(hub.keys, step)
    return behind


def require_whole(hub: Hub) -> None:
    """See to it that caps and gateways may be changed: the database has all that it ever had.

    Raises:
        ConfigError: the file cannot be read.
        StoreError: the database was set back, or it or the file failed.

    """
    if write(hub):
        raise StoreError(
            "The hub's database was set back; caps and gateways are those of another time.",
            hint="Run the hub: it recovers what its keys folder knows. Then try again.",
        )


def count_change(connection: Connection) -> None:
    """Count a change of caps or gateways, inside its write, so that its loss is noticed."""
    raise_fact(connection, CHANGES)


def set_facts(connection: Connection, values: Sequence[tuple[str, int]]) -> None:
    """Set numbers of the table ``facts``, inside a write."""
    bulk.put(
        connection,
        facts,
        rows=[(name, str(value)) for name, value in values],
        columns=("name", "value"),
        instead="UPDATE SET value = excluded.value",
    )
