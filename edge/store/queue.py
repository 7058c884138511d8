"""The queue: tasks that wait for a network, a budget or a better model.

    waiting -> claimed -> done | failed          claimed -> waiting (given back, lease passed,
    failed -> waiting (retry)                    or its process ended)

Guarantees: what ``put`` acknowledged is on disk; an answer given to ``complete`` is kept, whoever
holds the claim by then, and only the first one counts; a clock set back delays nothing. A hold of
the ledger belongs to a queued task when it carries the task's ``trace_id``; a claimed task says
whether such a hold may have been billed. Decides nothing about sending again.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from edge.errors import Busy, InputError
from edge.store.money import MoneyFile
from edge.types import Json

TaskState: TypeAlias = Literal["waiting", "claimed", "done", "failed"]
STATES: tuple[TaskState, ...] = ("waiting", "claimed", "done", "failed")
MAX_WAITING = 10_000
_LONGEST_PAUSE_S = 6 * 3600.0
_MOST_DOUBLINGS = 20

_SELECT = """
SELECT id, task, text, payload, reason, provisional, trace_id, state, attempts, until, put_at,
       result, error,
       (SELECT count(*) FROM holds WHERE holds.trace_id = queued.trace_id
        AND holds.state IN ('sent', 'unclear')),
       (SELECT id FROM holds WHERE holds.trace_id = queued.trace_id
        AND holds.state IN ('sent', 'unclear') ORDER BY seq DESC LIMIT 1)
