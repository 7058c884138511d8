"""``edge-hub gateway``: the gateway of one pool, where leases are redeemed."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Optional

import typer


def gateway(
    *,
    config: Annotated[Path, typer.Option(help="The gateway's settings, gateway.yaml.")],
    listen: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Address and port in place of the setting; port 0 takes a free one."),
    ] = None,
) -> None:
    """Serve a pool to devices that pay with leases, until told to end."""
    from edge_sync.gateway.config import read_settings
    from edge_sync.gateway.serve import serve
    from edge_sync.server.logs import Log

    settings = read_settings(config)
    # The server hands a signal on when it has finished; it is no failure.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, _leave)
    serve(settings, tell=Log().event, listen=listen)


def _leave(_signal: int, _frame: object) -> None:
    raise SystemExit(0)
