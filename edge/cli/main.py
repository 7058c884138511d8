"""Puts the commands together and turns errors into one sentence and an exit code.

0 done, 1 a check failed, 2 bad input or configuration. Commands that other packages add are listed
by name and loaded once one is asked for.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import edge
from edge import extensions
from edge.cli import (
    calibrate,
    demo,
    doctor,
    head,
    models,
    policy,
    queue,
    queue_cancel,
    queue_drop,
    run,
    simulate,
)
from edge.cli.leaving import run_app
from edge.errors import ConfigError


class _Added(TyperCommand):
    """A command of another package, of which only the name is known until it is run."""

    def make_context(self, info_name: Any, args: list[str], *rest: Any, **more: Any) -> Any:
        """Go on as the command itself."""
        return self._itself().make_context(info_name, args, *rest, **more)

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return what the command says of itself, or that a part of it is missing."""
        try:
            return str(self._itself().get_short_help_str(limit))
        except ConfigError as error:
            return error.hint

    def _itself(self) -> Any:
        """Load the command.

        Raises:
            ConfigError: something that it needs is not installed.

        """
        found = extensions.load(extensions.COMMANDS, str(self.name))
        if not isinstance(found, typer.Typer):
            alone = typer.Typer(add_completion=False, rich_markup_mode=None)
            alone.command(self.name)(found)
            found = alone
        return typer.main.get_command(found)


class _Commands(TyperGroup):
    """The commands here, and those that other packages add."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all, those of other packages last."""
        own = super().list_commands(ctx)
        return own + [name for name in extensions.names(extensions.COMMANDS) if name not in own]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; installed packages are looked through only where it is none of ours."""
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in extensions.names(extensions.COMMANDS):
            return own
        return _Added(cmd_name)


app = typer.Typer(
    name="edge",
    cls=_Commands,
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
app.add_typer(policy.app, name="policy", help="Show policies, and check them.")
app.add_typer(head.app, name="head", help="Train classification heads.")
queue.app.command("cancel")(queue_cancel.cancel)
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


def main() -> None:
    """Run the command line."""
    run_app(app)
