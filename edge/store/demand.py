"""What a device expects to need of its budget, from what it spent, was refused and has waiting.

An estimate that only decides how much the hub is asked for; money is safe whatever it says. Reads
and writes through a connection that somebody else holds.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from edge.store.holds import MOST_MICROUSD

_HOUR_S, _DAY_S = 3_600.0, 86_400.0
_MOST_WAITING = 100  # calls; what waits longer is asked for once these are answered


@dataclass(frozen=True, slots=True)
class Need:
    """A pool that a task may ask.

    Attributes:
        gateway: the pool's gateway counts its money.
        call_microusd: about the most that one call costs.

    """

    pool: str
    task: str
    gateway: bool
    call_microusd: int


@dataclass(frozen=True, slots=True)
class Demand:
    """What is expected to be needed, held money included; an empty task means any."""

    pool: str
    task: str
    microusd: int


def put_needs(connection: sqlite3.Connection, needs: Iterable[Need]) -> None:
    """Replace what the tasks in force may ask."""
    connection.execute("DELETE FROM needs")
    connection.executemany(
        "INSERT INTO needs VALUES (?, ?, ?, ?)",
        [(need.pool, need.task, int(need.gateway), need.call_microusd) for need in needs],
    )


def read_needs(connection: sqlite3.Connection) -> list[Need]:
    """Return what the tasks in force may ask, by pool and task."""
    rows = connection.execute("SELECT * FROM needs ORDER BY pool, task")
    return [Need(pool, task, bool(gateway), call) for pool, task, gateway, call in rows]


def refuse(connection: sqlite3.Connection, *, pool: str, task: str, microusd: int) -> None:
    """Note that a call found no lease with room."""
    connection.execute(
        "INSERT INTO refused VALUES (?, ?, ?, ?) ON CONFLICT (pool, task) DO UPDATE SET "
        "most_microusd = max(most_microusd, excluded.most_microusd), "
        "total_microusd = min(total_microusd + excluded.total_microusd, ?)",
        (pool, task, microusd, microusd, MOST_MICROUSD),
    )


def heard(connection: sqlite3.Connection, declined: Iterable[str]) -> None:
    """Note that the hub has heard what was refused, and gave no lease for some pools' tasks."""
    connection.execute("DELETE FROM refused")
    connection.execute("UPDATE fleet SET declined = ?", (json.dumps(sorted(declined)),))


def refused_most(connection: sqlite3.Connection) -> dict[tuple[str, str], int]:
    """Return the dearest call that was refused, by pool and task."""
    rows = connection.execute("SELECT pool, task, most_microusd FROM refused")
    return {(pool, task): most for pool, task, most in rows}


def usual_most(connection: sqlite3.Connection, now: float) -> dict[str, int]:
    """Return what the dearest call of the last day, or of the tasks in force, may cost by pool."""
    rows = connection.execute(
        "SELECT pool, max(most) FROM (SELECT pool, call_microusd AS most FROM needs UNION ALL "
        "SELECT pool, worst_case_microusd FROM holds WHERE reserved_at >= ?) GROUP BY pool",
        (now - _DAY_S,),
    )
    return dict(rows.fetchall())


def highest(connection: sqlite3.Connection, now: float) -> float:
    """Return the later of a time and the latest that the ledger stored."""
    (stored,) = connection.execute("SELECT highest FROM clock").fetchone()
    return max(now, float(stored))


def expected(connection: sqlite3.Connection, *, now: float, horizon_s: float) -> list[Demand]:
    """Return the demand of each pool, and of tasks that the hub may have to be asked for by name.

    Those were refused, or were busy lately where the hub gave none for all of them: there a cap may
    stand for a task alone. The faster of the pace of the last hour and that of the last day, and
    what was refused or waits; at least one call.

    Args:
        connection: of the money file.
        now: on the ledger's clock.
        horizon_s: how far ahead to look, seconds.

    """
    needs = read_needs(connection)
    usual = usual_most(connection, now)
    pace = _pace(connection, now, max(horizon_s, _HOUR_S))
    refused = {
        (pool, task): (most, total)
        for pool, task, most, total in connection.execute("SELECT * FROM refused")
    }
    waiting = _waiting(connection, needs)
    declined = json.loads(connection.execute("SELECT declined FROM fleet").fetchone()[0])
    busy = {(pool, task) for pool, task in pace.keys() | waiting.keys() if pool in declined}
    pools = {need.pool for need in needs} | {pool for pool, _ in refused}
    found = []
    for pool, task in (
        *((pool, "") for pool in sorted(pools)),
        *sorted((pool, task) for pool, task in refused.keys() | busy if task),
    ):
        asked = [each for (at, who), each in refused.items() if at == pool and task in {"", who}]
        backlog = max(sum(total for _, total in asked), waiting.get((pool, task), 0))
        amount = pace.get((pool, task), 0) + backlog
        least = max([usual.get(pool, 0), *(most for most, _ in asked)])
        found.append(Demand(pool, task, min(max(amount, least, 1), MOST_MICROUSD)))
    return found


def _pace(
    connection: sqlite3.Connection, now: float, horizon_s: float
) -> dict[tuple[str, str], int]:
    """Return what goes in a time at each pool, by task and for all of them (an empty one)."""
    rows = connection.execute(
        "SELECT pool, task, sum(iif(reserved_at >= ?, cost_microusd + held_microusd, 0)), "
        "sum(cost_microusd + held_microusd) FROM holds WHERE reserved_at >= ? GROUP BY pool, task",
        (now - _HOUR_S, now - _DAY_S),
    )
    lately: dict[tuple[str, str], tuple[int, int]] = {}
    for pool, task, hour, day in rows:
        for key in {(pool, task), (pool, "")}:
            hours, days = lately.get(key, (0, 0))
            lately[key] = hours + hour, days + day
    return {
        key: math.ceil(max(hour * horizon_s / _HOUR_S, day * horizon_s / _DAY_S))
        for key, (hour, day) in lately.items()
    }


def _waiting(connection: sqlite3.Connection, needs: Iterable[Need]) -> dict[tuple[str, str], int]:
    """Return what the tasks that wait may cost at the pools that they ask, likewise."""
    counts = dict(
        connection.execute(
            "SELECT task, min(count(*), ?) FROM queued WHERE state = 'waiting' GROUP BY task",
            (_MOST_WAITING,),
        ).fetchall()
    )
    found: dict[tuple[str, str], int] = {}
    for need in needs:
        cost = counts.get(need.task, 0) * need.call_microusd
        for key in {(need.pool, need.task), (need.pool, "")} if cost else ():
            found[key] = found.get(key, 0) + cost
    return found
