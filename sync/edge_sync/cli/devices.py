"""``edge-hub devices``: what has joined, and what it runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Optional

import typer

from edge.cli import show
from edge_sync.cli.common import (
    AsJson,
    Home,
    Styled,
    Yes,
    ago,
    confirm,
    count,
    day_time,
    facts,
    opened,
    span,
    table,
    told,
    who,
)
from edge_sync.hub import fleet
from edge_sync.hub.budget.amounts import cents
from edge_sync.hub.budget.exposure import DeviceLease, read_leases
from edge_sync.hub.fleet import Device

app = typer.Typer(no_args_is_help=True)
_DEVICE = Annotated[str, typer.Argument(help="Its name, its id, or how its id begins.")]
_SHORT = 8
_NONE = "No devices. A code to join with: edge-hub enroll"
_CLOCK_OFF_S = 300.0


@app.command("list")
def list_devices(
    *,
    group: Annotated[Optional[str], typer.Option(help="Only this group.")] = None,  # noqa: UP045
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Show all devices by name."""
    with opened(home) as hub:
        found, now = fleet.list_devices(hub, group=group), hub.clock()
    if as_json:
        for device in found:
            show.print_json({**asdict(device), "online": device.online(now)})
        return
    rows = (
        (
            device.name if device.name != device.id else "-",
            device.id[:_SHORT],
            device.group,
            state(device, now),
            device.revision or "-",
            ago(device.last_seen_at, now),
            device.waiting or "-",
        )
        for device in found
    )
    table("", ("name", "id", "group", "state", "policy>", "seen", "waiting>"), rows, empty=_NONE)


@app.command("show")
def show_device(named: _DEVICE, *, home: Home = None, as_json: AsJson = False) -> None:
    """Show all that is known of one device."""
    with opened(home) as hub:
        device, now = fleet.find_device(hub, named), hub.clock()
        with hub.store.reading() as connection:
            leases = read_leases(connection, device.id)
    if as_json:
        told_of = {"online": device.online(now), "leases": [asdict(each) for each in leases]}
        show.print_json({**asdict(device), **told_of})
        return
    facts(
        [
            ("name", device.name),
            ("id", device.id),
            ("group", device.group),
            ("state", state(device, now)),
            ("joined", day_time(device.enrolled_at)),
            ("seen", ago(device.last_seen_at, now)),
            ("clock", _clock(device.clock_skew_s)),
            ("runtime", device.runtime),
            ("pack", device.pack),
            ("policy", _policy(device, now)),
            ("refused", _refused(device, now)),
            ("waiting", count(device.waiting, "task")),
            *((f"model {name}", digest) for name, digest in sorted(device.models.items())),
            *((f"lease {each.pool}", _lease(each)) for each in leases if each.state != "sealed"),
        ]
    )


@app.command("revoke")
def revoke(named: _DEVICE, *, home: Home = None, yes: Yes = False) -> None:
    """Shut a device out for good; to come back it has to join anew with a new key."""
    with opened(home) as hub:
        device = fleet.find_device(hub, named)
        confirm(f"Shut out {device.name} ({device.id[:_SHORT]})?", yes=yes)
        fleet.revoke(hub, device, who=who())
    told(f"{device.name} is revoked.")


@app.command("move")
def move(
    named: _DEVICE,
    group: Annotated[str, typer.Argument(help="Where to.")],
    *,
    home: Home = None,
) -> None:
    """Put a device into another group; it gets what that group runs."""
    with opened(home) as hub:
        device = fleet.find_device(hub, named)
        revision = fleet.move(hub, device, group=group, who=who())
    gets = f"gets policy {revision}" if revision else "keeps what it has"
    told(f"{device.name} is in {group} now, and {gets}.")


def state(device: Device, now: float) -> Styled:
    """Return the state in colour: the status, and for an active device whether it is online."""
    if device.status == "revoked":
        return Styled("[red]revoked[/red]")
    if device.status == "quarantined":
        return Styled("[yellow]quarantined[/yellow]")
    return Styled("[green]online[/green]" if device.online(now) else "[dim]offline[/dim]")


def _clock(skew_s: float | None) -> str | Styled:
    if skew_s is None:
        return ""
    if abs(skew_s) < 1:
        return "right"
    words = f"{span(abs(skew_s))} {'ahead' if skew_s > 0 else 'behind'}"
    return Styled(f"[yellow]{words}[/yellow]") if abs(skew_s) > _CLOCK_OFF_S else words


def _policy(device: Device, now: float) -> str:
    if not device.revision:
        return "none: the pack alone"
    since = "" if device.revision_since is None else f", for {span(now - device.revision_since)}"
    return f"revision {device.revision}{since}"


def _refused(device: Device, now: float) -> str:
    if not device.refused:
        return ""
    told_of = device.refused
    when = f", {ago(told_of['at'], now)}" if "at" in told_of else ""
    return f"revision {told_of.get('revision')}{when}: {told_of.get('reason')}"


def _lease(lease: DeviceLease) -> str:
    used = f"{cents(lease.used_microusd)} of {cents(lease.amount_microusd)} used"
    whose = f"task {lease.task}" if lease.task else "any task"
    why = f": {lease.why_closed}" if lease.why_closed else ""
    grade = ", escrow-grade" if lease.escrow else ""
    return f"{used}, {whose}, until {day_time(lease.not_after)}, {lease.state}{why}{grade}"
