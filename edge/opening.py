"""Opening a runtime: from the name of a pack and a folder to a ``Runtime`` that answers.

Reads pack and policy, finds the state folder, and lets the fleet's agent join where a hub is named.
"""

from __future__ import annotations

import os
from pathlib import Path

from edge.activation import read_own
from edge.config import is_offline, state_folder
from edge.pack import find_pack, limit_memory, load_pack
from edge.runtime import Runtime


def open_runtime(
    pack: str | os.PathLike[str] = "kiosk",
    *,
    state: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
    threads: int | None = None,
    memory_mb: float | None = None,
    policy: str | os.PathLike[str] | None = None,
    hub: str | None = None,
) -> Runtime:
    """Open a runtime over a pack.

    Args:
        pack: the name of a shipped pack, or a YAML file.
        state: folder for ledger, queue and traces; the platform's usual place where ``None``.
        offline: open no socket; ``EDGE_OFFLINE`` decides where ``None``.
        threads: threads per forward pass; measured per model where ``None``.
        memory_mb: megabytes for all loaded models together; the pack decides where ``None``.
        policy: a policy to lay over the pack, as YAML or compiled; it wins over the fleet's, but
            not over what the fleet stops.
        hub: address of the fleet's hub, whose agent then keeps the policy up to date; offline
            nothing is asked, and the last policy stays in force.

    Raises:
        ConfigError: the pack or the policy cannot be read, something in it is wrong, or a task's
            model is missing or of the wrong kind; or the fleet's agent is not installed.
        LoadError: the manifest of a model is not valid.
        StoreError: the state folder cannot be used.

    """
    loaded = limit_memory(load_pack(find_pack(os.fspath(pack))), memory_mb)
    runtime = Runtime(
        loaded,
        state_folder(state),
        offline=is_offline(offline),
        threads=threads,
        policy=None if policy is None else read_own(Path(policy)),
    )
    if hub is not None:
        try:
            runtime.join(hub)
        except BaseException:
            runtime.close()
            raise
    return runtime
