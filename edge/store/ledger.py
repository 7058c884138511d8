"""The ledger: holds on a budget, in integer micro-dollars.

    reserved -> sent -> settled | unclear -> settled
    reserved -> released          sent -> released, only where certainly unbilled

Guarantees: spent plus held never exceeds the cap by a reservation, whatever threads, processes,
crashes and clocks do; an unclear outcome stays held until an operator resolves it; a settle is
counted once; a cost above its hold is recorded as it is. No cap, no money. A period starts at
midnight UTC and is judged by the latest time ever stored, so a clock set back opens no new one (a
clock that once ran ahead holds the period it reached). Knows nothing of prices or networks.
"""

from __future__ import annotations

import calendar
import datetime as dt
import math
import sqlite3
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from edge.errors import BudgetExceeded, InputError, StoreError
from edge.store.money import MoneyFile

Period: TypeAlias = Literal["day", "week", "month", "total"]
HoldState: TypeAlias = Literal["reserved", "sent", "settled", "unclear", "released"]

_MOST_MICROUSD = 10**15
_COLUMNS = (
    "id, trace_id, task, pool, state, worst_case_microusd, cost_microusd, "
    "tokens_in, tokens_out, why, reserved_at"
)
_PERIOD_SQL: dict[Period, str] = {
    "day": "strftime('%Y-%m-%d', reserved_at, 'unixepoch')",
    "week": "strftime('%Y-%m-%d', reserved_at, 'unixepoch', '-6 days', 'weekday 1')",
    "month": "strftime('%Y-%m', reserved_at, 'unixepoch')",
    "total": "'total'",
}


@dataclass(frozen=True, slots=True)
class Hold:
    """Money set aside for one request, as it was when read.

    Attributes:
        worst_case_microusd: what was set aside.
        cost_microusd: what it came to; 0 until settled.
        why: the reason of a release or an unclear outcome.
        reserved_at: seconds since the epoch; decides the period the money counts in.

    """

    id: str
    trace_id: str
    task: str
    pool: str
    state: HoldState
    worst_case_microusd: int
    cost_microusd: int
    tokens_in: int
    tokens_out: int
    why: str
    reserved_at: float


