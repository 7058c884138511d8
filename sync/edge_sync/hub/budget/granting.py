"""Leases out of wants, inside the transaction that takes a batch of syncs.

Guarantees: a lease is taken out of every pot above it before it is signed, and never crosses one of
their periods; a device has at most one open lease for a pool and task, and none for any task where
one has a cap of its own; whoever is quarantined gets none and loses what is open; the same request
again gets no more. Grants nothing while a database that was set back is recovered, or without the
key of leases. Needs a few queries a batch.
"""

from __future__ import annotations

import math
import secrets
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, delete, select

from edge.errors import EdgeError
from edge_sync.hub import audit
from edge_sync.hub.budget import books, caps, leasekey, mirror, outside
from edge_sync.hub.budget.books import Held
from edge_sync.hub.budget.caps import split_by_task
from edge_sync.hub.budget.crowd import Crowd, read_crowd
from edge_sync.hub.budget.leasekey import LeaseKey
from edge_sync.hub.budget.sharing import Sharing
from edge_sync.hub.budget.uses import Synced, settle
from edge_sync.hub.home import Hub, raise_fact, read_fact
from edge_sync.money.account import Right
from edge_sync.money.caps import Purpose
from edge_sync.money.lease import Lease
from edge_sync.money.periods import bounds
from edge_sync.store import bulk
from edge_sync.store.schema import gateways, wants

STANDS_SYNCS = 3
"""A want that was not told again for so many syncs does not stand: its device is away."""
_WANT = ("device_id", "pool_id", "task", "demand_microusd", "at")
_NEW_WANT = "UPDATE SET demand_microusd = excluded.demand_microusd, at = excluded.at"


@dataclass(frozen=True, slots=True)
class Seeker:
    """Who is to get a lease, and for what.

    Attributes:
        revision: of the policy in force on the device.

    """

    purpose: Purpose
    demand_microusd: int
    revision: int


@dataclass(frozen=True, slots=True)
class Spendable:
    """What a device may spend from now on.

    Attributes:
        leases: signed, in the order to use them.
        granted: how many leases the hub has granted so far; to be noted outside of the database
            before these leave, see ``outside.raise_granted``.

    """

    leases: tuple[str, ...] = ()
    granted: int = 0


def may_grant(connection: Connection) -> bool:
    """Whether the books are whole: not while a database that was set back is recovered."""
    return not read_fact(connection, "recovering")


class Granting:
    """Grants leases; one for a process.

    Args:
        hub: the hub, open.
        draw: the id of a lease, 32 random hex digits.

    Attributes:
        trouble: why nothing is granted now; empty where that is not so.

    """

    def __init__(
        self, hub: Hub, *, draw: Callable[[], str] = lambda: secrets.token_hex(16)
    ) -> None:
        self.trouble = ""
        self._hub = hub
        self._draw = draw
        self._crowd = Crowd(-math.inf)
        self._lease_key: LeaseKey | None = None

    def answer(
        self, connection: Connection, asking: Sequence[Synced], *, now: float
    ) -> list[Spendable]:
        """Return what each device may spend from now on.

        Args:
            connection: inside a write.
            asking: each device once.
            now: seconds since the epoch.

        """
        fresh = [one for one in asking if not one.again]
        wanting = [one for one in fresh if one.request.wants]
        granted = read_fact(connection, "granted") or 0
        if not granted and not wanting:
            return [Spendable()] * len(asking)
        epoch = read_fact(connection, "epoch") or 1
        grades = _grades(connection, epoch)
        held = settle(connection, asking, grades=grades, epoch=epoch, now=now)
        asked = _asked(connection, wanting)
        _put_wants(connection, wanting, asked, now=now)
        seekers = _seekers(asked, held, grades)
        key = self._key(connection, granted=granted, epoch=epoch, now=now) if seekers else None
        if key is not None:
            new = self._grant(connection, seekers, key, epoch=epoch, now=now)
            granted = raise_fact(connection, "granted", by=len(new)) if new else granted
            held += new
        found: dict[str, list[str]] = defaultdict(list)
        for each in held:
            found[each.right.purpose.device_id].append(each.text)
        return [
            Spendable(tuple(found[one.request.device_id]), granted)
            if one.request.device_id in found
            else Spendable()
            for one in asking
        ]

    def _key(
        self, connection: Connection, *, granted: int, epoch: int, now: float
    ) -> LeaseKey | None:
        """Return the key to sign with, where the books are whole; else a person is told why."""
        known = caps.key_name(connection)
        if known is None or not may_grant(
            connection
        ):  # a hub of an older version without caps, or it was told already
            return None
        key, reason = self._lease_key, ""
        try:
            key = key or leasekey.find(self._hub.keys)
            changes = read_fact(connection, mirror.CHANGES) or 0
            kept = outside.read(self._hub.keys)
            if kept.ahead_of(epoch=epoch, granted=granted, changes=changes):
                reason = f"{outside.NAME} knows of more than the database: it was set back"
        except EdgeError as error:
            reason = str(error)
        if not reason and (key is None or key.key_id != known):
            reason = f"the key of leases {known} is not in the keys folder"
        if reason and reason != self.trouble:
            detail = {"reason": reason}
            audit.append(
                connection, at=now, who="hub", what="budget.paused", about="", detail=detail
            )
        self.trouble = reason
        self._lease_key = None if reason else key
        return self._lease_key

    def _grant(
        self,
        connection: Connection,
        seekers: Sequence[Seeker],
        key: LeaseKey,
        *,
        epoch: int,
        now: float,
    ) -> list[Held]:
        """Grant what fits, in the order the devices came, and write it at once."""
        sharing = Sharing(
            connection,
            [seeker.purpose for seeker in seekers],
            crowd=self._read_crowd(connection, now),
            terms=self._hub.settings.money.grants,
            now=now,
        )
        lease_s = self._hub.settings.money.lease_s
        new: list[Held] = []
        for seeker in seekers:
            amount = sharing.amount(seeker.purpose, seeker.demand_microusd)
            if amount:
                period = sharing.places[seeker.purpose].period
                right = Right(self._draw(), seeker.purpose, period, epoch, amount)
                sharing.take(right)
                end = min(bounds(period)[1] - 1, now + lease_s)
                lease = _lease(right, key, end=end, revision=seeker.revision)
                new.append(
                    Held(right, granted_at=now, not_after=lease.not_after, text=lease.text())
                )
        sharing.write(connection)
        books.add(connection, new)
        return new

    def _read_crowd(self, connection: Connection, now: float) -> Crowd:
        if not self._crowd.stands(now):
            settings = self._hub.settings
            since = now - STANDS_SYNCS * settings.sync_every_s
            floor = settings.money.floor_microusd > 0
            self._crowd = read_crowd(connection, now=now, since=since, floor=floor)
        return self._crowd


