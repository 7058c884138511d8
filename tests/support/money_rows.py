"""Rows of the fleet's money as a test needs them: devices, gateways, leases, redemptions, caps."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Table, insert

from edge_sync.hub.budget import books, caps
from edge_sync.hub.budget.books import Held
from edge_sync.hub.home import Hub
from edge_sync.money.account import Right
from edge_sync.money.caps import Cap, Purpose, Scope
from edge_sync.store.schema import devices, gateways, ledger_rows, redemptions, wants

MONTH = "month:2026-11"


def put(hub: Hub, table: Table, **row: Any) -> None:
    """Insert one row."""
    hub.store.write(lambda connection: connection.execute(insert(table).values(**row)))


def add_device(hub: Hub, number: int, *, group: str = "kiosks", seen_at: float | None) -> str:
    """Let a device join; return its id."""
    device_id = f"{number:032x}"
    put(
        hub,
        devices,
        id=device_id,
        name=f"kiosk-{number}",
        group_name=group,
        public_key=f"{number:064x}",
        status="active",
        enrolled_at=0.0,
        last_seen_at=seen_at,
        incarnation=1,
        nonce="",
        runtime="",
        pack="",
        revision=0,
        serial=0,
        refused="{}",
        models="{}",
        waiting=0,
    )
    return device_id


def add_gateway(
    hub: Hub, pool: str, *, grade: str = "gateway", seen_at: float | None = None, error: str = ""
) -> None:
    """Register a pool."""
    put(
        hub,
        gateways,
        pool_id=pool,
        url="http://gateway" if grade == "gateway" else "",
        grade=grade,
        epoch=1,
        rows_after=0,
        totals="{}",
        seen_at=seen_at,
        error=error,
        added_by="test",
        added_at=0.0,
    )


def add_lease(
    hub: Hub,
    number: int,
    device_id: str,
    *,
    pool: str = "gpu",
    group: str = "kiosks",
    task: str = "",
    period: str = MONTH,
    amount: int = 1_000_000,
    state: str = "open",
    used: int = 0,
    told: int = 0,
) -> str:
    """Put a lease into the books, with what is used of it as its gateway and its device tell."""
    lease_id = f"{number:032x}"
    right = Right(
        lease_id,
        Purpose(group, device_id, pool, task),
        period,
        1,
        amount,
        state,
        used if state == "sealed" else 0,
    )
    held = Held(
        right,
        seen_microusd=used,
        told_microusd=told,
        granted_at=float(number),
        not_after=float(number) + 600,
        why_closed="" if state == "open" else "done",
    )
    hub.store.write(lambda connection: books.add(connection, [held]))
    return lease_id


def add_want(
    hub: Hub, device_id: str, *, pool: str, task: str = "", at: float, demand: int = 1
) -> None:
    """Let a device have asked for money."""
    values = {"device_id": device_id, "pool_id": pool, "task": task, "at": at}
    put(hub, wants, **values, demand_microusd=demand)


def set_caps(hub: Hub, *wanted: tuple[str, str, int]) -> None:
    """Set caps (scope, kind, micro-dollars) over the leases that there are."""

    def work(connection: Any) -> None:
        for text, kind, amount in wanted:
            cap = Cap(Scope.parse(text), kind, amount)
            caps.put_cap(connection, cap, who="test", now=hub.clock())

    hub.store.write(work)


def add_redemption(
    hub: Hub,
    number: int,
    *,
    at: float,
    cost: int,
    lease_id: str = "f" * 32,
    device_id: str = "e" * 32,
    pool: str = "gpu",
    state: str = "settled",
) -> None:
    """Put one of a gateway's rows in; what is not settled holds ``cost``."""
    put(
        hub,
        redemptions,
        hold_id=f"{number:032x}",
        pool_id=pool,
        lease_id=lease_id,
        device_id=device_id,
        state=state,
        held_microusd=cost,
        cost_microusd=cost if state == "settled" else 0,
        at=at,
        seq=number,
    )


def add_report(
    hub: Hub, number: int, device_id: str, *, at: float, cost: int, pool: str = "phones"
) -> None:
    """Put one settled row of a device's own ledger in."""
    put(
        hub,
        ledger_rows,
        row_id=f"{number:032x}",
        device_id=device_id,
        task="draft",
        pool=pool,
        state="settled",
        held_microusd=cost,
        cost_microusd=cost,
        at=at,
        revision=0,
        receipt=1,
    )
