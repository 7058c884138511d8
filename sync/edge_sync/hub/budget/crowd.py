"""Who else wants money: what a fair share is measured by. Heuristics; safety is in the pots.

The wants of a fleet are read as sums, by group, pool, task and size of the demand, so that a large
fleet costs no more to be fair to than a small one. They are read anew after a time in proportion to
their number. Devices that wanted money and are away are read one by one, where a floor is set.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from sqlalchemy import Connection, Select, String, case, cast, false, func, or_, select

from edge_sync.hub.budget.books import inside
from edge_sync.money import grants
from edge_sync.money.account import Pot
from edge_sync.money.caps import Purpose
from edge_sync.money.grants import Claim, Terms
from edge_sync.money.periods import kind_of, left_of, within
from edge_sync.store.schema import devices, leases, wants

Had: TypeAlias = dict[str, list[tuple[Purpose, str, int]]]
"""What was given and not given back, by device: for what, in which period, how much."""
_SMALL, _STANDS_S = 100, 1 / 10_000
"""So many wants are counted each time; for so long each one above them lets the counts stand."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """The wants that stood at a moment.

    Attributes:
        read_at: seconds since the epoch.
        wanting: number of devices and sum of their demands, by purpose and digits of a demand; such
            a purpose names no device.
        away: what devices wanted that have not synced for long.
        had: by those.

    """

    read_at: float
    wanting: Mapping[tuple[Purpose, int], tuple[int, int]] = field(default_factory=dict)
    away: tuple[Purpose, ...] = ()
    had: Had = field(default_factory=dict)

    def stands(self, now: float) -> bool:
        """Whether it is still good enough."""
        counted = sum(count for count, _ in self.wanting.values()) + len(self.away)
        return self.read_at <= now < self.read_at + (counted - _SMALL) * _STANDS_S

    def others(self, pot: Pot, *, beside: Claim) -> list[Claim]:
        """Return the claims of all others in a pot, one for each number of digits.

        What they had is known as a sum; each is taken to have had in proportion to its demand.
        """
        if pot.scope.device:  # nobody else is within it
            return []
        found: dict[int, list[int]] = defaultdict(lambda: [0, 0])
        found[len(str(beside.demand_microusd))] = [-1, -beside.demand_microusd]
        for (purpose, digits), (count, demand) in self.wanting.items():
            if pot.scope.covers(purpose):
                found[digits][0] += count
                found[digits][1] += demand
        crowds = {digits: each for digits, each in found.items() if min(each) > 0}
        had = max(0, pot.open_microusd + pot.settled_microusd - beside.had_microusd)
        whole = sum(demand for _, demand in crowds.values())
        return [
            Claim(f"others-{digits}", demand, had * demand // whole, weight=count)
            for digits, (count, demand) in crowds.items()
        ]

    def kept_back(self, pot: Pot, *, terms: Terms, now: float) -> dict[str, int]:
        """Return what a pot keeps back for each device that is away."""
        left = left_of(pot.period, now)
        away = {purpose.device_id for purpose in self.away if pot.scope.covers(purpose)}
        return {
            device_id: grants.reserved(
                [Claim(device_id, 0, had_in(pot, self.had.get(device_id, ())))], terms, left=left
            )
            for device_id in away
        }


def read_crowd(connection: Connection, *, now: float, since: float, floor: bool) -> Crowd:
    """Read the wants that stand.

    Args:
        connection: to read with.
        now: seconds since the epoch.
        since: an older want does not stand; a device not heard of since then is away.
        floor: whether those are read too.

    """
    digits = func.length(cast(wants.c.demand_microusd, String))
    what = (devices.c.group_name, wants.c.pool_id, wants.c.task)
    there = (
        select(*what, digits, func.count(), func.sum(wants.c.demand_microusd))
        .join_from(wants, devices)
        .where(wants.c.demand_microusd > 0, devices.c.status == "active")
    )
    standing = there.where(wants.c.at >= since).group_by(*what, digits)
    wanting = {
        (Purpose(group, "", pool, task), int(size)): (int(count), int(demand))
        for group, pool, task, size, count, demand in connection.execute(standing)
    }
    if not floor:
        return Crowd(now, wanting)
    gone = (
        wants.c.demand_microusd > 0,
        devices.c.status == "active",
        devices.c.last_seen_at < since,
    )
    lost = select(*what, wants.c.device_id).join_from(wants, devices).where(*gone)
    away = tuple(
        Purpose(group, device_id, pool, task)
        for group, pool, task, device_id in connection.execute(lost)
    )
    ids = select(wants.c.device_id).join_from(wants, devices).where(*gone)
    return Crowd(now, wanting, away, read_had(connection, ids, periods=("total",)))


def read_had(
    connection: Connection,
    device_ids: Iterable[str] | Select[tuple[str]],
    *,
    periods: Iterable[str],
) -> Had:
    """Return what devices were given and did not give back within some periods."""
    ids = device_ids if isinstance(device_ids, Select) else list(device_ids)
    what = (leases.c.device_id, leases.c.group_name, leases.c.pool_id, leases.c.task,
            leases.c.period)  # fmt: skip
    kept = case(
        (leases.c.state == "sealed", leases.c.used_microusd), else_=leases.c.amount_microusd
    )
    query = (
        select(*what, func.sum(kept))
        .where(
            leases.c.device_id.in_(ids), or_(false(), *(inside(period) for period in set(periods)))
        )
        .group_by(*what)
    )
    found: Had = defaultdict(list)
    for device_id, group, pool, task, period, amount in connection.execute(query):
        found[device_id].append((Purpose(group, device_id, pool, task), period, int(amount)))
    return found


def had_in(pot: Pot, had: Sequence[tuple[Purpose, str, int]]) -> int:
    """Return how much of that counts in a pot."""
    kind = kind_of(pot.period)
    return sum(
        amount
        for purpose, period, amount in had
        if pot.scope.covers(purpose) and within(period, kind) == pot.period
    )
