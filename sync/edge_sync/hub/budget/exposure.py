"""Leases that are not sealed: what is out there, what of it is used, and whose devices are away.

What is used is what the gateway told last; where no gateway counts, what the device says. Changes
nothing and knows no caps.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Subquery, case, func, literal, select

from edge_sync.money.caps import Purpose
from edge_sync.store.schema import devices, gateways, leases

AWAY_S = 86_400.0
"""A device that was not heard of for so long may not come back soon."""
_MOST_NAMED = 20


@dataclass(frozen=True, slots=True)
class Rights:
    """Leases of one purpose and period, summed.

    Attributes:
        device_id: empty where devices are not told apart.
        away: their devices were not heard of for ``AWAY_S``.
        used_microusd: redeemed and held.
        largest_microusd: of one lease.

    """

    group: str
    device_id: str
    pool: str
    task: str
    period: str
    away: bool
    leases: int
    amount_microusd: int
    used_microusd: int
    largest_microusd: int

    @property
    def purpose(self) -> Purpose:
        """What they are for."""
        return Purpose(self.group, self.device_id, self.pool, self.task)


@dataclass(frozen=True, slots=True)
class Away:
    """A device that was not heard of for long, and what of its leases is not used."""

    device_id: str
    name: str
    seen_at: float | None
    leases: int
    microusd: int


@dataclass(frozen=True, slots=True)
class DeviceLease:
    """One lease of one device.

    Attributes:
        used_microusd: redeemed and held; final once it is sealed.
        why_closed: empty while it is open.
        escrow: no gateway counts at its pool.
        granted_at, not_after: seconds since the epoch.

    """

    lease_id: str
    pool: str
    task: str
    period: str
    state: str
    amount_microusd: int
    used_microusd: int
    granted_at: float
    not_after: float
    why_closed: str
    escrow: bool


def read_rights(connection: Connection, *, now: float, by_device: bool) -> list[Rights]:
    """Return all leases that are not sealed, summed by purpose and period.

    Args:
        connection: to read with.
        now: seconds since the epoch.
        by_device: whether devices are told apart.

    """
    table = _unsealed(now).c
    device: ColumnElement[str] = table.device_id if by_device else literal("").label("device_id")
    keys = [table.group_name, table.pool_id, table.task, table.period, table.away]
    query = select(
        *keys,
        device,
        func.count().label("leases"),
        func.sum(table.amount).label("amount"),
        func.sum(table.used).label("used"),
        func.max(table.amount).label("largest"),
    ).group_by(*keys, *([table.device_id] if by_device else []))
    return [
        Rights(
            group=row["group_name"],
            device_id=row["device_id"],
            pool=row["pool_id"],
            task=row["task"],
            period=row["period"],
            away=bool(row["away"]),
            leases=int(row["leases"]),
            amount_microusd=int(row["amount"]),
            used_microusd=int(row["used"]),
            largest_microusd=int(row["largest"]),
        )
        for row in connection.execute(query).mappings()
    ]


def read_away(connection: Connection, *, now: float) -> tuple[Away, ...]:
    """Return devices that are away and hold money, those with the most first; at most 20."""
    table = _unsealed(now).c
    left = func.sum(table.amount - table.used)
    query = (
        select(table.device_id, table.name, table.last_seen_at, func.count(), left)
        .where(table.away == 1)
        .group_by(table.device_id, table.name, table.last_seen_at)
        .order_by(left.desc(), table.device_id)
        .limit(_MOST_NAMED)
    )
    return tuple(
        Away(str(device), str(name or ""), seen, int(count), int(amount))
        for device, name, seen, count, amount in connection.execute(query)
    )


def read_leases(connection: Connection, device_id: str, *, limit: int = 20) -> list[DeviceLease]:
    """Return leases of one device: those that are not sealed first, then the newest."""
    sealed = case((leases.c.state == "sealed", 1), else_=0)
    query = (
        select(leases, _used().label("used"), gateways.c.grade)
        .outerjoin(gateways, gateways.c.pool_id == leases.c.pool_id)
        .where(leases.c.device_id == device_id)
        .order_by(sealed, leases.c.granted_at.desc(), leases.c.lease_id)
        .limit(limit)
    )
    return [
        DeviceLease(
            lease_id=row["lease_id"],
            pool=row["pool_id"],
            task=row["task"],
            period=row["period"],
            state=row["state"],
            amount_microusd=row["amount_microusd"],
            used_microusd=row["used_microusd"] if row["state"] == "sealed" else row["used"],
            granted_at=row["granted_at"],
            not_after=row["not_after"],
            why_closed=row["why_closed"],
            escrow=row["grade"] == "escrow",
        )
        for row in connection.execute(query).mappings()
    ]


def _used() -> ColumnElement[int]:
    """Return what is used of a lease that is not sealed; a device may say anything."""
    escrow = gateways.c.grade == "escrow"
    told = case((escrow, leases.c.told_microusd), else_=leases.c.seen_microusd)
    return case((told > leases.c.amount_microusd, leases.c.amount_microusd), else_=told)


def _unsealed(now: float) -> Subquery:
    return (
        select(
            leases.c.group_name,
            leases.c.device_id,
            leases.c.pool_id,
            leases.c.task,
            leases.c.period,
            leases.c.amount_microusd.label("amount"),
            _used().label("used"),
            case((devices.c.last_seen_at > now - AWAY_S, 0), else_=1).label("away"),
            devices.c.name,
            devices.c.last_seen_at,
        )
        .select_from(leases)
        .outerjoin(devices, devices.c.id == leases.c.device_id)
        .outerjoin(gateways, gateways.c.pool_id == leases.c.pool_id)
        .where(leases.c.state.in_(("open", "closing")))
        .subquery()
    )
