"""A task of the queue as a row: its states, its turn, and when its time is over.

    priority + one step for each hour waited, then the nearest deadline, then the oldest

A task so outranks every other one that came ten hours after it, whatever their priorities, and none
starves. What a row says of time holds for a clock set back: pauses, deadlines and ages that would
begin in the future begin now. Plain functions over a connection; opens and commits nothing.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from edge.errors import InputError
from edge.types import Json

TaskState: TypeAlias = Literal["waiting", "claimed", "done", "failed", "expired", "cancelled"]
STATES: tuple[TaskState, ...] = ("waiting", "claimed", "done", "failed", "expired", "cancelled")
AUDIT = "audit"
"""Why a task is here whose answer was kept: nobody waits for what comes of it."""

AGING_S = 3600.0
"""Waiting so long counts as one step of priority."""

# Without a hint every task that waits is looked at, in the place of those whose time is over.
BY_TIME = "queued INDEXED BY queued_answer_by"
OVER = "state IN ('waiting', 'claimed') AND answer_by <= ? AND (state = 'waiting' OR until <= ?)"
_TIME_IS_OVER = "Its time was over before it could be asked for."

SELECT = """
SELECT id, task, text, payload, reason, provisional, trace_id, state, attempts, until, put_at,
       result, error,
       (SELECT count(*) FROM holds WHERE holds.trace_id = queued.trace_id
        AND holds.state IN ('sent', 'unclear')),
       (SELECT id FROM holds WHERE holds.trace_id = queued.trace_id
        AND holds.state IN ('sent', 'unclear') ORDER BY seq DESC LIMIT 1),
       priority, answer_by, ended_at, late, told,
       (SELECT coalesce(sum(cost_microusd), 0) FROM holds WHERE holds.trace_id = queued.trace_id)
FROM queued
"""


@dataclass(frozen=True, slots=True)
class QueuedTask:
    """A task of the queue, as it was when read.

    Attributes:
        attempts: how often it was claimed, but for times when its pool was out of reach.
        until: not before this time (waiting) or leased until it (claimed), epoch seconds.
        error: what the last attempt failed of, or why there is no answer.
        unclear_holds: holds of this task whose request may have been billed.
        unclear_hold_id: the latest of them; where it is set, sending again may pay twice.
        priority: 0 to 9, the higher the sooner.
        answer_by: an answer after this time is of no use, epoch seconds; ``None`` for never.
        ended_at: when it came to its end, epoch seconds.
        late: an answer came, and was paid for, after the task had expired or was cancelled.
        told: the app has taken what came of it.
        cost_microusd: what was paid for it so far.

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
    priority: int
    answer_by: float | None
    ended_at: float | None
    late: bool
    told: bool
    cost_microusd: int

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to come of it by itself."""
        return self.state not in {"waiting", "claimed"}


Tasks: TypeAlias = list[QueuedTask]


def in_turn(
    connection: sqlite3.Connection,
    now: float,
    *,
    among: str | None,
    pack: str | None,
    limit: int | None,
) -> sqlite3.Cursor:
    """Return (seq, task, payload) of what may be asked for now, whose turn comes first.

    Args:
        connection: to the money file.
        now: epoch seconds.
        among: only these ids, as a JSON list; ``None`` for all.
        pack: only those of this pack, and those that name none; ``None`` for all.
        limit: how many at most; with a few, a long queue is not sorted. ``None`` for all.

    """
    return connection.execute(
        "SELECT seq, task, payload FROM queued "
        "WHERE state IN ('waiting', 'claimed') AND until <= ? "
        "AND (answer_by IS NULL OR answer_by > ?) "
        "AND (? IS NULL OR id IN (SELECT value FROM json_each(?))) "
        "AND coalesce(json_extract(payload, '$.pack') = ?, 1) "
        "ORDER BY priority + CAST((? - put_at) / ? AS INTEGER) DESC, "
        "answer_by IS NULL, answer_by, seq LIMIT ?",
        (now, now, among, among, pack, now, AGING_S, -1 if limit is None else limit),
    )


def is_time_over(connection: sqlite3.Connection, now: float) -> bool:
    """Whether ``expire`` would change anything."""
    over = f"SELECT 1 FROM {BY_TIME} WHERE {OVER} LIMIT 1"  # noqa: S608
    return connection.execute(over, (now, now)).fetchone() is not None


def expire(connection: sqlite3.Connection, now: float) -> int:
    """End the tasks that nobody asks for and whose time is over; return how many.

    One that is being asked for is judged when its answer comes.
    """
    return connection.execute(
        f"UPDATE {BY_TIME} SET state = 'expired', error = ?, ended_at = ?, told = 0 "  # noqa: S608
        f"WHERE {OVER}",
        (_TIME_IS_OVER, now, now, now),
    ).rowcount


def reanchor(connection: sqlite3.Connection, now: float) -> None:
    """Restart what began in what is now the future: the clock was set back."""
    connection.execute(
        "UPDATE queued SET until = ? + (until - since), since = ? "
        "WHERE state IN ('waiting', 'claimed') AND since > ?",
        (now, now, now),
    )
    connection.execute(
        "UPDATE queued SET answer_by = ? + (answer_by - put_at), put_at = ? "
        "WHERE state IN ('waiting', 'claimed') AND put_at > ?",
        (now, now, now),
    )


def dump(name: str, value: Json | dict[str, Any]) -> str:
    """Return a value as JSON.

    Raises:
        InputError: it is none.

    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"The {name} of a queued task is not JSON: {error}.") from error


def task_of(row: tuple[Any, ...]) -> QueuedTask:
    """Return the task of a row of ``SELECT``."""
    fields = list(row)
    for place in (3, 5, 11):
        fields[place] = None if fields[place] is None else json.loads(fields[place])
    for place in (18, 19):
        fields[place] = bool(fields[place])
    return QueuedTask(*fields)
