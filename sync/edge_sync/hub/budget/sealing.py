"""What is due with one gateway: seal, read, revoke.

Rights that are over are closed; gateways are asked to seal them, and what they did not come to is
free again only once their count is final. Guarantees: a gateway that does not answer, lost its
register, or says what cannot be true gets its error shown at its row and moves no money; the others
go on. Every step may be repeated, also by several replicas at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection, func, select

from edge_sync.hub.budget import books, gateways, mirror, pulling, recovery
from edge_sync.hub.budget.answers import Standing
from edge_sync.hub.budget.asking import PAGE, Asking, GatewayRefused
from edge_sync.hub.budget.gateways import Gateway
from edge_sync.hub.home import Hub, read_fact
from edge_sync.money.periods import bounds
from edge_sync.store import bulk
from edge_sync.store.schema import devices, leases

T = TypeVar("T")

LOOK_EVERY_S = 30.0
"""A gateway with which nothing is to be done is asked for its totals so often."""
_BOOKED = 100
"""Seals booked in one transaction: devices that sync wait for it."""


@dataclass(frozen=True, slots=True)
class _Due:
    """What is to be done with one gateway."""

    epoch: int
    recovering: bool
    closing: list[str]
    revoked: list[str]


def tend(hub: Hub, gate: Gateway, line: Asking) -> None:
    """Do what is due with one gateway.

    Raises:
        SyncError: it does not answer, or says what cannot be true.
        ConfigError: it lost its register.
        StoreError: the database or the keys folder failed.

    """
    with hub.store.reading() as connection:
        due = _due(connection, gate)
    if due.recovering:
        return
    if gate.epoch != due.epoch:
        recovery.admit(hub, gate, line)
        return
    now = hub.clock()
    look = gate.error != "" or gate.seen_at is None or now - gate.seen_at >= LOOK_EVERY_S
    state = None
    if due.closing or due.revoked or look:
        # Who answers is looked at before anything follows from an answer.
        state = line.state(limit=1, totals=look)
        gateways.require_register(gate, state)
        if (state.epoch or 0) > due.epoch:
            recovery.begin(hub, why=f"a gateway is at epoch {state.epoch}", above=state.epoch or 0)
            return
    if not pulling.pull(hub, gate, line):
        recovery.begin(hub, why=f"the gateway of pool {gate.pool_id} knows leases that it does not")
        return
    _revoke(hub, gate, line, due.revoked)
    wrong = [_seal(hub, line, ids, due.epoch) for ids in _pieces(due.closing, PAGE)]
    if any(wrong):
        raise GatewayRefused(next(filter(None, wrong)))
    if look and state is not None:
        hub.store.write(partial(gateways.note, pool_id=gate.pool_id, state=state, now=now))


def close_ended(hub: Hub) -> None:
    """Close open rights that are past their time or of devices that may spend no more.

    Raises:
        StoreError: the database failed.

    """
    with hub.store.reading() as connection:
        found = _ended(connection, now=hub.clock())
    if found:

        def work(connection: Connection) -> None:
            for why, lease_ids in found.items():
                books.close(connection, lease_ids, why=why)

        hub.store.write(work)


def _ended(connection: Connection, *, now: float) -> dict[str, list[str]]:
    over = leases.c.not_after < now
    query = (
        select(leases.c.lease_id, leases.c.period, devices.c.status)
        .outerjoin(devices, devices.c.id == leases.c.device_id)
        .where(leases.c.state == "open", over | (devices.c.status != "active"))
    )
    found: dict[str, list[str]] = {}
    whys = {"revoked": "revoked", "quarantined": "quarantine"}
    for lease_id, period, status in connection.execute(query):
        ended = "period" if bounds(period)[1] <= now else "expired"
        found.setdefault(whys.get(status, ended), []).append(lease_id)
    return found


def _due(connection: Connection, gate: Gateway) -> _Due:
    closing = (
        select(leases.c.lease_id)
        .where(leases.c.state == "closing", leases.c.pool_id == gate.pool_id)
        .order_by(leases.c.lease_id)
    )
    out = devices.c.status == "revoked"
    revoked: list[str] = []
    count = connection.execute(select(func.count()).select_from(devices).where(out)).scalar_one()
    # Nobody comes back once revoked, so a number tells which of them a gateway knows.
    if count != (read_fact(connection, gateways.told_fact(gate.pool_id)) or 0):
        revoked = list(connection.execute(select(devices.c.id).where(out)).scalars())
    return _Due(
        read_fact(connection, "epoch") or 0,
        bool(read_fact(connection, "recovering")),
        list(connection.execute(closing).scalars()),
        revoked,
    )


def _revoke(hub: Hub, gate: Gateway, line: Asking, revoked: list[str]) -> None:
    if not revoked:
        return
    for ids in _pieces(revoked, PAGE):
        line.revoke(ids)
    fact = (gateways.told_fact(gate.pool_id), len(revoked))
    hub.store.write(lambda connection: mirror.set_facts(connection, [fact]))


def _seal(hub: Hub, line: Asking, ids: Sequence[str], epoch: int) -> str:
    """Ask for some seals and book what is final; return what was wrong with one, if anything."""
    wrong = ""
    for standings in _pieces(line.seal(ids), _BOOKED):
        found = hub.store.write(partial(book, standings=standings, epoch=epoch))
        wrong = wrong or found
    return wrong


def book(connection: Connection, standings: Iterable[Standing], *, epoch: int) -> str:
    """Book what a gateway told of leases that it sealed; return what was wrong, if anything.

    Args:
        connection: inside a write.
        standings: of rights that are closing; of others nothing is taken.
        epoch: when they were asked for; nothing is booked once a recovery has begun.

    """
    if read_fact(connection, "epoch") != epoch or read_fact(connection, "recovering"):
        return ""
    told = {each.lease_id: each for each in standings}
    keys = [(lease_id, "closing") for lease_id in told]
    columns = ("lease_id", "amount_microusd")
    rows = bulk.find(connection, leases, keys=keys, by=("lease_id", "state"), columns=columns)
    costs = pulling.costs(connection, told)
    wrong = ""
    good: list[tuple[str, int]] = []
    for lease_id, amount in rows:
        used, known = told[lease_id].used_microusd, costs.get(lease_id, 0)
        if known <= used <= amount:
            good.append((lease_id, used))
            continue
        wrong = wrong or (
            f"A gateway says that {used} micro-dollars of lease {lease_id} were used, of which "
            f"{amount} were granted, and {known} settled by its own rows; nothing was booked."
        )
    bulk.change(connection, leases, rows=good, columns=("lease_id", "seen_microusd"), by="lease_id")
    for lease_id, used in good:
        if told[lease_id].final:
            books.seal(connection, lease_id, used_microusd=used)
    return wrong


def _pieces(whole: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (whole[at : at + size] for at in range(0, len(whole), size))
