"""The holds of a money file, for reading: one, some, or summed up by period.

Changes nothing; ``edge.store.ledger`` does.
"""

from __future__ import annotations

from typing import Any

from edge.store import rights
from edge.store.holds import COLUMNS, Hold, HoldState, unknown
from edge.store.money import MoneyFile
from edge.store.periods import DAY_S, PERIOD_SQL, Period

_ALL_ROWS = (
    "SELECT reserved_at, task, pool, 1 AS requests, state = 'settled' AS settled, "  # noqa: S608
    "state = 'unclear' AS unclear, cost_microusd, held_microusd, tokens_in, tokens_out FROM holds "
    f"UNION ALL SELECT day * {DAY_S}.0, task, pool, requests, settled, 0, cost_microusd, 0, "
    "tokens_in, tokens_out FROM forgotten"
)


class Holdings:
    """The holds of one state folder; safe to share between threads and processes.

    Attributes:
        period: that ``summary`` sums up by.

    """

    period: Period

    def __init__(self, file: MoneyFile) -> None:
        self._file = file

    def hold(self, hold_id: str) -> Hold:
        """Return one hold.

        Raises:
            StoreError: there is none of that id.

        """
        with self._file.db.reading() as connection:
            row = connection.execute(
                f"SELECT {COLUMNS} FROM holds WHERE id = ?",  # noqa: S608 - a constant
                (hold_id,),
            ).fetchone()
        if row is None:
            raise unknown(hold_id)
        return Hold(*row)

    def holds(self, state: HoldState | None = None) -> list[Hold]:
        """Return the holds of every period, oldest first, or those in one state."""
        with self._file.db.reading() as connection:
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM holds "  # noqa: S608 - a constant
                "WHERE ? IS NULL OR state = ? ORDER BY seq",
                (state, state),
            ).fetchall()
        return [Hold(*row) for row in rows]

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per period, task and pool, latest period first.

        Keys: period, task, pool, requests, settled, unclear, cost_microusd, held_microusd,
        tokens_in, tokens_out. A week is named by its Monday.
        """
        return self._file.db.query(
            f"SELECT {PERIOD_SQL[self.period]} AS period, "  # noqa: S608 - constants
            "task, pool, sum(requests) AS requests, sum(settled) AS settled, "
            "sum(unclear) AS unclear, sum(cost_microusd) AS cost_microusd, "
            "sum(held_microusd) AS held_microusd, sum(tokens_in) AS tokens_in, "
            f"sum(tokens_out) AS tokens_out FROM ({_ALL_ROWS}) "
            "GROUP BY 1, 2, 3 ORDER BY 1 DESC, 2, 3"
        )

    def lease_text(self, hold: Hold) -> str:
        """Return the lease that pays for a hold, as it was signed.

        Raises:
            StoreError: it is not here.

        """
        with self._file.db.reading() as connection:
            return rights.text_of(connection, hold.lease_id)

    def request(self, hold_id: str) -> bytes | None:
        """Return the body that a hold was sent with; ``None`` where none was kept."""
        with self._file.db.reading() as connection:
            row = connection.execute(
                "SELECT body FROM requests WHERE hold_id = ?", (hold_id,)
            ).fetchone()
        return None if row is None else bytes(row[0])

    def unclear_requests(self, limit: int, *, trace_id: str | None = None) -> list[Hold]:
        """Return unclear holds whose pool can be asked again what became of them, oldest first.

        Args:
            limit: how many at most.
            trace_id: of one task; of all that do not wait in the queue where ``None``.

        """
        with self._file.db.reading() as connection:
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM holds JOIN requests ON hold_id = id "  # noqa: S608 - a constant
                "WHERE state = 'unclear' AND iif(? IS NULL, NOT EXISTS (SELECT 1 FROM queued WHERE "
                "queued.trace_id = holds.trace_id AND queued.state IN ('waiting', 'claimed')), "
                "trace_id = ?) ORDER BY seq LIMIT ?",
                (trace_id, trace_id, limit),
            ).fetchall()
        return [Hold(*row) for row in rows]
