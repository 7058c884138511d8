"""What others still know put into a database that was set back.

Caps and gateways come from the keys folder, devices that were revoked since from the gateways.
Works inside a write and begins none; what stays as it was keeps who set it. Opens no pots: the
recovery that follows does.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, select, update

from edge_sync.hub import audit
from edge_sync.hub.budget import gateways as registry
from edge_sync.hub.budget.outside import Gate
from edge_sync.money.caps import Cap
from edge_sync.store import bulk
from edge_sync.store.schema import budgets, devices
from edge_sync.store.schema import gateways as table

WHO = "restore"
_CAP = ("scope", "kind", "amount_microusd", "set_by", "set_at")


def caps(connection: Connection, wanted: Sequence[Cap], *, now: float) -> None:
    """Put caps in force in place of those that the database has."""
    query = select(budgets.c.scope, budgets.c.kind, budgets.c.amount_microusd)
    there = {(scope, kind): amount for scope, kind, amount in connection.execute(query)}
    told = {(cap.scope.text(), cap.kind): cap.amount_microusd for cap in wanted}
    for scope, kind in there.keys() - told.keys():
        gone = delete(budgets).where(budgets.c.scope == scope, budgets.c.kind == kind)
        connection.execute(gone)
    rows = [(*key, amount, WHO, now) for key, amount in told.items() if there.get(key) != amount]
    sets = ", ".join(f"{name} = excluded.{name}" for name in _CAP[2:])
    bulk.put(connection, budgets, rows=rows, columns=_CAP, instead=f"UPDATE SET {sets}")


def gateways(connection: Connection, wanted: Sequence[Gate], *, now: float) -> None:
    """Put gateways in place of those that the database has.

    Rights for one that was taken away since are written off, as they were then.
    """
    there = {each.pool_id: each for each in registry.read_all(connection)}
    told = {gate.pool_id: gate for gate in wanted}
    for pool_id in there.keys() - told.keys():
        registry.drop(connection, pool_id)
    for pool_id, gate in told.items():
        if pool_id not in there:
            # It was told an epoch then; one that knows of none has lost its register.
            registry.put(connection, gate, who=WHO, now=now, epoch=1)
        elif (there[pool_id].url, there[pool_id].grade) != (gate.url, gate.grade):
            change = update(table).where(table.c.pool_id == pool_id)
            connection.execute(change.values(url=gate.url, grade=gate.grade))


def revoked(connection: Connection, pool_id: str, device_ids: Sequence[str], *, now: float) -> None:
    """Revoke devices again that a gateway refuses and the database does not, each with an entry.

    Args:
        connection: inside a write.
        pool_id: whose gateway told.
        device_ids: that it refuses; those that never joined this hub are passed over.
        now: seconds since the epoch.

    """
    keys = [(device_id,) for device_id in device_ids]
    rows = bulk.find(connection, devices, keys=keys, by=("id",), columns=("id", "name", "status"))
    back = [(device_id, name) for device_id, name, status in rows if status != "revoked"]
    changed = [(device_id, "revoked") for device_id, _ in back]
    bulk.change(connection, devices, rows=changed, columns=("id", "status"), by="id")
    for device_id, name in sorted(back):
        detail = {"name": name, "told_by": f"the gateway of pool {pool_id}"}
        audit.append(
            connection, at=now, who=WHO, what="device.revoke", about=device_id, detail=detail
        )
