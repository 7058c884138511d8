"""How the fleet's money stands: every cap with what is spent, held, granted, stranded and free.

A read model: a few queries in one transaction, nothing is changed. Guarantees: the parts of a cap
add up to it exactly, as the hub's books do. What is held and what strands is as old as the last
answer of the gateways and devices. Knows nothing of what was spent since.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

from sqlalchemy import Connection, RowMapping, and_, case, func, select

from edge_sync.hub.budget.exposure import Rights, read_rights
from edge_sync.hub.budget.pace import Forecast, Paces, forecast
from edge_sync.hub.budget.unmet import Unmet, read_unmet
from edge_sync.hub.home import read_fact
from edge_sync.money.caps import Scope
from edge_sync.money.periods import KINDS, Kind, bounds, kind_of, period_of, within
from edge_sync.store.schema import budgets, gateways, pots

SILENT_S = 300.0
"""A gateway that did not answer for so long cannot be asked to seal."""
Grade: TypeAlias = Literal["gateway", "escrow", "none"]


@dataclass(frozen=True, slots=True)
class Stranded:
    """Money that nobody can spend or give back for now.

    Attributes:
        why: ``gateway``: it does not answer, so nothing can be sealed; ``device``: it is away.

    """

    why: Literal["gateway", "device"]
    pool: str
    leases: int
    microusd: int


@dataclass(frozen=True, slots=True)
class CapStanding:
    """One cap in its running period: spent + held + granted + stranded + free = cap.

    Attributes:
        spent_microusd: of sealed leases; final.
        held_microusd: redeemed or held on leases that are not sealed.
        granted_microusd: with devices, not used, and not stranded.
        free_microusd: may still be granted; below 0 after a cut.
        leases: that are not sealed.
        escrow: pools within it whose money no gateway counts.
        alerted: the highest share that was told of, in percent.

    """

    scope: str
    kind: Kind
    period: str
    cap_microusd: int
    spent_microusd: int
    held_microusd: int
    granted_microusd: int
    stranded_microusd: int
    free_microusd: int
    leases: int
    stranded: tuple[Stranded, ...]
    escrow: tuple[str, ...]
    alerted: int
    forecast: Forecast

    @property
    def used_microusd(self) -> int:
        """What counts for an alert: spent and held."""
        return self.spent_microusd + self.held_microusd

    def parts(self) -> dict[str, int]:
        """Return what adds up to the cap, in micro-dollars by name."""
        return {
            "spent": self.spent_microusd,
            "held": self.held_microusd,
            "granted": self.granted_microusd,
            "stranded": self.stranded_microusd,
            "free": self.free_microusd,
        }

    @property
    def ends_at(self) -> float:
        """When the period ends, in seconds since the epoch; infinite for all time."""
        return bounds(self.period)[1]


@dataclass(frozen=True, slots=True)
class PoolStanding:
    """One pool: who counts its money, and what of it is granted.

    Attributes:
        grade: ``gateway``, ``escrow`` where the devices count themselves, ``none`` where leases
            are left of a pool that was removed.
        epoch: that its gateway confirmed.
        seen_at: of its gateway's last answer, in seconds since the epoch.
        error: of the last attempt; empty: none.
        silent: it has a gateway, which does not answer.
        totals: as the gateway told last.
        leases, open_microusd, used_microusd: of leases that are not sealed: how many, their
            amounts, and what of these is redeemed or held.
        largest_microusd: of one of them: what each copy of a disk may overspend under escrow.

    """

    pool: str
    grade: Grade
    url: str
    epoch: int
    seen_at: float | None
    error: str
    silent: bool
    totals: Mapping[str, Any]
    leases: int = 0
    open_microusd: int = 0
    used_microusd: int = 0
    largest_microusd: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """The fleet's money at one moment.

    Attributes:
        recovering: the database was set back; nothing is granted until every gateway has told.
        unmet: pools that devices ask for and no cap can give; none where there is no cap.

    """

    at: float
    epoch: int
    recovering: bool
    caps: tuple[CapStanding, ...]
    pools: tuple[PoolStanding, ...]
    unmet: tuple[Unmet, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return asdict(self)


def read(
    connection: Connection, *, now: float, paces: Paces | None = None, unmet: bool = True
) -> Standing:
    """Return how the money stands.

    Args:
        connection: to read with.
        now: seconds since the epoch.
        paces: how fast money went lately, for forecasts; without it they are not made.
        unmet: look also for what devices ask for in vain.

    """
    rows = _caps(connection, now)
    scopes = [Scope.parse(row["scope"]) for row in rows]
    open_ = read_rights(connection, now=now, by_device=any(each.device for each in scopes))
    pools = _pools(connection, open_, now)
    epoch, recovering = (read_fact(connection, name) or 0 for name in ("epoch", "recovering"))
    found = [
        _cap(row, scope, open_, pools=pools, paces=paces, now=now)
        for row, scope in zip(rows, scopes, strict=True)
    ]
    return Standing(
        at=now,
        epoch=epoch,
        recovering=bool(recovering),
        caps=tuple(sorted(found, key=_order)),
        pools=tuple(pools.values()),
        unmet=read_unmet(connection, now=now, epoch=epoch or 1) if unmet and found else (),
    )


def _order(cap: CapStanding) -> tuple[int, str, int]:
    level = ("fleet", "group", "device").index(cap.scope.partition(":")[0].partition(";")[0])
    return level, cap.scope, -KINDS.index(cap.kind)


def _caps(connection: Connection, now: float) -> list[dict[str, Any]]:
    """Return the caps in force, each with its running pot where that was opened."""
    running = {kind: period_of(kind, now) for kind in KINDS}
    holder = case(running, value=budgets.c.kind)
    query = (
        select(
            budgets.c.scope,
            budgets.c.kind,
            func.coalesce(pots.c.cap_microusd, budgets.c.amount_microusd).label("cap"),
            func.coalesce(pots.c.free_microusd, budgets.c.amount_microusd).label("free"),
            func.coalesce(pots.c.open_microusd, 0).label("open"),
            func.coalesce(pots.c.settled_microusd, 0).label("settled"),
            func.coalesce(pots.c.alerted, 0).label("alerted"),
        )
        .select_from(budgets)
        .outerjoin(pots, and_(pots.c.scope == budgets.c.scope, pots.c.period == holder))
    )
    rows = connection.execute(query).mappings()
    return [{**row, "period": running[row["kind"]]} for row in rows]


def _pools(connection: Connection, rights: Iterable[Rights], now: float) -> dict[str, PoolStanding]:
    found = {
        row["pool_id"]: _pool(row, now)
        for row in connection.execute(select(gateways).order_by(gateways.c.pool_id)).mappings()
    }
    for each in rights:
        pool = found.get(each.pool) or PoolStanding(
            each.pool, "none", "", 0, None, "", silent=True, totals={}
        )
        found[each.pool] = replace(
            pool,
            leases=pool.leases + each.leases,
            open_microusd=pool.open_microusd + each.amount_microusd,
            used_microusd=pool.used_microusd + each.used_microusd,
            largest_microusd=max(pool.largest_microusd, each.largest_microusd),
        )
    return found


def _pool(row: RowMapping, now: float) -> PoolStanding:
    heard = row["seen_at"] is not None and now - row["seen_at"] < SILENT_S
    return PoolStanding(
        pool=row["pool_id"],
        grade=row["grade"],
        url=row["url"],
        epoch=row["epoch"],
        seen_at=row["seen_at"],
        error=row["error"],
        silent=row["grade"] == "gateway" and not heard,
        totals=json.loads(row["totals"] or "{}"),
    )


def _cap(
    row: Mapping[str, Any],
    scope: Scope,
    rights: Iterable[Rights],
    *,
    pools: Mapping[str, PoolStanding],
    paces: Paces | None,
    now: float,
) -> CapStanding:
    mine = [
        each
        for each in rights
        if scope.covers(each.purpose) and within(each.period, row["kind"]) == row["period"]
    ]
    stranded = _stranded(mine, pools)
    lost = sum(each.microusd for each in stranded)
    held = sum(each.used_microusd for each in mine)
    spent = int(row["settled"])
    return CapStanding(
        scope=row["scope"],
        kind=kind_of(row["period"]),
        period=row["period"],
        cap_microusd=row["cap"],
        spent_microusd=spent,
        held_microusd=held,
        granted_microusd=row["open"] - held - lost,
        stranded_microusd=lost,
        free_microusd=row["free"],
        leases=sum(each.leases for each in mine),
        stranded=stranded,
        escrow=tuple(
            name
            for name, pool in pools.items()
            if pool.grade == "escrow" and scope.pool in {"", name}
        ),
        alerted=row["alerted"],
        forecast=forecast(
            paces,
            scope,
            period=row["period"],
            used_microusd=spent + held,
            cap_microusd=row["cap"],
            now=now,
        ),
    )


def _stranded(rights: Iterable[Rights], pools: Mapping[str, PoolStanding]) -> tuple[Stranded, ...]:
    """Return what cannot be spent or given back now, by reason and pool."""
    found: dict[tuple[str, str], Stranded] = {}
    for each in rights:
        silent = pools[each.pool].silent
        if not silent and not each.away:
            continue
        why: Literal["gateway", "device"] = "gateway" if silent else "device"
        had = found.get((why, each.pool), Stranded(why, each.pool, 0, 0))
        left = each.amount_microusd - each.used_microusd
        found[why, each.pool] = replace(
            had, leases=had.leases + each.leases, microusd=had.microusd + left
        )
    return tuple(found[key] for key in sorted(found))
