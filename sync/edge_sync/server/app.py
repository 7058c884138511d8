"""The hub as one ASGI application.

The paths of devices are dispatched here, everything else by starlette: health, metrics, models and,
where it is installed, the dashboard. Guarantees: every request ends in one line of the log and one
count; a refusal that a person should see is in the audit log, bounded; an error of ours is answered
as ``unavailable`` and never as a page of code.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TypeAlias

from sqlalchemy import Connection
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from edge.errors import EdgeError
from edge_sync.hub import audit
from edge_sync.hub.home import Hub
from edge_sync.hub.refusals import Noted, Refused
from edge_sync.server.current import Current
from edge_sync.server.devices import Devices
from edge_sync.server.logs import Log
from edge_sync.server.messages import STATUSES, Gone, Receive, Scope, Send, send_refusal
from edge_sync.server.metrics import Metrics
from edge_sync.server.pages import routes
from edge_sync.server.upkeep import Upkeep
from edge_sync.wire import ENROL_PATH, POLICY_PATH, SYNC_PATH

Handler: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[int]]
_CLOSED = 499
"""What the log says of a request whose device went away before its end."""


class App:
    """The application; made before the event loop runs, started by its lifespan.

    Args:
        hub: the hub, open.
        log: where lines go.

    """

    def __init__(self, hub: Hub, log: Log | None = None) -> None:
        self.hub = hub
        self.log = log or Log()
        self.metrics = Metrics(hub)
        self.current = Current(hub, self.log)
        self.noted = Noted()
        self.upkeep = Upkeep(hub, self.log)
        self._pages = Starlette(
            routes=routes(hub, self.current, self.metrics),
            exception_handlers={Refused: self._refuse},
        )
        self._handlers: Mapping[tuple[str, str], Handler] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        begun = time.perf_counter()
        path = scope["path"]
        handler = self._handlers.get((scope["method"], path))
        if handler is None:
            status, path = await self._page(scope, receive, send)
        else:
            status = await self._device(handler, scope, receive, send)
        spent_s = time.perf_counter() - begun
        self.metrics.requests.labels(path, status).inc()
        if path == SYNC_PATH:
            self.metrics.sync_seconds.observe(spent_s)
        device = scope.get("device", "")
        self.log.request(scope["method"], path, status=status, ms=1_000 * spent_s, device=device)

    async def _device(self, handler: Handler, scope: Scope, receive: Receive, send: Send) -> int:
        try:
            return await handler(scope, receive, send)
        except Gone:
            return _CLOSED
        except Refused as refused:
            self._note(refused)
            return await send_refusal(send, refused)
        except EdgeError as error:
            self.log.event("request.failed", level="error", reason=str(error))
            return await send_refusal(send, _unavailable())
        except Exception as error:  # noqa: BLE001 - whatever it is, the device is told to come back
            reason = f"{type(error).__name__}: {error}"
            self.log.event("request.failed", level="error", reason=reason)
            return await send_refusal(send, _unavailable())

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> tuple[int, str]:
        """Let starlette answer; return the status and the path's pattern, for metrics."""
        status = 500

        async def noting(message: dict[str, object]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(str(message["status"]))
            await send(message)

        try:
            await self._pages(scope, receive, noting)  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001 - starlette has answered with 500
            reason = f"{type(error).__name__}: {error}"
            self.log.event("request.failed", level="error", reason=reason)
        route = scope.get("route")
        return status, getattr(route, "path", "other")

    async def _refuse(self, _request: Request, refused: Exception) -> Response:
        """Answer for starlette with a failure."""
        if not isinstance(refused, Refused):
            raise refused
        self._note(refused)
        body = refused.failure.model_dump_json()
        return Response(body, STATUSES[refused.code], media_type="application/json")

    def _note(self, refused: Refused) -> None:
        """Add a refusal to the audit log, unless there were many of its kind just now."""
        more = self.noted.admit(refused.what, now=time.monotonic()) if refused.what else None
        if more is None:
            return

        def work(connection: Connection, _items: list[None]) -> list[None]:
            audit.append(
                connection,
                at=self.hub.clock(),
                who="hub",
                what=refused.what,
                about=refused.about,
                detail={"code": refused.code, "message": refused.message, **more},
            )
            return [None]

        self.hub.store.submit(work, None, lambda _result, _error: None)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            self._start()
        except EdgeError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.stop()
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self.log.flush()
        await send({"type": "lifespan.shutdown.complete"})

    def _start(self) -> None:
        devices = Devices(self.hub, self.current, metrics=self.metrics)
        self._handlers = {
            ("GET", POLICY_PATH): devices.policy,
            ("POST", SYNC_PATH): devices.sync,
            ("POST", ENROL_PATH): devices.enrol,
        }
        self.current.start()
        self.upkeep.start()
        self._tasks = [asyncio.create_task(self.log.flush_regularly())]

    def stop(self) -> None:
        """Let waiting devices go and end the threads; requests under way are finished."""
        self.current.end()
        self.upkeep.stop()


def _unavailable() -> Refused:
    return Refused(
        "unavailable",
        "The hub cannot reach its database or had an error of its own.",
        hint="Try again; the hub's log names the reason.",
        retry_after_s=5,
    )
