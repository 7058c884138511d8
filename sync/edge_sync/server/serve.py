"""Runs the application: one process, one event loop, until it is told to end."""

from __future__ import annotations

import gc
import logging
import resource
import socket
import sys
from contextlib import suppress
from pathlib import Path

import uvicorn

from edge.errors import ConfigError
from edge_sync.hub.home import Hub
from edge_sync.server.app import App
from edge_sync.server.bounded import Bounded
from edge_sync.server.logs import Log

BACKLOG = 8_192
KEEP_ALIVE_S = 75
GRACE_S = 10
_GC = (50_000, 20, 50)
_SWITCH_S = 0.001


class _Server(uvicorn.Server):
    """Lets waiting devices go as soon as the process is told to end."""

    def __init__(self, config: uvicorn.Config, app: App) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.stop()
        await super().shutdown(sockets)


class _Forward(logging.Handler):
    """Puts what uvicorn has to say among our lines."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.event("server", level=record.levelname.lower(), reason=record.getMessage())


def serve(
    hub: Hub,
    *,
    listen: str | None = None,
    log: Log | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; requests under way are finished.

    Args:
        hub: the hub, open; the caller closes it.
        listen: address and port; the hub's setting where none is given. Port 0 takes a free one,
            which the first line of the log names.
        log: where lines go; standard error where none is given.
        tls_cert: certificate chain, PEM; plain HTTP where none is given.
        tls_key: its private key, PEM.

    Raises:
        ConfigError: the address cannot be listened on, or the certificate cannot be used.
        StoreError: the database cannot be read.

    """
    log = log or Log()
    app = App(hub, log)
    config = _config(app, tls_cert, tls_key)
    bound = _bind(listen or hub.settings.listen)
    host, port = bound.getsockname()[:2]
    log.event("listening", address=str(host), port=int(port), database=hub.store.url)
    _take_over(log)
    _tune()
    _Server(config, app).run(sockets=[bound])
    log.event("stopped")


def _config(app: App, tls_cert: Path | None, tls_key: Path | None) -> uvicorn.Config:
    """Return how uvicorn is to serve; the certificate is read, to tell what is wrong with it."""
    config = uvicorn.Config(
        app,
        loop="uvloop" if sys.platform != "win32" else "asyncio",
        http=Bounded,
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
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
    )
    try:
        config.load()
    except OSError as error:  # those of ssl are among them
        raise ConfigError(
            f"The TLS certificate {tls_cert} cannot be used: {error}.",
            hint="Name a certificate chain and its private key, both PEM, readable by the hub.",
        ) from error
    return config


def _tune() -> None:
    """Allow as many open connections as the system does, and make pauses short."""
    with suppress(ValueError, OSError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC)
    sys.setswitchinterval(_SWITCH_S)


def _take_over(log: Log) -> None:
    logger = logging.getLogger("uvicorn")
    logger.handlers = [_Forward(log)]
    logger.propagate = False


def _bind(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, int(port)))
        bound.listen(BACKLOG)
    except (OSError, OverflowError, ValueError) as error:
        bound.close()
        raise ConfigError(
            f"The hub cannot listen on {listen}: {error}.",
            hint="Name another address and port, as `127.0.0.1:8420`.",
        ) from error
    return bound
