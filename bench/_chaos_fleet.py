"""A whole fleet of real processes on this machine, and what is asked of it in the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from _chaos_check import Books, Register, differences, lost_or_doubled, read_books
from _chaos_links import Link, Links
from _chaos_parties import (
    GROUP,
    POOL,
    SECRET,
    SYNC_EVERY_S,
    Device,
    Server,
    gateway_server,
    hub_server,
)
from _chaos_postgres import Postgres
from _chaos_provider import Provider
from _common import Row, at_most

from edge.errors import EdgeError
from edge_sync.hub import fleet as fleets
from edge_sync.hub.budget import books as hub_books
from edge_sync.hub.budget import caps, gateways, leasekey
from edge_sync.hub.enrolment import make_code
from edge_sync.hub.home import CONFIG, Hub
from edge_sync.keys import load_key

FIRST_CAP_MICROUSD = 20_000
STUCK_S = 180.0  # longer than any pause of a task whose pool is well
MOST_ROUNDS = 3


@dataclass
class Fleet:
    """All of it.

    Attributes:
        cap: of the whole fleet, under ``now``; raised before the hub hears of it.
        code: with which devices join.

    """

    folder: Path
    stack: ExitStack
    postgres: Postgres
    hub: Hub
    provider: Provider
    replicas: list[Server]
    gateway: Server
    devices: list[Device]
    links: Links
    gateway_line: Link
    cap: dict[str, int]
    code: str

    def add_device(self, *, threads: int) -> Device:
        """Start one more device."""
        device = Device(
            self.folder / f"device-{len(self.devices)}",
            self.links,
            servers=[*self.replicas, self.gateway],
            code=self.code,
            threads=threads,
        )
        device.start()
        self.stack.callback(device.end)
        self.devices.append(device)
        return device

    def raise_cap(self, by: int) -> None:
        """Give the fleet more; the hub may be out of reach, then the next raise brings it."""
        self.cap["now"] += by
        try:
            caps.set_cap(self.hub, "fleet", "total", self.cap["now"], who="bench")
        except EdgeError as error:
            print(f"cap: {error}", file=sys.stderr)

    def reconcile(self) -> None:
        """Tell the gateway what unclear holds cost, as an operator with the bill at hand does."""
        register = self.register()
        try:
            for row in register.rows():
                if row["state"] == "unclear":
                    billed = self.provider.bill.by_reference.get(row["hold_id"], 0)
                    register.reconcile(row["hold_id"], min(billed, row["most"]))
        except httpx.HTTPError:
            pass  # it was killed; the next round brings it
        finally:
            register.close()

    def register(self) -> Register:
        """Return the gateway's register."""
        return Register(f"http://127.0.0.1:{self.gateway.port}", SECRET)

    def books(self) -> Books:
        """Return everybody's books."""
        states = {
            load_key(device.state / "device.key").device_id: device.state for device in self.devices
        }
        register = self.register()
        try:
            return read_books(states, self.hub, register)
        finally:
            register.close()

    def told(self) -> list[dict[str, Any]]:
        """Return how each device stands."""
        return [device.say("told") for device in self.devices]


