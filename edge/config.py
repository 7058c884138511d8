"""Where things lie: the state folder, the shipped models, and settings from the environment.

Reads the environment when asked, never at import; creates nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from edge.errors import ConfigError

_HERE = Path(__file__).resolve().parent
_SWITCH = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(
    ("", "0", "false", "no", "off"), False
)
_SHOWN = 80


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

    Raises:
        ConfigError: no folder can have such a path.

    """
    told = os.fspath(state) if state is not None else env.get("EDGE_STATE") or None
    if told == "":
        raise ConfigError("The state folder is empty.", hint="Name a folder, or leave it out.")
    try:
        folder = Path(told).expanduser() if told is not None else _platform_state(env) / "edge"
        os.fspath(folder).encode("utf-8")
        folder = folder.absolute()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            folder.lstat()
    except (OSError, ValueError, RuntimeError) as error:
        what = "The state folder" if told is None else f"The state folder {shortened(told)}"
        raise ConfigError(
            f"{what} cannot be one: {_reason(error)}.", hint="Pass another `state`."
        ) from error
    return folder


def assigned_folder(state: Path, name: str, digest: str) -> Path:
    """Return where a model that the fleet assigned lies, once it is fetched.

    Args:
        state: the state folder.
        name: of the model.
        digest: sha256 of its ``manifest.json``, 64 hex digits.

    """
    return state / "models" / f"{name}@{digest[:12]}"


def is_file(path: Path) -> bool:
    """Return whether a file is there; ``False`` where no file can have such a path."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def shortened(path: str) -> str:
    """Return a path as a message can show it: printable, both ends, not longer than a line."""
    shown = path if path.isprintable() else repr(path)[1:-1]
    if len(shown) <= _SHOWN:
        return shown
    half = _SHOWN // 2
    return f"{shown[:half]}...{shown[-half:]}"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, UnicodeError):
        return "it is not valid Unicode"
    return str(error).rstrip(".")


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
