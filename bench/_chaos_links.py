"""Lines between processes that can be cut: a small TCP relay for each, all on one event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Literal, TypeAlias

State: TypeAlias = Literal["open", "refused", "silent"]
_BYTES = 65_536


class Link:
    """One line.

    Attributes:
        port: where it begins.
        state: open; refused: connections are closed at once; silent: nothing passes and nobody is
            told.

    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.state: State = "open"
        self._writers: set[asyncio.StreamWriter] = set()

    async def listen(self) -> None:
        """Begin to listen on a free port."""
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]

    def cut(self, state: State) -> None:
        """Change the state; a connection that lost something does not go on."""
        before, self.state = self.state, state
        if state == "refused" or before == "silent":
            for writer in list(self._writers):
                writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.state == "refused":
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, far_writer}
        self._writers |= pair
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        finally:
            self._writers -= pair

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(_BYTES):
                if self.state == "silent":
                    continue
                writer.write(chunk)
                await writer.drain()
        writer.close()


class Links:
    """All lines, on a thread of their own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def make(self, target: int) -> Link:
        """Return a new line to a port of this machine."""
        link = Link(target)
        self._run(link.listen())
        return link

    def cut(self, link: Link, state: State) -> None:
        """Change a line's state."""
        self._loop.call_soon_threadsafe(link.cut, state)

    def close(self) -> None:
        """End all lines."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)
