"""Small states that outlive a process, and what is known of single answers.

Two tables of one file: states by name, each a JSON object that changes in a transaction of its own,
and labels: whether an answer, named by its trace, was right, and who said so. Holds no text of a
task. Knows nothing of what a state means.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

import sqlite_utils

from edge.errors import StoreError
from edge.store.db import Database, Migration, open_migrated

Source = Literal["user", "audit"]
State = dict[str, Any]


def _create(tables: sqlite_utils.Database) -> None:
    tables.create_table(
        "states", {"name": str, "body": str}, pk="name", not_null={"body"}, strict=True
    )
    labels = tables.create_table(
        "labels",
        {"trace_id": str, "task": str, "right": int, "source": str, "at": float},
        pk=("trace_id", "source"),
        not_null={"task", "right", "at"},
        strict=True,
    )
    labels.create_index(["task", "at"])


MIGRATIONS: tuple[Migration, ...] = (_create,)


class States:
    """The states of one state folder; safe to share between threads and processes."""

    def __init__(self, db: Database) -> None:
        self._db = db

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open or create ``states.db``.

        Raises:
            StoreError: the folder cannot be used.

        """
        return cls(open_migrated(folder / "states.db", MIGRATIONS))

    def read(self, name: str) -> State | None:
        """Return a state, or ``None`` where there is none.

        Raises:
            StoreError: the file cannot be read, or holds no object under that name.

        """
        with self._db.reading() as connection:
            return self._body(
                name,
                connection.execute("SELECT body FROM states WHERE name = ?", (name,)).fetchone(),
            )

    def change(self, name: str, step: Callable[[State | None], State]) -> State:
        """Replace a state by what ``step`` makes of it, and return that; nothing comes between.

        Raises:
            StoreError: the file cannot be written; the state is as before.

        """
        with self._db.transaction() as connection:
            row = connection.execute("SELECT body FROM states WHERE name = ?", (name,)).fetchone()
            after = step(self._body(name, row))
            connection.execute(
                "INSERT OR REPLACE INTO states VALUES (?, ?)",
                (name, json.dumps(after, allow_nan=False)),
            )
        return after

    def forget(self, name: str) -> None:
        """Drop a state."""
        with self._db.reading() as connection:
            connection.execute("DELETE FROM states WHERE name = ?", (name,))

    def label(self, trace_id: str, *, task: str, right: bool, source: Source, at: float) -> bool:
        """Note whether an answer was right; a later word of the same source replaces an earlier.

        Returns:
            whether this source says so for the first time.

        """
        with self._db.transaction() as connection:
            before = connection.execute(
                "SELECT right FROM labels WHERE trace_id = ? AND source = ?", (trace_id, source)
            ).fetchone()
            connection.execute(
                "INSERT OR REPLACE INTO labels VALUES (?, ?, ?, ?, ?)",
                (trace_id, task, int(right), source, at),
            )
        return before is None or bool(before[0]) is not right

    def labels(self, task: str | None = None) -> dict[str, tuple[bool, Source]]:
        """Return (right, source) by trace id, of one task or of all.

        Where both spoke it is the audit that counts: a user speaks up about some answers only, and
        taking audited ones out for that would bend the audits' sample.
        """
        rows = self._db.query(
            "SELECT trace_id, right, source FROM labels WHERE ? IS NULL OR task = ? "
            "ORDER BY source DESC, at",
            (task, task),
        )
        return {row["trace_id"]: (bool(row["right"]), row["source"]) for row in rows}

    def corrections_after(self, seq: int, limit: int) -> list[dict[str, Any]]:
        """Return the oldest words of users against answers behind a number.

        Keys: seq, trace_id, task and at. A word that replaces an earlier one has a number of its
        own.
        """
        return self._db.query(
            "SELECT rowid AS seq, trace_id, task, at FROM labels "
            "WHERE rowid > ? AND source = 'user' AND right = 0 ORDER BY rowid LIMIT ?",
            (seq, limit),
        )

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _body(self, name: str, row: tuple[str] | None) -> State | None:
        if row is None:
            return None
        try:
            body = json.loads(row[0])
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise StoreError(
                f"The state {name!r} in {self._db.path} is damaged.",
                hint="Move the file away; watches and prices then start anew.",
            )
        return body
