"""HTTP connections whose heads are bounded in size and time.

uvicorn's own take headers without end, and wait for them for ever. Here a connection is closed
where the head of a request is larger than ``MAX_HEAD_BYTES``, or is not whole ``HEAD_WAIT_S`` after
its first byte or after the connection was made. Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 65_536
HEAD_WAIT_S = 30.0


class Bounded(HttpToolsProtocol):
    """One connection."""

    _head_bytes = 0
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._wait_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; close where too many of them are of a head."""
        for start in range(0, len(data), MAX_HEAD_BYTES):
            part = data[start : start + MAX_HEAD_BYTES]
            self._head_bytes += len(part)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.close()
            if self.transport.is_closing():
                return
            super().data_received(part)

    def on_message_begin(self) -> None:
        """Begin to wait for the rest of a head."""
        super().on_message_begin()
        if self._late is None:
            self._wait()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._wait_no_more()
        self._head_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """What is of a body is not of a head; trailers and the frames of chunks are."""
        self._head_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next bytes are of another head."""
        self._head_bytes = 0
        super().on_message_complete()

    def _wait(self) -> None:
        self._late = self.loop.call_later(HEAD_WAIT_S, self.transport.close)

    def _wait_no_more(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
