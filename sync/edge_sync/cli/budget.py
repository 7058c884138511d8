"""``edge-hub budget``: what the fleet may spend, what of it is spent, and where the rest is."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any, Optional

import typer
from rich.markup import escape

from edge.cli import show as shown
from edge.errors import ConfigError
from edge_sync.cli.common import (
    AsJson,
    Home,
    Styled,
    Yes,
    ago,
    confirm,
    count,
    opened,
    table,
    told,
    who,
)
from edge_sync.hub.budget import amounts, caps, exposure, pace, standing, telling
from edge_sync.hub.budget.alerts import level_of
from edge_sync.hub.budget.amounts import cents, dollars
from edge_sync.hub.budget.exposure import Away
from edge_sync.hub.budget.pace import Forecast
from edge_sync.hub.budget.standing import CapStanding, PoolStanding, Standing
from edge_sync.hub.budget.telling import Sent
from edge_sync.hub.home import Hub
from edge_sync.money.caps import Scope

app = typer.Typer(no_args_is_help=True)
_NO_CAP = "No cap, so no money is granted: edge-hub budget set fleet 50 --per month"
_COLOURS = {0: "default", 50: "default", 80: "yellow", 100: "red"}
_NAMED = 3
_WHY = {"gateway": "its gateway is silent", "device": "not heard of for a day"}


class Per(StrEnum):
    """Over which time a cap counts."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"
    TOTAL = "total"


_SCOPE = Annotated[
    str,
    typer.Argument(help="fleet, group:NAME or device:ID; after it ;pool:NAME or ;task:NAME."),
]
_PER = Annotated[Per, typer.Option("--per", help="In each hour, day or month in UTC, or in all.")]


@app.command("set")
def set_cap(
    scope: _SCOPE,
    amount: Annotated[str, typer.Argument(help="Dollars: 50, '$12.50' or 0.000125.")],
    *,
    per: _PER,
    home: Home = None,
) -> None:
    """Set what may be spent at most; a cap that is there takes the new amount."""
    wanted = amounts.microusd(amount)
    with opened(home) as hub:
        caps.set_cap(hub, scope, per.value, wanted, who=who())
        cap = _one(_read(hub, forecast=False), scope, per)
    told(f"{_words(scope, per)}: at most {dollars(wanted)}, {dollars(cap.free_microusd)} free.")
    if cap.free_microusd < 0:
        told("More is granted than that; there are no new leases until enough has come back.")


@app.command("rm")
def remove(scope: _SCOPE, *, per: _PER, home: Home = None, yes: Yes = False) -> None:
    """Take a cap away; leases that no other cap covers are taken back."""
    with opened(home) as hub:
        _one(_read(hub, forecast=False), scope, per)
        confirm(f"Take away the cap of {_words(scope, per)}?", yes=yes)
        caps.remove_cap(hub, scope, per.value, who=who())
    told(f"{_words(scope, per)}: no cap any more.")


