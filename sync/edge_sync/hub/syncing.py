"""What a sync does to the database: many devices' requests in one transaction.

Guarantees: a request is taken whole or not at all; the same request again changes nothing and gets
the same answer; counts are added once; of two states of a ledger row the later one stays, in
whatever order they arrive; a copied or reset device is noticed by its nonce. The signature was
checked before. What may be spent, ``budget.granting`` decides. Knows nothing of HTTP.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from sqlalchemy import Connection

from edge_sync.hub import audit
from edge_sync.hub.budget.granting import Granting
from edge_sync.hub.budget.uses import Synced
from edge_sync.hub.home import raise_fact, read_fact
from edge_sync.hub.refusals import Refused
from edge_sync.hub.reports import put_health, put_rows
from edge_sync.store import bulk
from edge_sync.store.schema import devices, syncs
from edge_sync.wire import Refusal, SyncRequest

REMEMBERED = 64
"""At least so many of a device's last requests are known again."""
CLOCK_ALARM_S = 86_400.0
_PRUNING = "0"
_COLUMNS = ("id", "name", "group_name", "status", "incarnation", "nonce", "clock_skew_s",
            "revision", "revision_since", "refused", "last_seen_at")  # fmt: skip
_CHANGED = ("id", "status", "nonce", "last_seen_at", "clock_skew_s", "runtime", "pack",
            "revision", "revision_since", "serial", "refused", "models", "waiting",
            "enrolled_with")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request whose signature holds, and when it came, in seconds since the epoch."""

    request: SyncRequest
    at: float


@dataclass(frozen=True, slots=True)
class Taken:
    """What the database answers to a request.

    Attributes:
        nonce: for the next one.
        receipt: under which rows and counts were taken.
        watermark: receipts up to here are in a completed backup.
        quarantined: whether there are two of this device.
        again: whether the same request had been taken before.
        leases: all that it may spend from now on, signed.
        granted: see ``budget.granting.Spendable``.
        epoch: see ``wire.SyncReply``.

    """

    nonce: str
    receipt: int
    watermark: int
    quarantined: bool
    again: bool = False
    leases: tuple[str, ...] = ()
    granted: int = 0
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """What the database knows of a device before a request."""

    id: str
    name: str
    group: str
    status: str
    incarnation: int
    nonce: str
    clock_skew_s: float | None
    revision: int
    revision_since: float | None
    refused: str
    last_seen_at: float | None


Earlier: TypeAlias = Mapping[tuple[str, str], tuple[int, str]]
Nonces: TypeAlias = Callable[[], str]


def make_nonce() -> str:
    """Return a nonce, 32 hex digits."""
    return secrets.token_hex(16)


def take(
    connection: Connection,
    arrivals: list[Arrival],
    *,
    nonces: Nonces = make_nonce,
    granting: Granting | None = None,
) -> list[Taken | Refused]:
    """Take requests; one result for each, in order.

    Args:
        connection: inside a write.
        arrivals: in the order they came; two of the same device are taken one after the other.
        nonces: gives a new one.
        granting: grants leases; without it there are none.

    """
    results: dict[int, Taken | Refused] = {}
    for numbers in _rounds(arrivals):
        taken = _take_round(connection, [arrivals[at] for at in numbers], nonces, granting)
        results.update(zip(numbers, taken, strict=True))
    return [results[at] for at in range(len(arrivals))]


def _rounds(arrivals: Sequence[Arrival]) -> list[list[int]]:
    """Split so that no device is twice in a round, in order."""
    seen: dict[str, int] = {}
    rounds: list[list[int]] = []
    for at, arrival in enumerate(arrivals):
        turn = seen.get(arrival.request.device_id, 0)
        seen[arrival.request.device_id] = turn + 1
        if turn == len(rounds):
            rounds.append([])
        rounds[turn].append(at)
    return rounds


def _take_round(
    connection: Connection,
    arrivals: Sequence[Arrival],
    nonces: Nonces,
    granting: Granting | None,
) -> list[Taken | Refused]:
    standings = _standings(connection, arrivals)
    earlier = _earlier(connection, arrivals)
    watermark = read_fact(connection, "watermark") or 0
    epoch = read_fact(connection, "epoch") or 0
    last = raise_fact(connection, "receipt", by=len(arrivals))
    results: list[Taken | Refused] = []
    accepted: list[tuple[Arrival, Standing, Taken]] = []
    for receipt, arrival in enumerate(arrivals, start=last - len(arrivals) + 1):
        standing = standings.get(arrival.request.device_id)
        known = earlier.get((arrival.request.device_id, arrival.request.request_id))
        result = answer(
            arrival.request, standing, known, receipt=receipt, watermark=watermark, nonces=nonces
        )
        if isinstance(result, Taken):
            result = replace(result, epoch=epoch)
        results.append(result)
        if standing is not None and isinstance(result, Taken) and not result.again:
            accepted.append((arrival, standing, result))
    _keep(connection, accepted)
    if granting is None:
        return results
    return _with_leases(connection, arrivals, standings, results, granting)


def _with_leases(
    connection: Connection,
    arrivals: Sequence[Arrival],
    standings: Mapping[str, Standing],
    results: Sequence[Taken | Refused],
    granting: Granting,
) -> list[Taken | Refused]:
    """Add to each answer what its device may spend."""
    asking = [
        Synced(
            arrival.request,
            standings[arrival.request.device_id].group,
            good=not taken.quarantined,
            again=taken.again,
        )
        for arrival, taken in zip(arrivals, results, strict=True)
        if isinstance(taken, Taken)
    ]
    now = max(arrival.at for arrival in arrivals)
    spendable = iter(granting.answer(connection, asking, now=now))
    found: list[Taken | Refused] = []
    for taken in results:
        if isinstance(taken, Taken):
            may = next(spendable)
            found.append(replace(taken, leases=may.leases, granted=may.granted))
        else:
            found.append(taken)
    return found


def answer(
    request: SyncRequest,
    standing: Standing | None,
    known: tuple[int, str] | None,
    *,
    receipt: int,
    watermark: int,
    nonces: Nonces,
) -> Taken | Refused:
    """Decide about one request.

    Args:
        request: whose signature holds.
        standing: of its device; ``None`` where there is none.
        known: receipt and nonce of the answer, where this request was taken before.
        receipt: the next one.
        watermark: of the last completed backup.
        nonces: gives a new one.

    """
    if standing is None:
        return unknown_device(request.device_id)
    if standing.status == "revoked":
        return revoked(request.device_id, standing.name)
    quarantined = standing.status == "quarantined"
    if known is not None:
        if known[1] == standing.nonce:
            return Taken(known[1], known[0], watermark, quarantined, again=True)
        return Refused(
            "replayed",
            f"Request {request.request_id} of device {standing.name} was answered before, and "
            "the device has synced since.",
            hint="Sync again with a new request. If it stays, somebody repeats recorded requests.",
            what="sync.replayed",
            about=request.device_id,
        )
    # Without a nonce the database was set back, and cannot know the one that the device has.
    other = standing.nonce not in {"", request.nonce}
    forked = other or request.incarnation != standing.incarnation
    return Taken(nonces(), receipt, watermark, quarantined or forked)


def unknown_device(device_id: str) -> Refused:
    """Return the refusal of a device that never joined."""
    return Refused(
        "unknown_device",
        f"There is no device {device_id} in this hub.",
        hint="Enrol the device with a new code.",
        what="sync.unknown",
        about=device_id,
    )


def revoked(device_id: str, name: str) -> Refused:
    """Return the refusal of a device whose key no longer counts."""
    return Refused(
        "revoked",
        f"The key of device {name or device_id} was revoked.",
        hint="Ask the fleet admin; a device comes back with a new key and a new code.",
        what="sync.revoked",
        about=device_id,
    )


def _standings(connection: Connection, arrivals: Sequence[Arrival]) -> dict[str, Standing]:
    keys = [(arrival.request.device_id,) for arrival in arrivals]
    rows = bulk.find(connection, devices, keys=keys, by=("id",), columns=_COLUMNS)
    return {row[0]: Standing(*row) for row in rows}


def _earlier(
    connection: Connection, arrivals: Sequence[Arrival]
) -> dict[tuple[str, str], tuple[int, str]]:
    keys = [(arrival.request.device_id, arrival.request.request_id) for arrival in arrivals]
    by = ("device_id", "request_id")
    rows = bulk.find(connection, syncs, keys=keys, by=by, columns=(*by, "receipt", "nonce"))
    return {(device, request): (receipt, nonce) for device, request, receipt, nonce in rows}


def _keep(connection: Connection, accepted: Sequence[tuple[Arrival, Standing, Taken]]) -> None:
    """Write what was accepted, a statement or two for each table."""
    changed = [_device_row(*each) for each in accepted]
    bulk.change(connection, devices, rows=changed, columns=_CHANGED, by="id")
    bulk.put(
        connection,
        syncs,
        rows=[
            (standing.id, arrival.request.request_id, taken.receipt, taken.nonce, arrival.at)
            for arrival, standing, taken in accepted
        ],
        columns=("device_id", "request_id", "receipt", "nonce", "at"),
    )
    put_rows(connection, ((one.request, one.at, got.receipt) for one, _, got in accepted))
    put_health(connection, [(one.request, one.at) for one, _, _ in accepted])
    _prune(connection, ((one.id, taken.nonce) for _, one, taken in accepted))
    for arrival, standing, taken in accepted:
        _note(connection, arrival, standing, taken)


def _device_row(arrival: Arrival, standing: Standing, taken: Taken) -> tuple[Any, ...]:
    request = arrival.request
    moved = request.have.revision != standing.revision or standing.revision_since is None
    return (
        standing.id,
        "quarantined" if taken.quarantined else standing.status,
        taken.nonce,
        arrival.at,
        request.at - arrival.at,
        request.runtime,
        request.pack,
        request.have.revision,
        arrival.at if moved else standing.revision_since,
        request.have.serial,
        _refused(request, standing, arrival.at),
        json.dumps(request.models, sort_keys=True),
        request.waiting,
        None,
    )


def _refused(request: SyncRequest, standing: Standing, at: float) -> str:
    """Return the refused policy that is worth showing: none once a newer one is in force."""
    if request.refused:
        last: Refusal = request.refused[-1]
        reason = "".join(letter if letter.isprintable() else " " for letter in last.reason)
        return json.dumps({"revision": last.revision, "reason": reason, "at": at})
    before = json.loads(standing.refused)
    return standing.refused if before.get("revision", 0) > request.have.revision else "{}"


def _prune(connection: Connection, taken: Iterable[tuple[str, str]]) -> None:
    """Forget old requests, for about one device in sixteen each time.

    The hub's nonce draws the lot: a device's own ids could be made to miss it for ever.
    """
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    sql = (
        f"DELETE FROM syncs WHERE device_id = {mark} AND receipt < (SELECT receipt FROM syncs "  # noqa: S608 - marks only
        f"WHERE device_id = {mark} ORDER BY receipt DESC LIMIT 1 OFFSET {REMEMBERED - 1})"
    )
    for device_id, nonce in taken:
        if nonce.startswith(_PRUNING):
            connection.exec_driver_sql(sql, (device_id, device_id))


def _note(connection: Connection, arrival: Arrival, standing: Standing, taken: Taken) -> None:
    """Tell the audit log what a person should look at: when it begins, not at every sync."""
    about = standing.id
    if taken.quarantined and standing.status == "active":
        detail = {"name": standing.name, "reason": "nonce" if _same(arrival, standing) else "disk"}
        audit.append(
            connection, at=arrival.at, who="hub", what="device.forked", about=about, detail=detail
        )
    skew = arrival.request.at - arrival.at
    if abs(skew) > CLOCK_ALARM_S and abs(standing.clock_skew_s or 0.0) <= CLOCK_ALARM_S:
        detail = {"name": standing.name, "skew_days": f"{skew / 86_400:.1f}"}
        audit.append(
            connection, at=arrival.at, who="hub", what="device.clock", about=about, detail=detail
        )


def _same(arrival: Arrival, standing: Standing) -> bool:
    return arrival.request.incarnation == standing.incarnation
