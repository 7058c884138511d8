"""How a process dies: before a statement of SQL, or by a power cut before a write to the disk."""

from __future__ import annotations

import ctypes
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any, TypeAlias


class Statements:
    """Counts statements of SQL and kills this process before one of them.

    Args:
        last: before which; 0 for none.

    """

    def __init__(self, last: int = 0) -> None:
        self.done = 0
        self._last = last

    def watch(self, _place: Path) -> None:
        """Count what every connection runs from now on, in SQLite and PostgreSQL."""
        connect = sqlite3.connect

        def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection = connect(*arguments, **options)
            connection.set_trace_callback(self._step)
            return connection

        sqlite3.connect = sqlite3.dbapi2.connect = traced
        if "psycopg" in sys.modules:
            from sqlalchemy import Engine, event

            event.listen(Engine, "before_cursor_execute", self._of_postgres)

    def die(self) -> None:
        """Die now."""
        os.kill(os.getpid(), signal.SIGKILL)

    def _step(self, *_: object) -> None:
        self.done += 1
        if self.done == self._last:
            self.die()

    def _of_postgres(self, connection: Any, *_: object) -> None:
        if connection.dialect.name == "postgresql":
            self._step()


class Disk:
    """Counts writes, syncs and names, and cuts the power before one of them.

    Needs ``lostwrites.c`` in LD_PRELOAD. What was not synced is lost; where it is torn, some of it.

    Args:
        last: before which; 0 for none.

    """

    torn = False

    def __init__(self, last: int = 0) -> None:
        self._last = last
        self._shim = ctypes.CDLL(None)

    @property
    def done(self) -> int:
        """How many there were."""
        return int(self._shim.lostwrites_calls())

    def watch(self, place: Path) -> None:
        """Count what happens below a folder from now on."""
        self._shim.lostwrites_begin(
            os.fsencode(place), ctypes.c_long(self._last), int(self.torn),
            ctypes.c_ulong(self._last),
        )  # fmt: skip

    def die(self) -> None:
        """Cut the power now."""
        self._shim.lostwrites_die()


class TornDisk(Disk):
    """Keeps some of what was not synced, in any order, by half sectors; drawn by the step."""

    torn = True


Way: TypeAlias = type[Statements] | type[Disk]
WAYS: dict[str, Way] = {"statements": Statements, "disk": Disk, "torn": TornDisk}
