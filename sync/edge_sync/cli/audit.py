"""``edge-hub audit``: who changed what when, and whether the log is whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Optional

import typer

from edge.cli import show
from edge_sync.cli.common import AsJson, Home, day_time, opened, seconds, table, told
from edge_sync.hub import audit

app = typer.Typer(no_args_is_help=True)
_SHOWN = 60
_HEAD = "A head that was noted earlier; it must still be in the log."


@app.command("list")
def list_entries(
    *,
    home: Home = None,
    who: Annotated[Optional[str], typer.Option(help="Only by this one.")] = None,  # noqa: UP045
    what: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Only what begins so, as policy or policy.publish."),
    ] = None,
    about: Annotated[Optional[str], typer.Option(help="Only about this.")] = None,  # noqa: UP045
    since: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Not older than 24h or 7d."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show changes, the newest first."""
    with opened(home) as hub:
        begin = None if since is None else hub.clock() - seconds(since, option="--since")
        found = audit.page(hub.store, limit=limit, who=who, what=what, about=about, since=begin)
    if as_json:
        for entry in found:
            show.print_json(asdict(entry))
        return
    rows = (
        (each.seq, day_time(each.at), each.who, each.what, each.about, _detail(each.detail))
        for each in found
    )
    table("", ("no.>", "when", "who", "what", "about", "detail"), rows, empty="No such entries.")


@app.command("verify")
def verify(
    *,
    home: Home = None,
    head: Annotated[Optional[str], typer.Option(help=_HEAD)] = None,  # noqa: UP045
    as_json: AsJson = False,
) -> None:
    """Check the whole log; exit code 1 where an entry is not as it was written."""
    known = None if head is None else audit.Head.parse(head)
    with opened(home) as hub:
        broken = audit.verify(hub.store, known=known)
        with hub.store.reading() as connection:
            last = audit.head(connection)
    if as_json:
        show.print_json({"head": str(last), "broken": broken and asdict(broken)})
    elif broken is None:
        told(f"The log is whole: {last.seq:,} entries.")
        told(f"Head: {last}")
    else:
        told(f"Entry {broken.seq} is broken: {broken.reason}.")
    if broken is not None:
        raise typer.Exit(1)


def _detail(detail: Mapping[str, Any]) -> str:
    parts = [
        f"{name} {_plain(value)}"
        for name, value in detail.items()
        if value not in (None, "", [], {}) and name not in {"sha256", "digest", "code"}
    ]
    text = ", ".join(parts)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
