"""How fast money goes, and what that comes to by the end of a period.

The pace is what gateways redeemed, and devices of escrow-grade pools reported, in the last seven
days. A forecast is an estimate: it stays away where there is too little to go by, and it promises
nothing; the cap does. Changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Double,
    Select,
    Table,
    case,
    cast,
    func,
    literal,
    select,
)

from edge_sync.money.caps import Purpose, Scope
from edge_sync.money.periods import bounds
from edge_sync.store.schema import devices, gateways, leases, ledger_rows, redemptions

WINDOW_S = 7 * 86_400.0
LEAST_S = 86_400.0
"""A pace over less than a day knows no night."""
LEAST_CALLS = 20
_MOST_ROWS = 50_000


@dataclass(frozen=True, slots=True)
class Spend:
    """What was spent for one purpose within the window; ``device_id`` as in ``Rights``.

    Attributes:
        calls: that were looked at.
        microusd: of all calls, estimated where not all were looked at.

    """

    purpose: Purpose
    calls: int
    microusd: int


@dataclass(frozen=True, slots=True)
class Paces:
    """How fast money went lately.

    Attributes:
        window_s: how much of the last seven days the hub knows of.
        spends: by purpose.

    """

    window_s: float
    spends: tuple[Spend, ...]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the pace comes to.

    Attributes:
        microusd: spent at the end of the period if it goes on so; it may be above the cap, which
            holds all the same. ``None`` where nothing can be said.
        reaches_at: when the cap is used up, in seconds since the epoch; ``None`` if not before
            the end of the period.
        why: nothing is said; empty otherwise.

    """

    microusd: int | None = None
    reaches_at: float | None = None
    why: str = ""


def _counted(table: Table, open_states: Iterable[str]) -> ColumnElement[float]:
    counted = case(
        (table.c.state == "settled", table.c.cost_microusd),
        (table.c.state.in_(tuple(open_states)), table.c.held_microusd),
        else_=literal(0),
    )
    # As a float: what a device makes up must not overflow the sum of all.
    return cast(counted, Double)


_ESCROW = select(gateways.c.pool_id).where(gateways.c.grade == "escrow")
_REDEEMED = (
    select(
        leases.c.group_name,
        redemptions.c.pool_id.label("pool"),
        func.coalesce(leases.c.task, "").label("task"),
        redemptions.c.device_id,
        _counted(redemptions, ("held", "unclear")).label("microusd"),
        redemptions.c.at,
    )
    .select_from(redemptions)
    .outerjoin(leases, leases.c.lease_id == redemptions.c.lease_id)
    .where(redemptions.c.state != "released"),
    redemptions.c.hold_id,
)
"""What gateways say was redeemed or is held, and the id of a row."""
_REPORTED = (
    select(
        devices.c.group_name,
        ledger_rows.c.pool,
        ledger_rows.c.task,
        ledger_rows.c.device_id,
        _counted(ledger_rows, ("reserved", "sent", "unclear")).label("microusd"),
        ledger_rows.c.at,
    )
    .select_from(ledger_rows)
    .join(devices, devices.c.id == ledger_rows.c.device_id)
    .where(ledger_rows.c.pool.in_(_ESCROW), ledger_rows.c.state != "released"),
    ledger_rows.c.row_id,
)
"""What devices say they spent where no gateway counts, and the id of a row."""


def read_paces(connection: Connection, *, now: float, by_device: bool) -> Paces:
    """Return how fast money went; looks at every call of a week, so keep it a while.

    Of more than 50,000 calls a sample is taken, by the beginning of their random ids.

    Args:
        connection: to read with.
        now: seconds since the epoch.
        by_device: whether devices are told apart.

    """
    since = now - WINDOW_S
    # A week in which little was spent is still a week.
    oldest = connection.execute(select(func.min(redemptions.c.at))).scalar()
    first = now if oldest is None else min(now, max(since, oldest))
    escrow = connection.execute(_ESCROW.limit(1)).first() is not None
    found = []
    for rows, row_id in (_REDEEMED, *([_REPORTED] if escrow else [])):
        digits = _digits(_calls(connection, row_id.table, since=since, now=now))
        sample = rows.where(*_looked_at(row_id, digits, since=since, now=now))
        for spend, at in _sums(connection, sample, by_device=by_device, times=16**digits):
            found.append(spend)
            first = min(first, at)
    return Paces(now - first, tuple(found))


def _calls(connection: Connection, table: Any, *, since: float, now: float) -> int:
    within = (table.c.at > since) & (table.c.at <= now)
    query = select(func.count()).select_from(table).where(within)
    return connection.execute(query).scalar_one()


def _looked_at(
    row_id: Column[str], digits: int, *, since: float, now: float
) -> list[ColumnElement[bool]]:
    """Return the conditions of a sample: ids that begin with so many zeros, within the window."""
    at = row_id.table.c.at
    if not digits:
        return [at > since, at <= now]
    # Not by the index of times, which would read every call.
    return [row_id < "0" * (digits - 1) + "1", at + 0 > since, at + 0 <= now]


def _digits(total: int) -> int:
    """Return how many digits of an id to fix for a sample of at most 50,000 rows."""
    digits = 0
    while total > _MOST_ROWS * 16**digits:
        digits += 1
    return digits


def _sums(
    connection: Connection, rows: Select[Any], *, by_device: bool, times: int
) -> Iterator[tuple[Spend, float]]:
    """Yield what was spent by purpose, ``times`` as much as the rows say, and the first moment."""
    table = rows.subquery().c
    keys = [table.group_name, table.pool, table.task, *([table.device_id] if by_device else [])]
    query = select(*keys, func.count(), func.sum(table.microusd), func.min(table.at))
    for *names, calls, microusd, at in connection.execute(query.group_by(*keys)):
        group, pool, task, device = (*names, "") if not by_device else names
        purpose = Purpose(group or "", device, pool, task)
        yield Spend(purpose, int(calls), times * int(microusd)), at


def forecast(
    paces: Paces | None,
    scope: Scope,
    *,
    period: str,
    used_microusd: int,
    cap_microusd: int,
    now: float,
) -> Forecast:
    """Return what is spent at the end of a period if money goes on as in the last seven days.

    Args:
        paces: ``None``: nothing is said.
        scope: of the cap.
        period: that runs.
        used_microusd: in it so far.
        cap_microusd: of it.
        now: seconds since the epoch.

    """
    if paces is None:
        return Forecast(why="not asked for")
    mine = [each for each in paces.spends if scope.covers(each.purpose)]
    calls, microusd = sum(each.calls for each in mine), sum(each.microusd for each in mine)
    if paces.window_s < LEAST_S or calls < LEAST_CALLS:
        return Forecast(why=_too_early(calls, paces.window_s))
    end = bounds(period)[1]
    window = int(paces.window_s)
    left = cap_microusd - used_microusd
    reaches = now + max(0, left) * window / microusd if microusd else math.inf
    reaches_at = reaches if reaches < end else None
    if math.isinf(end):
        return Forecast(reaches_at=reaches_at, why="no end")
    return Forecast(used_microusd + microusd * int(end - now) // window, reaches_at)


def _too_early(calls: int, window_s: float) -> str:
    hours = int(min(window_s, LEAST_S) // 3_600)
    if calls < LEAST_CALLS:
        return f"too early: {calls} of {LEAST_CALLS} calls"
    return f"too early: {hours} of {int(LEAST_S // 3_600)} h"
