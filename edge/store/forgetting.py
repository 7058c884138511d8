"""Rows of the ledger that leave the device: only their sums stay.

Guarantees: a row goes in the transaction that adds it to the sums of its day and of its lease, so
that what is spent stays exact; a row without an outcome stays, and so does the last one, whose
number must not be given again. Decides nothing about what the hub keeps.
"""

from __future__ import annotations

import json
from collections.abc import Collection

from edge.store.db import Database
from edge.store.periods import DAY_S

KEPT_S = 7 * float(DAY_S)
"""So long rows stay for people to look at."""

_GOES = (
    "seq <= ? AND seq < (SELECT max(seq) FROM holds) AND state IN ('settled', 'released') "
    "AND reserved_at < ? AND id NOT IN (SELECT value FROM json_each(?))"
)
_ADD_TO_DAY = (
    "INSERT INTO forgotten (day, task, pool, requests, settled, cost_microusd, tokens_in, "  # noqa: S608
    f"tokens_out) SELECT CAST(reserved_at / {DAY_S} AS INTEGER), task, pool, count(*), "
    f"sum(state = 'settled'), sum(cost_microusd), sum(tokens_in), sum(tokens_out) FROM holds "
    f"WHERE {_GOES} GROUP BY 1, 2, 3 ON CONFLICT (day, task, pool) DO UPDATE SET "
    "requests = requests + excluded.requests, settled = settled + excluded.settled, "
    "cost_microusd = cost_microusd + excluded.cost_microusd, "
    "tokens_in = tokens_in + excluded.tokens_in, tokens_out = tokens_out + excluded.tokens_out"
)
_ADD_TO_LEASE = (
    "UPDATE leases SET kept_microusd = kept_microusd + gone.cost FROM (SELECT lease_id, "  # noqa: S608 - constants
    f"sum(cost_microusd) AS cost FROM holds WHERE {_GOES} GROUP BY lease_id) AS gone "
    "WHERE leases.lease_id = gone.lease_id"
)
_ANY = f"SELECT 1 FROM holds WHERE {_GOES} LIMIT 1"  # noqa: S608 - constants
_DROP = f"DELETE FROM holds WHERE {_GOES}"  # noqa: S608 - constants


def forget(db: Database, *, up_to: int, sparing: Collection[str], now: float) -> int:
    """Drop rows with an outcome that are older than ``KEPT_S``; return how many.

    Args:
        db: the money file.
        up_to: the number of the last row that may go.
        sparing: ids of rows that stay.
        now: seconds since the epoch.

    Raises:
        StoreError: the file cannot be written; all is as before.

    """
    values = (up_to, now - KEPT_S, json.dumps(list(sparing)))
    with db.reading() as connection:
        if connection.execute(_ANY, values).fetchone() is None:
            return 0
    with db.transaction() as connection:
        connection.execute(_ADD_TO_DAY, values)
        connection.execute(_ADD_TO_LEASE, values)
        return connection.execute(_DROP, values).rowcount
