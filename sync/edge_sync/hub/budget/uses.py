"""How leases end as their devices sync: what a device says of them, and what time and trouble do.

Guarantees: nothing is given back on a device's word alone where a gateway counts; where none does,
the word of a device that is not quarantined is the count, once it has no call open.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from edge_sync.hub.budget import books
from edge_sync.hub.budget.books import Held
from edge_sync.money.periods import bounds
from edge_sync.store import bulk
from edge_sync.store.schema import leases
from edge_sync.wire import LeaseUse, SyncRequest

_TOLD = ("lease_id", "told_microusd")


@dataclass(frozen=True, slots=True)
class Synced:
    """A device whose sync was taken.

    Attributes:
        group: of the device now.
        good: not quarantined.
        again: the request had been taken before.

    """

    request: SyncRequest
    group: str
    good: bool
    again: bool


def settle(
    connection: Connection,
    asking: Sequence[Synced],
    *,
    grades: Mapping[str, str],
    epoch: int,
    now: float,
) -> list[Held]:
    """Note how leases stand, end those that are over, and return those that stay open.

    Args:
        connection: inside a write.
        asking: each device once.
        grades: of the pools.
        epoch: of the hub.
        now: seconds since the epoch.

    """
    devices = {one.request.device_id: one for one in asking}
    held = books.of_devices(connection, devices)
    uses = {
        (one.request.device_id, use.lease_id): use
        for one in asking
        if not one.again
        for use in one.request.uses
    }
    told: list[tuple[str, int]] = []
    over: dict[str, list[str]] = defaultdict(list)
    staying: list[Held] = []
    for each in held:
        right = each.right
        use = uses.get((right.purpose.device_id, right.lease_id))
        good = devices[right.purpose.device_id].good
        if use is not None and use.used_microusd != each.told_microusd:
            told.append((right.lease_id, use.used_microusd))
        why = why_over(each, use, good=good, epoch=epoch, now=now)
        if right.state == "open" and not why:
            staying.append(each)
        elif right.state == "open":
            over[why].append(right.lease_id)
    bulk.change(connection, leases, rows=told, columns=_TOLD, by="lease_id")
    for why, lease_ids in over.items():
        books.close(connection, lease_ids, why=why)
    _seal_uncounted(connection, held, uses, devices, grades)
    return staying


def why_over(held: Held, use: LeaseUse | None, *, good: bool, epoch: int, now: float) -> str:
    """Return why an open lease is over; empty where it is not.

    Args:
        held: the lease.
        use: how it stands, as its device says.
        good: whether its device is not quarantined.
        epoch: of the hub; gateways refuse what is older.
        now: seconds since the epoch.

    """
    first, end = bounds(held.right.period)
    reasons = {
        "quarantine": not good,
        "restore": held.right.epoch < epoch,
        "period": not first <= now < end,
        "expired": now > held.not_after,
        "done": use is not None and use.done,
    }
    return next((why for why, holds in reasons.items() if holds), "")


def _seal_uncounted(
    connection: Connection,
    held: Sequence[Held],
    uses: Mapping[tuple[str, str], LeaseUse],
    devices: Mapping[str, Synced],
    grades: Mapping[str, str],
) -> None:
    """Seal what no gateway counts at the device's own final count, at most the whole lease."""
    for each in held:
        right, device_id = each.right, each.right.purpose.device_id
        use = uses.get((device_id, right.lease_id))
        if use is None or not use.done or use.open or not devices[device_id].good:
            continue
        if grades.get(right.purpose.pool_id) == "escrow":
            used = min(use.used_microusd, right.amount_microusd)
            books.seal(connection, right.lease_id, used_microusd=used)
