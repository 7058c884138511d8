"""The ledger: holds on a budget, in integer micro-dollars.

    reserved -> sent -> settled | unclear -> settled
    reserved -> released          sent -> released, only where certainly unbilled

Guarantees: spent plus held never exceeds the cap, nor the lease that pays, by a reservation,
whatever threads, processes, crashes and clocks do; an unclear outcome stays held until somebody who
knows resolves it; a settle is counted once; a cost above its hold is recorded as it is; what is
forgotten stays in the sums. Money needs a cap or a lease; where both are there, it must fit both. A
period starts at midnight UTC and is judged by the latest time ever stored, so a clock set back
opens no new one (a clock that once ran ahead holds the period it reached). Knows nothing of prices
or networks.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from edge.errors import BudgetExceeded, InputError, StoreError
from edge.store import demand, rights
from edge.store.demand import Need
from edge.store.holdings import Holdings
from edge.store.holds import Hold, HoldState, check_money, unknown, wrong_cost, wrong_state
from edge.store.leftover import Leftover, left_over
from edge.store.money import MoneyFile
from edge.store.paying import Asked, Cap, payer
from edge.store.periods import DAY_S, PERIOD_SQL, Period, period_bounds

__all__ = ["Hold", "HoldState", "Ledger", "Need", "Period", "period_bounds"]


class Ledger(Holdings):
    """The budget of one state folder; safe to share between threads and processes.

    Attributes:
        cap_microusd: the most that may be spent in a period; ``None`` allows nothing.
        period: day, week (from Monday), month, or total.

    """

    def __init__(self, file: MoneyFile, *, cap_microusd: int | None, period: Period) -> None:
        if cap_microusd is not None:
            check_money("cap_microusd", cap_microusd)
        if period not in PERIOD_SQL:
            raise InputError(f"Period {period!r} is not one of {', '.join(PERIOD_SQL)}.")
        super().__init__(file)
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

    def reserve(
        self,
        trace_id: str,
        *,
        task: str,
        pool: str,
        worst_case_microusd: int,
        gateway: bool = False,
    ) -> Hold:
        """Set the worst case aside; durable when it returns.

        For a queued task pass the task's own ``trace_id``, which links the two.

        Args:
            trace_id: of the task.
            task: its name.
            pool: that will be asked.
            worst_case_microusd: the most that the request can cost.
            gateway: the pool's gateway counts its money, so nothing is spent without a lease. The
                same holds for any pool that a hub once gave a lease for.

        Raises:
            BudgetExceeded: it does not fit what is left, or there is neither cap nor lease.
            StoreError: the file cannot be written; nothing is held.

        """
        check_money("worst_case_microusd", worst_case_microusd)
        asked = Asked(task, pool, worst_case_microusd, gateway)
        hold_id = uuid.uuid4().hex
        with self._file.transaction() as connection:
            now = self._file.tick(connection)
            paid_by = self._payer(connection, asked, now)
            if isinstance(paid_by, BudgetExceeded) and self._file.recover():
                paid_by = self._payer(connection, asked, now)
            if isinstance(paid_by, str):
                names = (hold_id, trace_id, task, pool, self._file.owner, paid_by)
                connection.execute(
                    "INSERT INTO holds (id, trace_id, task, pool, owner, lease_id, state, "
                    "worst_case_microusd, held_microusd, reserved_at) "
                    "VALUES (?, ?, ?, ?, ?, ?, 'reserved', ?, ?, ?)",
                    (*names, worst_case_microusd, worst_case_microusd, now),
                )
        if isinstance(paid_by, BudgetExceeded):
            raise paid_by
        return self.hold(hold_id)

    def mark_sent(self, hold: Hold, request: bytes = b"") -> None:
        """Record, durably, that the request is about to leave; call before the first byte does.

        Args:
            hold: as it was reserved.
            request: its body, where the pool can be asked again what became of it; kept until the
                outcome is known.

        Raises:
            StoreError: the hold is not reserved any more, or another hold of the same trace was
                sent since this one was reserved: sending again might pay twice.

        """
        with self._file.transaction() as connection:
            seq, state = self._state(connection, hold.id)
            if state != "reserved":
                raise wrong_state(hold.id, state, "sent")
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
            if request:
                connection.execute("INSERT INTO requests VALUES (?, ?)", (hold.id, request))

    def settle(
        self,
        hold: Hold,
        cost_microusd: int,
        *,
        tokens_in: int,
        tokens_out: int,
        end_lease: str = "",
    ) -> None:
        """Record what a sent request cost, once; a cost above the hold is counted in full.

        The same settle again changes nothing. Inside ``Book.transaction`` it is one change
        together with completing the queued task.

        Args:
            hold: sent, or unclear.
            cost_microusd: what it cost.
            tokens_in: of the request.
            tokens_out: of the answer.
            end_lease: why its lease pays for nothing more; empty where it still does.

        Raises:
            StoreError: the hold was never sent, was released, or is settled at another cost.

        """
        check_money("cost_microusd", cost_microusd)
        with self._file.transaction() as connection:
            self._file.tick(connection)
            seq, state = self._state(connection, hold.id)
            if state == "settled":
                self._check_same_cost(connection, seq, hold.id, cost_microusd)
                return
            if state not in {"sent", "unclear"}:
                raise wrong_state(hold.id, state, "settled")
            connection.execute(
                "UPDATE holds SET state = 'settled', held_microusd = 0, cost_microusd = ?, "
                "tokens_in = ?, tokens_out = ?, why = '' WHERE seq = ?",
                (cost_microusd, tokens_in, tokens_out, seq),
            )
            self._ended(connection, hold, end_lease)

    def release(self, hold: Hold, *, certainly_unbilled: bool = False, end_lease: str = "") -> None:
        """Give the money back: never sent, or sent and ``certainly_unbilled``. Idempotent.

        Args:
            hold: reserved, or sent.
            certainly_unbilled: the request was refused.
            end_lease: why its lease pays for nothing more; empty where it still does.

        Raises:
            StoreError: the request may have been billed.

        """
        allowed = {"reserved", "sent"} if certainly_unbilled else {"reserved"}
        with self._file.transaction() as connection:
            seq, state = self._state(connection, hold.id)
            if state == "released":
                return
            if state not in allowed:
                raise wrong_state(hold.id, state, "released")
            connection.execute(
                "UPDATE holds SET state = 'released', held_microusd = 0 WHERE seq = ?", (seq,)
            )
            self._ended(connection, hold, end_lease)

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
                raise wrong_state(hold.id, state, "unclear")
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
                raise wrong_state(hold_id, state, "resolved")
            self.settle(self.hold(hold_id), cost_microusd, tokens_in=0, tokens_out=0)

    def spent_microusd(self) -> int:
        """Return what the settled requests of this period cost."""
        return self._now_sums()[0]

    def held_microusd(self) -> int:
        """Return what is set aside in this period: reserved, sent and unclear."""
        return self._now_sums()[1]

    def outlay_microusd(self) -> int:
        """Return what is spent and set aside in this period."""
        return sum(self._now_sums())

    def remaining_microusd(self) -> int:
        """Return what may still be reserved in this period; 0 without a cap or a lease."""
        return self.leftover().remaining_microusd

    def leftover(self) -> Leftover:
        """Return what is spent, held and left, by pool, with the age of what the hub said."""
        with self._file.db.reading() as connection:
            sums = self._sums(connection, self._file.now(connection))
            now = self._file.clock()
            return left_over(connection, sums=sums, cap_microusd=self.cap_microusd, now=now)

    def expect(self, needs: Iterable[Need]) -> None:
        """Note which pools the tasks in force may ask; written only where that has changed.

        Raises:
            StoreError: the file cannot be written.

        """
        wanted = sorted(set(needs), key=lambda need: (need.pool, need.task))
        with self._file.db.reading() as connection:
            if demand.read_needs(connection) == wanted:
                return
        with self._file.transaction() as connection:
            demand.put_needs(connection, wanted)

    @staticmethod
    def _ended(connection: sqlite3.Connection, hold: Hold, end_lease: str) -> None:
        """Drop the request of a hold with an outcome; end its lease where the gateway said so."""
        connection.execute("DELETE FROM requests WHERE hold_id = ?", (hold.id,))
        if end_lease:
            rights.end(connection, hold.lease_id, why=end_lease)

    def _payer(
        self, connection: sqlite3.Connection, asked: Asked, now: float
    ) -> str | BudgetExceeded:
        """Return what pays; the period's sums are read anew, as a dead owner's holds may go."""
        cap = Cap(self.cap_microusd, self.period, *self._sums(connection, now))
        return payer(connection, asked, cap, now=self._file.clock())

    def _sums(self, connection: sqlite3.Connection, now: float) -> tuple[int, int]:
        """Return (spent, held) of the period that ``now`` lies in."""
        first = period_bounds(now, self.period)[0]
        spent, held = connection.execute(
            "SELECT coalesce(sum(cost_microusd), 0), coalesce(sum(held_microusd), 0) "
            "FROM holds WHERE reserved_at >= ?",
            (first,),
        ).fetchone()
        (kept,) = connection.execute(
            "SELECT coalesce(sum(cost_microusd), 0) FROM forgotten WHERE day >= ?",
            (int(first // DAY_S),),
        ).fetchone()
        return int(spent) + int(kept), int(held)

    def _now_sums(self) -> tuple[int, int]:
        with self._file.db.reading() as connection:
            return self._sums(connection, self._file.now(connection))

    def _state(self, connection: sqlite3.Connection, hold_id: str) -> tuple[int, HoldState]:
        row = connection.execute("SELECT seq, state FROM holds WHERE id = ?", (hold_id,)).fetchone()
        if row is None:
            raise unknown(hold_id)
        return row[0], row[1]

    def _check_same_cost(
        self, connection: sqlite3.Connection, seq: int, hold_id: str, cost_microusd: int
    ) -> None:
        query = "SELECT cost_microusd FROM holds WHERE seq = ?"
        (recorded,) = connection.execute(query, (seq,)).fetchone()
        if recorded != cost_microusd:
            raise wrong_cost(hold_id, recorded, cost_microusd)