def start(
    folder: Path,
    stack: ExitStack,
    *,
    devices: int,
    threads: int,
    faults: float,
    seed: int,
    late_s: float = 0.0,
) -> Fleet:
    """Start everything and return it, ready.

    Args:
        folder: empty.
        stack: ends it all.
        devices: so many processes.
        threads: that ask, in each of them.
        faults: share of the requests that go wrong at the provider.
        seed: of the provider's faults.
        late_s: by so much the hub's clock is behind.

    """
    cap = {"now": FIRST_CAP_MICROUSD}
    provider = Provider(lambda: cap["now"], faults=faults, seed=seed)
    stack.callback(provider.close)
    postgres = Postgres(folder / "postgres")
    stack.callback(postgres.close)
    hub = _hub(folder / "hub", postgres.url)
    stack.callback(hub.close)
    code = make_code(hub, group=GROUP, uses=100, expires_s=3_600, who="bench").text
    key = leasekey.find(hub.keys) or leasekey.make(hub.keys)
    gateway = gateway_server(
        folder / "gateway", upstream=provider.url, keys={key.key_id: key.public_key}
    )
    links = Links()
    stack.callback(links.close)
    line = links.make(gateway.port)
    replicas = [hub_server(folder / "hub", name, late_s=late_s) for name in ("hub-a", "hub-b")]
    for server in [*replicas, gateway]:
        server.start()
        stack.callback(server.end)
    for server in [*replicas, gateway]:
        server.ready()
    gateways.add(hub, POOL, url=f"http://127.0.0.1:{line.port}", secret=SECRET, who="bench")
    caps.set_cap(hub, "fleet", "total", cap["now"], who="bench")
    fleet = Fleet(
        folder, stack, postgres, hub, provider, replicas, gateway, [], links, line, cap, code
    )
    for _ in range(devices):
        fleet.add_device(threads=threads)
    fleet.told()
    return fleet


def _hub(home: Path, database: str) -> Hub:
    """Make a hub whose devices sync every few seconds."""
    hub = Hub.create(home, database)
    fleets.add_group(hub, GROUP, who="bench")
    config = home / CONFIG
    text = config.read_text("utf-8")
    slow = f"sync_every_s: {hub.settings.sync_every_s}"
    config.write_text(text.replace(slow, f"sync_every_s: {SYNC_EVERY_S}"), "utf-8")
    return hub


def drained(fleet: Fleet) -> tuple[float, int]:
    """Wait until no device has work left; return how long it took, and how many are stuck."""
    for device in fleet.devices:
        device.say("rest")
    begun = moved = time.monotonic()
    least = 0
    while True:
        fleet.reconcile()
        left = [_left(one) for one in fleet.told()]
        now = time.monotonic()
        if not least or sum(left) < least:
            least, moved = sum(left), now
        if not sum(left) or now - moved > STUCK_S:
            return now - begun, sum(map(bool, left))
        time.sleep(0.5)


def _left(told: dict[str, Any]) -> int:
    """Return how many tasks of a device are not done."""
    return int(told["asking"] + told["queue"]["waiting"] + told["queue"]["claimed"])


def agreed(fleet: Fleet) -> tuple[int, list[str]]:
    """Return after how many sync rounds of every device all books agree, and what does not."""
    before = [one["syncs"] for one in fleet.told()]
    while True:
        found = list(differences(fleet.books()))
        told = fleet.told()
        rounds = min(one["syncs"] - was for one, was in zip(told, before, strict=True))
        if not found or rounds > MOST_ROUNDS:
            return rounds, found
        time.sleep(SYNC_EVERY_S / 4)


def ends(fleet: Fleet) -> Iterator[Row]:
    """Let a healed fleet come to rest, and yield what its books say."""
    bill = fleet.provider.bill
    took_s, wedged = drained(fleet)
    rounds, found = agreed(fleet)
    books = fleet.books()
    yield Row("calls sold by the provider", bill.sales, "")
    yield at_most("overspend, at every sale", max(0, bill.over), 0, "micro-dollars")
    yield at_most("calls billed twice", len(bill.twice), 0)
    wrong = lost_or_doubled(books, bill.by_reference)
    yield at_most("calls that the gateway lost or has for less", len(wrong), 0)
    yield at_most("wedged queues", wedged, 0)
    yield Row("queues empty after healing", round(took_s, 1), "s")
    yield at_most("sync rounds until all books agree", rounds, MOST_ROUNDS)
    yield at_most("rows that do not agree", len(found), 0)
    for problem in found[:5]:
        yield Row("  such as", problem, "")
    with fleet.hub.store.reading() as connection:
        problems = hub_books.unbalanced(connection)
    yield at_most("pots that do not balance", len(problems), 0)
    yield Row("rows compared", len(books.device), "")
