"""``edge-hub stop`` and ``unstop``: the kill switch."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from edge_sync.cli.common import Groups, Home, opened, told, who
from edge_sync.hub import stops


class Kind(StrEnum):
    """What can be stopped."""

    MODEL = "model"
    TOOL = "tool"
    TASK = "task"


_Kind = Annotated[Kind, typer.Argument(help="What it is.")]
_Name = Annotated[str, typer.Argument(help="Its name.")]


def stop(kind: _Kind, name: _Name, *, group: Groups = None, home: Home = None) -> None:
    """Stop one model, tool or task at once, whatever the policies say."""
    with opened(home) as hub:
        change = stops.stop(hub, kind, name, who=who(), only=group)
    told(f"The {kind} {name} is stopped in {', '.join(change.groups)}.")
    told(f"To let it run again: edge-hub unstop {kind} {name}")


def unstop(kind: _Kind, name: _Name, *, group: Groups = None, home: Home = None) -> None:
    """Let a stopped model, tool or task run again."""
    with opened(home) as hub:
        change = stops.unstop(hub, kind, name, who=who(), only=group)
    told(f"The {kind} {name} may run again in {', '.join(change.groups)}.")
