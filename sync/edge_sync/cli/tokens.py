"""``edge-hub token``: who may use the dashboard, and in which role."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Optional

import typer

from edge.cli import show
from edge_sync.cli.common import AsJson, Home, Styled, ago, facts, opened, seconds, table, told, who
from edge_sync.hub import tokens

app = typer.Typer(no_args_is_help=True)
_COLOURS = {"valid": "green", "expired": "yellow", "revoked": "red"}


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="Of the person or program.")],
    *,
    role: Annotated[tokens.Role, typer.Option(help="What it may do.")] = tokens.Role.VIEWER,
    expires: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="After 24h or 90d; never without."),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Make a token; it is shown only now."""
    length_s = None if expires is None else seconds(expires, option="--expires")
    with opened(home) as hub:
        secret = tokens.add(hub, name, role=role, who=who(), expires_s=length_s)
        now = hub.clock()
    if as_json:
        show.print_json({"name": name, "role": str(role), "token": secret})
        return
    ends = "never" if length_s is None else ago(now + length_s, now)
    facts([("token", f"{secret}  (shown only now)"), ("role", str(role)), ("ends", ends)])


@app.command("list")
def list_tokens(*, home: Home = None, as_json: AsJson = False) -> None:
    """Show all tokens, without their secrets."""
    with opened(home) as hub:
        found, now = tokens.list_tokens(hub), hub.clock()
    if as_json:
        for token in found:
            show.print_json({**asdict(token), "state": token.state(now)})
        return
    rows = (
        (
            token.name,
            token.role,
            _state(token.state(now)),
            ago(token.created_at, now),
            "never" if token.expires_at is None else ago(token.expires_at, now),
            ago(token.last_used_at, now),
        )
        for token in found
    )
    table("", ("name", "role", "state", "made", "ends", "last used"), rows)


@app.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(help="Of the token.")], *, home: Home = None
) -> None:
    """End a token at once."""
    with opened(home) as hub:
        tokens.revoke(hub, name, who=who())
    told(f"{name} is revoked.")


def _state(state: str) -> Styled:
    return Styled(f"[{_COLOURS[state]}]{state}[/{_COLOURS[state]}]")
