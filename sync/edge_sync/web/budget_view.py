"""The fleet's money, and what to look at, in words and bars."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, select

from edge_sync.hub.budget import pace, standing, telling
from edge_sync.hub.budget.alerts import level_of
from edge_sync.hub.budget.amounts import cents
from edge_sync.hub.budget.exposure import Away, read_away
from edge_sync.hub.budget.pace import Forecast, Paces
from edge_sync.hub.budget.standing import CapStanding, PoolStanding, Standing
from edge_sync.hub.home import read_fact
from edge_sync.money.caps import Scope
from edge_sync.money.periods import KINDS, Kind, kind_of, period_of
from edge_sync.store.schema import budgets, devices, groups, pots
from edge_sync.web import formats
from edge_sync.web.notices import Notice
from edge_sync.web.paging import PER_PAGE, Page, bounds
from edge_sync.web.states import State

_KINDS = {0: "good", 50: "", 80: "warn", 100: "bad"}
_PIECES = {"spent": "f1", "held": "f2", "granted": "f5", "stranded": "fbad", "free": "fnone"}
_NAMED = 3
"""How many of them the first page shows."""
_URGENT = 80


@dataclass(frozen=True, slots=True)
class Cap:
    """One cap's line.

    Attributes:
        note: the forecast in words.
        stranded: what strands where, and why.

    """

    scope: str
    name: str
    per: str
    kind: str
    until: float | None
    tag: State
    bar: list[formats.Part]
    used: int
    cap: int
    free: int
    note: str
    stranded: str
    escrow: bool


@dataclass(frozen=True, slots=True)
class Pool:
    """One pool's line."""

    standing: PoolStanding
    tag: State
    counted: str


@dataclass(frozen=True, slots=True)
class Budget:
    """All that the page shows beside its list of caps."""

    notices: list[Notice]
    pools: list[Pool]
    escrow: list[PoolStanding]
    away: tuple[Away, ...]
    epoch: int
    scopes: list[str]


def read_paces(connection: Connection, now: float) -> Paces:
    """Return how fast money went lately; worth keeping for a while."""
    scopes = connection.execute(select(budgets.c.scope)).scalars()
    by_device = any(Scope.parse(scope).device for scope in scopes)
    return pace.read_paces(connection, now=now, by_device=by_device)


def budget(connection: Connection, query: Mapping[str, str], now: float, paces: Paces) -> Page:
    """Return a page of caps, and all that goes with it."""
    found = standing.read(connection, now=now, paces=paces)
    number, skip = bounds(query.get("page", ""), len(found.caps))
    shown = found.caps[skip : skip + PER_PAGE]
    names = _device_names(connection, [each.scope for each in shown])
    whole = Budget(
        notices=[*_notices(found, now), *_telling(connection)],
        pools=[_pool(each) for each in found.pools],
        escrow=[each for each in found.pools if each.grade == "escrow"],
        away=read_away(connection, now=now),
        epoch=found.epoch,
        scopes=_scopes(connection, found),
    )
    caps = [_cap(each, names) for each in shown]
    return Page(len(found.caps), number, {}, {"caps": caps, "budget": whole})


def attention(connection: Connection, now: float) -> list[Notice]:
    """Return what of the money everybody should see: as alerts told it, so that it costs little."""
    notices = []
    if read_fact(connection, "recovering"):
        text = "The database was set back: no money is granted until every gateway has told."
        notices.append(Notice("bad", text, "/budget", "Look at it"))
    running = [period_of(kind, now) for kind in KINDS]
    query = (
        select(pots.c.scope, pots.c.period, pots.c.alerted)
        .where(pots.c.alerted >= _URGENT, pots.c.period.in_(running))
        .order_by(pots.c.alerted.desc(), pots.c.scope)
        .limit(_NAMED)
    )
    found = [
        (str(scope), kind_of(period), level) for scope, period, level in connection.execute(query)
    ]
    names = _device_names(connection, [scope for scope, _, _ in found])
    for scope, kind, level in found:
        told = f"{scope_name(scope, names)} {_per(kind)}: {level} % of the budget is used."
        notices.append(Notice(_KINDS[level], told, "/budget", "Show"))
    return notices


def scope_name(scope: str, names: Mapping[str, str]) -> str:
    """Return what a cap covers in words."""
    read = Scope.parse(scope)
    level = "Whole fleet"
    if read.group:
        level = f"Group {read.group}"
    if read.device:
        level = f"Device {names.get(read.device) or read.device[:12]}"
    pool = f", pool {read.pool}" if read.pool else ""
    return level + pool + (f", task {read.task}" if read.task else "")


