"""What can be read of the queue: its tasks by id, by state and by what the app has not taken yet.

Changes nothing. What it returns is as it was when read.
"""

from __future__ import annotations

from edge.errors import InputError
from edge.store.money import MoneyFile
from edge.store.queued import AUDIT, SELECT, STATES, QueuedTask, Tasks, TaskState, task_of

UNTOLD = (
    "WHERE told = 0 AND state IN ('done', 'failed', 'expired', 'cancelled') AND reason <> 'audit' "
    "AND (? IS NULL OR json_extract(payload, '$.pack') = ?) ORDER BY seq"
)


class QueueView:
    """The queue of one state folder, for reading."""

    def __init__(self, file: MoneyFile) -> None:
        self._file = file

    def list(self, state: TaskState | None = None, limit: int = 100) -> Tasks:
        """Return tasks, oldest first, of one state or all."""
        return self._select(
            "WHERE ? IS NULL OR state = ? ORDER BY seq LIMIT ?", state, state, limit
        )

    def get(self, task_id: str) -> QueuedTask | None:
        """Return one task, or ``None``."""
        return next(iter(self._select("WHERE id = ?", task_id)), None)

    def of_trace(self, trace_id: str) -> QueuedTask | None:
        """Return the task that waits, or waited, for the answer to a call; ``None`` without one."""
        found = self._select(
            "WHERE trace_id = ? AND reason <> ? ORDER BY seq DESC LIMIT 1", trace_id, AUDIT
        )
        return next(iter(found), None)

    def find(self, name: str) -> QueuedTask:
        """Return the task of a trace id, or of an id or its beginning.

        Raises:
            InputError: no task has it, or several have; or it is no text.

        """
        if not isinstance(name, str) or not name.isprintable():
            raise unknown(name)  # a result that was never queued has no id at all
        found = self.of_trace(name) or self.get(self.resolve(name))
        if found is None:  # another process dropped it just now
            raise unknown(name)
        return found

    def untold(self, pack: str | None = None) -> Tasks:
        """Return tasks that have ended and that the app has not taken, the oldest first.

        Args:
            pack: only those of this pack.

        """
        return self._select(UNTOLD, pack, pack)

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
            raise unknown(beginning)
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

    def unfinished(self) -> dict[str, int]:
        """Return how many tasks of each pack are unfinished."""
        rows = self._file.db.query(
            "SELECT json_extract(payload, '$.pack') AS pack, count(*) AS n FROM queued "
            "WHERE state IN ('waiting', 'claimed') AND pack IS NOT NULL GROUP BY pack"
        )
        return {row["pack"]: row["n"] for row in rows}

    def _select(self, where: str, *parameters: object) -> Tasks:
        with self._file.db.reading() as connection:
            rows = connection.execute(SELECT + where, parameters).fetchall()
        return [task_of(row) for row in rows]


def unknown(name: object) -> InputError:
    """Return the error for a task that is not there."""
    return InputError(
        f"Queued task {name!r} does not exist.", hint="`edge queue list` shows the ids."
    )