class Ledger:
    """The budget of one state folder; safe to share between threads and processes.

    Attributes:
        cap_microusd: the most that may be spent in a period; ``None`` allows nothing.
        period: day, week (from Monday), month, or total.

    """

    def __init__(self, file: MoneyFile, *, cap_microusd: int | None, period: Period) -> None:
        if cap_microusd is not None:
            _check_money("cap_microusd", cap_microusd)
        if period not in _PERIOD_SQL:
            raise InputError(f"Period {period!r} is not one of {', '.join(_PERIOD_SQL)}.")
        self._file = file
        self.cap_microusd = cap_microusd
        self.period: Period = period

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        cap_microusd: int | None,
        period: Period,
        clock: Callable[[], float] = time.time,
    ) -> Ledger:
        """Open the ledger alone; ``Book.open`` gives it together with the queue.

        Args:
            folder: the state folder; created where missing.
            cap_microusd: the most that may be spent in a period; ``None`` allows nothing.
            period: day, week (from Monday), month, or total.
            clock: seconds since the epoch.

        Raises:
            StoreError: the folder cannot be used.

        """
        file = MoneyFile(folder, clock=clock)
        try:
            return cls(file, cap_microusd=cap_microusd, period=period)
        except BaseException:
            file.close()
            raise

    def close(self) -> None:
        """Close the file; unsettled holds are put right by the next opening."""
        self._file.close()

    def reserve(self, trace_id: str, *, task: str, pool: str, worst_case_microusd: int) -> Hold:
        """Set the worst case aside; durable when it returns.

        For a queued task pass the task's own ``trace_id``, which links the two.

        Raises:
            BudgetExceeded: it does not fit what is left, or there is no cap.
            StoreError: the file cannot be written; nothing is held.

        """
        _check_money("worst_case_microusd", worst_case_microusd)
        hold_id = uuid.uuid4().hex
        with self._file.transaction() as connection:
            now = self._file.tick(connection)
            spent, held = self._sums(connection, now)
            if not self._fits(spent + held + worst_case_microusd) and self._file.recover():
                spent, held = self._sums(connection, now)
            fits = self._fits(spent + held + worst_case_microusd)
            if fits:
                names = (hold_id, trace_id, task, pool, self._file.owner)
                connection.execute(
                    "INSERT INTO holds (id, trace_id, task, pool, owner, state, "
                    "worst_case_microusd, held_microusd, reserved_at) "
                    "VALUES (?, ?, ?, ?, ?, 'reserved', ?, ?, ?)",
                    (*names, worst_case_microusd, worst_case_microusd, now),
                )
        if not fits:
            raise self._refusal(task, spent=spent, held=held, asked=worst_case_microusd)
        return self.hold(hold_id)

    def mark_sent(self, hold: Hold) -> None:
        """Record, durably, that the request is about to leave; call before the first byte does.

        Raises:
            StoreError: the hold is not reserved any more, or another hold of the same trace was
                sent since this one was reserved: sending again might pay twice.

        """
        with self._file.transaction() as connection:
            seq, state = self._state(connection, hold.id)
            if state != "reserved":
                raise _wrong_state(hold.id, state, "sent")
            rival = connection.execute(
                "SELECT id FROM holds WHERE trace_id = ? AND seq <> ? "
                "AND sent_after_seq >= ? AND state <> 'released'",
                (hold.trace_id, seq, seq),
            ).fetchone()
            if rival:
                raise StoreError(
                    f"Hold {hold.id} cannot be sent: hold {rival[0]} of the same task was sent "
                    "after it was reserved.",
                    hint="Release it, look at the other outcome, and reserve again if needed.",
                )
            connection.execute(
                "UPDATE holds SET state = 'sent', "
                "sent_after_seq = (SELECT max(seq) FROM holds) WHERE seq = ?",
                (seq,),
            )

    def settle(self, hold: Hold, cost_microusd: int, *, tokens_in: int, tokens_out: int) -> None:
        """Record what a sent request cost, once; a cost above the hold is counted in full.

        The same settle again changes nothing. Inside ``Book.transaction`` it is one change
        together with completing the queued task.

        Raises:
            StoreError: the hold was never sent, was released, or is settled at another cost.

        """
        _check_money("cost_microusd", cost_microusd)
        with self._file.transaction() as connection:
            self._file.tick(connection)
            seq, state = self._state(connection, hold.id)
            if state == "settled":
                self._check_same_cost(connection, seq, hold.id, cost_microusd)
                return
            if state not in {"sent", "unclear"}:
                raise _wrong_state(hold.id, state, "settled")
            connection.execute(
                "UPDATE holds SET state = 'settled', held_microusd = 0, cost_microusd = ?, "
                "tokens_in = ?, tokens_out = ?, why = '' WHERE seq = ?",
                (cost_microusd, tokens_in, tokens_out, seq),
            )

    def release(self, hold: Hold, *, certainly_unbilled: bool = False) -> None:
        """Give the money back: never sent, or sent and ``certainly_unbilled``. Idempotent.

        Raises:
            StoreError: the request may have been billed.

        """
        allowed = {"reserved", "sent"} if certainly_unbilled else {"reserved"}
        with self._file.transaction() as connection:
            seq, state = self._state(connection, hold.id)
            if state == "released":
                return
            if state not in allowed:
                raise _wrong_state(hold.id, state, "released")
            connection.execute(
                "UPDATE holds SET state = 'released', held_microusd = 0 WHERE seq = ?", (seq,)
            )

    def leave_unclear(self, hold: Hold, why: str) -> None:
        """Record that nobody knows whether a sent request was billed; the money stays held.

        Raises:
            StoreError: the hold was never sent or has another outcome already.

        """
        with self._file.transaction() as connection:
            seq, state = self._state(connection, hold.id)
            if state == "unclear":
                return
            if state != "sent":
                raise _wrong_state(hold.id, state, "unclear")
            connection.execute(
                "UPDATE holds SET state = 'unclear', why = ? WHERE seq = ?", (why, seq)
            )

    def resolve(self, hold_id: str, cost_microusd: int) -> None:
        """Settle an unclear hold at the cost an operator read off the provider's bill.

        Raises:
            StoreError: the hold is not unclear, or is settled at another cost.

        """
        with self._file.transaction() as connection:
            _, state = self._state(connection, hold_id)
            if state not in {"unclear", "settled"}:
                raise _wrong_state(hold_id, state, "resolved")
            self.settle(self.hold(hold_id), cost_microusd, tokens_in=0, tokens_out=0)

    def spent_microusd(self) -> int:
        """Return what the settled requests of this period cost."""
        return self._now_sums()[0]

    def held_microusd(self) -> int:
        """Return what is set aside in this period: reserved, sent and unclear."""
        return self._now_sums()[1]

    def remaining_microusd(self) -> int:
        """Return what may still be reserved in this period; 0 without a cap."""
        return max(0, (self.cap_microusd or 0) - sum(self._now_sums()))

    def hold(self, hold_id: str) -> Hold:
        """Return one hold.

        Raises:
            StoreError: there is none of that id.

        """
        with self._file.db.reading() as connection:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM holds WHERE id = ?",  # noqa: S608 - a constant
                (hold_id,),
            ).fetchone()
        if row is None:
            raise _unknown(hold_id)
        return Hold(*row)

    def holds(self, state: HoldState | None = None) -> list[Hold]:
        """Return the holds of every period, oldest first, or those in one state."""
        with self._file.db.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM holds "  # noqa: S608 - a constant
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
            f"SELECT {_PERIOD_SQL[self.period]} AS period, "  # noqa: S608 - constants
            "task, pool, count(*) AS requests, sum(state = 'settled') AS settled, "
            "sum(state = 'unclear') AS unclear, sum(cost_microusd) AS cost_microusd, "
            "sum(held_microusd) AS held_microusd, sum(tokens_in) AS tokens_in, "
            "sum(tokens_out) AS tokens_out "
            "FROM holds GROUP BY 1, 2, 3 ORDER BY 1 DESC, 2, 3"
        )

    def _fits(self, total_microusd: int) -> bool:
        return self.cap_microusd is not None and total_microusd <= self.cap_microusd

    def _sums(self, connection: sqlite3.Connection, now: float) -> tuple[int, int]:
        """Return (spent, held) of the period that ``now`` lies in."""
        row = connection.execute(
            "SELECT coalesce(sum(cost_microusd), 0), coalesce(sum(held_microusd), 0) "
            "FROM holds WHERE reserved_at >= ?",
            (period_bounds(now, self.period)[0],),
        ).fetchone()
        return int(row[0]), int(row[1])

    def _now_sums(self) -> tuple[int, int]:
        with self._file.db.reading() as connection:
            return self._sums(connection, self._file.now(connection))

    def _state(self, connection: sqlite3.Connection, hold_id: str) -> tuple[int, HoldState]:
        row = connection.execute("SELECT seq, state FROM holds WHERE id = ?", (hold_id,)).fetchone()
        if row is None:
            raise _unknown(hold_id)
        return row[0], row[1]

    def _check_same_cost(
        self, connection: sqlite3.Connection, seq: int, hold_id: str, cost_microusd: int
    ) -> None:
        query = "SELECT cost_microusd FROM holds WHERE seq = ?"
        (recorded,) = connection.execute(query, (seq,)).fetchone()
        if recorded != cost_microusd:
            raise StoreError(
                f"Hold {hold_id} is settled at {_usd(recorded)}, not {_usd(cost_microusd)}.",
                hint="Nothing was changed; compare with the provider's bill.",
            )

    def _refusal(self, task: str, *, spent: int, held: int, asked: int) -> BudgetExceeded:
        if self.cap_microusd is None:
            return BudgetExceeded(
                f"Task {task!r} asks for up to {_usd(asked)} but no cap is set.",
                hint="Set a cap: without one no money is spent.",
            )
        return BudgetExceeded(
            f"Task {task!r} asks for up to {_usd(asked)}, but of the cap of "
            f"{_usd(self.cap_microusd)} ({self.period}) {_usd(spent)} is spent and {_usd(held)} is "
            "held."
        )


