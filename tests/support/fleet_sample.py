"""A hub with a fleet as a day leaves it: three groups of devices, versions, a rollout under way."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert

from edge_sync.hub import fleet, policies, rollouts, tokens
from edge_sync.hub.budget import books, caps
from edge_sync.hub.budget.books import Held
from edge_sync.hub.home import Hub
from edge_sync.money.account import Right
from edge_sync.money.caps import Cap, Purpose, Scope
from edge_sync.money.periods import bounds, period_of
from edge_sync.store.schema import devices, gateways, health, ledger_rows, redemptions

NOW = 1_795_000_000.0
GROUPS = ("kiosks", "desktops", "lab")
FIRST = """\
budget: {cap_usd: 2.50, period: month}
routing: {keep_above: 0.7}
tasks:
  support_intent:
    routing: {risk: 0.05, below: escalate}
"""
SECOND = FIRST.replace("0.7}", "0.72}")
THIRD = SECOND.replace("2.50", "4.00").replace("0.05", "0.03")


@dataclass(frozen=True)
class Sample:
    """A hub, and a token of each role."""

    hub: Hub
    tokens: dict[str, str]


def add_devices(hub: Hub, *, count: int, revisions: tuple[int, ...], seed: int = 7) -> None:
    """Let devices join in three groups, each with a day of work."""
    draw = random.Random(seed)  # noqa: S311 - a sample, not a secret
    now = hub.clock()
    joined = [_device(draw, at, draw.choice(revisions), now) for at in range(count)]
    worked = [_hour(draw, row, now, ago) for row in joined for ago in range(24)]
    paid = [_charge(draw, row, now) for row in joined]

    def work(connection: Connection) -> None:
        for table, rows in ((devices, joined), (health, worked), (ledger_rows, paid)):
            connection.execute(insert(table), rows)

    hub.store.write(work)


def _device(draw: random.Random, at: int, revision: int, now: float) -> dict[str, Any]:
    group = GROUPS[at % 3]
    refused = {"revision": 3, "reason": "Task action needs a decoder.", "at": now - 600.0}
    seen = now - draw.choice([12.0, 80.0, 140.0, 250.0, 3 * 86_400.0])
    return {
        "id": f"{draw.getrandbits(128):032x}",
        "name": f"{group.removesuffix('s')}-{at:03d}",
        "group_name": group,
        "public_key": f"{draw.getrandbits(256):064x}",
        "status": "quarantined" if at == 4 else "active",
        "enrolled_at": now - 30 * 86_400.0,
        "last_seen_at": seen if at != 8 else None,
        "clock_skew_s": draw.choice([0.4, -2.0, 0.1, 3_700.0]),
        "incarnation": 1,
        "nonce": "00",
        "runtime": "0.1.0",
        "pack": "kiosk",
        "revision": revision,
        "revision_since": now - 7_000.0,
        "serial": 0,
        "refused": json.dumps(refused) if at == 6 else "{}",
        "models": "{}",
        "waiting": draw.randrange(4),
    }


def _hour(draw: random.Random, device: dict[str, Any], now: float, ago: int) -> dict[str, Any]:
    tasks = draw.randrange(20, 90)
    cloud = tasks * draw.randrange(4, 12) // 100
    latency = [0] * 32
    latency[10], latency[20] = tasks - cloud, cloud
    return {
        "device_id": device["id"],
        "revision": device["revision"],
        "hour": int(now // 3600) - ago,
        "tasks": tasks,
        "errors": draw.randrange(2),
        "cached": tasks // 10,
        "local": tasks - cloud - tasks // 10 - 2,
        "cloud": cloud,
        "deferred": 1,
        "abstained": 0,
        "corrections": draw.randrange(3),
        "cost_microusd": cloud * 180,
        "latency": json.dumps(latency),
    }


def _charge(draw: random.Random, device: dict[str, Any], now: float) -> dict[str, Any]:
    return {
        "row_id": f"{draw.getrandbits(128):032x}",
        "device_id": device["id"],
        "task": "support_intent",
        "pool": "default",
        "state": draw.choice(["settled", "unclear"]),
        "held_microusd": 0,
        "cost_microusd": 184,
        "at": now - 100.0,
        "revision": device["revision"],
        "receipt": 1,
    }


def make_sample(home: Path, *, clock=lambda: NOW) -> Sample:
    """Make a hub with one token of each role, and three groups without devices."""
    hub = Hub.create(home, clock=clock)
    made = {
        role.value: tokens.add(hub, f"{role.value}-one", role=role, who="test")
        for role in tokens.Role
    }
    for group in GROUPS:
        fleet.add_group(hub, group, who="test")
    return Sample(hub, made)


def fill(sample: Sample, *, count: int = 42) -> None:
    """Publish three versions, let devices join, and roll the last one out."""
    hub = sample.hub
    for text, message, at_once in (
        (FIRST, "First policy", GROUPS),
        (SECOND, "Escalate a little more", GROUPS),
        (THIRD, "Stricter promise for support", ()),
    ):
        checked = policies.check(hub, text.encode(), what="The policy")
        policies.publish(hub, checked, message=message, who="ada", at_once=at_once)
    add_devices(hub, count=count, revisions=(2, 2, 2, 3, 1))
    rollouts.start(hub, 3, who="ada", names=["kiosks", "desktops"], waves="10,50,100")


POOLS = ("gpu", "hosted", "phones")
CAPS = (
    ("fleet", "month", 50_000_000),
    ("fleet;pool:hosted", "total", 100_000_000),
    ("group:desktops", "month", 12_000_000),
    ("group:kiosks", "month", 20_000_000),
    ("group:lab", "day", 9_600_000),
)


def add_money(hub: Hub) -> None:
    """Give a filled sample caps, three pools, leases in all states, and a week of redemptions.

    The gateway of ``gpu`` answers, that of ``hosted`` has been silent for two hours, and nobody
    but the devices counts at ``phones``.
    """
    now = hub.clock()
    draw = random.Random(11)  # noqa: S311 - a sample, not a secret
    joined = fleet.list_devices(hub)
    made = [_lease(draw, each, now, at) for at, each in enumerate(joined * 3)]
    called = [_redemption(draw, held, now) for held in made for _ in range(6)]
    counted = [_gateway(pool, now) for pool in POOLS]

    def work(connection: Connection) -> None:
        connection.execute(insert(gateways), counted)
        books.add(connection, made)
        connection.execute(insert(redemptions), called)
        for text, kind, amount in CAPS:
            caps.put_cap(connection, Cap(Scope.parse(text), kind, amount), who="ada", now=now)

    hub.change("ada", "budget.set", about="fleet", detail={}, work=work)


def _lease(draw: random.Random, device: fleet.Device, now: float, at: int) -> Held:
    pool = POOLS[at % 7 % 3]
    period = period_of("day" if device.group == "lab" else "month", now)
    amount = draw.randrange(10, 60) * 10_000
    used = amount * draw.randrange(0, 11) // 10
    state = ("open", "sealed", "sealed", "closing")[at % 4]
    right = Right(
        f"{draw.getrandbits(128):032x}",
        Purpose(device.group, device.id, pool),
        period,
        1,
        amount,
        state,
        used if state == "sealed" else 0,
    )
    return Held(
        right,
        seen_microusd=used,
        told_microusd=used,
        granted_at=now - draw.randrange(100, 6 * 86_400),
        not_after=min(now + 7 * 86_400, bounds(period)[1]),
        why_closed="" if state == "open" else draw.choice(["done", "expired"]),
    )


def _redemption(draw: random.Random, held: Held, now: float) -> dict[str, Any]:
    purpose = held.right.purpose
    return {
        "hold_id": f"{draw.getrandbits(128):032x}",
        "pool_id": purpose.pool_id,
        "lease_id": held.right.lease_id,
        "device_id": purpose.device_id,
        "state": draw.choice(["settled", "settled", "settled", "unclear", "released"]),
        "held_microusd": 30_000,
        "cost_microusd": 24_000,
        "at": now - draw.randrange(60, 5 * 86_400),
        "seq": 1,
    }


def _gateway(pool: str, now: float) -> dict[str, Any]:
    quiet = pool == "hosted"
    escrow = pool == "phones"
    return {
        "pool_id": pool,
        "url": "" if escrow else f"https://{pool}.example.org",
        "grade": "escrow" if escrow else "gateway",
        "epoch": 1,
        "rows_after": 0,
        "totals": "{}",
        "seen_at": None if escrow else now - (7_200.0 if quiet else 8.0),
        "error": "The gateway cannot be reached: timed out." if quiet else "",
        "added_by": "ada",
        "added_at": now - 20 * 86_400.0,
    }
