"""The queue: tasks that wait for a network, a budget or a better model.

    waiting -> claimed -> done | failed          claimed -> waiting (given back, lease passed,
    failed -> waiting (retry)                    or its process ended)
    waiting | claimed -> expired | cancelled

Guarantees: what ``put`` acknowledged is on disk; an answer given to ``complete`` is kept, whoever
holds the claim by then, and only the first one counts; one that comes after the task's time, or
after it was cancelled, is never given out; a cancelled or expired task is never claimed again; a
clock set back delays nothing. A hold of the ledger belongs to a queued task when it carries the
task's ``trace_id``; a claimed task says whether such a hold may have been billed. Decides nothing
about sending again.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from edge.errors import Busy
from edge.store.money import MoneyFile
from edge.store.queue_view import QueueView, unknown
from edge.store.queued import (
    SELECT,
    QueuedTask,
    Tasks,
    dump,
    expire,
    in_turn,
    is_time_over,
    reanchor,
    task_of,
)
from edge.types import Json

__all__ = ["MAX_WAITING", "Cancelled", "Queue", "QueuedTask"]

MAX_WAITING = 10_000
USUAL_PRIORITY = 5

Cancelled: TypeAlias = Literal["released", "in_flight", "ended"]
"""What cancelling came to: never sent from now on; being asked for, so that it may be paid for; or
too late, the task had ended."""

LONGEST_PAUSE_S = 6 * 3600.0
"""Between two attempts at a task, whatever its history."""
_MOST_DOUBLINGS = 20
_CAME_LATE = "Its answer came {:.0f} s after its time; it is paid for and not given out."
_CAME_FOR_NOBODY = "Cancelled while it was asked for; its answer is paid for and not given out."


class Queue(QueueView):
    """The queue of one state folder; safe to share between threads and processes."""

    def __init__(self, file: MoneyFile, *, max_waiting: int = MAX_WAITING) -> None:
        super().__init__(file)
        self._max_waiting = max_waiting

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        max_waiting: int = MAX_WAITING,
        clock: Callable[[], float] = time.time,
    ) -> Queue:
        """Open the queue alone; ``Book.open`` gives it together with the ledger.

        Raises:
            StoreError: the folder cannot be used.

        """
        return cls(MoneyFile(folder, clock=clock), max_waiting=max_waiting)

    def close(self) -> None:
        """Close the file; claims of this opening become claimable again."""
        self._file.close()

    def put(
        self,
        task: str,
        *,
        text: str,
        payload: dict[str, Any],
        reason: str,
        provisional: Json,
        trace_id: str,
        priority: int = USUAL_PRIORITY,
        expires_s: float | None = None,
    ) -> str:
        """Queue a task and return its id; durable when it returns.

        Args:
            task: its name.
            text: the input.
            payload: what else the task needs, a JSON object.
            reason: why it waits.
            provisional: the device's proposal.
            trace_id: of the call.
            priority: 0 to 9; see ``edge.store.queued`` for whose turn comes when.
            expires_s: for how long from now an answer is of use; ``None`` for ever.

        Raises:
            Busy: ``max_waiting`` tasks are unfinished.
            InputError: payload or provisional is no JSON.
            StoreError: the file cannot be written; nothing is queued.

        """
        task_id = uuid.uuid4().hex
        saved = dump("payload", payload), reason, dump("provisional", provisional)
        with self._file.transaction() as connection:
            now = self._file.clock()
            expire(connection, now)  # they make room
            (unfinished,) = connection.execute(
                "SELECT count(*) FROM queued WHERE state IN ('waiting', 'claimed')"
            ).fetchone()
            if unfinished >= self._max_waiting:
                raise Busy(
                    f"Task {task!r} cannot be queued: {unfinished} tasks wait already.",
                    hint="Run `edge queue retry`, or give up on some with `edge queue drop`.",
                )
            answer_by = None if expires_s is None else now + expires_s
            connection.execute(
                "INSERT INTO queued (id, task, text, payload, reason, provisional, trace_id, "
                "state, put_at, priority, answer_by) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, 'waiting', ?, ?, ?)",
                (task_id, task, text, *saved, trace_id, now, priority, answer_by),
            )
        return task_id

    def claim(
        self,
        limit: int = 1,
        *,
        lease_s: float = 60.0,
        among: Iterable[str] | None = None,
        pack: str | None = None,
        unless: Callable[[str, dict[str, Any]], bool] | None = None,
    ) -> Tasks:
        """Take up to ``limit`` tasks whose time has come, in turn, for ``lease_s`` seconds.

        Claims of dead owners and passed leases count as waiting.

        Args:
            limit: how many at most.
            lease_s: how long nobody else may take them.
            among: none but those ids; ``None`` means all.
            pack: none but those of this pack, or that name none; ``None`` means all.
            unless: says of a task's name and payload that it is passed over.

        """
        ids = None if among is None else json.dumps(list(among))
        with self._file.transaction() as connection:
            self._file.recover()
            now = self._file.clock()
            reanchor(connection, now)
            most = limit if unless is None else None
            due = in_turn(connection, now, among=ids, pack=pack, limit=most)
            free = (
                seq
                for seq, task, payload in due
                if unless is None or not unless(task, json.loads(payload))
            )
            seqs = list(islice(free, limit))
            due.close()
            connection.executemany(
                "UPDATE queued SET state = 'claimed', owner = ?, since = ?, until = ?, "
                "attempts = attempts + 1 WHERE seq = ?",
                [(self._file.owner, now, now + lease_s, seq) for seq in seqs],
            )
            found = (connection.execute(SELECT + "WHERE seq = ?", (seq,)) for seq in seqs)
            return [task_of(row.fetchone()) for row in found]

    def complete(self, task_id: str, result: dict[str, Any]) -> bool:
        """Keep the answer; return whether it is the first one, and in time.

        Later ones change nothing. One that comes after the task's time, or after it was cancelled,
        is noted as late and not kept.

        Raises:
            InputError: there is no such task, or the result is no JSON.

        """
        text = dump("result", result)
        with self._file.transaction() as connection:
            self._known(connection, task_id)
            now = self._file.clock()
            reanchor(connection, now)
            done = connection.execute(
                "UPDATE queued SET state = 'done', result = ?, owner = NULL, error = '', "
                "ended_at = ?, told = 0 WHERE id = ? AND state IN ('waiting', 'claimed', 'failed') "
                "AND (answer_by IS NULL OR answer_by > ?)",
                (text, now, task_id, now),
            )
            if done.rowcount == 1:
                return True
            self._came_late(connection, task_id, now)
            return False

    def give_back(
        self,
        task_id: str,
        error: str,
        *,
        retry_after_s: float,
        longest_s: float = LONGEST_PAUSE_S,
        blameless: bool = False,
    ) -> bool:
        """Let a claimed task wait again; return whether this owner still had it.

        Args:
            task_id: claimed.
            error: what went wrong.
            retry_after_s: the pause, doubled with every attempt.
            longest_s: at most so long.
            blameless: no other task would have fared better, so the attempt does not count and the
                pause is not doubled: when the pool is back, nothing waits for hours.

        """
        with self._file.transaction() as connection:
            attempts = self._known(connection, task_id)
            doublings = 0 if blameless else min(max(attempts - 1, 0), _MOST_DOUBLINGS)
            pause_s = min(retry_after_s * 2**doublings, longest_s)
            now = self._file.clock()
            given = connection.execute(
                "UPDATE queued SET state = 'waiting', owner = NULL, error = ?, since = ?, "
                "until = ?, attempts = attempts - ? "
                "WHERE id = ? AND state = 'claimed' AND owner = ?",
                (error, now, now + pause_s, blameless, task_id, self._file.owner),
            )
            self._let_go(connection, task_id)
            return given.rowcount == 1

    def fail(self, task_id: str, error: str) -> bool:
        """End a task without an answer; return whether it was this owner's, or waiting."""
        with self._file.transaction() as connection:
            self._known(connection, task_id)
            failed = connection.execute(
                "UPDATE queued SET state = 'failed', owner = NULL, error = ?, ended_at = ?, "
                "told = 0 WHERE id = ? "
                "AND (state = 'waiting' OR (state = 'claimed' AND owner = ?))",
                (error, self._file.clock(), task_id, self._file.owner),
            )
            self._let_go(connection, task_id)
            return failed.rowcount == 1

    def cancel(self, task_id: str) -> Cancelled:
        """Give up on a task; durable when it returns.

        Returns:
            ``released``: it waited and is never sent from now on. ``in_flight``: it is being asked
            for; what comes back may be paid for and is not given out. ``ended``: it had ended, and
            nothing changed.

        Raises:
            InputError: there is no such task.

        """
        with self._file.transaction() as connection:
            self._file.recover()
            self._known(connection, task_id)
            now = self._file.clock()
            reanchor(connection, now)
            expire(connection, now)
            (state,) = connection.execute(
                "SELECT state FROM queued WHERE id = ?", (task_id,)
            ).fetchone()
            if state not in {"waiting", "claimed"}:
                return "ended"
            why = "Cancelled." if state == "waiting" else "Cancelled while it was asked for."
            connection.execute(
                "UPDATE queued SET state = 'cancelled', error = ?, ended_at = ?, told = 0 "
                "WHERE id = ?",
                (why, now, task_id),
            )
            return "released" if state == "waiting" else "in_flight"

    def expire(self) -> int:
        """End the tasks whose time is over and that nobody asks for; return how many."""
        with self._file.db.reading() as connection:
            if not is_time_over(connection, self._file.clock()):
                return 0
        with self._file.transaction() as connection:
            now = self._file.clock()
            reanchor(connection, now)
            return expire(connection, now)

    def take(self, task: QueuedTask) -> bool:
        """Note that the app has what came of a task; return whether that is still what came."""
        with self._file.transaction() as connection:
            taken = connection.execute(
                "UPDATE queued SET told = 1 WHERE id = ? AND state = ? AND late = ?",
                (task.id, task.state, task.late),
            )
            return taken.rowcount == 1

    def retry(self, task_ids: Iterable[str] | None = None) -> int:
        """Make failed and pausing tasks claimable now; return how many. ``None`` means all."""
        reset = (
            "UPDATE queued SET state = 'waiting', attempts = 0, since = 0, until = 0, "
            "ended_at = NULL WHERE (state = 'failed' OR (state = 'waiting' AND until > 0))"
        )
        with self._file.transaction() as connection:
            if task_ids is None:
                return connection.execute(reset).rowcount
            ids = [(task_id,) for task_id in task_ids]
            return sum(connection.execute(f"{reset} AND id = ?", one).rowcount for one in ids)

    def drop(self, ids: Iterable[str] | None = None) -> int:
        """Delete tasks that wait or ended without an answer, the named ones or all.

        A task that is being asked for now stays, and so does an answer. Returns how many went.
        """
        chosen = None if ids is None else json.dumps([*ids])
        with self._file.transaction() as connection:
            return connection.execute(
                "DELETE FROM queued WHERE state IN ('waiting', 'failed', 'expired', 'cancelled') "
                "AND owner IS NULL AND (? IS NULL OR id IN (SELECT value FROM json_each(?)))",
                (chosen, chosen),
            ).rowcount

    def prune(self, keep_rows: int) -> int:
        """Drop the oldest done, expired and cancelled tasks beyond ``keep_rows``.

        Whether the app has taken what came of them does not count. Returns how many went.
        """
        with self._file.transaction() as connection:
            return connection.execute(
                "DELETE FROM queued WHERE seq IN (SELECT seq FROM queued "
                "WHERE state IN ('done', 'expired', 'cancelled') AND owner IS NULL "
                "ORDER BY seq DESC LIMIT -1 OFFSET ?)",
                (keep_rows,),
            ).rowcount

    def _came_late(self, connection: sqlite3.Connection, task_id: str, now: float) -> None:
        """Note an answer that is not given out; the owner lets go."""
        state, answer_by = connection.execute(
            "SELECT state, answer_by FROM queued WHERE id = ?", (task_id,)
        ).fetchone()
        if state == "done":
            return
        why = _CAME_FOR_NOBODY if state == "cancelled" else _CAME_LATE.format(now - answer_by)
        connection.execute(
            "UPDATE queued SET state = CASE state WHEN 'cancelled' THEN state ELSE 'expired' END, "
            "late = 1, owner = NULL, error = ?, ended_at = ?, told = 0 WHERE id = ?",
            (why, now, task_id),
        )

    def _let_go(self, connection: sqlite3.Connection, task_id: str) -> None:
        """Note that nobody asks any more for a task that was cancelled or expired meanwhile."""
        connection.execute(
            "UPDATE queued SET owner = NULL WHERE id = ? AND owner = ? "
            "AND state IN ('expired', 'cancelled')",
            (task_id, self._file.owner),
        )

    def _known(self, connection: sqlite3.Connection, task_id: str) -> int:
        """Return the task's attempts."""
        query = "SELECT attempts FROM queued WHERE id = ?"
        row = connection.execute(query, (task_id,)).fetchone()
        if row is None:
            raise unknown(task_id)
        return int(row[0])
