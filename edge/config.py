"""Where things lie: the state folder, the shipped models, and settings from the environment.

Reads the environment when asked, never at import; creates nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from edge.errors import ConfigError

_HERE = Path(__file__).resolve().parent
_SWITCH = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(
    ("", "0", "false", "no", "off"), False
)


def models_folder() -> Path:
    """Return the folder of the shipped models: packaged first, a source checkout second.

    Raises:
        ConfigError: neither is there.

    """
    for folder in (_HERE / "models", _HERE.parent / "models"):
        if (folder / "packs").is_dir():
            return folder
    raise ConfigError(
        f"The shipped models are missing beside {_HERE}.",
        hint="Reinstall edge-runtime.",
    )


def state_folder(state: str | os.PathLike[str] | None, env: Mapping[str, str] = os.environ) -> Path:
    """Return the folder for ledger, queue and traces.

    Args:
        state: an explicit folder; where ``None``, ``EDGE_STATE`` or the platform's usual place.
        env: the environment to read.

    """
    if state is not None:
        return Path(state).expanduser().absolute()
    if env.get("EDGE_STATE"):
        return Path(env["EDGE_STATE"]).expanduser().absolute()
    return _platform_state(env) / "edge"


def _platform_state(env: Mapping[str, str]) -> Path:
    if sys.platform == "win32":
        return Path(env.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    return Path(env.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")


def is_offline(offline: bool | None, env: Mapping[str, str] = os.environ) -> bool:
    """Return whether sockets are forbidden: the argument; where ``None``, ``EDGE_OFFLINE``.

    Raises:
        ConfigError: the variable says neither yes nor no.

    """
    if offline is not None:
        return offline
    told = env.get("EDGE_OFFLINE", "")
    wanted = _SWITCH.get(told.strip().lower())
    if wanted is None:
        raise ConfigError(
            f"EDGE_OFFLINE is {told!r}, which is neither yes nor no.",
            hint="Set it to 1, true, yes or on, or to 0, false, no, off or nothing.",
        )
    return wanted
