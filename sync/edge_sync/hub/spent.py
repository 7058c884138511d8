"""What devices have spent in a budget's period, from the ledger rows that they reported.

A cap counts for each device by itself. Open and unclear holds count in full, as they do on the
device. Knows what was reported, and nothing of what was spent since.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, Double, case, cast, func, select

from edge.errors import ConfigError
from edge.store.ledger import period_bounds
from edge.task import Budget
from edge_sync.hub.budget.amounts import dollars
from edge_sync.store.schema import devices, ledger_rows

_OPEN = ("reserved", "sent", "unclear")
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Spender:
    """What one device has spent and holds in the period."""

    name: str
    pack: str
    microusd: int


def require_room(
    connection: Connection, budgets: Mapping[str, Budget], *, default: Budget, now: float
) -> None:
    """Refuse a cap that a device is above already.

    Args:
        connection: to read with.
        budgets: by name of the pack.
        default: for devices of another pack.
        now: seconds since the epoch.

    Raises:
        ConfigError: with the figures.

    """
    for budget in {*budgets.values(), default}:
        mine = {name for name, each in budgets.items() if each == budget}
        above = [
            spender
            for spender in spenders(connection, budget, now=now)
            if spender.microusd > budget.cap_microusd
            and (spender.pack in mine or (budget == default and spender.pack not in budgets))
        ]
        if above:
            raise _too_low(budget, above, now)


def spenders(connection: Connection, budget: Budget, *, now: float) -> list[Spender]:
    """Return what devices have spent in the period around ``now``, the most first."""
    counted = case(
        (ledger_rows.c.state == "settled", ledger_rows.c.cost_microusd),
        (ledger_rows.c.state.in_(_OPEN), ledger_rows.c.held_microusd),
        else_=0,
    )
    # As a float: what a device makes up must not overflow the sum of all.
    total = func.sum(cast(counted, Double))
    query = (
        select(devices.c.name, devices.c.pack, total)
        .join(ledger_rows, ledger_rows.c.device_id == devices.c.id)
        .where(ledger_rows.c.at >= period_bounds(now, budget.period)[0])
        .where(devices.c.status != "revoked")
        .group_by(devices.c.id, devices.c.name, devices.c.pack)
        .order_by(total.desc(), devices.c.name)
    )
    rows = connection.execute(query)
    return [Spender(str(name), str(pack), int(spent)) for name, pack, spent in rows]


def _too_low(budget: Budget, above: list[Spender], now: float) -> ConfigError:
    named = ", ".join(f"{each.name} {dollars(each.microusd)}" for each in above[:_NAMED])
    more = f" and {len(above) - _NAMED} more" if len(above) > _NAMED else ""
    begin, end = period_bounds(now, budget.period)
    since = "" if budget.period == "total" else f" since {_day(begin)}"
    wait = "" if math.isinf(end) else f", or publish it after {_day(end)}"
    return ConfigError(
        f"budget.cap_usd is {dollars(budget.cap_microusd)} ({budget.period}), below what "
        f"{len(above)} device{'s have' if len(above) > 1 else ' has'} spent{since}: {named}{more}.",
        hint=f"Set it to {dollars(above[0].microusd)} or more{wait}.",
    )


def _day(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d")
