"""A fast load generator for the hub: HTTP/1.1 over bare asyncio protocols, one event loop.

A general client would cost more than the server that it measures. Reads only what the hub sends:
answers with a Content-Length, or 304 without a body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast


@dataclass(frozen=True, slots=True)
class Answer:
    """What the hub answered."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: bytes) -> str:
        """Return a header, by its name in small letters; empty where it is missing."""
        at = self.head.find(b"\r\n" + name + b": ")
        if at < 0:
            return ""
        start = at + len(name) + 4
        end = self.head.find(b"\r\n", start)
        return self.head[start : end if end >= 0 else len(self.head)].decode()


class Line(asyncio.Protocol):
    """One connection that asks one thing at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._asked: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Collect an answer and hand it on when it is whole."""
        buffer = self._buffer + data if self._buffer else data
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            self._buffer = buffer
            return
        status = int(buffer[9:12])
        at = buffer.find(b"content-length: ", 0, end)
        length = 0 if at < 0 or status == 304 else int(buffer[at + 16 : buffer.find(b"\r\n", at)])
        if len(buffer) < end + 4 + length:
            self._buffer = buffer
            return
        self._buffer = b""
        asked, self._asked = self._asked, None
        if asked is not None and not asked.done():
            asked.set_result(Answer(status, buffer[:end], buffer[end + 4 : end + 4 + length]))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what was asked."""
        if self._asked is not None and not self._asked.done():
            self._asked.set_exception(ConnectionError(str(exc)))

    def ask(self, request: bytes) -> asyncio.Future[Answer]:
        """Send a whole request; the answer comes in the future."""
        if self._transport is None:
            raise ConnectionError("not connected")
        self._asked = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._asked

    def close(self) -> None:
        """Close the connection; what was asked is not waited for any more."""
        if self._asked is not None:
            self._asked.cancel()
        if self._transport is not None:
            self._transport.abort()


async def connect(port: int, *, source: str | None = None) -> Line:
    """Open a connection to the hub on this machine, from another loopback address if named."""
    loop = asyncio.get_running_loop()
    local = None if source is None else (source, 0)
    _, line = await loop.create_connection(Line, "127.0.0.1", port, local_addr=local)
    return line


def get(path: str, *, token: str, etag: str = "") -> bytes:
    """Return a GET as it goes over the wire."""
    held = f"If-None-Match: {etag}\r\n" if etag else ""
    return (
        f"GET {path} HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer {token}\r\n{held}\r\n"
    ).encode()


def post(path: str, body: bytes, *, headers: str) -> bytes:
    """Return a POST as it goes over the wire."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: hub\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    ).encode() + body


async def drive(lines: Sequence[Line], draw: Callable[[], bytes | None]) -> list[int]:
    """Send what is drawn over all lines as fast as it is answered; return the statuses."""
    statuses: list[int] = []

    async def run(line: Line) -> None:
        while (request := draw()) is not None:
            statuses.append((await line.ask(request)).status)

    await asyncio.gather(*(run(line) for line in lines))
    return statuses
