"""Runs a command and ends it, with all that it started, when whoever asked for that is gone.

    python -m edge_sync.pool.guard COMMAND [ARGUMENT...]

Whoever starts it holds its standard input open. The system closes that however the process ends,
also where it is killed, so that no server is left behind with a GPU. Needs POSIX.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

_GRACE_S = 10.0


def main(command: list[str]) -> int:
    """Run the command and return its exit code."""
    process = subprocess.Popen(  # noqa: S603 - the command is the pool's own
        command, stdin=subprocess.DEVNULL, start_new_session=True
    )
    threading.Thread(target=_end_with_input, args=(process,), daemon=True).start()
    code = process.wait()
    _signal(process, signal.SIGKILL)  # what it started
    return code


def _end_with_input(process: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1):  # not sys.stdin: a lock that is held there stops Python from leaving
        pass
    _signal(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)
    _signal(process, signal.SIGKILL)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
