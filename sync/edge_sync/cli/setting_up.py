"""``edge-hub init``, ``serve``, ``migrate``, ``backup``, ``restore``: the hub itself."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Optional

import typer

from edge.cli import show
from edge.errors import InputError, StoreError
from edge_sync.cli.common import (
    AsJson,
    Home,
    Yes,
    confirm,
    facts,
    home_folder,
    opened,
    told,
    who,
)
from edge_sync.hub import backup as backups
from edge_sync.hub import fleet, restoring, tokens
from edge_sync.hub.home import Hub
from edge_sync.store.migration import VERSIONS

FIRST_GROUP = "default"
FIRST_TOKEN = "admin"  # noqa: S105 - its name
_DATABASE = "sqlite:///PATH or postgresql://USER@HOST/NAME; a file in the folder without."
_PUBLIC = "How devices reach the hub, such as https://hub.example.org; the address without."


def init(
    *,
    home: Home = None,
    database: Annotated[Optional[str], typer.Option(help=_DATABASE)] = None,  # noqa: UP045
    listen: Annotated[str, typer.Option(help="Address and port.")] = "127.0.0.1:8420",
    public_url: Annotated[str, typer.Option(help=_PUBLIC)] = "",
    as_json: AsJson = False,
) -> None:
    """Make keys, database, the group default and the first admin token."""
    folder = home_folder(home)
    with Hub.create(folder, database, listen=listen, public_url=public_url.rstrip("/")) as hub:
        fleet.add_group(hub, FIRST_GROUP, who=who())
        token = tokens.add(hub, FIRST_TOKEN, role=tokens.Role.ADMIN, who=who())
        if as_json:
            made = {"home": str(hub.home), "database": hub.store.url, "url": hub.url}
            show.print_json({**made, "token": token})
            return
        facts(
            [
                ("folder", hub.home),
                ("database", hub.store.url),
                ("keys", f"{hub.keys}  (keep a copy; root and targets may be kept offline)"),
                ("url", hub.url),
                ("admin token", f"{token}  (shown only now)"),
            ]
        )
    told("")
    told("Next: edge-hub serve, then edge-hub enroll for the first device.")


def serve(
    *,
    home: Home = None,
    host: Annotated[Optional[str], typer.Option(help="In place of the setting.")] = None,  # noqa: UP045
    port: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, max=65_535, help="In place of the setting; 0 takes a free one."),
    ] = None,
    tls_cert: Annotated[Optional[Path], typer.Option(help="Certificate chain, PEM.")] = None,  # noqa: UP045
    tls_key: Annotated[Optional[Path], typer.Option(help="Its private key, PEM.")] = None,  # noqa: UP045
) -> None:
    """Serve devices and the dashboard until told to end."""
    from edge_sync.server.serve import serve as run

    if (tls_cert is None) != (tls_key is None):
        raise InputError("TLS needs a certificate and its key.", hint="Pass both, or neither.")
    with opened(home, migrating=True) as hub:
        address, _, number = hub.settings.listen.rpartition(":")
        listen = f"{host or address}:{number if port is None else port}"
        # The server hands a signal on when it has finished; it is no failure.
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, _leave)
        run(hub, listen=listen, tls_cert=tls_cert, tls_key=tls_key)


def _leave(_signal: int, _frame: object) -> None:
    raise SystemExit(0)


def migrate(*, home: Home = None) -> None:
    """Bring the database to the schema of this version."""
    folder = home_folder(home)
    try:
        with Hub.open(folder):
            told(f"The database is up to date (schema {VERSIONS[-1]}).")
    except StoreError:
        with Hub.open(folder, migrating=True):
            told(f"The database now has schema {VERSIONS[-1]}.")


def backup(
    path: Annotated[Path, typer.Argument(help="A new file.")],
    *,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Copy the database into a new file, and let devices forget what is in it.

    Keys and models are not in it: copy these folders too.
    """
    with opened(home) as hub:
        made = backups.backup(hub, path, who=who())
    if as_json:
        show.print_json({"path": str(made.path), "bytes": made.bytes, "receipt": made.receipt})
        return
    told(f"{made.path}: {show.size(made.bytes)}, up to receipt {made.receipt}.")


def restore(
    path: Annotated[Path, typer.Argument(help="What edge-hub backup wrote.")],
    *,
    home: Home = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Put a backup into the database, in place of what it holds.

    No leases are granted until every gateway has told what those since then came to.
    """
    with opened(home, migrating=True) as hub:
        before = restoring.held(hub)
        if before.root:
            question = (
                f"{hub.store.url} holds this hub up to receipt {before.receipt}. Put {path} in its "
                "place?"
            )
            confirm(question, yes=yes)
        made = restoring.restore(hub, path, who=who(), replace=bool(before.root))
    if as_json:
        show.print_json({"receipt": made.receipt, "before": made.before, "epoch": made.epoch})
        return
    told(f"The database holds what {path} held, up to receipt {made.receipt}.")
    told(
        f"Leases are of epoch {made.epoch} once every gateway has answered: edge-hub gateways list"
    )
