"""``edge-hub pool``: a pool of models that scales out on Ray Serve."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Optional

import typer


def pool(
    *,
    config: Annotated[Path, typer.Option(help="The pool's settings, pool.yaml.")],
    listen: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Address and port in place of the setting; port 0 takes a free one."),
    ] = None,
) -> None:
    """Serve a model from replicas on Ray Serve, until told to end."""
    from edge_sync.pool.config import read_settings
    from edge_sync.pool.serve import serve
    from edge_sync.server.logs import Log

    settings = read_settings(config)
    # The server hands a signal on when it has finished; it is no failure.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, _leave)
    serve(settings, tell=Log().event, listen=listen)


def _leave(_signal: int, _frame: object) -> None:
    raise SystemExit(0)
