"""Ledger rows and counts of devices, put into the database.

A row is known by its random id and belongs to the device that sent it first. Its states are
ranked, so that the same rows in any order, once or often, end the same. Counts are added; the
caller sees to it that each request is put once. Times and hours of a device whose clock is far off
are moved by as much as it is off.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from sqlalchemy import Connection

from edge_sync.store import bulk
from edge_sync.store.schema import health, ledger_rows
from edge_sync.wire import LedgerRow, SyncRequest

RANKS = {"reserved": 0, "sent": 1, "unclear": 2, "released": 3, "settled": 4}
"""Which state of a row is later. Money that was spent wins over money that was given back."""
TRUSTED_SKEW_S = 3_600.0
"""A clock that is off by less is left alone."""

_ROW = ("row_id", "device_id", "task", "pool", "state", "held_microusd", "cost_microusd", "at",
        "revision", "receipt")  # fmt: skip
_COUNTS = ("tasks", "errors", "cached", "local", "cloud", "deferred", "abstained", "corrections",
           "cost_microusd")  # fmt: skip
_KEY = ("device_id", "revision", "hour")
_MOST = 2**62
"""More than this is not counted: the databases hold 63 bits."""


def _later() -> str:
    def rank(table: str) -> str:
        cases = " ".join(f"WHEN '{state}' THEN {at}" for state, at in RANKS.items())
        return (
            f"(CASE {table}.state {cases} END, {table}.cost_microusd, {table}.held_microusd, "
            f"{table}.task, {table}.pool, {table}.revision)"
        )

    sets = ", ".join(f"{name} = excluded.{name}" for name in _ROW[2:])
    own = "ledger_rows.device_id = excluded.device_id"
    return f"UPDATE SET {sets} WHERE {own} AND {rank('excluded')} > {rank('ledger_rows')}"


_LATER = _later()


def put_rows(connection: Connection, requests: Iterable[tuple[SyncRequest, float, int]]) -> None:
    """Put the rows of requests, each with the hub's time and its receipt."""
    best: dict[str, tuple[LedgerRow, tuple[object, ...]]] = {}
    for request, at, receipt in requests:
        off = clock_error(request, at)
        for row in request.rows:
            kept = best.get(row.row_id)
            if kept is not None and _order(kept[0]) >= _order(row):
                continue
            if kept is not None and kept[1][1] != request.device_id:
                continue
            values = (row.row_id, request.device_id, row.task, row.pool, row.state,
                      row.held_microusd, row.cost_microusd, row.at - off, row.revision,
                      receipt)  # fmt: skip
            best[row.row_id] = (row, values)
    rows = [values for _, values in best.values()]
    bulk.put(connection, ledger_rows, rows=rows, columns=_ROW, instead=_LATER)


def _order(row: LedgerRow) -> tuple[int, int, int, str, str, int]:
    """Return what two states of one row are compared by, as ``_LATER`` does."""
    rank = RANKS[row.state]
    return rank, row.cost_microusd, row.held_microusd, row.task, row.pool, row.revision


def put_health(connection: Connection, requests: Sequence[tuple[SyncRequest, float]]) -> None:
    """Add the counts of requests to what is there, by device, policy and hour."""
    added: dict[tuple[str, int, int], tuple[list[int], list[int]]] = {}
    for request, at in requests:
        moved = round(clock_error(request, at) / 3_600)
        for one in request.health:
            key = (request.device_id, one.revision, max(0, one.hour - moved))
            _add(added, key, counts=[getattr(one, name) for name in _COUNTS], latency=one.latency)
    columns = (*_KEY, *_COUNTS, "latency")
    there = bulk.find(connection, health, keys=list(added), by=_KEY, columns=columns)
    for device, revision, hour, *counts, latency in there:
        _add(added, (device, revision, hour), counts=counts, latency=json.loads(latency))
    sets = ", ".join(f"{name} = excluded.{name}" for name in columns[len(_KEY) :])
    bulk.put(
        connection,
        health,
        rows=[(*key, *counts, json.dumps(latency)) for key, (counts, latency) in added.items()],
        columns=columns,
        instead=f"UPDATE SET {sets}",
    )


def _add(
    added: dict[tuple[str, int, int], tuple[list[int], list[int]]],
    key: tuple[str, int, int],
    *,
    counts: Sequence[int],
    latency: Sequence[int],
) -> None:
    before = added.get(key, ([0] * len(counts), []))
    added[key] = (
        [min(one + other, _MOST) for one, other in zip(before[0], counts, strict=True)],
        [one + other for one, other in zip_longest(before[1], latency, fillvalue=0)],
    )


def clock_error(request: SyncRequest, at: float) -> float:
    """Return by how many seconds the device's times are moved."""
    skew = request.at - at
    return skew if abs(skew) > TRUSTED_SKEW_S else 0.0
