"""How a command line ends: an error is one sentence and an exit code, a closed stream no traceback.

0 done, 1 a check failed, 2 bad input or configuration. Knows no command.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import NoReturn, TextIO

import typer
from rich.markup import escape

from edge.cli.show import problems
from edge.errors import EdgeError, InputError


class _ClosedInput(io.BufferedIOBase):
    """Stands for a standard input that was closed before the start."""

    def readable(self) -> bool:
        return True

    def readline(self, _size: int | None = -1, /) -> bytes:
        raise InputError("Standard input is closed.", hint="Pass the text, or pipe it in.")

    def read(self, _size: int | None = -1, /) -> bytes:
        return self.readline()


def run_app(app: typer.Typer) -> NoReturn:
    """Run a command line and leave the process with its exit code."""
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(_ClosedInput())
    try:
        code = _run(app)
    except EdgeError as error:
        code = _told(str(error))
    except BrokenPipeError:
        _drop(sys.stdout)  # whoever read has enough
        code = 0
    except OSError as error:
        _drop(sys.stdout)
        code = _told(_refused(error))
    sys.exit(code)


def _run(app: typer.Typer) -> int | str | None:
    """Run the command and return its exit code once its output is written."""
    if sys.stdout is None:
        raise InputError("Standard output is closed.", hint="Redirect it, for example to a file.")
    try:
        app()
    except SystemExit as leaving:
        # Typer and rich make an exit code of a reader that went away.
        if isinstance(leaving.__context__, BrokenPipeError):
            raise leaving.__context__ from None
        sys.stdout.flush()
        return leaving.code
    return 0


def _told(message: str) -> int:
    """Print what is wrong, where that is possible, and return the exit code for it."""
    try:
        problems.print(f"[red]error:[/red] {escape(message)}", highlight=False, soft_wrap=True)
    except (OSError, SystemExit):  # rich leaves where the reader went away
        _drop(sys.stderr)
    return 2


def _refused(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.filename is not None:
        return f"{error.filename} cannot be used: {reason}. Check the path and who may use it."
    return f"The output cannot be written: {reason}. Free some space, or write to another place."


def _drop(stream: TextIO) -> None:
    """Send what is still to be written to nowhere, so that leaving does not fail over it."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
