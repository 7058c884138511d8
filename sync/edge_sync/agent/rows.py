"""Rows of the ledger on their way to the hub: what is new, what has changed, what to send again.

A row is told apart by the hold's random id alone, so that sending one twice counts once. Guarantees
that a row is passed over only once the hub has acknowledged it, and that where a hub was restored
from a backup all rows that are here are sent again. ``covered`` says which rows a completed
backup has, so that the device may forget them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge.store.db import Database
from edge.store.traces import Traces
from edge_sync.agent.health import policies_of
from edge_sync.agent.memory import Batch, Rows
from edge_sync.wire import MAX_ROWS, LedgerRow

MAX_BATCHES = 100
_FINAL = frozenset({"settled", "released"})
_COLUMNS = "seq, id, trace_id, task, pool, state, held_microusd, cost_microusd, reserved_at"
_CHANGED = (
    f"SELECT {_COLUMNS} FROM holds "  # noqa: S608 - constants
    "WHERE id IN (SELECT value FROM json_each(?)) ORDER BY seq"
)
_NEW = f"SELECT {_COLUMNS} FROM holds WHERE seq > ? ORDER BY seq LIMIT ?"  # noqa: S608 - constants
_NO_NAME = re.compile(r"[^A-Za-z0-9_.\-]")


@dataclass(frozen=True, slots=True)
class Taken:
    """Rows of one report.

    Attributes:
        after: to go on with once they are acknowledged.
        low: all of them come after this one; ``None`` where there are none.
        more: whether some are left for the next report.

    """

    rows: list[LedgerRow]
    after: Rows
    low: int | None
    more: bool


def take(money: Database, traces: Traces, since: Rows) -> Taken:
    """Read the holds that are new or have changed since they were sent.

    Raises:
        StoreError: a file cannot be read.

    """
    (last,) = money.query("SELECT coalesce(max(seq), 0) AS seq FROM holds")
    if since.seq > last["seq"]:
        since = Rows()  # another ledger lies there now
    sent = money.query(_CHANGED, (json.dumps(list(since.open)),))
    changed = [hold for hold in sent if since.open[hold["id"]] != hold["state"]][:MAX_ROWS]
    told = {hold["id"] for hold in changed}
    new = money.query(_NEW, (since.seq, MAX_ROWS - len(changed)))
    holds = [*changed, *(hold for hold in new if hold["id"] not in told)]
    policies = policies_of(traces, {hold["trace_id"] for hold in holds})
    return Taken(
        [_row(hold, policies) for hold in holds],
        _after(since, holds),
        min(hold["seq"] for hold in holds) - 1 if holds else None,
        more=len(changed) + len(new) == MAX_ROWS,
    )


def acknowledged(after: Rows, low: int | None, *, receipt: int, watermark: int) -> Rows:
    """Return how far the ledger was sent once a report was answered."""
    batches = [batch for batch in after.batches if batch.receipt > watermark]
    if low is not None and receipt > watermark:
        batches.append(Batch(receipt=receipt, low=low))
    if len(batches) > MAX_BATCHES:
        old, older = batches[0], batches[1]
        both = Batch(receipt=older.receipt, low=min(old.low, older.low))
        batches[:2] = [both]
    return after.model_copy(update={"batches": tuple(batches)})


def after_restore(rows: Rows) -> Rows:
    """Return where to begin again, where the hub was set back to a backup.

    From the start: it may be an older one than the last that the device heard of, and receipts that
    were given since say nothing of those before.
    """
    return Rows(open=rows.open)


def covered(rows: Rows) -> int:
    """Return the number up to which all rows but the open ones are in a completed backup."""
    return min([rows.seq, *(batch.low for batch in rows.batches)])


def _after(since: Rows, holds: Sequence[Mapping[str, Any]]) -> Rows:
    still = since.open | {hold["id"]: hold["state"] for hold in holds}
    still = {each: state for each, state in still.items() if state not in _FINAL}
    seq = max([since.seq, *(hold["seq"] for hold in holds)])
    return since.model_copy(update={"seq": seq, "open": still})


def _row(hold: Mapping[str, Any], policies: Mapping[str, int]) -> LedgerRow:
    return LedgerRow(
        row_id=hold["id"],
        task=_name(hold["task"]),
        pool=_name(hold["pool"]),
        state=hold["state"],
        held_microusd=hold["held_microusd"],
        cost_microusd=hold["cost_microusd"],
        at=hold["reserved_at"],
        revision=policies.get(hold["trace_id"], 0),
    )


def _name(name: str) -> str:
    """Return a name as the wire can carry it."""
    written = _NO_NAME.sub("_", name)[:64]
    return written if written[:1].isalnum() else f"x{written}"[:64]