FROM queued
"""


@dataclass(frozen=True, slots=True)
class QueuedTask:
    """A task of the queue, as it was when read.

    Attributes:
        attempts: how often it was claimed.
        until: not before this time (waiting) or leased until it (claimed), epoch seconds.
        error: what the last attempt failed of.
        unclear_holds: holds of this task whose request may have been billed.
        unclear_hold_id: the latest of them; where it is set, sending again may pay twice.

    """

    id: str
    task: str
    text: str
    payload: dict[str, Any]
    reason: str
    provisional: Json
    trace_id: str
    state: TaskState
    attempts: int
    until: float
    put_at: float
    result: dict[str, Any] | None
    error: str
    unclear_holds: int
    unclear_hold_id: str | None


Tasks: TypeAlias = list[QueuedTask]


class Queue:
    """The queue of one state folder; safe to share between threads and processes."""

    def __init__(self, file: MoneyFile, *, max_waiting: int = MAX_WAITING) -> None:
        self._file = file
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
    ) -> str:
        """Queue a task and return its id; durable when it returns.

        Raises:
            Busy: ``max_waiting`` tasks are unfinished.
            InputError: payload or provisional is no JSON.
            StoreError: the file cannot be written; nothing is queued.

        """
        task_id = uuid.uuid4().hex
        saved = _dump("payload", payload), reason, _dump("provisional", provisional)
        with self._file.transaction() as connection:
            (unfinished,) = connection.execute(
                "SELECT count(*) FROM queued WHERE state IN ('waiting', 'claimed')"
            ).fetchone()
            if unfinished >= self._max_waiting:
                raise Busy(
                    f"Task {task!r} cannot be queued: {unfinished} tasks wait already.",
                    hint="Run `edge queue retry`, or give up on some with `edge queue drop`.",
                )
            connection.execute(
                "INSERT INTO queued (id, task, text, payload, reason, provisional, trace_id, "
                "state, put_at) VALUES (?, ?, ?, ?, ?, ?, ?, 'waiting', ?)",
                (task_id, task, text, *saved, trace_id, self._file.clock()),
            )
        return task_id

    def claim(
        self, limit: int = 1, *, lease_s: float = 60.0, among: Iterable[str] | None = None
    ) -> Tasks:
        """Take up to ``limit`` tasks whose time has come, oldest first, for ``lease_s`` seconds.

        Claims of dead owners and passed leases count as waiting. ``among`` takes none but those
        ids; ``None`` means all.
        """
        ids = None if among is None else json.dumps(list(among))
        with self._file.transaction() as connection:
            self._file.recover()
            now = self._file.clock()
            _reanchor(connection, now)
            rows = connection.execute(
                "SELECT seq FROM queued WHERE state IN ('waiting', 'claimed') AND until <= ? "
                "AND (? IS NULL OR id IN (SELECT value FROM json_each(?))) ORDER BY seq LIMIT ?",
                (now, ids, ids, limit),
            ).fetchall()
            connection.executemany(
                "UPDATE queued SET state = 'claimed', owner = ?, since = ?, until = ?, "
                "attempts = attempts + 1 WHERE seq = ?",
                [(self._file.owner, now, now + lease_s, seq) for (seq,) in rows],
            )
            found = (connection.execute(_SELECT + "WHERE seq = ?", row).fetchone() for row in rows)
            return [_task(row) for row in found]

    def complete(self, task_id: str, result: dict[str, Any]) -> bool:
        """Keep the answer; return whether it is the first one. Later ones change nothing.

        Raises:
            InputError: there is no such task, or the result is no JSON.

        """
        text = _dump("result", result)
        with self._file.transaction() as connection:
            self._known(connection, task_id)
            done = connection.execute(
                "UPDATE queued SET state = 'done', result = ?, owner = NULL, error = '' "
                "WHERE id = ? AND state <> 'done'",
                (text, task_id),
            )
            return done.rowcount == 1

    def give_back(self, task_id: str, error: str, *, retry_after_s: float) -> bool:
        """Let a claimed task wait again; return whether this owner still had it.

        The pause is ``retry_after_s`` doubled with every attempt, at most six hours.
        """
        with self._file.transaction() as connection:
            attempts = self._known(connection, task_id)
            doublings = min(max(attempts - 1, 0), _MOST_DOUBLINGS)
            pause_s = min(retry_after_s * 2**doublings, _LONGEST_PAUSE_S)
            now = self._file.clock()
            given = connection.execute(
                "UPDATE queued SET state = 'waiting', owner = NULL, error = ?, since = ?, "
                "until = ? WHERE id = ? AND state = 'claimed' AND owner = ?",
                (error, now, now + pause_s, task_id, self._file.owner),
            )
            return given.rowcount == 1

    def fail(self, task_id: str, error: str) -> bool:
        """End a task without an answer; return whether it was this owner's, or waiting."""
        with self._file.transaction() as connection:
            self._known(connection, task_id)
            failed = connection.execute(
                "UPDATE queued SET state = 'failed', owner = NULL, error = ? WHERE id = ? "
                "AND (state = 'waiting' OR (state = 'claimed' AND owner = ?))",
                (error, task_id, self._file.owner),
            )
            return failed.rowcount == 1

    def retry(self, task_ids: Iterable[str] | None = None) -> int:
        """Make failed and pausing tasks claimable now; return how many. ``None`` means all."""
        reset = (
            "UPDATE queued SET state = 'waiting', attempts = 0, since = 0, until = 0 "
            "WHERE (state = 'failed' OR (state = 'waiting' AND until > 0))"
        )
        with self._file.transaction() as connection:
            if task_ids is None:
                return connection.execute(reset).rowcount
            ids = [(task_id,) for task_id in task_ids]
            return sum(connection.execute(f"{reset} AND id = ?", one).rowcount for one in ids)

    def drop(self, ids: Iterable[str] | None = None) -> int:
        """Delete tasks that wait or were given up, the named ones or all; return how many.

        A task that is being asked for now stays, and so does an answer.
        """
        chosen = None if ids is None else json.dumps([*ids])
        with self._file.transaction() as connection:
            return connection.execute(
                "DELETE FROM queued WHERE state IN ('waiting', 'failed') "
                "AND (? IS NULL OR id IN (SELECT value FROM json_each(?)))",
                (chosen, chosen),
            ).rowcount

    def prune(self, keep_rows: int) -> int:
        """Drop the oldest done tasks beyond ``keep_rows``; return how many."""
        with self._file.transaction() as connection:
            return connection.execute(
                "DELETE FROM queued WHERE seq IN (SELECT seq FROM queued WHERE state = 'done' "
                "ORDER BY seq DESC LIMIT -1 OFFSET ?)",
                (keep_rows,),
            ).rowcount

    def list(self, state: TaskState | None = None, limit: int = 100) -> Tasks:
        """Return tasks, oldest first, of one state or all."""
        with self._file.db.reading() as connection:
            rows = connection.execute(
                _SELECT + "WHERE ? IS NULL OR state = ? ORDER BY seq LIMIT ?", (state, state, limit)
            ).fetchall()
        return [_task(row) for row in rows]

    def get(self, task_id: str) -> QueuedTask | None:
        """Return one task, or ``None``."""
        with self._file.db.reading() as connection:
            row = connection.execute(_SELECT + "WHERE id = ?", (task_id,)).fetchone()
        return None if row is None else _task(row)

    def resolve(self, beginning: str) -> str:
        """Return the id of the one task whose id begins so.

        Raises:
            InputError: no id does, or several do.

        """
        with self._file.db.reading() as connection:
            count, found = connection.execute(
                "SELECT count(*), min(id) FROM queued WHERE substr(id, 1, ?) = ?",
                (len(beginning), beginning),
            ).fetchone()
        if count == 0 or not beginning:
            raise InputError(
                f"Queued task {beginning!r} does not exist.",
                hint="`edge queue list` shows the ids.",
            )
        if count > 1:
            raise InputError(
                f"The ids of {count} queued tasks begin with {beginning!r}.",
                hint="Give more characters of the id.",
            )
        return str(found)

    def pauses(self) -> tuple[float, ...]:
        """Return when each task in its pause is due, epoch seconds, the soonest first."""
        with self._file.db.reading() as connection:
            rows = connection.execute(
                "SELECT until FROM queued WHERE state = 'waiting' AND until > ? ORDER BY until",
                (self._file.clock(),),
            ).fetchall()
        return tuple(float(until) for (until,) in rows)

    def counts(self) -> dict[str, int]:
        """Return how many tasks are in each state."""
        rows = self._file.db.query("SELECT state, count(*) AS n FROM queued GROUP BY state")
        found = {row["state"]: row["n"] for row in rows}
        return {state: found.get(state, 0) for state in STATES}

    def _known(self, connection: sqlite3.Connection, task_id: str) -> int:
        """Return the task's attempts."""
        query = "SELECT attempts FROM queued WHERE id = ?"
        row = connection.execute(query, (task_id,)).fetchone()
        if row is None:
            raise InputError(f"Queued task {task_id!r} does not exist.")
        return int(row[0])


def _reanchor(connection: sqlite3.Connection, now: float) -> None:
    """Restart pauses and leases that began in what is now the future: the clock was set back."""
    connection.execute(
        "UPDATE queued SET until = ? + (until - since), since = ? "
        "WHERE state IN ('waiting', 'claimed') AND since > ?",
        (now, now, now),
    )


def _dump(name: str, value: Json | dict[str, Any]) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"The {name} of a queued task is not JSON: {error}.") from error


def _task(row: tuple[Any, ...]) -> QueuedTask:
    fields = list(row)
    for place in (3, 5, 11):
        fields[place] = None if fields[place] is None else json.loads(fields[place])
    return QueuedTask(*fields)
