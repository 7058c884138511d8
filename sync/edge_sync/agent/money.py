"""Money between a device and its hub: what it tells of its leases, and the list that it gets back.

Guarantees that no list counts but one whose reply was verified, that a lease for another device or
in no known form is passed over, and that the hub hears of a lease's end until it has understood.
Knows no sockets; what a lease allows, the ledger says.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edge.errors import InputError
from edge.store.holds import usd
from edge.store.leases import Leases, Offer, Use
from edge_sync.money.caps import Purpose
from edge_sync.money.lease import Lease
from edge_sync.wire import MAX_LEASES, MAX_WANTS, LeaseUse, SyncReply, SyncRequest, Want

_HORIZON_SYNCS = 2
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")
_log = logging.getLogger("edge.agent")


@dataclass(frozen=True, slots=True)
class Told:
    """What a report says of money."""

    uses: list[LeaseUse]
    wants: list[Want]


def tell(leases: Leases, *, now: float, next_sync_s: float) -> Told:
    """Return what the hub is to hear; leases that are used up or past their end are done by it.

    Args:
        leases: of the device.
        now: the hub's time, seconds since the epoch.
        next_sync_s: between two syncs.

    Raises:
        StoreError: the ledger cannot be read or written.

    """
    uses = leases.uses(now=now, most=MAX_LEASES)
    wants = leases.wants(horizon_s=_HORIZON_SYNCS * next_sync_s, most=MAX_WANTS)
    return Told(
        [
            LeaseUse(
                lease_id=use.lease_id,
                used_microusd=use.used_microusd,
                done=use.done,
                open=use.open,
            )
            for use in uses
        ],
        [
            Want(pool=want.pool, task=want.task, demand_microusd=want.microusd)
            for want in wants
            if _NAME.fullmatch(want.pool) and (not want.task or _NAME.fullmatch(want.task))
        ],
    )


def take(leases: Leases, report: str, reply: SyncReply, *, device_id: str) -> int:
    """Take what the hub answered to a report; return how many leases are new.

    Args:
        leases: of the device.
        report: its body, as it was sent.
        reply: verified.
        device_id: whose leases they must be.

    Raises:
        StoreError: the ledger cannot be written; all is as before.

    """
    told = SyncRequest.model_validate_json(report)
    return leases.replace(
        offers(reply.leases, device_id=device_id),
        told=[Use(use.lease_id, use.used_microusd, use.done, use.open) for use in told.uses],
        wanted=[want.pool for want in told.wants if not want.task],
    )


def left(leases: Leases) -> list[str]:
    """Return what is left at each pool under a lease, a line each, and what has to be said of it.

    Raises:
        StoreError: the ledger cannot be read.

    """
    found = leases.leftover()
    if not found.synced:
        return []
    return [
        f"{each.pool}: {usd(each.left_microusd)} left, {each.grade}-grade{found.known}"
        for each in found.pools
        if each.grade != "own"
    ] + found.notes


def offers(listed: Iterable[Mapping[str, str | int]], *, device_id: str) -> list[Offer]:
    """Return the leases of a reply that this device can use, in their order."""
    found = []
    for each in listed:
        try:
            lease = Lease.parse(json.dumps(each))
            purpose = Purpose.of_lease(
                lease.scope, device_id=lease.device_id, pool_id=lease.pool_id
            )
        except InputError as error:
            _log.warning("A lease is passed over: %s", error.message)
            continue
        if lease.device_id != device_id:
            _log.warning("Lease %s is of another device.", lease.lease_id)
            continue
        found.append(
            Offer(
                lease_id=lease.lease_id,
                pool=lease.pool_id,
                task=purpose.task,
                amount_microusd=lease.amount_microusd,
                not_after=float(lease.not_after),
                text=lease.text(),
            )
        )
    return found
