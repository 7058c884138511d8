"""The gateway as one ASGI application.

    POST /v1/chat/completions, /v1/completions, /v1/embeddings     devices (``calls``)
    /v1/register/…                                                 the hub (``admin``)
    GET /healthz, /readyz, /metrics

Guarantees: every request ends in one count; an error of ours is answered as ``unavailable`` and
never as a page of code, and forwards nothing.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from functools import partial

from edge.errors import EdgeError, StoreError
from edge_sync.gateway import messages
from edge_sync.gateway.admin import PREFIX, Admin
from edge_sync.gateway.book import Book
from edge_sync.gateway.bounds import FIELDS
from edge_sync.gateway.calls import Doorkeeper
from edge_sync.gateway.config import Settings, secret
from edge_sync.gateway.forwarding import Forwarder, Tell
from edge_sync.gateway.messages import Gone, Receive, Scope, Send
from edge_sync.gateway.metrics import Metrics
from edge_sync.gateway.refusals import Refused
from edge_sync.gateway.register import Register, Turns
from edge_sync.gateway.upstreams import Pool

BASE = "/v1"
_CLOSED = 499
"""What the count says of a request whose device went away before its end."""
_FORGET_EVERY_S = 600.0


class App:
    """The application; made before the event loop runs, started by its lifespan.

    Args:
        settings: of ``gateway.yaml``.
        register: open; the caller closes it.
        env: where the secrets are.
        tell: writes a line of the log.

    Raises:
        ConfigError: a secret is missing, or an upstream's URL is none.

    """

    def __init__(
        self, settings: Settings, register: Register, env: Mapping[str, str], *, tell: Tell
    ) -> None:
        self.metrics = Metrics()
        self._settings = settings
        self._register = register
        self._tell = tell
        self._secret = secret(env, settings.hub.secret_env)
        self._pool = Pool.of(settings.upstreams, env)
        self._doorkeeper = Doorkeeper(settings.pool, settings.hub.keys)
        self._paths = {BASE + path: path for path in FIELDS}
        self._under_way = 0
        self._turns: Turns | None = None
        self._forwarder: Forwarder | None = None
        self._admin: Admin | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        path = self._paths.get(scope["path"]) if scope["method"] == "POST" else None
        if path is None:
            await self._guarded(self._other(scope, receive, send), send)
            return
        begun = time.perf_counter()
        status = await self._guarded(self._call(path, scope, receive, send), send)
        self.metrics.calls.labels(status).inc()
        self.metrics.seconds.observe(time.perf_counter() - begun)

    async def _guarded(self, work: Awaitable[int], send: Send) -> int:
        """Run a handler; whatever goes wrong is answered."""
        try:
            return await work
        except Gone:
            return _CLOSED
        except Refused as refused:
            return await messages.refuse(send, refused)
        except Exception as error:  # noqa: BLE001 - whatever it is, the device is told to come back
            reason = str(error) if isinstance(error, EdgeError) else f"{type(error).__name__}"
            self._tell("request.failed", level="error", reason=reason)
            return await messages.refuse(send, _unavailable())

    async def _call(self, path: str, scope: Scope, receive: Receive, send: Send) -> int:
        if self._forwarder is None or self._under_way >= self._settings.limits.waiting:
            raise Refused(
                "too_many",
                f"{self._under_way} calls are under way at this gateway.",
                hint="Come back later; nothing was held.",
                retry_after_s=1,
            )
        self._under_way += 1
        try:
            return await self._forwarder.serve(path, scope, receive, send)
        finally:
            self._under_way -= 1

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> int:
        path = scope["path"]
        if path.startswith(PREFIX) and self._admin is not None:
            return await self._admin.serve(scope, receive, send)
        if path == "/metrics":
            text = self.metrics.text(self._pool)
            return await messages.answer(send, 200, text, kind="text/plain; version=0.0.4")
        if path == "/healthz":
            return await messages.answer(send, 200, b"{}")
        if path == "/readyz" and self._turns is not None:
            totals = await self._turns.write(lambda book: book.totals())
            return await messages.answer(send, 200, json.dumps(totals).encode())
        raise Refused("not_found", "There is no such path here.", hint="See docs/pools.md.")

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        tasks = self._start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if self._turns is not None:
            self._turns.close()
        self._pool.close()
        await send({"type": "lifespan.shutdown.complete"})

    def _start(self) -> list[asyncio.Task[None]]:
        self._turns = turns = Turns(self._register)
        self._forwarder = Forwarder(
            self._settings, turns, self._pool, self._doorkeeper, self.metrics, self._tell
        )
        self._admin = Admin(self._settings, turns, self._secret)
        if self._register.left_unclear:
            self._tell("holds.unclear", level="warning", count=self._register.left_unclear)
        return [asyncio.create_task(self._forget(turns))]

    async def _forget(self, turns: Turns) -> None:
        """Drop old answers, again and again."""
        while True:
            before = time.time() - self._settings.limits.keep_answers_s
            with suppress(StoreError):
                await turns.write(partial(Book.forget_answers, before=before))
            await asyncio.sleep(_FORGET_EVERY_S)


def _unavailable() -> Refused:
    return Refused(
        "unavailable",
        "The gateway cannot write its register or had an error of its own; nothing was sent.",
        hint="Try again; the gateway's log names the reason.",
        retry_after_s=5,
    )
