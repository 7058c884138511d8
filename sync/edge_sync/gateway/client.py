"""HTTP/1.1 to one upstream over kept connections, on the event loop.

httpx takes about as long for one request as the whole gateway may; this is what is needed of it.
Guarantees: ``Unsent`` means that not one byte of the request left; whatever comes behind an answer
is dropped with its connection; a body that ends before its length is ``Cut``; what is read waits
until it was passed on. Follows no redirect, uses no proxy, checks certificates. Sets no time limit
but for connecting: the caller's ends everything.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools

from edge.errors import ConfigError

_HIGH_BYTES = 256 * 1024
_HEADERS = 100


class UpstreamError(Exception):
    """The exchange failed."""


class Unsent(UpstreamError):  # noqa: N818 - says what matters
    """No connection could be made: nothing was sent."""


class Cut(UpstreamError):  # noqa: N818 - says what matters
    """The connection ended, or what came is no HTTP; the request may have been processed."""


class _Line(asyncio.Protocol):
    """One connection, and the answer that is being read from it."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.closed = False
        self.idle_since = 0.0
        self._paused = False
        self._wake: asyncio.Future[None] | None = None
        self.reset()

    def reset(self) -> None:
        """Get ready for the next answer."""
        self.parser = httptools.HttpResponseParser(self)
        self.headers: dict[str, str] = {}
        self.chunks: deque[bytes] = deque()
        self.waiting_bytes = 0
        self.headed = self.ended = self.spoilt = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.ended:  # more than was asked for
            self.spoilt = True
            self.abort()
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.spoilt = True
            self.abort()
        if self.waiting_bytes > _HIGH_BYTES and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()
        self._notify()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        known = "content-length" in self.headers or "transfer-encoding" in self.headers
        # Without a length the end of the connection is the end of the body.
        if exc is None and self.headed and not known and not self.spoilt:
            self.ended = True
        self._notify()

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) < _HEADERS:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self.ended:
            self.spoilt = True
        elif self.parser.get_status_code() < 200:  # noqa: PLR2004 - an interim answer
            self.headers = {}
        else:
            self.headed = True

    def on_body(self, body: bytes) -> None:
        if not self.ended:
            self.chunks.append(body)
            self.waiting_bytes += len(body)

    def on_message_complete(self) -> None:
        if self.headed:
            self.ended = True

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    async def head(self) -> None:
        """Wait until the head of the answer is there."""
        while not self.headed:
            if self.closed or self.spoilt:
                raise Cut("the connection ended before an answer")
            await self.wait()

    async def wait(self) -> None:
        """Wait until something happens."""
        self._wake = asyncio.get_running_loop().create_future()
        await self._wake

    def taken(self) -> bytes:
        """Return all that was read of the body."""
        chunk = self.chunks.popleft() if len(self.chunks) == 1 else b"".join(self.chunks)
        self.chunks.clear()
        self.waiting_bytes = 0
        if self._paused and self.transport is not None:
            self._paused = False
            self.transport.resume_reading()
        return chunk

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


@dataclass(slots=True)
class Response:
    """An answer whose head was read.

    Attributes:
        status: of HTTP.
        headers: by names in lower case.

    """

    status: int
    headers: dict[str, str]
    _line: _Line
    _give_back: Callable[[_Line], None]

    async def read(self) -> bytes:
        """Return what has come of the body, at least a byte; nothing at its end.

        Raises:
            Cut: the body ended too early.

        """
        line = self._line
        while True:
            if line.chunks:
                return line.taken()
            if line.ended:
                return b""
            if line.closed or line.spoilt:
                raise Cut("the connection ended in the middle of an answer")
            await line.wait()

    async def whole(self, limit: int) -> bytes:
        """Return the whole body.

        Raises:
            Cut: it ended too early or is longer than ``limit`` bytes.

        """
        body = await self.read()
        chunk = body
        while chunk:
            if len(body) > limit:
                raise Cut(f"the answer is longer than {limit} bytes")
            if chunk := await self.read():
                body += chunk
        return body

    def close(self) -> None:
        """Give the connection back, or end it where the answer was not read to its end."""
        self._give_back(self._line)


@dataclass(slots=True)
class Client:
    """Connections to one upstream.

    Attributes:
        base_url: such as ``https://api.example.org/v1``.
        connect_s: time to connect, TLS included.
        idle_s: a connection is not used again after so long without use; servers close idle
            ones after 5 s and more, and one that is closed while we send leaves us unclear.

    """

    base_url: str
    connect_s: float = 3.0
    idle_s: float = 4.0
    _host: str = field(init=False)
    _port: int = field(init=False)
    _prefix: str = field(init=False)
    _name: str = field(init=False)
    _tls: ssl.SSLContext | None = field(init=False, default=None)
    _idle: list[_Line] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Take the URL apart."""
        try:
            parts = urlsplit(self.base_url)
            port = parts.port
        except ValueError:
            raise _no_url(self.base_url) from None
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query:
            raise _no_url(self.base_url)
        self._host = parts.hostname
        self._port = port or (443 if parts.scheme == "https" else 80)
        self._prefix = parts.path.rstrip("/")
        self._name = parts.netloc.rpartition("@")[2]
        if parts.scheme == "https":
            self._tls = ssl.create_default_context()

    async def post(self, path: str, body: bytes, *, headers: str) -> Response:
        """Send a request and return its answer once the head is there; close it afterwards.

        Args:
            path: behind the base URL.
            body: JSON.
            headers: whole lines, each with its end.

        Raises:
            Unsent: no connection could be made.
            Cut: the connection ended before an answer.

        """
        line = self._kept() or await self._connect()
        request = (
            f"POST {self._prefix}{path} HTTP/1.1\r\nHost: {self._name}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            f"Accept-Encoding: identity\r\n{headers}\r\n"
        ).encode("latin-1")
        line.reset()
        if line.transport is None or line.closed:
            raise Unsent("the connection was closed")
        line.transport.write(request + body)
        try:
            await line.head()
        except BaseException:
            line.abort()
            raise
        return Response(line.parser.get_status_code(), line.headers, line, self._give_back)

    def close(self) -> None:
        """End the connections that are not in use."""
        for line in self._idle:
            line.abort()
        self._idle.clear()

    def _kept(self) -> _Line | None:
        oldest = time.monotonic() - self.idle_s
        while self._idle:
            line = self._idle.pop()
            if not line.closed and not line.spoilt and line.idle_since >= oldest:
                return line
            line.abort()
        return None

    async def _connect(self) -> _Line:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.connect_s):
                _, line = await loop.create_connection(_Line, self._host, self._port, ssl=self._tls)
        except (OSError, TimeoutError) as error:  # those of ssl are among them
            raise Unsent(f"{type(error).__name__}") from error
        return line

    def _give_back(self, line: _Line) -> None:
        if line.ended and not line.closed and not line.spoilt and line.parser.should_keep_alive():
            line.idle_since = time.monotonic()
            self._idle.append(line)
        else:
            line.abort()


def _no_url(url: str) -> ConfigError:
    return ConfigError(
        f"The upstream's base_url {url!r} is no address over HTTP.",
        hint="Write it as https://api.example.org/v1.",
    )