def _lease(right: Right, key: LeaseKey, *, end: float, revision: int) -> Lease:
    return Lease(
        lease_id=right.lease_id,
        scope=right.purpose.scope,
        period=right.period,
        device_id=right.purpose.device_id,
        pool_id=right.purpose.pool_id,
        epoch=right.epoch,
        amount_microusd=right.amount_microusd,
        not_after=int(end),
        policy_version=revision,
        key_id=key.key_id,
    ).signed(key.private)


def _grades(connection: Connection, epoch: int) -> dict[str, str]:
    """Return the pools that leases may be granted for: a gateway must have confirmed the epoch."""
    ready = (gateways.c.grade == "escrow") | (gateways.c.epoch == epoch)
    query = select(gateways.c.pool_id, gateways.c.grade).where(ready)
    return {str(pool): str(grade) for pool, grade in connection.execute(query)}


def _asked(connection: Connection, wanting: Sequence[Synced]) -> list[tuple[Synced, Seeker]]:
    """Return what wants come to.

    One for any task stands for those for single tasks beside it, except where one task has a cap of
    its own: there each task has to be named, so that what is spent on it counts.
    """
    told = {
        Purpose(one.group, one.request.device_id, want.pool, want.task): (one, want.demand_microusd)
        for one in wanting
        for want in one.request.wants
    }
    split = split_by_task(connection, told)
    general = {each for each, (_, demand) in told.items() if not each.task and demand} - split
    return [
        (one, Seeker(purpose, demand, one.request.have.revision))
        for purpose, (one, demand) in told.items()
        if purpose not in split and not (purpose.task and replace(purpose, task="") in general)
    ]


def _put_wants(
    connection: Connection,
    wanting: Sequence[Synced],
    asked: Sequence[tuple[Synced, Seeker]],
    *,
    now: float,
) -> None:
    """Keep what devices want in place of what they wanted before."""
    rows = [
        (each.purpose.device_id, each.purpose.pool_id, each.purpose.task, each.demand_microusd, now)
        for _, each in asked
    ]
    bulk.put(connection, wants, rows=rows, columns=_WANT, instead=_NEW_WANT)
    ids = {one.request.device_id for one in wanting}
    connection.execute(delete(wants).where(wants.c.device_id.in_(ids), wants.c.at != now))


def _seekers(
    asked: Sequence[tuple[Synced, Seeker]], held: Sequence[Held], grades: Mapping[str, str]
) -> list[Seeker]:
    """Return who is to get a lease: for a pool whose money is counted, and with none open."""
    had = {
        (right.purpose.device_id, right.purpose.pool_id, right.purpose.task)
        for right in (each.right for each in held)
    }
    return [
        each
        for one, each in asked
        if one.good
        and (each.purpose.device_id, each.purpose.pool_id, each.purpose.task) not in had
        and each.purpose.pool_id in grades
        and each.demand_microusd
    ]
