"""``edge-hub keys``: what signs, where it is, and how it is replaced."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from edge.cli import show
from edge_sync.cli.common import AsJson, Home, Styled, Yes, ago, confirm, opened, table, told, who
from edge_sync.hub import signatures
from edge_sync.hub.signatures import RoleKeys

app = typer.Typer(no_args_is_help=True)
_ID = 16


@app.command("list")
def list_keys(*, home: Home = None, as_json: AsJson = False) -> None:
    """Show the keys that count, by role, and whether the hub can sign with them."""
    with opened(home) as hub:
        found, now = signatures.list_keys(hub), hub.clock()
    if as_json:
        for role in found:
            show.print_json({**asdict(role), "signs": role.signs})
        return
    rows = (
        (
            role.role,
            "-" if role.version is None else role.version,
            "-" if role.expires_at is None else ago(role.expires_at, now),
            f"{role.threshold} of {len(role.keyids)}",
            _here(role),
            ", ".join(keyid[:_ID] for keyid in role.keyids),
        )
        for role in found
    )
    table("", ("role", "version>", "expires", "needs", "keys here", "key ids"), rows)


@app.command("rotate")
def rotate(
    role: Annotated[str, typer.Argument(help="root, targets, snapshot, timestamp or assignment.")],
    *,
    home: Home = None,
    yes: Yes = False,
) -> None:
    """Replace the keys of a role, as after a theft; devices follow by themselves.

    The old files stay in the folder and count no more.
    """
    confirm(f"Replace all keys of the role {role}?", yes=yes)
    with opened(home) as hub:
        made = signatures.rotate(hub, role, who=who())
    ids = ", ".join(keyid[:_ID] for keyid in made.keyids)
    told(f"{role} is signed by new keys: {ids}.")


def _here(role: RoleKeys) -> Styled:
    colour = "green" if role.signs else "yellow"
    words = str(role.here) if role.here else "none: offline"
    return Styled(f"[{colour}]{words}[/{colour}]")
