"""A gateway of a world: its real application over its real register, before the world's provider.

Two things are replaced: its clock, and the connection to the server behind it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from world_loop import Loop
from world_net import Gone, ask_app
from world_provider import IN_MICROUSD_PER_MTOK, OUT_MICROUSD_PER_MTOK, Answer, Provider

from edge_sync.gateway.book import Book
from edge_sync.gateway.config import Settings
from edge_sync.gateway.register import Register
from edge_sync.gateway.server import App
from edge_sync.gateway.upstreams import Pool

SECRET = "a secret of the hub and its gateway"
HOLDS = "SELECT hold_id, lease_id, state, most, actual, reported, flag FROM holds"
LEASES = "SELECT lease_id, device_id, epoch, amount, held, redeemed, open, sealed FROM leases"


class Gateway:
    """One gateway, from ``open`` to ``close``; in between it may die and come back."""

    def __init__(
        self,
        loop: Loop,
        path: Path,
        pool: str,
        *,
        keys: dict[str, str],
        clock: Callable[[], float],
        provider: Provider,
    ) -> None:
        self.pool = pool
        self._loop, self._path, self._clock, self._provider = loop, path, clock, provider
        self._settings = Settings.model_validate(
            {
                "pool": pool,
                "hub": {"keys": keys},
                "limits": {"timeout_s": 20},
                "upstreams": [
                    {"name": "u", "base_url": "http://127.0.0.1:9/v1", "model": "m",
                     "failures": 100, "input_microusd_per_mtok": IN_MICROUSD_PER_MTOK,
                     "output_microusd_per_mtok": OUT_MICROUSD_PER_MTOK}
                ],
            }
        )  # fmt: skip
        self.alive = False
        self.open()

    def open(self) -> None:
        """Start on the register."""
        self.register = Register.open(self._path)
        env = {"EDGE_GATEWAY_SECRET": SECRET}
        self._app = App(self._settings, self.register, env, tell=lambda *_, **__: None)
        self._app._pool = Pool.of(self._settings.upstreams, env, clock=self._loop.time)
        for upstream in self._app._pool.upstreams:
            upstream.client = _Client(self._provider, self.die)
        self._tasks = self._loop.run_until_complete(self._started())
        self._app._forwarder.clock = self._clock
        self._app._admin._clock = self._clock
        self.alive = True

    def die(self) -> None:
        """End at once: nothing is written any more, nothing is answered."""
        if self.alive:
            self.alive = False
            self.register.close()

    def back(self) -> None:
        """Start again."""
        self.close()
        self.open()

    def close(self) -> None:
        """End."""
        self._loop.cancel([*self._tasks, *self._app._forwarder._later])
        self._app._turns.close()
        if self.alive:
            self.alive = False
            self.register.close()

    def fill(self, *, full: bool) -> None:
        """Let the disk be full, or not any more."""
        if self.alive:
            run = self.register._connection.execute
            (pages,) = run("PRAGMA page_count").fetchone()
            run(f"PRAGMA max_page_count = {pages if full else 2**31}").fetchone()

    async def arrive(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        if not self.alive:
            raise httpx.ConnectError("nobody is there", request=request)
        answer = await ask_app(self._app, request)
        if not self.alive:
            raise Gone
        return answer

    def look(self, sql: str) -> list[tuple[Any, ...]]:
        """Read the register past the code, also that of a gateway that is down."""
        if self.alive:
            return self.register._connection.execute(sql).fetchall()
        register = Register.open(self._path)
        try:
            return register._connection.execute(sql).fetchall()
        finally:
            register.close()

    def epoch(self) -> int:
        """Return the epoch in force; 0 before there is one."""
        found = self.look("SELECT epoch FROM epochs WHERE hub = 'hub'")
        return int(found[0][0]) if found else 0

    def admin(self, name: str, **body: Any) -> httpx.Response:
        """Ask as the hub may."""
        headers = {"Authorization": f"Bearer {SECRET}"}
        url = f"http://{self.pool}/v1/register/{name}"
        request = httpx.Request("POST", url, headers=headers, content=json.dumps(body).encode())
        return self._loop.run_until_complete(self.arrive(request))

    def check(self) -> None:
        """See whether the register adds up by its own word."""
        self.register.write(Book.check)

    async def _started(self) -> list[asyncio.Task[None]]:
        return self._app._start()


class _Client:
    """Stands for the connections to one server."""

    def __init__(self, provider: Provider, die: Callable[[], None]) -> None:
        self._provider, self._die = provider, die

    async def post(self, _path: str, body: bytes, *, headers: str = "") -> Answer:
        return await self._provider.serve(body, headers, self._die)

    def close(self) -> None:
        """Nothing is open."""
