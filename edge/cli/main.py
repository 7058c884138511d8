"""Puts the commands together and turns errors into one sentence and an exit code.

0 done, 1 a check failed, 2 bad input or configuration.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.markup import escape

import edge
from edge.cli import demo, doctor, head, models, queue, run
from edge.cli.show import problems
from edge.errors import EdgeError

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
app.add_typer(models.app, name="models", help="List and verify models.")
app.add_typer(head.app, name="head", help="Train classification heads.")
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


def main() -> None:
    """Run the command line."""
    try:
        app()
    except EdgeError as error:
        problems.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
