"""Puts the commands of ``edge-hub`` together.

Exit codes: 0 done, 1 a check failed or the answer was no, 2 bad input or configuration.
"""

from __future__ import annotations

from typing import Annotated

import typer

import edge
from edge.cli.leaving import run_app
from edge_sync.cli import (
    audit,
    budget,
    demo,
    devices,
    enroll,
    gateway,
    gateways,
    groups,
    keys,
    models,
    policy,
    pool,
    rollout,
    setting_up,
    status,
    stop,
    tokens,
)

app = typer.Typer(
    name="edge-hub",
    help="Signed policies for a fleet of devices.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("init")(setting_up.init)
app.command("serve")(setting_up.serve)
app.command("status")(status.status)
app.command("enroll")(enroll.enroll)
app.add_typer(devices.app, name="devices", help="What has joined, and what it runs.")
app.add_typer(groups.app, name="groups", help="Which devices belong together.")
app.add_typer(policy.app, name="policy", help="Publish, show, compare and restore policies.")
app.add_typer(rollout.app, name="rollout", help="Let a policy go out by waves.")
app.command("stop")(stop.stop)
app.command("unstop")(stop.unstop)
app.add_typer(budget.app, name="budget", help="What the fleet may spend, and how it stands.")
app.add_typer(gateways.app, name="gateways", help="Where the money of each pool is counted.")
app.add_typer(models.app, name="models", help="Models that devices can be assigned.")
app.add_typer(tokens.app, name="token", help="Who may use the dashboard.")
app.add_typer(audit.app, name="audit", help="Who changed what when; whether the log is whole.")
app.add_typer(keys.app, name="keys", help="What signs, and how it is replaced.")
app.command("backup")(setting_up.backup)
app.command("restore")(setting_up.restore)
app.command("migrate")(setting_up.migrate)
app.command("demo")(demo.demo)
app.command("gateway")(gateway.gateway)
app.command("pool")(pool.pool)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"edge-hub {edge.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Signed policies for a fleet of devices."""


def main() -> None:
    """Run the command line."""
    run_app(app)
