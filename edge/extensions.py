"""What other packages add to the runtime by entry points, found by name and loaded when asked for.

The fleet's agent, its command and what signs calls to its gateways come this way, so that the
runtime never imports the fleet. A part whose libraries are missing is named with the remedy.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from edge.errors import ConfigError

AGENTS = "edge.agents"
COMMANDS = "edge.commands"
SIGNERS = "edge.signers"
_REMEDY = 'Install it: pip install "edge-runtime[sync]".'


def names(group: str) -> list[str]:
    """Return the names in a group; reads the metadata of installed packages, loads nothing."""
    return sorted({point.name for point in entry_points(group=group)})


def load(group: str, name: str) -> Any:
    """Return what an entry point names.

    Raises:
        ConfigError: there is none of that name, or something that it needs is not installed.

    """
    found: EntryPoint | None = next(iter(entry_points(group=group, name=name)), None)
    if found is None:
        raise ConfigError(f"There is no {name!r} among {group}.", hint=_REMEDY)
    try:
        return found.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"The part {name!r} of {group} cannot be loaded: {error}.", hint=_REMEDY
        ) from error
