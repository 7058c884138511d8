"""``edge-hub gateways``: where the money of each pool is counted."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Optional

import typer

from edge.cli import show
from edge.errors import ConfigError, EdgeError, InputError
from edge_sync.cli.common import (
    AsJson,
    Home,
    Styled,
    Yes,
    ago,
    confirm,
    opened,
    table,
    told,
    who,
)
from edge_sync.hub.budget import amounts, caps, gateways, leasekey, sealing, unclear
from edge_sync.hub.budget.asking import Asking
from edge_sync.hub.budget.gateways import Gateway
from edge_sync.hub.home import Hub, read_fact

app = typer.Typer(no_args_is_help=True)
_MOST_SECRET = 2_000
_Pool = Annotated[str, typer.Argument(help="The pool, as packs and gateway.yaml name it.")]


@app.command("add")
def add(
    pool: _Pool,
    *,
    url: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of its gateway, as https://gateway.example.org."),
    ] = None,
    secret_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="File with the gateway's secret; - for the standard input."),
    ] = None,
    escrow: Annotated[
        bool, typer.Option("--escrow", help="There is none: take the devices' own counts.")
    ] = False,
    home: Home = None,
) -> None:
    """Have leases granted for a pool; for one that is there, change its URL and secret."""
    named = {url is not None, secret_file is not None}
    if named != {not escrow}:
        raise InputError(
            "A pool has a gateway, or is of the grade escrow.",
            hint="Pass --url and --secret-file, or --escrow.",
        )
    with opened(home) as hub:
        if url is None or secret_file is None:
            gateways.add_escrow(hub, pool, who=who())
            told(f"Pool {pool} is of the grade escrow: its leases are counted by the devices.")
            told("A device whose disk is copied can spend its lease once more on each copy.")
            return
        secret = _read_secret(secret_file)
        gate = gateways.add(hub, pool, url=url, secret=secret, who=who())
        _admit(hub, gate, secret)
        told(f"The gateway of pool {pool} is {gate.url}.")
        _tell_key(hub)


@app.command("list")
def list_gateways(*, home: Home = None, as_json: AsJson = False) -> None:
    """Show the gateways, and what went wrong with them last."""
    with opened(home) as hub:
        with hub.store.reading() as connection:
            found = gateways.read_all(connection)
            epoch = read_fact(connection, "epoch") or 0
            recovering = bool(read_fact(connection, "recovering"))
        now = hub.clock()
    if as_json:
        for each in found:
            show.print_json(gateways.as_json(each))
        return
    rows = (
        (each.pool_id, each.url or each.grade, _epoch(each, epoch), ago(each.seen_at, now),
         amounts.dollars(each.totals.get("redeemed_microusd", 0)),
         amounts.dollars(each.totals.get("held_microusd", 0)),
         each.totals.get("unclear", 0), each.error)
        for each in found
    )  # fmt: skip
    columns = ("pool", "url", "epoch", "heard of", "redeemed>", "held>", "unclear>", "error")
    table("", columns, rows, empty="There are none. To add one: edge-hub gateways add")
    if recovering:
        told("The database was set back: no leases are granted until every gateway has answered.")


@app.command("remove")
def remove(
    pool: _Pool,
    *,
    strand: Annotated[
        bool, typer.Option("--strand", help="Count what is out as spent in full.")
    ] = False,
    yes: Yes = False,
    home: Home = None,
) -> None:
    """Grant no more leases for a pool; refused while some are out, but with --strand."""
    with opened(home) as hub:
        if strand:
            confirm(f"Count everything that is out for {pool} as spent in full?", yes=yes)
        lost = gateways.remove(hub, pool, who=who(), strand=strand)
    told(f"Pool {pool} gets no more leases.")
    if lost:
        told(f"{amounts.dollars(lost)} that were out count as spent until their period ends.")


@app.command("key")
def key(*, home: Home = None) -> None:
    """Print what gateway.yaml needs under hub.keys."""
    with opened(home) as hub:
        _tell_key(hub)


@app.command("holds")
def holds(*, home: Home = None, as_json: AsJson = False) -> None:
    """Show calls of which nobody knows whether they were billed."""
    with opened(home) as hub:
        with hub.store.reading() as connection:
            found = unclear.read_all(connection)
        now = hub.clock()
    if as_json:
        for each in found:
            show.print_json(asdict(each))
        return
    rows = (
        (each.hold_id, each.pool_id, each.device or each.device_id[:8],
         amounts.dollars(each.held_microusd), ago(each.at, now))
        for each in found
    )  # fmt: skip
    table("", ("hold", "pool", "device", "held>", "begun"), rows, empty="None is unclear.")


@app.command("reconcile")
def reconcile(
    hold: Annotated[str, typer.Argument(help="The hold, or the beginning of its id.")],
    amount: Annotated[str, typer.Argument(help="What was billed, in dollars; 0 for nothing.")],
    *,
    home: Home = None,
) -> None:
    """Say what the provider billed for an unclear call."""
    billed = amounts.microusd(amount)
    with opened(home) as hub:
        booked = unclear.reconcile(hub, hold, billed, who=who())
    told(f"Hold {booked.hold_id} came to {amounts.dollars(booked.actual_microusd)}.")
    if booked.excess_microusd:
        more = amounts.dollars(booked.excess_microusd)
        told(f"{more} above what was held were billed: no lease pays for them.")


def _admit(hub: Hub, gate: Gateway, secret: str) -> None:
    """Tell a gateway the epoch at once, so that a running hub need not be waited for."""
    line = Asking(gate.url, secret, pool_id=gate.pool_id)
    try:
        sealing.tend(hub, gate, line)
    except EdgeError as error:
        gateways.note_error(hub, gate, error)
        raise
    finally:
        line.close()


def _epoch(gate: Gateway, epoch: int) -> str | Styled:
    if gate.grade == "escrow":
        return ""
    return str(gate.epoch) if gate.epoch == epoch else Styled(f"[red]{gate.epoch} of {epoch}[/red]")


def _tell_key(hub: Hub) -> None:
    with hub.store.reading() as connection:
        known = caps.key_name(connection)
    found = leasekey.find(hub.keys)
    if found is None or found.key_id != (known or found.key_id):
        make = "Set a first cap with `edge-hub budget set`; it makes one."
        copy = f"Copy {leasekey.NAME} there from the first replica, or restore it."
        raise ConfigError(f"The key of leases is not in {hub.keys}.", hint=copy if known else make)
    told("Its settings, gateway.yaml, need under hub.keys:")
    told(f"  {found.key_id}: {found.public_key}")


def _read_secret(path: Path) -> str:
    try:
        if str(path) == "-":
            return sys.stdin.read(_MOST_SECRET).strip()
        with path.open(encoding="ascii") as file:
            return file.read(_MOST_SECRET).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no ASCII"
        raise InputError(
            f"The secret in {path} cannot be read: {reason}.", hint="Name a file with the secret."
        ) from error
