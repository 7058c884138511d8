"""What pays for a call: the device's own cap, a lease, or both; or why nothing does."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from edge.errors import BudgetExceeded
from edge.store import demand, rights
from edge.store.leftover import age_s
from edge.store.periods import Period
from edge.store.shortage import no_cap, no_lease, over_cap


@dataclass(frozen=True, slots=True)
class Asked:
    """Money that a call wants set aside; see ``Ledger.reserve``."""

    task: str
    pool: str
    worst_microusd: int
    gateway: bool


@dataclass(frozen=True, slots=True)
class Cap:
    """The device's own cap, and what of it is gone in the running period."""

    cap_microusd: int | None
    period: Period
    spent_microusd: int
    held_microusd: int


def payer(
    connection: sqlite3.Connection, asked: Asked, cap: Cap, *, now: float
) -> str | BudgetExceeded:
    """Return the lease that pays, empty where the cap alone allows it; or the refusal.

    Args:
        connection: inside a transaction.
        asked: what is wanted.
        cap: what must allow it as well, where there is one.
        now: on the device's clock, seconds since the epoch.

    """
    leased = asked.gateway or rights.is_leased(connection, asked.pool)
    if cap.cap_microusd is None:
        if not leased:
            return no_cap(asked.task, asked_microusd=asked.worst_microusd)
    elif cap.spent_microusd + cap.held_microusd + asked.worst_microusd > cap.cap_microusd:
        return over_cap(
            asked.task,
            asked_microusd=asked.worst_microusd,
            cap_microusd=cap.cap_microusd,
            period=cap.period,
            spent_microusd=cap.spent_microusd,
            held_microusd=cap.held_microusd,
        )
    return _lease(connection, asked, now) if leased else ""


def _lease(connection: sqlite3.Connection, asked: Asked, now: float) -> str | BudgetExceeded:
    found = rights.choose(
        connection,
        pool=asked.pool,
        task=asked.task,
        worst_case_microusd=asked.worst_microusd,
        now=0.0 if asked.gateway else now,
    )
    if found is not None:
        return found
    demand.refuse(connection, pool=asked.pool, task=asked.task, microusd=asked.worst_microusd)
    fitting = [
        left
        for pool, task, _, left in rights.left(connection)
        if pool == asked.pool and task in {asked.task, ""}
    ]
    return no_lease(
        asked.task,
        pool=asked.pool,
        asked_microusd=asked.worst_microusd,
        most_left_microusd=max(fitting, default=None),
        age_s=age_s(connection, now),
    )
