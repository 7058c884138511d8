"""OpenAI's interface over HTTP, in front of the replicas.

    POST /v1/chat/completions      whole answers and streams (SSE)
    GET /v1/models, /healthz, /metrics

Guarantees: every whole answer, and every stream that ends with ``[DONE]``, is counted once, with
the tokens that the engine counted; a call that fails before its first byte is answered with a
status that says that nothing counts (4xx, or 503 with ``Retry-After``); a stream that fails says so
in an event and has no ``[DONE]``. A caller that goes away ends its call.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from edge.errors import InputError
from edge_sync.pool.again import Ask, Caller
from edge_sync.pool.asked import Asked, End, Event, Failed, Text, read_asked
from edge_sync.pool.config import Settings
from edge_sync.pool.metrics import Metrics

DEADLINE_HEADER, KEY_HEADER = "edge-deadline", "idempotency-key"
_FINISH = {"stop": "stop", "length": "length"}
_LATER = frozenset({429, 503})
_KEY_CHARS = 128
_LATE = "late"
_MARGIN_S = 0.1


class Tell(Protocol):
    """Writes one line of the log."""

    def __call__(self, event: str, *, level: str = "info", **fields: str | float | None) -> None:
        """Write it."""


@dataclass
class Server:
    """Serves calls.

    Attributes:
        settings: of the pool.
        ask: asks some replica.
        running: returns how many replicas can be asked.
        tell: writes a line of the log.
        clock: seconds since the epoch.

    """

    settings: Settings
    ask: Ask
    running: Callable[[], Awaitable[int]]
    tell: Tell
    clock: Callable[[], float] = time.time
    metrics: Metrics = field(default_factory=Metrics)

    def app(self) -> Starlette:
        """Return the application."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/healthz", self.health),
                Route("/metrics", self.count),
            ]
        )

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        limits = self.settings.limits
        try:
            asked = read_asked(
                await _body(request, limits.body_bytes),
                model=self.settings.name,
                most_tokens=limits.max_tokens,
                seed=secrets.randbits(63),
            )
            within_s = _within_s(request.headers.get(DEADLINE_HEADER), limits.timeout_s)
        except InputError as error:
            return self.refused(Failed(400, "bad_request", str(error)))
        except ClientDisconnect:
            return Response(status_code=400)
        call = _Call(self, asked, _call_id(request), int(self.clock()))
        work = call.streamed(within_s) if asked.stream else call.whole(within_s)
        return await _unless_gone(request, work)

    async def models(self, _request: Request) -> Response:
        """List the model."""
        one = {"id": self.settings.name, "object": "model", "created": 0, "owned_by": "edge-hub"}
        return JSONResponse({"object": "list", "data": [one]})

    async def health(self, _request: Request) -> Response:
        """Say whether a replica can be asked."""
        running = await self.running()
        return JSONResponse({"replicas": running}, status_code=200 if running else 503)

    async def count(self, _request: Request) -> Response:
        """Return the pool's count."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    def refused(self, failed: Failed) -> Response:
        """Answer with a failure, and count it."""
        self.metrics.failed.labels(failed.code).inc()
        pause_s = "0" if failed.code == _LATE else "1"  # who is late does not make others wait
        headers = {"Retry-After": pause_s} if failed.status in _LATER else {}
        return JSONResponse(_error(failed), status_code=failed.status, headers=headers)


@dataclass
class _Call:
    """One call, and its answer in OpenAI's words."""

    server: Server
    asked: Asked
    id: str
    created: int

    async def events(self, within_s: float) -> AsyncGenerator[Event]:
        """Yield the events of the answer; the last one is ``End`` or ``Failed``, and is counted."""
        metrics = self.server.metrics
        deadline = asyncio.get_running_loop().time() + within_s
        metrics.under_way.inc()
        try:
            async with aclosing(Caller(self.server.ask, self._lost).answer(self.asked)) as answer:
                event: Event = Text("")
                while isinstance(event, Text):
                    async with asyncio.timeout_at(deadline):
                        event = await anext(answer)
                    if isinstance(event, End):
                        metrics.note(event)
                        self._tell(event)
                    yield event
        except TimeoutError:
            yield Failed(503, _LATE, "No answer came in time.")
        finally:
            metrics.under_way.dec()

    async def whole(self, within_s: float) -> Response:
        """Return the answer in one."""
        text = ""
        async with aclosing(self.events(within_s)) as events:
            async for event in events:
                if isinstance(event, Failed):
                    return self.server.refused(_undone(event))
                if isinstance(event, End):
                    message = {"role": "assistant", "content": text}
                    choice = {"index": 0, "message": message, "finish_reason": _finish(event)}
                    told = self._told("chat.completion", choices=[choice], usage=_usage(event))
                    return JSONResponse(told)
                text += event.text
        raise AssertionError("an answer ends")  # pragma: no cover

    async def streamed(self, within_s: float) -> Response:
        """Return the answer in events, from when there is something to say."""
        events = self.events(within_s)
        first = await anext(events)
        if isinstance(first, Failed):
            await events.aclose()
            return self.server.refused(_undone(first))
        headers = {"Cache-Control": "no-store"}
        return StreamingResponse(
            self._lines(first, events), media_type="text/event-stream", headers=headers
        )

    async def _lines(self, event: Event, events: AsyncGenerator[Event]) -> AsyncIterator[bytes]:
        yield self._delta({"role": "assistant", "content": ""})
        try:
            while isinstance(event, Text):
                yield self._delta({"content": event.text})
                event = await anext(events)
        finally:
            await events.aclose()
        if isinstance(event, Failed):
            self.server.metrics.failed.labels(event.code).inc()
            yield _line(_error(event))
            return
        yield self._delta({}, finish=_finish(event))
        if self.asked.usage:
            yield _line(self._told("chat.completion.chunk", choices=[], usage=_usage(event)))
        yield b"data: [DONE]\n\n"

    def _delta(self, delta: dict[str, str], *, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return _line(self._told("chat.completion.chunk", choices=[choice]))

    def _told(self, kind: str, **fields: Any) -> dict[str, Any]:
        model = self.server.settings.name
        return {"id": self.id, "object": kind, "created": self.created, "model": model, **fields}

    def _lost(self) -> None:
        self.server.metrics.again.inc()
        self.server.tell("replica.lost", level="warning", call=self.id)

    def _tell(self, end: End) -> None:
        self.server.tell(
            "answered", call=self.id, tokens_in=end.tokens_in, tokens_out=end.tokens_out
        )


def _undone(failed: Failed) -> Failed:
    """Return a failure before the first byte: as nothing counts, the caller may ask again."""
    if failed.status < 500:  # noqa: PLR2004 - of HTTP
        return failed
    return Failed(503, failed.code, failed.message)


def _usage(end: End) -> dict[str, int]:
    total = end.tokens_in + end.tokens_out
    return {
        "prompt_tokens": end.tokens_in,
        "completion_tokens": end.tokens_out,
        "total_tokens": total,
    }


def _finish(end: End) -> str:
    return _FINISH.get(end.finish, "stop")


def _error(failed: Failed) -> dict[str, Any]:
    return {"error": {"type": "edge_pool", "code": failed.code, "message": failed.message}}


def _line(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _call_id(request: Request) -> str:
    """Return the call's name, which is its caller's own where there is one."""
    key = request.headers.get(KEY_HEADER, "")[:_KEY_CHARS]
    return (
        f"chatcmpl-{key if key.isascii() and key.isprintable() and key else secrets.token_hex(16)}"
    )


def _within_s(given: str | None, most_s: float) -> float:
    try:
        within_s = most_s if given is None else float(given)
    except ValueError:
        within_s = -1.0
    if not within_s >= 0:
        raise InputError(f"{DEADLINE_HEADER} is no number of seconds.")
    # So that the caller hears that nothing counts before it gives up and cannot know.
    return min(within_s - min(_MARGIN_S, within_s / 4), most_s)


async def _body(request: Request, most_bytes: int) -> bytes:
    whole = b""
    async for chunk in request.stream():
        whole += chunk
        if len(whole) > most_bytes:
            raise InputError(f"The body is longer than {most_bytes} bytes.", hint="Send less.")
    return whole


async def _unless_gone(request: Request, work: Any) -> Response:
    """Do the work unless its caller goes away meanwhile."""
    task: asyncio.Task[Response] = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return Response(status_code=400)
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
