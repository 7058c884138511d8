"""The hub's books in tables: rights to spend and pots, changed by the rules of ``money.account``.

Guarantees: rights and the pots that they count in change together, inside the caller's transaction;
a seal gives money back once; what a pot says is what its rights come to (``unbalanced`` looks).
Begins no transaction, asks no gateway, and decides about no amount.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, delete, func, or_, select, update

from edge.errors import StoreError
from edge_sync.money import account
from edge_sync.money.account import Pot, Right, RightState
from edge_sync.money.caps import Caps, Purpose, Scope
from edge_sync.money.periods import KINDS, Kind, kind_of, period_of, within
from edge_sync.store import bulk
from edge_sync.store.schema import gateways, leases, pots

_POT = ("scope", "period", "cap_microusd", "free_microusd", "open_microusd", "settled_microusd")
_HELD = ("lease_id", "group_name", "device_id", "pool_id", "task", "period", "epoch",
         "amount_microusd", "state", "used_microusd", "seen_microusd", "told_microusd",
         "granted_at", "not_after", "why_closed", "text")  # fmt: skip
_NEW_POT = "UPDATE SET " + ", ".join(f"{name} = excluded.{name}" for name in _POT[2:])
_TOLD = ("amount_microusd", "state", "used_microusd", "seen_microusd")
_NEW_LEASE = (
    "UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _TOLD)
    + ", why_closed = CASE leases.why_closed WHEN '' THEN excluded.why_closed "
    "ELSE leases.why_closed END"
)
UNSEALED: tuple[RightState, ...] = ("open", "closing")


@dataclass(frozen=True, slots=True)
class Held:
    """A right as the table has it.

    Attributes:
        right: what the rules look at.
        seen_microusd: redeemed and held at its gateway, when last heard of.
        told_microusd: used, as its device says.
        granted_at, not_after: seconds since the epoch.
        why_closed: empty while it is open.
        text: the signed lease; empty where it was rebuilt from a gateway.

    """

    right: Right
    seen_microusd: int = 0
    told_microusd: int = 0
    granted_at: float = 0.0
    not_after: float = 0.0
    why_closed: str = ""
    text: str = ""


def rights(
    connection: Connection,
    *,
    states: Sequence[RightState] = UNSEALED,
    pool_id: str | None = None,
    device_id: str | None = None,
) -> list[Held]:
    """Return rights in some states, the oldest first."""
    query = select(*(leases.c[name] for name in _HELD)).where(leases.c.state.in_(states))
    if pool_id is not None:
        query = query.where(leases.c.pool_id == pool_id)
    if device_id is not None:
        query = query.where(leases.c.device_id == device_id)
    query = query.order_by(leases.c.granted_at, leases.c.lease_id)
    return [_held(row) for row in connection.execute(query)]


def of_devices(connection: Connection, device_ids: Iterable[str]) -> list[Held]:
    """Return the rights of devices that are not sealed, the oldest first."""
    keys = [(device_id, state) for device_id in set(device_ids) for state in UNSEALED]
    rows = bulk.find(connection, leases, keys=keys, by=("device_id", "state"), columns=_HELD)
    found = [_held(row) for row in rows]
    return sorted(found, key=lambda held: (held.granted_at, held.right.lease_id))


def add(connection: Connection, granted: Sequence[Held]) -> None:
    """Put new rights into the table; ``account.grant`` took them out of their pots."""
    bulk.put(connection, leases, rows=[_row(held) for held in granted], columns=_HELD)


def close(connection: Connection, lease_ids: Sequence[str], *, why: str) -> None:
    """Take open rights from their devices; nothing is free before they are sealed.

    Args:
        connection: inside a write.
        lease_ids: those that are not open are left alone.
        why: done, expired, period, quarantine, revoked, cap, restore or removed.

    """
    found = bulk.find(connection, leases, keys=[(lease_id,) for lease_id in set(lease_ids)],
                      by=("lease_id",), columns=("lease_id", "state"))  # fmt: skip
    rows = [(lease_id, "closing", why) for lease_id, state in found if state == "open"]
    bulk.change(connection, leases, rows=rows, columns=("lease_id", "state", "why_closed"),
                by="lease_id")  # fmt: skip


def seal(connection: Connection, lease_id: str, *, used_microusd: int, why: str = "done") -> None:
    """Book the final count of a right and give the rest back; the same count again does nothing.

    Args:
        connection: inside a write.
        lease_id: of a right in the books.
        used_microusd: what the gateway redeemed, 0 to the right's amount.
        why: it ended, where it was still open.

    Raises:
        StoreError: there is no such right, the count is out of range, or it was sealed with
            another; nothing was changed.

    """
    query = select(*(leases.c[name] for name in _HELD)).where(leases.c.lease_id == lease_id)
    row = connection.execute(query).first()
    if row is None:
        raise StoreError(
            f"There is no lease {lease_id} in the hub's books.",
            hint="Was the hub's database set back? See `edge-hub restore`.",
        )
    held = _held(row)
    before = covering(connection, held.right)
    after, sealed = account.seal(before, held.right, used_microusd=used_microusd)
    if sealed == held.right:
        return
    put_pots(connection, after)
    change = update(leases).where(leases.c.lease_id == lease_id)
    connection.execute(
        change.values(
            state="sealed",
            used_microusd=used_microusd,
            seen_microusd=used_microusd,
            why_closed=held.why_closed or why,
        )
    )


def scopes(purpose: Purpose) -> list[Scope]:
    """Return every scope that a cap above a purpose can have."""
    levels: tuple[dict[str, str], ...] = (
        {},
        {"group": purpose.group},
        {"device": purpose.device_id},
    )
    pools, tasks = {"", purpose.pool_id}, {"", purpose.task}
    return [Scope(**level, pool=pool, task=task)
            for level, pool, task in product(levels, pools, tasks)]  # fmt: skip


def covering(connection: Connection, right: Right) -> list[Pot]:
    """Return the pots in the table that a right counts in."""
    periods = [within(right.period, kind) for kind in KINDS]
    keys = [(scope, period) for scope in scopes(right.purpose) for period in periods if period]
    return list(read_pots(connection, keys).values())


def read_pots(
    connection: Connection, keys: Iterable[tuple[Scope, str]]
) -> dict[tuple[Scope, str], Pot]:
    """Return the pots of scopes and periods, those that there are."""
    wanted = list({(scope.text(), period) for scope, period in keys})
    rows = bulk.find(connection, pots, keys=wanted, by=("scope", "period"), columns=_POT)
    found = [_pot(row) for row in rows]
    return {(pot.scope, pot.period): pot for pot in found}


def open_pot(connection: Connection, scope: Scope, period: str, *, cap_microusd: int) -> Pot:
    """Return the pot of a cap in a period as its rights come to it; it is not written."""
    unsealed = leases.c.state != "sealed"
    query = select(
        func.sum(case((unsealed, leases.c.amount_microusd), else_=0)),
        func.sum(case((unsealed, 0), else_=leases.c.used_microusd)),
    ).where(inside(period), *_within(scope))
    taken, used = (int(total or 0) for total in connection.execute(query).one())
    return Pot(scope, period, cap_microusd, cap_microusd - taken - used, taken, used)


def put_pots(connection: Connection, changed: Iterable[Pot]) -> None:
    """Write pots, new ones and others; what was told of them stays."""
    rows = [(pot.scope.text(), pot.period, pot.cap_microusd, pot.free_microusd, pot.open_microusd,
             pot.settled_microusd, 0) for pot in changed]  # fmt: skip
    bulk.put(connection, pots, rows=rows, columns=(*_POT, "alerted"), instead=_NEW_POT)


def all_pots(connection: Connection) -> list[Pot]:
    """Return all pots."""
    query = select(*(pots.c[name] for name in _POT)).order_by(pots.c.scope, pots.c.period)
    return [_pot(row) for row in connection.execute(query)]


def inside(period: str) -> ColumnElement[bool]:
    """Return the condition that a right's period lies in another."""
    kind = kind_of(period)
    if kind == "total":
        return leases.c.lease_id.is_not(None)
    day = period.partition(":")[2]
    shorter = KINDS[: KINDS.index(kind)]
    return or_(
        leases.c.period == period,
        *(leases.c.period.startswith(f"{each}:{day}", autoescape=True) for each in shorter),
    )