def _device_names(connection: Connection, scopes: list[str]) -> dict[str, str]:
    ids = [device for scope in scopes if (device := Scope.parse(scope).device)]
    query = select(devices.c.id, devices.c.name).where(devices.c.id.in_(ids))
    return {str(device): str(name) for device, name in connection.execute(query)} if ids else {}


def _cap(cap: CapStanding, names: Mapping[str, str]) -> Cap:
    ends = cap.ends_at
    level = level_of(cap.used_microusd, cap.cap_microusd)
    share = cap.used_microusd / cap.cap_microusd if cap.cap_microusd else float(level > 0)
    return Cap(
        scope=cap.scope,
        name=scope_name(cap.scope, names),
        per=cap.kind,
        kind=_per(cap.kind),
        until=None if math.isinf(ends) else ends,
        tag=State(f"{formats.percent(share)} used", _KINDS[level]),
        bar=_bar(cap),
        used=cap.used_microusd,
        cap=cap.cap_microusd,
        free=cap.free_microusd,
        note=forecast_words(cap.forecast, ends),
        stranded=", ".join(
            f"{cents(each.microusd)} {_WHY[each.why].format(pool=each.pool)}"
            for each in cap.stranded
        ),
        escrow=bool(cap.escrow),
    )


def _per(kind: Kind) -> str:
    return "for all time" if kind == "total" else f"per {kind}"


_WHY = {
    "gateway": "at {pool}, whose gateway does not answer",
    "device": "at {pool}, on devices not heard of for a day",
}


def _bar(cap: CapStanding) -> list[formats.Part]:
    # After a cut more may be out than the cap allows.
    whole = max(cap.cap_microusd, cap.cap_microusd - cap.free_microusd)
    pieces = [(name, amount, _PIECES[name]) for name, amount in cap.parts().items()]
    return formats.parts(pieces, whole, shown=cents)


def forecast_words(forecast: Forecast, ends_at: float) -> str:
    """Return a forecast as people say it."""
    reached = ""
    if forecast.reaches_at is not None:
        reached = f"used up by {formats.day(forecast.reaches_at)}"
    if math.isinf(ends_at) and not forecast.why.startswith("too early"):
        return reached.capitalize() or "Never used up at this pace"
    if forecast.microusd is None:
        return f"No forecast: {forecast.why}"
    told = f"Forecast {cents(forecast.microusd)}"
    return f"{told}, {reached}" if reached else f"{told} by its end"


def _pool(pool: PoolStanding) -> Pool:
    if pool.grade == "escrow":
        return Pool(pool, State("escrow-grade", "warn"), "the devices themselves")
    if pool.grade == "none":
        return Pool(pool, State("removed", "bad"), "nobody")
    if pool.silent:
        return Pool(pool, State("silent", "bad"), "its gateway")
    return Pool(pool, State("answers", "good"), "its gateway")


def _notices(found: Standing, now: float) -> list[Notice]:
    notices = []
    if found.recovering:
        behind = [
            each.pool
            for each in found.pools
            if each.grade == "gateway" and (each.silent or each.epoch < found.epoch)
        ]
        waits = f" It waits for: {', '.join(behind)}." if behind else ""
        told = "Recovering: the database was set back. Nothing is granted until every gateway has"
        notices.append(Notice("bad", f"{told} told what was spent.{waits}"))
    for each in found.pools:
        left = each.open_microusd - each.used_microusd
        if each.silent and each.grade == "gateway":
            seen = formats.ago(each.seen_at, now)
            reason = f" {each.error}" if each.error else ""
            told = f"The gateway of pool {each.pool} does not answer (last answer: {seen}); "
            notices.append(Notice("bad", f"{told}{cents(left)} strands until then.{reason}"))
    for wanted in found.unmet:
        asking = f"{wanted.devices} device{'' if wanted.devices == 1 else 's'}"
        told = f"Asked for, not granted: pool {wanted.pool}, {asking}: {wanted.reason()}."
        notices.append(Notice("warn", told))
    over = [each for each in found.caps if each.free_microusd < 0]
    if over:
        names = ", ".join(f"{each.scope} {_per(each.kind)}" for each in over[:_NAMED])
        told = "Granted beyond what a cut left; no new leases until enough has come back"
        notices.append(Notice("warn", f"{told}: {names}."))
    return notices


def _telling(connection: Connection) -> list[Notice]:
    sent = telling.progress(connection)
    if sent is None or not sent.error:
        return []
    return [Notice("warn", f"Alerts wait, {sent.tries} tries failed. {sent.error}")]


def _scopes(connection: Connection, found: Standing) -> list[str]:
    """Return scopes that a person may want to type."""
    names = sorted(connection.execute(select(groups.c.name)).scalars())
    pools = [f"fleet;pool:{each.pool}" for each in found.pools if each.grade != "none"]
    return ["fleet", *(f"group:{name}" for name in names), *pools]
