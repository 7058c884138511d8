"""A network between parties of one process: it loses, doubles, delays, and serves its own pages.

What was sent is remembered, and may arrive again at any later time. Knows no message.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any

import httpx
from world_loop import Loop

Deliver = Callable[[httpx.Request], Awaitable[httpx.Response]]
MOST_KEPT = 200


class Fault(Enum):
    """What happens to one exchange."""

    NONE = "none"
    UNSENT = "no connection"
    LOST = "the request is lost, or comes much later"
    UNANSWERED = "the reply is lost"
    TWICE = "the request comes twice"
    PORTAL = "a page of a login answers"
    OLD = "an earlier reply comes"


class Gone(BaseException):
    """A process died; nothing of it goes on."""


class Network:
    """Carries requests over links, each with the name of where it leads.

    Attributes:
        plan: what happens to the next exchange over a link.
        cut: links over which nothing goes.
        sent: requests that left, in order, with their links.
        doubled: requests that arrived again though they had been answered, likewise.

    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.plan: dict[str, Fault] = {}
        self.cut: set[str] = set()
        self.sent: list[tuple[str, httpx.Request]] = []
        self.doubled: list[tuple[str, httpx.Request]] = []
        self._places: dict[str, Deliver] = {}
        self._last: dict[str, httpx.Response] = {}

    def place(self, link: str, deliver: Deliver) -> None:
        """Say where a link leads."""
        self._places[link] = deliver

    def end(self, link: str) -> Wire:
        """Return the sender's end of a link."""
        return Wire(self, link)

    def heal(self) -> None:
        """Be a good network from now on."""
        self.plan.clear()
        self.cut.clear()

    def again(self, number: int) -> None:
        """Let a request that was sent long ago arrive, maybe once more."""
        if self.sent:
            at = self.sent[number % len(self.sent)]
            self.doubled.append(at)
            self.loop.run_until_complete(self._arrive(*at))

    async def carry(self, link: str, request: httpx.Request) -> httpx.Response:
        """Carry a request there and its answer back."""
        fault = self.plan.pop(link, Fault.NONE)
        if link in self.cut or fault is Fault.UNSENT:
            raise httpx.ConnectError("no route", request=request)
        if fault is Fault.PORTAL:
            return _unread(httpx.Response(200, text="<html>Please log in.</html>"))
        self.sent = [*self.sent[-MOST_KEPT:], (link, _copy(request))]
        if fault is Fault.LOST:
            raise httpx.ReadError("cut", request=request)
        if fault is Fault.TWICE:
            self.doubled.append(self.sent[-1])
            await self._arrive(link, request)
        reply = await self._arrive(link, request)
        if fault is Fault.UNANSWERED or reply is None:
            raise httpx.ReadError("cut", request=request)
        old, self._last[link] = self._last.get(link), reply
        return _unread(old if fault is Fault.OLD and old is not None else reply)

    async def _arrive(self, link: str, request: httpx.Request) -> httpx.Response | None:
        try:
            return await self._places[link](_copy(request))
        except (Gone, httpx.TransportError):
            return None


class Wire(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """The sender's end of a link."""

    def __init__(self, network: Network, link: str) -> None:
        self._network, self._link = network, link

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        return self._network.loop.run_until_complete(self._network.carry(self._link, request))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        return await self._network.carry(self._link, request)


async def ask_app(app: Any, request: httpx.Request) -> httpx.Response:
    """Ask an ASGI application."""
    answer = await httpx.ASGITransport(app=app).handle_async_request(request)
    whole = await answer.aread()
    return httpx.Response(answer.status_code, headers=answer.headers, content=whole)


def _copy(request: httpx.Request) -> httpx.Request:
    return httpx.Request(
        request.method, request.url, headers=request.headers, content=request.content
    )


def _unread(reply: httpx.Response) -> httpx.Response:
    """Return it as from a network: not read yet."""
    stream = httpx.ByteStream(reply.content)
    return httpx.Response(reply.status_code, headers=reply.headers, stream=stream)
