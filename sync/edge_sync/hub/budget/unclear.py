"""Calls of which nobody knows whether they were billed, until a person says what the bill says.

They stay at their maximum at their gateway, which keeps their lease from being sealed. Guarantees:
what a person says is the gateway's own to take, once; the hub books nothing by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from sqlalchemy import Connection, select

from edge.errors import InputError
from edge_sync.hub.budget import gateways, pulling
from edge_sync.hub.budget.asking import Asking
from edge_sync.hub.home import Hub
from edge_sync.store.schema import devices, redemptions

_SHORTEST = 4


@dataclass(frozen=True, slots=True)
class Unclear:
    """A hold whose outcome is unclear.

    Attributes:
        device: name; empty where the device has none.
        held_microusd: what it counts as until then.
        at: when the call began, seconds since the epoch.

    """

    hold_id: str
    pool_id: str
    lease_id: str
    device_id: str
    device: str
    held_microusd: int
    at: float


@dataclass(frozen=True, slots=True)
class Booked:
    """What a hold was booked at; ``excess`` is what was billed above its maximum."""

    hold_id: str
    actual_microusd: int
    excess_microusd: int


def read_all(connection: Connection) -> list[Unclear]:
    """Return all unclear holds that gateways told of, the oldest first."""
    query = (
        select(
            redemptions.c.hold_id,
            redemptions.c.pool_id,
            redemptions.c.lease_id,
            redemptions.c.device_id,
            devices.c.name,
            redemptions.c.held_microusd,
            redemptions.c.at,
        )
        .outerjoin(devices, devices.c.id == redemptions.c.device_id)
        .where(redemptions.c.state == "unclear")
        .order_by(redemptions.c.at, redemptions.c.hold_id)
    )
    return [
        Unclear(hold, pool, lease, device, name or "", held, at)
        for hold, pool, lease, device, name, held, at in connection.execute(query)
    ]


def reconcile(
    hub: Hub,
    named: str,
    actual_microusd: int,
    *,
    who: str,
    transport: httpx.BaseTransport | None = None,
) -> Booked:
    """Tell a hold's gateway what the provider billed for it.

    Args:
        hub: the hub, open.
        named: the hold's id, or its beginning of at least 4 digits.
        actual_microusd: of the bill; 0 where there is none.
        who: for the audit log.
        transport: what carries the requests; the network where ``None``.

    Raises:
        InputError: no unclear hold is called so, or more than one.
        ConfigError: the gateway's secret is not here.
        SyncError: the gateway does not answer, or does not take it.
        StoreError: the database failed.

    """
    with hub.store.reading() as connection:
        hold = _find(read_all(connection), named)
        gate = gateways.find(connection, hold.pool_id)
    secret = gateways.read_secret(hub.keys, hold.pool_id)
    line = Asking(gate.url, secret, pool_id=hold.pool_id, transport=transport)
    try:
        actual, excess = line.reconcile(hold.hold_id, actual_microusd)
        detail = {
            "pool": hold.pool_id,
            "lease": hold.lease_id,
            "actual_microusd": actual,
            "excess_microusd": excess,
        }
        hub.change(
            who, "hold.reconcile", about=hold.hold_id, detail=detail, work=lambda _connection: None
        )
        pulling.pull(hub, gate, line)
    finally:
        line.close()
    return Booked(hold.hold_id, actual, excess)


def _find(holds: list[Unclear], named: str) -> Unclear:
    found = [each for each in holds if each.hold_id == named]
    if not found and len(named) >= _SHORTEST:
        found = [each for each in holds if each.hold_id.startswith(named)]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} unclear holds begin" if found else "No unclear hold begins"
    raise InputError(
        f"{what} with {named[:40]!r}.", hint="`edge-hub gateways holds` lists all with their ids."
    )
