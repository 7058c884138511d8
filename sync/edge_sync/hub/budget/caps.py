"""Caps of the fleet in the table ``budgets``: set, cut, taken away, read.

Guarantees: a cap and its running pot change together, with an entry in the audit log; what was
granted stays counted, so a cut may leave less than nothing free. A lease that no cap covers any
more, that would cross the periods of a new cap, or that pays for any task where one task gets a cap
of its own, is taken back. Grants nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, insert, select

from edge.errors import ConfigError
from edge_sync.hub.budget import books, leasekey, mirror
from edge_sync.hub.home import Hub
from edge_sync.money import account
from edge_sync.money.account import Right
from edge_sync.money.caps import Cap, Caps, Purpose, Scope
from edge_sync.money.periods import KINDS, Kind, kind_of, period_of, within
from edge_sync.store import bulk
from edge_sync.store.schema import budgets, devices, facts, groups

_CAP = ("scope", "kind", "amount_microusd")
_LONGEST = 64
"""Characters of a name that the table has room for."""


def set_cap(hub: Hub, scope_text: str, kind: Kind, amount_microusd: int, *, who: str) -> Cap:
    """Put a cap in force, or another amount for one that is; return it.

    A cut that leaves less than nothing free ends grants until enough is given back or the next
    period begins.

    Args:
        hub: the hub, open.
        scope_text: ``fleet``, ``group:kiosks`` or ``device:<id>``, then ``;pool:`` and ``;task:``.
        kind: hour, day, month or total.
        amount_microusd: per period of that kind.
        who: for the audit log.

    Raises:
        InputError: the scope is none.
        ConfigError: the kind or amount is none, there is no such group or device, or the hub's key
            of leases is elsewhere.
        StoreError: the database or the keys folder cannot be written.

    """
    cap = Cap(Scope.parse(scope_text), kind, amount_microusd)
    Caps.of([cap])
    mirror.require_whole(hub)

    def work(connection: Connection) -> int | None:
        _require(connection, cap.scope)
        require_key(hub, connection)
        before = connection.execute(select(budgets.c.amount_microusd).where(*_is(cap))).scalar()
        put_cap(connection, cap, who=who, now=hub.clock())
        mirror.count_change(connection)
        return before

    hub.change(
        who,
        "budget.set",
        about=cap.scope.text(),
        detail=lambda before: _told(cap) | {"before_microusd": before},
        work=work,
    )
    mirror.write(hub)
    return cap


def remove_cap(hub: Hub, scope_text: str, kind: Kind, *, who: str) -> Cap:
    """Take a cap away and return it; leases that no other cap covers are taken back.

    Raises:
        InputError: the scope is none.
        ConfigError: there is no such cap.
        StoreError: the database or the keys folder cannot be written.

    """
    scope = Scope.parse(scope_text)
    mirror.require_whole(hub)

    def work(connection: Connection) -> Cap:
        found = {(cap.scope, cap.kind): cap for cap in read_caps(connection).caps}
        cap = found.get((scope, kind))
        if cap is None:
            raise ConfigError(
                f"There is no cap of {scope.text()} per {kind}.",
                hint="`edge-hub budget show` lists all.",
            )
        connection.execute(delete(budgets).where(*_is(cap)))
        mirror.count_change(connection)
        books.drop_pots(connection, scope, kind)
        left = Caps(tuple(other for other in found.values() if other != cap))
        _take_back(connection, lambda right: not left.covering(right.purpose))
        return cap

    removed = hub.change(who, "budget.rm", about=scope.text(), detail=_told, work=work)
    mirror.write(hub)
    return removed


def put_cap(connection: Connection, cap: Cap, *, who: str, now: float) -> None:
    """Write a cap and its pot, inside the transaction of a change.

    Pots of later periods are changed too: they are there where a clock was ahead.
    """
    row = (cap.scope.text(), cap.kind, cap.amount_microusd, who[:_LONGEST], now)
    columns = (*_CAP, "set_by", "set_at")
    sets = ", ".join(f"{name} = excluded.{name}" for name in columns[2:])
    bulk.put(connection, budgets, rows=[row], columns=columns, instead=f"UPDATE SET {sets}")
    running = period_of(cap.kind, now)
    there = [
        pot
        for pot in books.all_pots(connection)
        if pot.scope == cap.scope and kind_of(pot.period) == cap.kind and pot.period >= running
    ]
    recapped = [account.recap(pot, cap.amount_microusd) for pot in there]
    if not any(pot.period == running for pot in there):
        amount = cap.amount_microusd
        recapped.append(books.open_pot(connection, cap.scope, running, cap_microusd=amount))
    books.put_pots(connection, recapped)
    _take_back(connection, lambda right: _is_against(cap, right))


def read_caps(connection: Connection) -> Caps:
    """Return all caps in force, by scope and kind."""
    rows = connection.execute(select(*(budgets.c[name] for name in _CAP)).order_by(budgets.c.scope))
    return Caps(tuple(sorted((_cap(row) for row in rows), key=_order)))


def caps_above(connection: Connection, purposes: Iterable[Purpose]) -> dict[Purpose, Caps]:
    """Return the caps that cover each of some purposes, read at once."""
    above = {purpose: books.scopes(purpose) for purpose in purposes}
    keys = {(scope.text(),) for scopes in above.values() for scope in scopes}
    rows = bulk.find(connection, budgets, keys=list(keys), by=("scope",), columns=_CAP)
    by_scope: dict[Scope, list[Cap]] = {}
    for cap in map(_cap, rows):
        by_scope.setdefault(cap.scope, []).append(cap)
    return {
        purpose: Caps(tuple(cap for scope in set(scopes) for cap in by_scope.get(scope, ())))
        for purpose, scopes in above.items()
    }


def split_by_task(connection: Connection, purposes: Iterable[Purpose]) -> set[Purpose]:
    """Return those for any task of which a part counts in the cap of one: no lease is for them."""
    general = {purpose for purpose in purposes if not purpose.task}
    if not general:
        return set()
    query = select(budgets.c.scope).where(budgets.c.scope.contains(";task:")).distinct()
    parsed = map(Scope.parse, connection.execute(query).scalars())
    wholes = {replace(scope, task="") for scope in parsed}
    return {each for each in general if not wholes.isdisjoint(books.scopes(each))}


def require_key(hub: Hub, connection: Connection) -> None:
    """See to it that this hub has its key of leases; a hub of an older version gets one.

    Raises:
        ConfigError: the key was made at another replica and is not here, or is another one.
        StoreError: the keys folder cannot be written.

    """
    known = key_name(connection)
    key = leasekey.find(hub.keys)
    if known is None:
        key = key or leasekey.make(hub.keys)
        connection.execute(insert(facts).values(name=leasekey.FACT, value=key.key_id))
    elif key is None or key.key_id != known:
        raise ConfigError(
            f"The key of leases {known} is not in {hub.keys}.",
            hint=f"Copy {leasekey.NAME} there from the first replica, or restore it.",
        )


def key_name(connection: Connection) -> str | None:
    """Return the name of the key that leases are signed with; ``None`` where none was made."""
    return connection.execute(select(facts.c.value).where(facts.c.name == leasekey.FACT)).scalar()


def _require(connection: Connection, scope: Scope) -> None:
    for table, column, value, what in (
        (groups, groups.c.name, scope.group, "group"),
        (devices, devices.c.id, scope.device, "device"),
    ):
        query = select(table.c[column.name]).where(column == value)
        if value and connection.execute(query).first() is None:
            raise ConfigError(
                f"There is no {what} {value!r}.",
                hint=f"`edge-hub {what}s list` shows all.",
            )


def _is_against(cap: Cap, right: Right) -> bool:
    """Return whether a right would not count in a cap as it is to."""
    crosses = cap.scope.covers(right.purpose) and within(right.period, cap.kind) is None
    return crosses or cap.scope.splits(right.purpose)


def _take_back(connection: Connection, goes: Callable[[Right], bool]) -> None:
    """Close the open rights that go."""
    held = books.rights(connection, states=("open",))
    gone = [each.right.lease_id for each in held if goes(each.right)]
    books.close(connection, gone, why="cap")


def _is(cap: Cap) -> tuple[ColumnElement[bool], ...]:
    return budgets.c.scope == cap.scope.text(), budgets.c.kind == cap.kind


def _told(cap: Cap) -> dict[str, Any]:
    return {"kind": cap.kind, "amount_microusd": cap.amount_microusd}


def _cap(row: Sequence[Any]) -> Cap:
    scope, kind, amount = row
    return Cap(Scope.parse(scope), kind, amount)


def _order(cap: Cap) -> tuple[str, int]:
    return cap.scope.text(), KINDS.index(cap.kind)
