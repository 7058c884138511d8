"""``edge-hub groups``: which devices belong together."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from edge.cli import show
from edge_sync.cli.common import AsJson, Home, opened, table, told, who
from edge_sync.hub import fleet
from edge_sync.hub.fleet import Group

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_groups(*, home: Home = None, as_json: AsJson = False) -> None:
    """Show all groups, and what they run."""
    with opened(home) as hub:
        found = fleet.list_groups(hub)
    if as_json:
        for group in found:
            show.print_json(asdict(group))
        return
    print_groups(found)


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="Letters, digits and the marks . _ -")],
    *,
    home: Home = None,
) -> None:
    """Add a group."""
    with opened(home) as hub:
        fleet.add_group(hub, name, who=who())
    told(f"Group {name} is there. To let a device join it: edge-hub enroll --group {name}")


def print_groups(found: list[Group]) -> None:
    """Print groups as a table."""
    rows = (
        (group.name, group.devices, group.revision or "-", stopped(group.stopped) or "-")
        for group in found
    )
    table(
        "",
        ("group", "devices>", "policy>", "stopped"),
        rows,
        empty="No groups yet: edge-hub groups add NAME",
    )


def stopped(names: dict[str, list[str]] | object) -> str:
    """Return what is stopped, in words."""
    if not isinstance(names, dict):
        return ""
    return ", ".join(f"{kind[:-1]} {name}" for kind in sorted(names) for name in names[kind])