def rebuild(connection: Connection, told: Iterable[Right], caps: Caps, *, now: float) -> None:
    """Put what the gateways told into the books of a hub that was set back, see ``money.account``.

    What no gateway has seen is void and its money free. Where no gateway counts, a right stays
    closing until its device tells the count. All pots are opened anew.

    Args:
        connection: inside a write.
        told: by all gateways, of older epochs.
        caps: in force.
        now: seconds since the epoch.

    """
    reported = {right.lease_id: right for right in told}
    counted = _counted_pools(connection)
    void = [
        replace(held.right, state="sealed", used_microusd=0)
        for held in rights(connection)
        if held.right.lease_id not in reported and held.right.purpose.pool_id in counted
    ]
    rows = [
        _row(Held(right, _used(right), granted_at=now, not_after=now, why_closed="restore"))
        for right in (*reported.values(), *void)
    ]
    bulk.put(connection, leases, rows=rows, columns=_HELD, instead=_NEW_LEASE)
    left = update(leases).where(leases.c.state == "open")
    connection.execute(left.values(state="closing", why_closed="restore"))
    _open_anew(connection, caps, now=now)


def unbalanced(connection: Connection) -> tuple[str, ...]:
    """Return what breaks conservation (I1), a sentence each; none where all is exact."""
    query = select(*(leases.c[name] for name in _HELD))
    held = [_held(row).right for row in connection.execute(query)]
    return account.unbalanced(all_pots(connection), held)


