"""What may still be spent, as this device knows it, with the age of what it knows.

The figure is never above what the device's own cap and leases leave. What it cannot know between
two syncs (a lease that was closed elsewhere, a copy of this disk) the age tells of: the pool's
gateway knows, and a pool without one is named ``escrow`` with the bound of what that may cost.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from edge.store import demand, rights
from edge.store.holds import usd
from edge.store.shortage import since

Grade: TypeAlias = Literal["gateway", "escrow", "own"]
"""Who counts the money of a pool: its gateway, this device under leases, or this device alone."""


@dataclass(frozen=True, slots=True)
class PoolLeft:
    """What is left at one pool.

    Attributes:
        grade: who counts.
        left_microusd: of its open leases; the own cap's rest where there is no hub.
        largest_microusd: amount of the largest open lease.

    """

    pool: str
    grade: Grade
    left_microusd: int
    largest_microusd: int

    @property
    def bound(self) -> str:
        """For a pool of grade ``escrow``, how far it may be overspent; else empty."""
        if self.grade != "escrow":
            return ""
        return (
            f"Pool {self.pool} is escrow-grade: no gateway counts its money. If this device's disk "
            "is copied or set back, each copy may spend the lease again, at most "
            f"{usd(self.largest_microusd)} for each copy beyond the first; after the hub was "
            "restored from a backup, what it had granted since may be spent beside the cap."
        )


@dataclass(frozen=True, slots=True)
class Leftover:
    """What is spent, held and left.

    Attributes:
        remaining_microusd: what may still be reserved, over all pools.
        synced: whether a hub gives this device leases.
        age_s: seconds since the last sync; ``None`` where there was none, or the clock says that
            it lies ahead.
        pools: those that tasks may ask or leases are for.

    """

    spent_microusd: int
    held_microusd: int
    remaining_microusd: int
    synced: bool
    age_s: float | None
    pools: tuple[PoolLeft, ...]

    @property
    def known(self) -> str:
        """How old the figures are, to stand behind them; empty where no hub gives leases."""
        return f" ({since(self.age_s)})" if self.synced else ""

    @property
    def notes(self) -> list[str]:
        """What has to be said wherever the figures are shown."""
        return [pool.bound for pool in self.pools if pool.bound]

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values for a report."""
        return {
            "spent_microusd": self.spent_microusd,
            "held_microusd": self.held_microusd,
            "remaining_microusd": self.remaining_microusd,
            "synced": self.synced,
            "age_s": self.age_s if self.synced else None,
            "pools": [
                {"pool": each.pool, "grade": each.grade, "left_microusd": each.left_microusd}
                for each in self.pools
            ],
            "notes": self.notes,
        }


def left_over(
    connection: sqlite3.Connection,
    *,
    sums: tuple[int, int],
    cap_microusd: int | None,
    now: float,
) -> Leftover:
    """Return what is left.

    Args:
        connection: of the money file.
        sums: spent and held in the cap's period.
        cap_microusd: the device's own cap.
        now: of the device's clock, seconds since the epoch.

    """
    own = None if cap_microusd is None else max(0, cap_microusd - sum(sums))
    needs = demand.read_needs(connection)
    gateways = {need.pool for need in needs if need.gateway}
    leased = {row[0] for row in connection.execute("SELECT DISTINCT pool FROM leases")}
    open_ones = rights.left(connection)
    pools = []
    for name in sorted(leased | {need.pool for need in needs}):
        mine = [(amount, left) for pool, _, amount, left in open_ones if pool == name]
        grade: Grade = "gateway" if name in gateways else "escrow" if name in leased else "own"
        total = (own or 0) if grade == "own" else sum(left for _, left in mine)
        largest = max((amount for amount, _ in mine), default=0)
        pools.append(PoolLeft(name, grade, total, largest))
    under_lease = sum(each.left_microusd for each in pools if each.grade != "own")
    alone = not pools or any(each.grade == "own" for each in pools)
    whole = under_lease + ((own or 0) if alone else 0)
    return Leftover(
        *sums,
        remaining_microusd=whole if own is None else min(whole, own),
        synced=bool(leased or gateways),
        age_s=age_s(connection, now),
        pools=tuple(pools),
    )


def age_s(connection: sqlite3.Connection, now: float) -> float | None:
    """Return the seconds since the last sync; ``None`` where that cannot be told."""
    (at,) = connection.execute("SELECT synced_at FROM fleet").fetchone()
    return None if at is None or at > now else now - float(at)
