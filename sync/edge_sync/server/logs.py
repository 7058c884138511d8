"""Structured logs: one JSON object a line, never a body, a token or a code.

Lines of requests are gathered and written ten times a second; events are written at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

FLUSH_S = 0.1


class Log:
    """Writes lines to a stream; safe to use from any thread.

    Args:
        stream: where to.
        clock: seconds since the epoch.

    """

    def __init__(
        self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._lines: list[str] = []
        self._lock = threading.Lock()

    def event(self, event: str, *, level: str = "info", **fields: str | float | None) -> None:
        """Write one line at once."""
        self._lines.append(self._line(level, event, fields))
        self.flush()

    def request(self, method: str, path: str, *, status: int, ms: float, device: str) -> None:
        """Add the line of a request, to be written soon."""
        fields: dict[str, str | float | None] = {"method": method, "path": path, "status": status}
        level = "error" if status >= 500 else "info"  # noqa: PLR2004 - of HTTP
        fields["ms"] = round(ms, 2)
        if device:
            fields["device"] = device
        self._lines.append(self._line(level, "request", fields))

    async def flush_regularly(self) -> None:
        """Write what was gathered, again and again."""
        while True:
            await asyncio.sleep(FLUSH_S)
            self.flush()

    def flush(self) -> None:
        """Write what was gathered; a stream that is gone is no reason to stop serving."""
        with self._lock:
            lines, self._lines = self._lines, []
            try:
                self._stream.write("".join(lines))
                self._stream.flush()
            except (OSError, ValueError):
                return

    def _line(self, level: str, event: str, fields: dict[str, str | float | None]) -> str:
        at = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        return json.dumps({"at": at, "level": level, "event": event, **fields}) + "\n"
