"""Leases: rights to spend that the fleet's hub gave this device, as its own ledger knows them.

    open -> done

Guarantees: what calls cost and hold of a lease never exceeds its amount by a new hold; a list
from the hub is taken whole or not at all, and taking it again changes nothing; a lease that is done
never comes back, whatever a list says; once it has no open holds, what it was used for is final.
Safety rests on no clock. Knows no signature: who hands a list in has checked it.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from edge.store import demand, rights
from edge.store.db import Database, migrate, open_database
from edge.store.demand import Demand
from edge.store.forgetting import forget
from edge.store.leftover import Leftover, left_over
from edge.store.money import MIGRATIONS
from edge.store.rights import USED

REMEMBERED_S = 40 * 86_400.0
"""So long after its end a lease is remembered, so that a hub set back by a backup cannot revive it.
The last one of a pool is remembered for good: such a pool takes nothing without a lease."""

_OPEN_HOLDS = "('reserved', 'sent', 'unclear')"
_TELLING = (
    f"SELECT lease_id, {USED}, state = 'done', (SELECT count(*) FROM holds "  # noqa: S608 - constants
    f"WHERE holds.lease_id = leases.lease_id AND state IN {_OPEN_HOLDS}) "
    "FROM leases WHERE told < 2 ORDER BY state DESC, place LIMIT ?"
)


@dataclass(frozen=True, slots=True)
class Offer:
    """A lease as the hub lists it.

    Attributes:
        task: the only one that it pays for; empty for any.
        not_after: seconds since the epoch.
        text: as it was signed; the pool's gateway wants to see it.

    """

    lease_id: str
    pool: str
    task: str
    amount_microusd: int
    not_after: float
    text: str


@dataclass(frozen=True, slots=True)
class Use:
    """How a lease stands here.

    Attributes:
        used_microusd: what its calls cost and hold.
        done: no new hold is made on it.
        open: holds without an outcome.

    """

    lease_id: str
    used_microusd: int
    done: bool
    open: int


class Leases:
    """The leases of one state folder; safe to share between threads and processes.

    Args:
        db: the money file.
        clock: seconds since the epoch.

    """

    def __init__(self, db: Database, *, clock: Callable[[], float] = time.time) -> None:
        self.db = db
        self._clock = clock

    @classmethod
    def open(cls, folder: Path, *, clock: Callable[[], float] = time.time) -> Self:
        """Open or create the money file without being one of its owners.

        Raises:
            StoreError: the folder cannot be used.

        """
        db = open_database(folder / "money.db", durable=True)
        try:
            migrate(db, MIGRATIONS)
        except BaseException:
            db.close()
            raise
        return cls(db, clock=clock)

    def replace(
        self, offers: Sequence[Offer], *, told: Collection[Use] = (), wanted: Collection[str] = ()
    ) -> int:
        """Take the hub's list of all that this device may spend; return how many are new.

        What is missing from it is done. Holds that were made stay accounted.

        Args:
            offers: in the order to use them.
            told: what the report said that this list answers.
            wanted: the pools that it asked a lease for, whatever the task.

        Raises:
            StoreError: the file cannot be written; all is as before.

        """
        with self.db.transaction() as connection:
            _note_told(connection, told)
            known = {row[0] for row in connection.execute("SELECT lease_id FROM leases")}
            for place, offer in enumerate(offers):
                _list(connection, offer, place)
            listed = json.dumps([offer.lease_id for offer in offers])
            connection.execute(
                "UPDATE leases SET state = 'done', why = 'closed by the hub' WHERE state = 'open' "
                "AND lease_id NOT IN (SELECT value FROM json_each(?))",
                (listed,),
            )
            connection.execute("UPDATE fleet SET synced_at = ?", (self._clock(),))
            demand.heard(connection, set(wanted) - {each.pool for each in offers if not each.task})
            _tidy(connection, self._clock())
        return sum(offer.lease_id not in known for offer in offers)

    def uses(self, *, now: float, most: int) -> list[Use]:
        """Return how leases stand that the hub does not know the end of, open ones first.

        A lease with too little left for a call, or past its end, is done from here on.

        Args:
            now: the hub's time, seconds since the epoch.
            most: how many at most.

        Raises:
            StoreError: the file cannot be written.

        """
        with self.db.transaction() as connection:
            connection.execute(
                "UPDATE leases SET state = 'done', why = 'expired' "
                "WHERE state = 'open' AND not_after < ?",
                (now,),
            )
            for lease_id in _too_small(connection, demand.highest(connection, self._clock())):
                rights.end(connection, lease_id, why="too little is left")
            rows = connection.execute(_TELLING, (most,)).fetchall()
        return [Use(lease_id, used, bool(done), count) for lease_id, used, done, count in rows]

    def wants(self, *, horizon_s: float, most: int) -> list[Demand]:
        """Return what this device expects to need within a time, by pool and task.

        Raises:
            StoreError: the file cannot be read.

        """
        with self.db.reading() as connection:
            now = demand.highest(connection, self._clock())
            return demand.expected(connection, now=now, horizon_s=horizon_s)[:most]

    def low(self) -> bool:
        """Return whether the hub should hear of this device's money before the next sync is due.

        Raises:
            StoreError: the file cannot be read.

        """
        with self.db.reading() as connection:
            asked = "SELECT EXISTS (SELECT 1 FROM refused)"
            done = "SELECT EXISTS (SELECT 1 FROM leases WHERE state = 'done' AND told = 0)"
            if any(connection.execute(sql).fetchone()[0] for sql in (asked, done)):
                return True
            return bool(_too_small(connection, demand.highest(connection, self._clock())))

    def leftover(self) -> Leftover:
        """Return what is left under leases, whatever the device's own cap; spent and held are 0.

        Raises:
            StoreError: the file cannot be read.

        """
        with self.db.reading() as connection:
            return left_over(connection, sums=(0, 0), cap_microusd=None, now=self._clock())

    def forget(self, *, up_to: int, sparing: Collection[str]) -> int:
        """Drop rows that the hub keeps for certain; see ``edge.store.forgetting``."""
        return forget(self.db, up_to=up_to, sparing=sparing, now=self._clock())

    def close(self) -> None:
        """Close the file."""
        self.db.close()


def _list(connection: sqlite3.Connection, offer: Offer, place: int) -> None:
    connection.execute(
        "INSERT INTO leases VALUES (?, ?, ?, ?, 0, ?, ?, 'open', '', 0, ?) "
        "ON CONFLICT (lease_id) DO UPDATE SET place = excluded.place, "
        "told = iif(state = 'done', min(told, 1), 0)",
        (
            offer.lease_id,
            offer.pool,
            offer.task,
            offer.amount_microusd,
            offer.not_after,
            place,
            offer.text,
        ),
    )


def _note_told(connection: sqlite3.Connection, told: Collection[Use]) -> None:
    """Note what the hub has heard: 1 that a lease is done, 2 that its count is final."""
    connection.executemany(
        "UPDATE leases SET told = max(told, ?) WHERE lease_id = ? AND state = 'done'",
        [(1 if use.open else 2, use.lease_id) for use in told if use.done],
    )


def _too_small(connection: sqlite3.Connection, now: float) -> list[str]:
    """Return open leases that a usual call, or one that was refused, does not fit any more."""
    refused = demand.refused_most(connection)
    usual = demand.usual_most(connection, now)
    found = []
    for lease_id, pool, task, amount, used in connection.execute(
        f"SELECT lease_id, pool, task, amount_microusd, {USED} "  # noqa: S608 - constants
        "FROM leases WHERE state = 'open'"
    ).fetchall():
        # A lease that is smaller than usual calls still pays for small ones: it is not given back
        # before a part of it was spent.
        floor = min(usual.get(pool, 0), amount // 4) if used else 0
        asked = max(
            (most for (at, who), most in refused.items() if at == pool and task in {who, ""}),
            default=0,
        )
        if amount - used < max(floor, asked, 1):
            found.append(lease_id)
    return found


def _tidy(connection: sqlite3.Connection, now: float) -> None:
    connection.execute(
        "DELETE FROM leases WHERE state = 'done' AND told = 2 AND not_after < ? "
        "AND NOT EXISTS (SELECT 1 FROM holds WHERE holds.lease_id = leases.lease_id) "
        "AND rowid <> (SELECT max(rowid) FROM leases AS other WHERE other.pool = leases.pool)",
        (now - REMEMBERED_S,),
    )
