"""A simulated hub: its books in a database that can be lost, epoch and caps outside of it.

Every decision about money is taken by the rules of ``edge_sync.money``; the hub keeps the rows,
notices copies of a device by the nonce of its sync, and asks gateways for seals and rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple, Self

from _budget_pool import purpose
from _budget_wire import (
    Bug,
    Fence,
    Fenced,
    Message,
    Pull,
    Pulled,
    Replayed,
    Reply,
    Row,
    SealAsk,
    Sealed,
    Sync,
)

from edge_sync.money import account
from edge_sync.money.account import Pot, Right
from edge_sync.money.caps import Cap, Caps, Purpose, Scope
from edge_sync.money.grants import Claim, Terms, grant_amount
from edge_sync.money.lease import Lease
from edge_sync.money.periods import kind_of, left_of, period_of

PotKey = tuple[Scope, str]
RowKey = tuple[str, object]
RECENT_S = 2 * 86_400.0
LONG_OFFLINE_S = 3 * 86_400.0


class Member(NamedTuple):
    """A device as the hub knows it."""

    group: str
    nonce: str = ""
    epoch: int = 0
    request_id: str = ""
    reply: Reply | None = None
    seen: float = 0.0
    demand: int = 0
    quarantined: bool = False


@dataclass
class Books:
    """The database: what a restore brings back as it was.

    Attributes:
        live: leases that are not sealed.
        had: by device and pot, what is open or used.
        rows: the ledger; its values are cost and receipt.

    """

    pots: dict[PotKey, Pot] = field(default_factory=dict)
    rights: dict[str, Right] = field(default_factory=dict)
    live: dict[str, Lease] = field(default_factory=dict)
    had: dict[tuple[str, PotKey], int] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)
    requests: dict[str, None] = field(default_factory=dict)
    rows: dict[RowKey, tuple[Row, int]] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Self:
        """Return a backup; every value is immutable."""
        return type(self)(*(dict(getattr(self, each.name)) for each in fields(self)))


class Hub:
    """One hub.

    Attributes:
        epoch, caps, groups: kept outside of the database, as the names of the gateways are.
        awaiting: gateways that have not told yet what they hold of older epochs.
        granted, booked: what was granted (with what was free) and refunded since last looked at.

    """

    def __init__(
        self,
        caps: Caps,
        pools: Sequence[str],
        *,
        fresh: Callable[[], str],
        terms: Terms,
        ttl_s: float,
        bugs: frozenset[Bug],
    ) -> None:
        self.epoch, self.caps, self.pools = 1, caps, tuple(pools)
        self.fresh, self.terms, self.ttl_s, self.bugs = fresh, terms, ttl_s, bugs
        self.books = Books()
        self.groups: dict[str, str] = {}
        self.policy = 1
        self.watermark = 0
        self.awaiting: set[str] = set()
        self.reports: dict[str, Fenced] = {}
        self.granted: list[tuple[Lease, int]] = []
        self.booked: list[tuple[str, int]] = []

    def enrol(self, device_id: str, group: str) -> str:
        """Add a device; return its first nonce."""
        nonce = self.fresh()
        self.groups[device_id] = group
        self.books.members[device_id] = Member(group, nonce, self.epoch)
        return nonce

    def handle(self, message: Message, now: float) -> list[Message]:
        """Return what is sent in answer."""
        if isinstance(message, Sync):
            return self._sync(message, now)
        if isinstance(message, Sealed):
            self._refund(message.lease_id, message.used)
            return []
        if isinstance(message, Fenced):
            return self._fenced(message)
        assert isinstance(message, Pulled)  # noqa: S101 - nothing else is sent here
        if self.books.positions.get(message.pool_id, 0) == message.position:
            self._store(message.rows)
            self.books.positions[message.pool_id] = message.position + len(message.rows)
        return []

    def crash(self) -> None:
        """Stop and start: all that matters is in the database."""

    def tick(self, now: float) -> list[Message]:
        """Return what the hub asks for by itself from time to time."""
        sent: list[Message] = [Fence(pool, self.epoch) for pool in sorted(self.awaiting)]
        for lease in tuple(self.books.live.values()):
            # One from a clock that ran ahead would stay for years.
            if not now <= lease.not_after <= now + self.ttl_s:
                if Bug.RECLAIM in self.bugs:
                    self._refund(lease.lease_id, self._known_spend(lease.lease_id))
                    continue
                sent += self._close(lease.lease_id)
            elif self.books.rights[lease.lease_id].state == "closing":
                sent.append(SealAsk(lease.pool_id, lease.lease_id, self.epoch))
        positions = self.books.positions
        return sent + [Pull(pool, positions.get(pool, 0)) for pool in self.pools]

    def back_up(self) -> Books:
        """Complete a backup and return it; its rows may be deleted on the devices."""
        self.watermark = len(self.books.rows)
        return self.books.copy()

    def restore(self, books: Books) -> list[Message]:
        """Start again from a backup."""
        self.books = books.copy()
        self._recap()
        if Bug.NO_EPOCH in self.bugs:
            return []
        self.epoch += 1
        self.awaiting = set(self.pools)
        self.reports = {}
        self.watermark = 0
        return [Fence(pool, self.epoch) for pool in self.pools]

    def set_cap(self, cap: Cap) -> None:
        """Raise or cut a cap."""
        kept = [each for each in self.caps.caps if (each.scope, each.kind) != (cap.scope, cap.kind)]
        self.caps = Caps.of([*kept, cap])
        self._recap()

    def pardon(self, device_id: str) -> None:
        """End the quarantine of a device: an admin looked at it."""
        member = self.books.members.get(device_id)
        if member is not None:
            self.books.members[device_id] = member._replace(quarantined=False)

    def _sync(self, asked: Sync, now: float) -> list[Message]:
        books = self.books
        member = books.members.get(asked.device_id)
        if member is None:  # the backup is older than its enrolment
            member = Member(self.groups[asked.device_id])
        if member.reply is not None and member.request_id == asked.request_id:
            return [member.reply._replace(origin=asked.origin)]
        if asked.request_id in books.requests:
            return [Replayed(asked.origin, asked.request_id)]
        self._store(asked.rows)
        sent: list[Message] = []
        forked = member.nonce != asked.nonce and member.epoch == self.epoch
        mine = [each for each in books.live.values() if each.device_id == asked.device_id]
        for each in mine:
            if forked or each.lease_id in asked.given_back:
                sent += self._close(each.lease_id)
        quarantined = member.quarantined or forked
        member = member._replace(
            seen=now, demand=asked.demand, quarantined=quarantined, epoch=self.epoch
        )
        lease = None if quarantined else self._grant(asked, member, now)
        reply = self._reply(asked, lease)
        books.requests[asked.request_id] = None
        books.members[asked.device_id] = member._replace(
            nonce=reply.nonce,
            request_id=asked.request_id,
            reply=reply,
            demand=asked.demand - (lease.amount_microusd if lease else 0),
        )
        return [*sent, reply]

    def _reply(self, asked: Sync, lease: Lease | None) -> Reply:
        receipts = tuple((row.row_id, self.books.rows[self._key(row)][1]) for row in asked.rows)
        return Reply(
            asked.origin,
            asked.request_id,
            self.fresh(),
            self.epoch,
            (lease,) if lease else (),
            receipts,
            self.watermark,
            self.policy,
            None if asked.etag == self.policy else self.policy,
        )

    def _grant(self, asked: Sync, member: Member, now: float) -> Lease | None:
        if self.awaiting:
            return None
        lease = Lease(
            lease_id=self.fresh(),
            scope=f"group:{member.group}",
            period="",
            device_id=asked.device_id,
            pool_id=asked.pool_id,
            epoch=self.epoch,
            amount_microusd=0,
            not_after=int(now + self.ttl_s),
            policy_version=self.policy,
            key_id="k1",
        )
        kind = self.caps.lease_kind(purpose(lease))
        lease = replace(lease, period=period_of(kind, now))
        pots = self._pots(lease)
        scarce = min(pots, key=lambda pot: pot.free_microusd)
        free = self._whole(scarce.free_microusd)
        nothing = asked.demand == 0 or free < min(asked.demand, self.terms.least_microusd)
        amount = 0 if nothing else self._fair(free, asked, scarce, now)
        if amount == 0:
            return None
        lease = replace(lease, amount_microusd=amount)
        self._book(lease, pots)
        self.granted.append((lease, free))
        return lease

    def _fair(self, free: int, asked: Sync, scarce: Pot, now: float) -> int:
        """Return the share of one that asks among all that the scarcest cap covers."""
        others, absent = [], []
        key = scarce.scope, scarce.period
        most: dict[str, int] = {}
        for device_id, member in self.books.members.items():
            if device_id == asked.device_id or member.quarantined:
                continue
            if not scarce.scope.covers(Purpose(member.group, device_id, asked.pool_id)):
                continue
            had = self.books.had.get((device_id, key), 0)
            # One seen by a clock that ran ahead was not seen lately.
            if member.demand > 0 and abs(now - member.seen) < RECENT_S:
                # Another cap above it may be spent: it must not keep money from those below this.
                if member.group not in most:
                    of = Purpose(member.group, device_id, asked.pool_id)
                    most[member.group] = self._useful(self._free(of, now))
                others.append(Claim(device_id, min(member.demand, most[member.group]), had))
            elif abs(now - member.seen) > LONG_OFFLINE_S:
                absent.append(Claim(device_id, 0, had))
        asking = Claim(asked.device_id, asked.demand, self.books.had.get((asked.device_id, key), 0))
        return grant_amount(
            free, asking, others=others, absent=absent, terms=self.terms,
            left=left_of(scarce.period, now),
        )  # fmt: skip

    def _free(self, of: Purpose, now: float) -> int:
        """Return what all caps above a purpose leave; devices have no caps of their own here."""
        period = period_of(self.caps.lease_kind(of), now)
        pots = self._opened(account.pot_keys(self.caps, of, period=period))
        return self._whole(min(pot.free_microusd for pot in pots))

    def _useful(self, free: int) -> int:
        return free if free >= self.terms.least_microusd else 0

    def _book(self, lease: Lease, pots: Sequence[Pot]) -> None:
        amount = self._unit(lease.amount_microusd)
        right = Right(lease.lease_id, purpose(lease), lease.period, lease.epoch, amount)
        for pot in account.grant(pots, right):
            self.books.pots[pot.scope, pot.period] = pot
        self.books.rights[lease.lease_id] = right
        self.books.live[lease.lease_id] = lease
        self._count(right, pots, lease.amount_microusd)

    def _close(self, lease_id: str) -> list[Message]:
        lease = self.books.live[lease_id]
        self.books.rights[lease_id] = account.close(self.books.rights[lease_id])
        if Bug.ASYNCHRONOUS in self.bugs:
            self._refund(lease_id, self._known_spend(lease_id))
        return [SealAsk(lease.pool_id, lease_id, self.epoch)]

    def _refund(self, lease_id: str, used: int) -> None:
        right = self.books.rights.get(lease_id)
        if right is None or (self.bugs & {Bug.ASYNCHRONOUS, Bug.RECLAIM} and _sealed(right)):
            return
        pots = [pot for pot in self.books.pots.values() if pot.covers(right)]
        before = right.state
        booked, right = account.seal(pots, right, used_microusd=self._unit(used))
        for pot in booked:
            self.books.pots[pot.scope, pot.period] = pot
        if before == "sealed":
            return
        self.books.rights[lease_id] = right
        self.books.live.pop(lease_id, None)
        back = used - self._whole(right.amount_microusd)
        self._count(right, pots, back)
        self.booked.append((lease_id, used))

    def _fenced(self, told: Fenced) -> list[Message]:
        if told.epoch != self.epoch or told.pool_id not in self.awaiting:
            return []
        self.reports[told.pool_id] = told
        self.awaiting.discard(told.pool_id)
        if self.awaiting:
            return []
        rights = account.rebuild(
            report for fenced in self.reports.values() for report in fenced.reports
        )
        self.books.rights = {right.lease_id: right for right in rights}
        self.books.live = {
            right.lease_id: _stub(right) for right in rights if right.state != "sealed"
        }
        self.books.had, self.books.pots = {}, {}
        for right in rights:
            pots = self._opened(account.pot_keys(self.caps, right.purpose, period=right.period))
            self._count(right, pots, _taken(right))
        return []

    def _recap(self) -> None:
        amounts = {(cap.scope, cap.kind): cap.amount_microusd for cap in self.caps.caps}
        for key, pot in self.books.pots.items():
            kind = kind_of(pot.period)
            self.books.pots[key] = account.recap(pot, self._unit(amounts[pot.scope, kind]))

    def _pots(self, lease: Lease) -> list[Pot]:
        return self._opened(account.pot_keys(self.caps, purpose(lease), period=lease.period))

    def _opened(self, keys: Sequence[tuple[Scope, str, int]]) -> list[Pot]:
        pots = self.books.pots
        for scope, period, cap in keys:
            if (scope, period) not in pots:
                pots[scope, period] = account.open_pot(
                    scope, period, cap_microusd=self._unit(cap), rights=self.books.rights.values()
                )
        return [pots[scope, period] for scope, period, _ in keys]

    def _store(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.books.rows.setdefault(self._key(row), (row, len(self.books.rows) + 1))

    def _key(self, row: Row) -> RowKey:
        if Bug.SEQUENCE in self.bugs:
            return row.device_id, row.seq
        return row.row_id, None

    def _known_spend(self, lease_id: str) -> int:
        rows: Mapping[RowKey, tuple[Row, int]] = self.books.rows
        spent = sum(row.cost for row, _ in rows.values() if row.lease_id == lease_id)
        return min(spent, self.books.live[lease_id].amount_microusd)

    def _count(self, right: Right, pots: Sequence[Pot], amount: int) -> None:
        for pot in pots:
            key = right.purpose.device_id, (pot.scope, pot.period)
            self.books.had[key] = self.books.had.get(key, 0) + amount

    def _unit(self, amount: int) -> int:
        if Bug.FLOAT in self.bugs:
            return amount / 1e6  # type: ignore[return-value]
        return amount

    def _whole(self, amount: int) -> int:
        return round(amount * 1e6) if Bug.FLOAT in self.bugs else amount


def _sealed(right: Right) -> bool:
    return right.state == "sealed"


def _taken(right: Right) -> int:
    return right.used_microusd if right.state == "sealed" else right.amount_microusd


def _stub(right: Right) -> Lease:
    """Return what the hub needs of a lease that it only knows from a gateway's report."""
    return Lease(
        lease_id=right.lease_id,
        scope=right.purpose.scope,
        period=right.period,
        device_id=right.purpose.device_id,
        pool_id=right.purpose.pool_id,
        epoch=right.epoch,
        amount_microusd=right.amount_microusd,
        not_after=0,
        policy_version=0,
        key_id="",
    )
