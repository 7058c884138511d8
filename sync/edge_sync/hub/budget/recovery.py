"""A hub's way back after its database was set back: to a backup, a snapshot, a replica that lagged.

What was granted since is in no table then, but some of it may be spent. So no lease is granted
until every gateway has voided all older ones and told what they came to:

    begin     a higher epoch into the keys folder first, then into the database with ``recovering``;
              where the folder knows more, caps and gateways come from there
    recover   all gateways are told the epoch, then read; the books follow from that, and devices
              that were revoked since are revoked again

Guarantees: leases are granted in an epoch above every one that a gateway or an earlier life of the
database knew; a crash anywhere leads here again. Any replica may do each step, at any time, twice.
A gateway that does not answer keeps the hub from granting; taking it away gives up what it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import TypeVar

from sqlalchemy import Connection, select, update

from edge.errors import EdgeError
from edge_sync.hub.budget import books, gateways, hearing, mirror, outside, replacing
from edge_sync.hub.budget.asking import Asking, GatewayRefused
from edge_sync.hub.budget.caps import read_caps
from edge_sync.hub.budget.gateways import Gateway
from edge_sync.hub.budget.hearing import Heard
from edge_sync.hub.budget.outside import Outside
from edge_sync.hub.home import Hub, read_fact
from edge_sync.money import account
from edge_sync.money.account import Report
from edge_sync.store.schema import devices, leases

T = TypeVar("T")


class _Overtaken(Exception):  # noqa: N818 - it is no error: somebody else did it meanwhile
    """Another replica went on meanwhile; nothing was changed."""


def look(hub: Hub) -> bool:
    """Compare the database with the keys folder and copy it there; begin where it was set back.

    Returns:
        Whether a recovery was begun.

    Raises:
        ConfigError: the file in the keys folder cannot be read.
        StoreError: the database or the file failed.

    """
    if not mirror.write(hub):
        return False
    begin(hub, why="the database has less than the keys folder knows of", outside_knows=True)
    return True


def begin(
    hub: Hub, *, why: str, above: int = 0, outside_knows: bool = False, who: str = "hub"
) -> None:
    """Take a higher epoch, and grant nothing until all gateways have answered.

    Args:
        hub: the hub, open.
        why: for the audit log.
        above: an epoch that some gateway is at.
        outside_knows: caps and gateways come from the keys folder.
        who: for the audit log.

    Raises:
        ConfigError: the file in the keys folder cannot be read.
        StoreError: the database or the file failed.

    """
    with hub.store.reading() as connection:
        before = read_fact(connection, "epoch") or 0
    kept = claim(hub, above=max(above, before))

    def work(connection: Connection) -> None:
        # Another replica may have begun, and even ended, since: its epoch is then in use.
        if (read_fact(connection, "epoch") or 0) != before:
            raise _Overtaken
        enter(connection, kept, outside_knows=outside_knows, now=hub.clock())

    try:
        hub.change(
            who, "budget.restored", about=f"epoch {kept.epoch}", detail={"why": why}, work=work
        )
    except _Overtaken:
        return
    mirror.write(hub)


def claim(hub: Hub, *, above: int) -> Outside:
    """Take an epoch in the keys folder, before the database hears of it; return what is there.

    Raises:
        ConfigError: the file in the keys folder cannot be read.
        StoreError: it cannot be written.

    """
    return outside.change(
        hub.keys,
        lambda before: replace(before, epoch=max(before.epoch, above) + 1, recovering=True),
    )


def enter(connection: Connection, kept: Outside, *, outside_knows: bool, now: float) -> None:
    """Put the database under a new epoch, inside a write; devices lose their leases.

    Each device may sync once with whatever nonce it has: the one it was given last is not known.
    """
    if outside_knows:
        replacing.caps(connection, kept.caps, now=now)
        replacing.gateways(connection, kept.gateways, now=now)
    granted = max(kept.granted, read_fact(connection, "granted") or 0)
    changes = max(kept.changes, read_fact(connection, mirror.CHANGES) or 0)
    numbers = {"epoch": kept.epoch, "granted": granted, mirror.CHANGES: changes, "recovering": 1}
    mirror.set_facts(connection, list(numbers.items()))
    change = update(leases).where(leases.c.state == "open")
    connection.execute(change.values(state="closing", why_closed="restore"))
    connection.execute(update(devices).where(devices.c.status == "active").values(nonce=""))


def recover(hub: Hub, lines: Mapping[str, Asking], executor: Executor) -> bool:
    """Ask all gateways, and grant again where all have answered; return whether that is so.

    Args:
        hub: the hub, open.
        lines: to the gateways by pool; one that is missing counts as one that does not answer.
        executor: runs the questions side by side.

    Raises:
        ConfigError: the file in the keys folder cannot be read.
        StoreError: the database or the file failed.

    """
    with hub.store.reading() as connection:
        epoch = read_fact(connection, "epoch") or 0
        gates = gateways.counting(connection)
    # First all are told: as long as one does not answer, reading the others is of no use.
    told = _each(
        hub, gates, executor, lambda gate: hearing.fence(gate, lines[gate.pool_id], epoch=epoch)
    )
    if told is None or _above(hub, told.values(), epoch):
        return False
    heard = _each(hub, gates, executor, lambda gate: hearing.hear(hub, gate, lines[gate.pool_id]))
    if heard is None:
        return False
    reports = [report for found in heard.values() for report in found.reports]
    if _above(hub, [report.epoch + 1 for report in reports], epoch):
        return False
    return _rebuild(hub, epoch, heard, reports)


def admit(hub: Hub, gateway: Gateway, line: Asking) -> None:
    """Tell a gateway that was added the hub's epoch, so that leases for it can be granted.

    Where it has leases that this hub knows nothing of, or a higher epoch, a recovery is begun.

    Raises:
        SyncError: it does not answer, or says what cannot be true.
        ConfigError: the file in the keys folder cannot be read.
        StoreError: the database or the file failed.

    """
    with hub.store.reading() as connection:
        epoch = read_fact(connection, "epoch") or 0
    if _above(hub, [hearing.fence(gateway, line, epoch=epoch)], epoch):
        return
    state, standings = hearing.read_register(line)
    now = hub.clock()

    def work(connection: Connection) -> bool:
        # What came to nothing may be forgotten here, see ``forgetting``.
        told = [each.lease_id for each in standings if each.used_microusd or not each.final]
        if hearing.unknown(connection, told):
            return False
        if read_fact(connection, "epoch") == epoch and not read_fact(connection, "recovering"):
            gateways.note(connection, gateway.pool_id, state=state, now=now, epoch=epoch)
        return True

    if not hub.store.write(work):
        begin(hub, why=f"the gateway of pool {gateway.pool_id} knows leases that the hub does not")


def _rebuild(hub: Hub, epoch: int, heard: Mapping[str, Heard], reports: Sequence[Report]) -> bool:
    """Write the books that follow from what all gateways told, and end the recovery."""
    now = hub.clock()

    def work(connection: Connection) -> None:
        asked = {gate.pool_id for gate in gateways.counting(connection)}
        same = read_fact(connection, "epoch") == epoch and asked == heard.keys()
        if not same or not read_fact(connection, "recovering"):
            raise _Overtaken
        off = leases.c.why_closed == gateways.WRITTEN_OFF
        gone = set(connection.execute(select(leases.c.lease_id).where(off)).scalars())
        told = account.rebuild(each for each in reports if each.lease_id not in gone)
        books.rebuild(connection, told, read_caps(connection), now=now)
        for pool_id, found in heard.items():
            replacing.revoked(connection, pool_id, found.revoked, now=now)
            gateways.note(connection, pool_id, state=found.state, now=now, epoch=epoch)
        mirror.set_facts(connection, [("recovering", 0)])

    used = sum(report.used_microusd for report in reports)
    detail = {"leases": len(reports), "used_microusd": used}
    try:
        hub.change("hub", "budget.recovered", about=f"epoch {epoch}", detail=detail, work=work)
    except _Overtaken:
        return False
    mirror.write(hub)
    return True


def _each(
    hub: Hub, gates: Sequence[Gateway], executor: Executor, ask: Callable[[Gateway], T]
) -> dict[str, T] | None:
    """Ask all gateways at once; ``None`` where one failed, which is noted at its row."""

    def safely(gate: Gateway) -> T | EdgeError:
        try:
            return ask(gate)
        except KeyError:
            return GatewayRefused(f"The gateway of pool {gate.pool_id} cannot be asked.")
        except EdgeError as error:
            return error

    answers = list(zip(gates, executor.map(safely, gates), strict=True))
    failed = any(isinstance(found, EdgeError) for _, found in answers)
    for gate, found in answers:
        if isinstance(found, EdgeError):
            gateways.note_error(hub, gate, found)
        elif failed:  # else the next question shows whether all is well
            gateways.note_error(hub, gate, None)
    if failed:
        return None
    return {gate.pool_id: found for gate, found in answers if not isinstance(found, EdgeError)}


def _above(hub: Hub, epochs: Iterable[int], epoch: int) -> bool:
    """Begin anew where a gateway is at a higher epoch; return whether one is."""
    highest = max(epochs, default=0)
    if highest <= epoch:
        return False
    begin(hub, why=f"a gateway is at epoch {highest}", above=highest)
    return True