def period_bounds(now: float, period: Period) -> tuple[float, float]:
    """Return where the period around ``now`` begins and ends, in seconds since the epoch (UTC)."""
    if period == "total":
        return 0.0, math.inf
    first = dt.datetime.fromtimestamp(now, dt.UTC).replace(
        hour=0, minute=0, second=0, microsecond=0
    )
    days = 1
    if period == "week":
        first -= dt.timedelta(days=first.weekday())
        days = 7
    if period == "month":
        first = first.replace(day=1)
        days = calendar.monthrange(first.year, first.month)[1]
    return first.timestamp(), (first + dt.timedelta(days=days)).timestamp()


def _check_money(name: str, value: int) -> None:
    if type(value) is not int or not 0 <= value <= _MOST_MICROUSD:
        raise InputError(f"{name} is {value!r} but must be an integer from 0 to {_MOST_MICROUSD}.")


def _usd(microusd: int) -> str:
    dollars, rest = divmod(microusd, 1_000_000)
    return f"${dollars}.{rest:06d}"


def _unknown(hold_id: str) -> StoreError:
    return StoreError(f"Hold {hold_id} does not exist.", hint="List the holds and name one.")


def _wrong_state(hold_id: str, state: str, wanted: str) -> StoreError:
    return StoreError(
        f"Hold {hold_id} is {state} and cannot become {wanted}.",
        hint="Nothing was changed; reserve again, or resolve an unclear hold.",
    )
