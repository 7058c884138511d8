"""Runs the gateway: one process, one event loop, until it is told to end."""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import uvicorn

from edge.errors import ConfigError
from edge_sync.gateway.config import Settings
from edge_sync.gateway.forwarding import Tell
from edge_sync.gateway.register import Register
from edge_sync.gateway.server import App

BACKLOG = 4_096
KEEP_ALIVE_S = 75
GRACE_S = 15
_GC = (50_000, 20, 50)
_SWITCH_S = 0.0005


def serve(
    settings: Settings,
    *,
    tell: Tell,
    listen: str | None = None,
    env: Mapping[str, str] = os.environ,
) -> None:
    """Serve until SIGTERM or SIGINT; calls under way get ``GRACE_S`` to end.

    Args:
        settings: of ``gateway.yaml``.
        tell: writes a line of the log; the first names address and port.
        listen: address and port in place of the setting; port 0 takes a free one.
        env: where the secrets are.

    Raises:
        ConfigError: a secret is missing, or the address cannot be listened on.
        StoreError: the register cannot be used, or another process has it.

    """
    register = Register.open(Path(settings.register_path))
    try:
        app = App(settings, register, env, tell=tell)
        bound = _bind(listen or settings.listen)
        host, port = bound.getsockname()[:2]
        tell("listening", address=str(host), port=int(port), register=str(register.path))
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC)
        sys.setswitchinterval(_SWITCH_S)
        uvicorn.Server(_config(app)).run(sockets=[bound])
    finally:
        register.close()
    tell("stopped")


def _config(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop" if sys.platform != "win32" else "asyncio",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
        date_header=False,
        proxy_headers=False,
    )


def _bind(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, int(port)))
        bound.listen(BACKLOG)
    except (OSError, OverflowError, ValueError) as error:
        bound.close()
        raise ConfigError(
            f"The gateway cannot listen on {listen}: {error}.",
            hint="Name another address and port, as `127.0.0.1:8430`.",
        ) from error
    return bound
