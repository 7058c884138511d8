"""The hub of a world: its real server, its real database on disk, its rounds of the gateways.

Replaced are its clock, the thread that writes (writes run at once), the threads that look after
things (the world says when), and what carries its requests to the gateways.
"""

from __future__ import annotations

import io
import itertools
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Connection, Table, select
from world_loop import Inline, Loop
from world_net import Network, ask_app

from edge.errors import EdgeError, StoreError
from edge_sync.hub import backup, fleet, policies, restoring
from edge_sync.hub.budget import books, caps, outside, unclear
from edge_sync.hub.budget.granting import Granting
from edge_sync.hub.budget.rounds import Rounds
from edge_sync.hub.enrolment import make_code
from edge_sync.hub.home import Hub, read_fact
from edge_sync.hub.syncing import take
from edge_sync.server import upkeep
from edge_sync.server.app import App
from edge_sync.server.logs import Log
from edge_sync.store.database import Store
from edge_sync.store.writing import Write, Writer

GROUP = "kiosks"
DATABASE = "hub.db"


class AtOnce(Writer):
    """Runs each write where it is asked for, as the writer's thread does."""

    def submit(self, handler: Any, item: Any, settle: Any) -> None:
        batch = [Write(handler, item, settle)]
        ((result, error),) = self._outcomes(batch)
        settle(result, self._translated(error))


def at_once(store: Store) -> None:
    """Let a store write in the thread that asks."""
    store._writer = AtOnce(store._transaction, name=store.url)


class HubSide:
    """The hub of one folder, from ``open`` to ``close``."""

    def __init__(
        self, loop: Loop, home: Path, network: Network, *, clock: Callable[[], float], seed: int
    ) -> None:
        self._loop, self._home, self._network, self._clock = loop, home, network, clock
        self._draw = random.Random(seed)  # noqa: S311
        self.backups: list[tuple[Path, dict[str, int]]] = []
        self._numbers = itertools.count()
        self._renewed = clock()
        self.open()

    def open(self) -> None:
        """Start the server."""
        self.hub = Hub.open(self._home, clock=self._clock)
        at_once(self.hub.store)
        self._app = App(self.hub, Log(io.StringIO()))
        self._app.current.start = lambda: None
        self._app.upkeep.start = lambda: None
        self._app.current._loop = self._loop
        self._loop.run_until_complete(self._started())
        self.rounds = Rounds(self.hub, lambda *_, **__: None, transport=self._line)
        self.rounds._executor.shutdown()
        self.rounds._executor = Inline()

    def close(self) -> None:
        """End."""
        self._loop.cancel(self._app._tasks)
        self.rounds.close()
        self.hub.close()

    def again(self) -> None:
        """Die and start again."""
        self.close()
        self.open()

    async def arrive(self, request: httpx.Request) -> httpx.Response:
        """Answer a device."""
        self._app.current._look()
        return await ask_app(self._app, request)

    def step(self) -> None:
        """Do what is due, as the hub's threads do; what goes wrong is tried again next time."""
        with suppress(EdgeError):
            if abs(self._clock() - self._renewed) >= upkeep.RENEW_EVERY_S:
                upkeep.renew(self.hub)
                self._renewed = self._clock()
        with suppress(EdgeError):
            self.rounds.step()

    def back_up(self) -> None:
        """Make a backup."""
        path = self._home / f"backup{next(self._numbers)}.db"
        before = self.caps()
        backup.backup(self.hub, path, who="test")
        self.backups.append((path, before))

    def restore(self, number: int, *, running: bool) -> None:
        """Put a backup back."""
        path, _ = self.backups[number % len(self.backups)]
        restoring.restore(self.hub, path, who="test", replace=True)
        if not running:
            self.again()

    def set_back(self, number: int) -> None:
        """Put a backup's file in the place of the database without a word."""
        path, _ = self.backups[number % len(self.backups)]
        self.close()
        for each in self._home.glob(f"{DATABASE}*"):
            each.unlink()
        shutil.copyfile(path, self._home / DATABASE)
        self.open()

    def publish(self) -> None:
        """Publish a policy for all devices and put it in force."""
        checked = policies.check(self.hub, b"{}\n", what="p", packs=["kiosk"])
        policies.publish(self.hub, checked, message="why", who="test", at_once=[GROUP])

    def set_cap(self, scope: str, kind: Any, amount_microusd: int) -> None:
        caps.set_cap(self.hub, scope, kind, amount_microusd, who="test")

    def remove_cap(self, scope: str, kind: Any) -> None:
        caps.remove_cap(self.hub, scope, kind, who="test")

    def revoke(self, device_id: str) -> None:
        """Shut a device out, where the hub knows it and has not done so."""
        device = fleet.find_device(self.hub, device_id)
        if device.status != "revoked":
            fleet.revoke(self.hub, device, who="test")

    def code(self) -> str:
        """Return a code that lets a device in."""
        made = make_code(self.hub, group=GROUP, uses=1, expires_s=3_600, who="test")
        return made.text

    def reconcile(self, billed: Callable[[str], int]) -> None:
        """Look up all unclear holds in the provider's bill."""
        for hold in self.read(unclear.read_all):
            unclear.reconcile(
                self.hub,
                hold.hold_id,
                billed(hold.hold_id),
                who="test",
                transport=self._line(f"http://{hold.pool_id}"),
            )

    def deaf_disk(self, *, deaf: bool) -> None:
        """Let the keys folder take nothing: leases that were granted must not leave."""
        grants = self._app_devices.grants
        grants.note = _refuse if deaf else type(grants).note.__get__(grants)

    def read(self, work: Callable[[Connection], Any]) -> Any:
        """Read the database."""
        with self.hub.store.reading() as connection:
            return work(connection)

    def rows(self, table: Table) -> list[dict[str, Any]]:
        """Return a table."""
        found = self.read(lambda c: c.execute(select(table)).mappings().all())
        return [dict(row) for row in found]

    def fact(self, name: str) -> int:
        return self.read(lambda connection: read_fact(connection, name)) or 0

    def caps(self) -> dict[tuple[Any, str], int]:
        """Return the caps in force by scope and kind."""
        found = self.read(caps.read_caps).caps
        return {(cap.scope, cap.kind): cap.amount_microusd for cap in found}

    def unbalanced(self) -> tuple[str, ...]:
        return self.read(books.unbalanced)

    def outside(self) -> outside.Outside:
        """Return what is kept beside the database."""
        return outside.read(self.hub.keys)

    def _line(self, url: str) -> httpx.BaseTransport:
        return self._network.end("hub>" + url.removeprefix("http://"))

    async def _started(self) -> None:
        self._app._start()
        for task in self._app._tasks:  # writes out the log ten times a second
            task.cancel()
        devices = self._app._handlers["POST", "/v1/sync"].__self__
        self._app_devices = devices
        granting = Granting(self.hub, draw=self._id)
        devices._take = partial(take, granting=granting, nonces=self._id)

    def _id(self) -> str:
        return f"{self._draw.getrandbits(128):032x}"


async def _refuse(_granted: int) -> None:
    raise StoreError("The keys folder takes nothing.")
