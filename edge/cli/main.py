"""Puts the commands together and turns errors into one sentence and an exit code.

0 done, 1 a check failed, 2 bad input or configuration.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Annotated, TextIO

import typer
from rich.markup import escape

import edge
from edge.cli import (
    calibrate,
    demo,
    doctor,
    head,
    models,
    queue,
    queue_drop,
    run,
    simulate,
)
from edge.cli.show import problems
from edge.errors import EdgeError, InputError

app = typer.Typer(
    name="edge",
    help="Inference on the device that knows when it does not know.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.demo)
app.command("run")(run.run)
app.command("doctor")(doctor.doctor)
app.command("calibrate")(calibrate.calibrate)
app.command("simulate")(simulate.simulate)
app.add_typer(models.app, name="models", help="List and verify models.")
app.add_typer(head.app, name="head", help="Train classification heads.")
queue.app.command("drop")(queue_drop.drop)
app.add_typer(queue.app, name="queue", help="Look at tasks that wait, and try them again.")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"edge {edge.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Inference on the device that knows when it does not know."""


class _ClosedInput(io.BufferedIOBase):
    """Stands for a standard input that was closed before the start."""

    def readable(self) -> bool:
        return True

    def readline(self, _size: int | None = -1, /) -> bytes:
        raise InputError("Standard input is closed.", hint="Pass the text, or pipe it in.")

    def read(self, _size: int | None = -1, /) -> bytes:
        return self.readline()


def main() -> None:
    """Run the command line."""
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(_ClosedInput())
    try:
        code = _run()
    except EdgeError as error:
        code = _told(str(error))
    except BrokenPipeError:
        _drop(sys.stdout)  # whoever read has enough
        code = 0
    except OSError as error:
        _drop(sys.stdout)
        code = _told(_refused(error))
    sys.exit(code)


def _run() -> int | str | None:
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