def _open_anew(connection: Connection, caps: Caps, *, now: float) -> None:
    """Open every pot again; those of periods that are over keep the cap that they had."""
    force = {(cap.scope, cap.kind): cap.amount_microusd for cap in caps.caps}
    wanted = {(scope, period_of(kind, now)): amount for (scope, kind), amount in force.items()}
    for pot in all_pots(connection):
        if (pot.scope, kind_of(pot.period)) in force:
            wanted.setdefault((pot.scope, pot.period), pot.cap_microusd)
        else:
            drop_pots(connection, pot.scope, kind_of(pot.period))
    put_pots(
        connection,
        [open_pot(connection, scope, period, cap_microusd=amount)
         for (scope, period), amount in wanted.items()],
    )  # fmt: skip


def drop_pots(connection: Connection, scope: Scope, kind: Kind) -> None:
    """Forget the pots of a cap that is no more; its rights stay, and open them again."""
    of_kind = pots.c.period == "total" if kind == "total" else pots.c.period.startswith(f"{kind}:")
    connection.execute(delete(pots).where(pots.c.scope == scope.text(), of_kind))


def _counted_pools(connection: Connection) -> set[str]:
    """Return the pools whose money a gateway counts."""
    query = select(gateways.c.pool_id).where(gateways.c.grade == "gateway")
    return set(connection.execute(query).scalars())


def _within(scope: Scope) -> list[ColumnElement[bool]]:
    named = {"group_name": scope.group, "device_id": scope.device, "pool_id": scope.pool,
             "task": scope.task}  # fmt: skip
    return [leases.c[column] == value for column, value in named.items() if value]


def _used(right: Right) -> int:
    return right.used_microusd if right.state == "sealed" else right.amount_microusd


def _held(row: Sequence[Any]) -> Held:
    lease_id, group, device_id, pool_id, task, period, epoch, amount, state, used, *rest = row
    purpose = Purpose(group, device_id, pool_id, task)
    return Held(Right(lease_id, purpose, period, epoch, amount, state, used), *rest)


def _row(held: Held) -> tuple[Any, ...]:
    right, purpose = held.right, held.right.purpose
    return (right.lease_id, purpose.group, purpose.device_id, purpose.pool_id, purpose.task,
            right.period, right.epoch, right.amount_microusd, right.state, right.used_microusd,
            held.seen_microusd, held.told_microusd, held.granted_at, held.not_after,
            held.why_closed, held.text)  # fmt: skip


def _pot(row: Sequence[Any]) -> Pot:
    scope, *rest = row
    return Pot(Scope.parse(scope), *rest)