@app.command("show")
def show(
    scope: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="Only the caps of this scope. All without."),
    ] = None,
    *,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Show caps with what is spent, held, granted, stranded and free, and the pools."""
    wanted = None if scope is None else Scope.parse(scope).text()
    with opened(home) as hub:
        found = _read(hub, forecast=True)
        with hub.store.reading() as connection:
            sent = telling.progress(connection)
            away = exposure.read_away(connection, now=found.at)
    chosen = [cap for cap in found.caps if wanted in {None, cap.scope}]
    if wanted is not None and not chosen:
        raise ConfigError(f"There is no cap of {wanted}.", hint="`edge-hub budget show` lists all.")
    if as_json:
        shown.print_json({**_as_json(found, chosen, sent), "away": [asdict(each) for each in away]})
        return
    _print_state(found, sent)
    _print_caps(chosen)
    _print_pools(found)
    _print_away(away)


def _read(hub: Hub, *, forecast: bool) -> Standing:
    now = hub.clock()
    with hub.store.reading() as connection:
        by_device = any(cap.scope.device for cap in caps.read_caps(connection).caps)
        paces = pace.read_paces(connection, now=now, by_device=by_device) if forecast else None
        return standing.read(connection, now=now, paces=paces)


def _one(found: Standing, scope: str, per: Per) -> CapStanding:
    text = Scope.parse(scope).text()
    for cap in found.caps:
        if (cap.scope, cap.kind) == (text, per.value):
            return cap
    raise ConfigError(
        f"There is no cap of {text} per {per.value}.", hint="`edge-hub budget show` lists all."
    )


def _words(scope: str, per: Per) -> str:
    return f"{scope} in all" if per is Per.TOTAL else f"{scope} per {per.value}"


def _as_json(found: Standing, chosen: list[CapStanding], sent: Sent | None) -> dict[str, Any]:
    whole = found.as_dict()
    names = {(cap.scope, cap.kind) for cap in chosen}
    whole["caps"] = [cap for cap in whole["caps"] if (cap["scope"], cap["kind"]) in names]
    whole["alerts_error"] = sent.error if sent else ""
    return whole


def _print_state(found: Standing, sent: Sent | None) -> None:
    if found.recovering:
        told("Recovering: the database was set back. Nothing is granted until every gateway told.")
    if sent and sent.error:
        told(f"Alerts wait, {count(sent.tries, 'attempt')} failed: {sent.error}")


def _print_caps(found: list[CapStanding]) -> None:
    if not found:
        told(_NO_CAP)
    for cap in found:
        shown.console.print(_heading(cap), highlight=False, soft_wrap=True)
        told("  " + ", ".join(f"{name} {cents(amount)}" for name, amount in cap.parts().items()))
        for line in (_forecast(cap.forecast, cap.ends_at), _stranded(cap)):
            if line:
                told(f"  {line}")


def _heading(cap: CapStanding) -> Styled:
    level = level_of(cap.used_microusd, cap.cap_microusd)
    used = f"{cents(cap.used_microusd)} of {cents(cap.cap_microusd)} used"
    if cap.cap_microusd:
        used += f" ({100 * cap.used_microusd // cap.cap_microusd} %)"
    until = "" if math.isinf(cap.ends_at) else f", until {_utc(cap.ends_at)} UTC"
    name = escape(_words(cap.scope, Per(cap.kind)))
    grade = (
        f"; [yellow]escrow-grade at {escape(', '.join(cap.escrow))}[/yellow]" if cap.escrow else ""
    )
    return Styled(f"[bold]{name}[/bold]: [{_COLOURS[level]}]{used}[/]{until}{grade}")


def _forecast(forecast: Forecast, ends_at: float) -> str:
    if forecast.why.startswith("too early"):
        return f"no forecast, {forecast.why}"
    reached = forecast.reaches_at
    until = f"used up by {_utc(reached)[:10]}" if reached is not None else ""
    if math.isinf(ends_at) or forecast.microusd is None:
        return f"at this pace {until or 'never used up'}"
    return f"forecast {cents(forecast.microusd)}" + (f", {until}" if until else "")


def _stranded(cap: CapStanding) -> str:
    named = (f"{cents(each.microusd)} at {each.pool} ({_WHY[each.why]})" for each in cap.stranded)
    return f"stranded {', '.join(named)}" if cap.stranded else ""


def _utc(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d %H:%M")


def _print_pools(found: Standing) -> None:
    rows = (
        (
            pool.pool,
            _grade(pool),
            ago(pool.seen_at, found.at) if pool.grade == "gateway" else "-",
            f"{pool.epoch} of {found.epoch}" if pool.grade == "gateway" else "-",
            pool.leases,
            cents(pool.open_microusd),
            cents(pool.used_microusd),
        )
        for pool in found.pools
    )
    columns = "pool,counted by,last answer,epoch>,leases>,worth>,used>"
    if found.pools:
        table("", columns.split(","), rows)
    for line in _remarks(found):
        told(line)


def _grade(pool: PoolStanding) -> str | Styled:
    if pool.grade == "escrow":
        return Styled("[yellow]devices: escrow-grade[/yellow]")
    if pool.grade == "none":
        return Styled("[red]nobody: removed[/red]")
    return Styled("[red]gateway: silent[/red]") if pool.silent else "gateway"


def _remarks(found: Standing) -> Iterable[str]:
    """Yield what the tables cannot say."""
    for pool in found.pools:
        if pool.silent:
            left = cents(pool.open_microusd - pool.used_microusd)
            yield f"{pool.pool}: {left} strands until its gateway answers. {pool.error}".rstrip()
        if pool.grade == "escrow":
            largest = cents(pool.largest_microusd)
            yield (
                f"{pool.pool} is escrow-grade: each copy of a device's disk can overspend by its "
                f"largest lease ({largest} now), and so can what was granted since a backup that "
                "was put back."
            )
    for each in found.unmet:
        asking = count(each.devices, "device")
        yield f"Asked for, not granted: pool {each.pool}, {asking}: {each.reason()}."


def _print_away(away: Sequence[Away]) -> None:
    if away:
        left = cents(sum(each.microusd for each in away))
        named = ", ".join(each.name or each.device_id[:8] for each in away[:_NAMED])
        more = f" and {len(away) - _NAMED} more" if len(away) > _NAMED else ""
        told(f"Not heard of for a day, with {left}: {named}{more}.")
