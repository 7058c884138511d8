"""A hub set back to a backup that is a day old, and a device that was copied ten times.

Real processes, the hub on PostgreSQL. The hub's clock is a day behind until the backup is taken;
then its fleet goes on with new leases, a higher cap and another device, until under load the
database is lost and restored. And ten copies of one device's disk spend beside each other, cut off
from the hub, before they sync one after the other.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from _chaos_fleet import Fleet, ends, start
from _chaos_parties import Device, Server
from _common import Row, at_most, main
from sqlalchemy import func, select

from edge_sync.hub.backup import backup
from edge_sync.hub.restoring import restore
from edge_sync.store.schema import audit, leases, ledger_rows

SEED = 20261129
DAY_S = 86_400.0
COPIES = 10
FULL_S, QUICK_S = 60.0, 6.0
RAISE_MICROUSD, ROOM_MICROUSD = 40_000, 5_000_000
BACK_S = 300.0
_PATIENCE_S = 120.0


def restored(folder: Path, stack: ExitStack, *, seconds: float, seed: int) -> Iterator[Row]:
    """Yield what a restore under load came to."""
    fleet = start(folder, stack, devices=5, threads=4, faults=0.02, seed=seed, late_s=DAY_S)
    _load(fleet, seconds / 2)
    old = folder / "backup.db"
    backup(fleet.hub.with_clock(lambda: time.time() - DAY_S), old, who="bench")
    kept = _counts(fleet)
    for replica in fleet.replicas:
        _be_on_time(replica)
    fleet.add_device(threads=4)
    _load(fleet, seconds)
    lost = _counts(fleet)
    for replica in fleet.replicas:
        replica.kill()
    begun = time.monotonic()
    restore(fleet.hub, old, who="bench", replace=True)
    for replica in fleet.replicas:
        replica.start()
    epoch = _largest_epoch(fleet)
    _until(lambda: _granted(fleet) > 0 and _largest_epoch(fleet) > epoch, "lease of a new epoch")
    back_s = time.monotonic() - begun
    _load(fleet, seconds / 2)
    fleet.provider.faults = 0.0
    fleet.raise_cap(ROOM_MICROUSD)
    yield Row("leases, rows in the backup", f"{kept[0]}, {kept[1]}", "")
    yield Row("leases, rows when the database was lost", f"{lost[0]}, {lost[1]}", "")
    yield at_most("granting again after", back_s, BACK_S, "s")
    yield from ends(fleet)


def cloned(folder: Path, stack: ExitStack, *, seconds: float, seed: int) -> Iterator[Row]:
    """Yield what ten copies of a device came to."""
    fleet = start(folder, stack, devices=1, threads=2, faults=0.0, seed=seed)
    _until(lambda: fleet.provider.bill.sales > 0, "first call")
    (first,) = fleet.devices
    first.kill()
    copies = [_copy(fleet, first, f"copy-{at}") for at in range(COPIES)]
    with fleet.hub.store.reading() as connection:
        held = connection.execute(
            select(leases.c.amount_microusd, leases.c.seen_microusd).where(leases.c.state == "open")
        ).all()
    before = fleet.provider.bill.total
    for copy in copies:
        copy.start()
    for copy in copies:
        copy.say("told")  # once it is ready
    time.sleep(seconds)
    spent = fleet.provider.bill.total - before
    if not spent:
        raise SystemExit("The copies spent nothing, so they show nothing.")
    yield Row("leases that the copied disk held", len(held), "")
    yield at_most(
        "spent by ten copies, against one lease",
        spent,
        sum(row[0] for row in held),
        "micro-dollars",
    )
    syncs = 0
    for copy in copies:
        if not _forked(fleet):
            _let_sync(fleet, copy)
            syncs += 1
    yield at_most("copies that synced until it was noticed", syncs, 2)
    granted = _counts(fleet)[0]
    for copy in copies:
        _let_sync(fleet, copy)
    time.sleep(seconds / 2)
    yield at_most("leases granted afterwards", _counts(fleet)[0] - granted, 0)
    bill = fleet.provider.bill
    yield at_most("overspend, at every sale", max(0, bill.over), 0, "micro-dollars")
    yield at_most("calls billed twice", len(bill.twice), 0)
    register = fleet.register()
    redeemed = sum(row["actual"] or 0 for row in register.rows())
    register.close()
    yield at_most("sold, but not counted at the gateway", bill.total - redeemed, 0, "micro-dollars")


def _copy(fleet: Fleet, first: Device, name: str) -> Device:
    """Return a device over a copy of another's disk, cut off from the hub."""
    servers = [*fleet.replicas, fleet.gateway]
    made = Device(fleet.folder / name, fleet.links, servers=servers, code="", threads=4)
    shutil.copytree(first.state, made.state)
    for line in made.lines[:-1]:
        fleet.links.cut(line, "refused")
    fleet.stack.callback(made.end)
    return made


def _let_sync(fleet: Fleet, device: Device) -> None:
    """Let a device reach the hub, until it has synced; started anew, since it pauses for long."""
    device.kill()
    for line in device.lines[:-1]:
        fleet.links.cut(line, "open")
    device.start()
    _until(lambda: device.say("told")["syncs"] > 0, f"sync of {device.name}")


def _forked(fleet: Fleet) -> bool:
    with fleet.hub.store.reading() as connection:
        found = select(func.count()).select_from(audit).where(audit.c.what == "device.forked")
        return connection.execute(found).scalar_one() > 0


def _load(fleet: Fleet, seconds: float) -> None:
    """Let the devices work, with a cap that rises and always binds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        fleet.raise_cap(RAISE_MICROUSD)
        fleet.reconcile()
        time.sleep(2.0)


def _be_on_time(replica: Server) -> None:
    replica.kill()
    replica.command[-1] = "0"
    replica.start()
    replica.ready()


def _counts(fleet: Fleet) -> tuple[int, int]:
    """Return how many leases and how many rows of devices the hub has."""
    with fleet.hub.store.reading() as connection:
        found: list[Any] = [
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (leases, ledger_rows)
        ]
    return found[0], found[1]


def _granted(fleet: Fleet) -> int:
    """Return how many leases that were signed here are open."""
    with fleet.hub.store.reading() as connection:
        query = select(func.count()).where(leases.c.state == "open", leases.c.text != "")
        return int(connection.execute(query).scalar_one())


def _largest_epoch(fleet: Fleet) -> int:
    with fleet.hub.store.reading() as connection:
        query = select(func.coalesce(func.max(leases.c.epoch), 0)).where(leases.c.text != "")
        return int(connection.execute(query).scalar_one())


def _until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not true():
        if time.monotonic() > end:
            raise SystemExit(f"No {what} within {_PATIENCE_S:g} s")
        time.sleep(0.05)


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield every row."""
    seconds = QUICK_S if arguments.quick else FULL_S
    seed = int(arguments.seed or SEED)
    for title, part in (("hub set back by a day", restored), ("device copied", cloned)):
        yield Row(title, f"seed {seed}", "")
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            yield from part(Path(name), stack, seconds=seconds, seed=seed)


if __name__ == "__main__":
    main("restore", measure, options={"--seed": "of the provider's faults"})
