"""Pools that devices want money for and cannot be given any, whatever the caps allow.

A read model: it changes nothing. What a cap has not enough free for is no such case, and neither is
what is granted. Where no cap is set, devices ask all the same, and nobody need be told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, and_, case, func, or_, select

from edge_sync.store.schema import devices, gateways, leases, wants

LATELY_S = 86_400.0
"""What a device wanted before does not count."""


@dataclass(frozen=True, slots=True)
class Unmet:
    """A pool that is asked for in vain.

    Attributes:
        devices: that want money for it, and have none.
        why: ``unknown``: the hub was told neither of a gateway of it nor that it has none;
            ``epoch``: its gateway has not confirmed the hub's epoch.

    """

    pool: str
    devices: int
    why: Literal["unknown", "epoch"]

    def reason(self) -> str:
        """Return why, and what to do, in words."""
        if self.why == "unknown":
            return "the hub does not know the pool; see `edge-hub gateways add`"
        return "its gateway has not confirmed the epoch; see `edge-hub gateways list`"


def read_unmet(connection: Connection, *, now: float, epoch: int) -> tuple[Unmet, ...]:
    """Return the pools that are asked for in vain, by name.

    Args:
        connection: to read with.
        now: seconds since the epoch.
        epoch: of the hub.

    """
    granted = (
        select(leases.c.lease_id)
        .where(
            leases.c.device_id == wants.c.device_id,
            # Not by the index of pools, which would read every open lease for each want.
            leases.c.pool_id + "" == wants.c.pool_id,
            leases.c.state == "open",
        )
        .exists()
    )
    behind = and_(gateways.c.grade == "gateway", gateways.c.epoch != epoch)
    query = (
        select(
            wants.c.pool_id,
            func.count(wants.c.device_id.distinct()),
            case((gateways.c.pool_id.is_(None), "unknown"), else_="epoch"),
        )
        .join_from(wants, devices)
        .outerjoin(gateways, gateways.c.pool_id == wants.c.pool_id)
        .where(
            wants.c.demand_microusd > 0,
            wants.c.at > now - LATELY_S,
            devices.c.status == "active",
            or_(gateways.c.pool_id.is_(None), behind),
            ~granted,
        )
        .group_by(wants.c.pool_id, gateways.c.pool_id)
        .order_by(wants.c.pool_id)
    )
    return tuple(Unmet(pool, int(count), why) for pool, count, why in connection.execute(query))
