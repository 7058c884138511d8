"""``edge-hub enroll``: one-time codes by which devices join."""

from __future__ import annotations

from typing import Annotated

import typer

from edge.cli import show
from edge_sync.cli.common import AsJson, Home, ago, count, facts, opened, seconds, told, who
from edge_sync.hub import enrolment
from edge_sync.hub.home import Hub


def enroll(
    *,
    home: Home = None,
    group: Annotated[str, typer.Option(help="That devices join.")] = "default",
    uses: Annotated[int, typer.Option(help="How many devices may use it.")] = 1,
    expires: Annotated[str, typer.Option(help="After 30m, 24h or 7d.")] = "24h",
    as_json: AsJson = False,
) -> None:
    """Make a one-time code, and show what to run on the device."""
    length_s = seconds(expires, option="--expires")
    with opened(home) as hub:
        code = enrolment.make_code(hub, group=group, uses=uses, expires_s=length_s, who=who())
        command = device_command(hub, code.text)
        if as_json:
            made = {"code": code.text, "group": group, "uses": uses}
            show.print_json({**made, "expires_at": code.expires_at, "command": command})
            return
        facts(
            [
                ("code", code.text),
                ("joins", group),
                ("for", count(uses, "device")),
                ("ends", ago(code.expires_at, hub.clock())),
            ]
        )
    told("")
    told("On the device:")
    told(f"  {command}")


def device_command(hub: Hub, code: str) -> str:
    """Return what is to be run on a device."""
    return f"edge agent --hub {hub.url} --code {code}"
