"""The cache: answers that were given, to be given again to the same or nearly the same input.

An input's text is never in it: only its sha256 and, where similar inputs are to be found, its
vector. Answers are, since they must be given again; one may repeat what its text said. Bounded by
rows and bytes: what was used last stays. Cheap before all: WAL and ``synchronous=NORMAL``; losing
it costs time, no answer. The file is made on first use. Safe to share between threads and
processes. Does not know what decides an answer (whoever calls puts that into the key), nor whether
a kept answer may still be given.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sqlite_utils
from numpy.typing import NDArray

from edge.errors import StoreError
from edge.store.db import Database, Migration, open_migrated
from edge.store.nearest import Nearest
from edge.types import Json

FILE = "cache.db"
MAX_ROWS = 20_000
MAX_BYTES = 64 * 2**20
MAX_ANSWER_CHARS = 65_536
"""An answer that is longer as JSON is not kept."""

_BETWEEN_CHECKS = 256  # rows that this process adds before the bounds are looked at again
_ROW_BYTES = 600  # of a row without answer and vector, with its share of the indexes
_COLUMNS = (
    "seq, task, key, input_sha256, answer, confidence, low, high, certified, route, tier, model, "
    "device, trace_id, policy, made_at"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An answer with what it was the answer to.

    Attributes:
        task: its name.
        key: digest of everything besides the text that decides an answer.
        input_sha256: of the text.
        value: the answer.
        confidence, interval, certified, model, device: as in the Result.
        route: where it came from, ``local`` or ``cloud``.
        tier: the task whose local model made it; ``None`` for the cloud.
        trace_id: of the call that it was first given to.
        policy: revision in force then, 0 for none.
        vector: of the text, float32 ``[dimensions]``, of length 1; ``None`` where only the same
            text may get this answer. Not given back.
        marks: digest of what two similar texts must share; see ``edge.lookup``. Not given back.
        seq: number of the row.
        made_at: when it was kept, seconds.

    """

    task: str
    key: str
    input_sha256: str
    value: Json
    confidence: float | None
    interval: tuple[float, float] | None
    certified: bool
    route: str
    tier: str | None
    model: str | None
    device: str | None
    trace_id: str
    policy: int = 0
    vector: NDArray[np.float32] | None = None
    marks: int = 0
    seq: int = 0
    made_at: float = 0.0


def _create(tables: sqlite_utils.Database) -> None:
    # AUTOINCREMENT: a number that is used again would lead an index in memory to another answer.
    tables.execute(
        "CREATE TABLE answers (seq INTEGER PRIMARY KEY AUTOINCREMENT, task TEXT NOT NULL, "
        "key TEXT NOT NULL, input_sha256 TEXT NOT NULL, answer TEXT NOT NULL, confidence REAL, "
        "low REAL, high REAL, certified INTEGER NOT NULL, route TEXT NOT NULL, tier TEXT, "
        "model TEXT, device TEXT, trace_id TEXT NOT NULL, policy INTEGER NOT NULL, "
        "vector BLOB, marks INTEGER NOT NULL, made_at REAL NOT NULL, expires_at REAL NOT NULL, "
        "used_at REAL NOT NULL, hits INTEGER NOT NULL, bytes INTEGER NOT NULL, "
        "UNIQUE (key, input_sha256)) STRICT"
    )
    # Holds all that pruning looks at, so that it reads no answer and no vector.
    tables.execute("CREATE INDEX by_use ON answers (used_at, bytes, expires_at, made_at)")
    tables.execute("CREATE INDEX by_trace ON answers (trace_id)")
    tables.execute("CREATE INDEX by_vector ON answers (key, seq) WHERE vector IS NOT NULL")


MIGRATIONS: tuple[Migration, ...] = (_create,)


class Cache:
    """The answers kept in one state folder.

    Args:
        folder: the state folder.
        max_rows: how many answers; a process may add 256 more before the oldest leave.
        max_bytes: how much they may take together.

    """

    def __init__(
        self, folder: Path, *, max_rows: int = MAX_ROWS, max_bytes: int = MAX_BYTES
    ) -> None:
        self._path = folder / FILE
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._db: Database | None = None
        self._closed = False
        self._unchecked = _BETWEEN_CHECKS
        self._nearest: dict[str, Nearest] = {}

    def same(self, key: str, input_sha256: str, *, since: float, until: float) -> Kept | None:
        """Return the answer to the same text, kept after ``since`` and not after ``until``.

        An answer from the future is none: the clock was set back, and how old it is nobody knows.

        Raises:
            StoreError: the file cannot be used.

        """
        return self._one(
            "key = ? AND input_sha256 = ? AND made_at > ? AND made_at <= ?",
            (key, input_sha256, since, until),
        )

    def of_trace(self, trace_id: str) -> Kept | None:
        """Return the answer that a call was the first to get, or ``None``."""
        if self._is_missing():
            return None
        return self._one("trace_id = ?", (trace_id,))

    def has_vectors(self, key: str) -> bool:
        """Whether ``similar`` can find anything at all.

        Raises:
            StoreError: the file cannot be used.

        """
        with self._lock:
            return len(self._loaded(key)) > 0

    def similar(
        self,
        key: str,
        vector: NDArray[np.float32],
        *,
        marks: int,
        threshold: float,
        since: float,
        until: float,
    ) -> tuple[Kept, float] | None:
        """Return the answer to the nearest text and the cosine to it, as ``same``.

        Args:
            key: see ``Kept``.
            vector: of the text, float32 ``[dimensions]``, of length 1.
            marks: must be the same.
            threshold: the least cosine, compared to three decimals.
            since: it was kept after that, seconds.
            until: and not after that.

        Raises:
            StoreError: the file cannot be used.

        """
        while True:
            with self._lock:
                nearest = self._loaded(key)
                best = nearest.best(vector, marks=marks, since=since, until=until)
                if best is None or best[1] < threshold:
                    return None
                kept = self._one("seq = ?", (best[0],))
                if kept is not None:
                    return kept, best[1]
                nearest.drop(best[0])

    def put(self, kept: Kept, *, at: float, ttl_s: float) -> bool:
        """Keep an answer for so many seconds, in place of an earlier one to the same text.

        Returns:
            whether it was kept; a very long one is not.

        Raises:
            StoreError: the file cannot be written; all is as before.

        """
        # In ASCII, since a model may answer with half of a surrogate pair, which no file takes.
        answer = json.dumps(kept.value, separators=(",", ":"))
        if len(answer) > MAX_ANSWER_CHARS:
            return False
        low, high = kept.interval or (None, None)
        blob = None if kept.vector is None else kept.vector.astype(np.float16).tobytes()
        size = _ROW_BYTES + len(answer) + len(blob or b"")
        row = (
            *(kept.task, kept.key, kept.input_sha256, answer, kept.confidence, low, high),
            *(int(kept.certified), kept.route, kept.tier, kept.model, kept.device, kept.trace_id),
            *(kept.policy, blob, kept.marks, at, at + ttl_s, at, 0, size),
        )
        holes = ", ".join("?" * len(row))
        with self._opened().transaction() as connection:
            # Replacing takes the old row's number away, so no index in memory finds the old answer.
            connection.execute(
                f"INSERT OR REPLACE INTO answers VALUES (NULL, {holes})",  # noqa: S608 - constant
                row,
            )
        self._check_bounds(at)
        return True

    def used(self, seq: int, at: float) -> None:
        """Count a hit; what was used last stays longest."""
        with self._opened().reading() as connection:
            connection.execute(
                "UPDATE answers SET hits = hits + 1, used_at = ? WHERE seq = ?", (at, seq)
            )

    def forget(self, task: str | None = None) -> int:
        """Drop the answers of a task, or all; return how many."""
        return self._delete("? IS NULL OR task = ?", (task, task))

    def forget_trace(self, trace_id: str) -> int:
        """Drop the answer that a call was the first to get; return how many, 0 or 1."""
        return self._delete("trace_id = ?", (trace_id,))

    def prune(self, at: float) -> int:
        """Drop what has expired, then what was unused longest beyond the bounds; return how many.

        What was kept in the future goes too: see ``same``.
        """
        if self._is_missing():
            return 0
        with self._opened().transaction() as connection:
            old = connection.execute(
                "DELETE FROM answers WHERE seq IN "
                "(SELECT seq FROM answers INDEXED BY by_use WHERE expires_at <= ? OR made_at > ?)",
                (at, at),
            ).rowcount
            many = connection.execute(
                "DELETE FROM answers WHERE seq IN (SELECT seq FROM (SELECT seq, "
                "row_number() OVER latest AS n, sum(bytes) OVER latest AS total "
                "FROM answers INDEXED BY by_use "
                "WINDOW latest AS (ORDER BY used_at DESC, bytes DESC ROWS UNBOUNDED PRECEDING)) "
                "WHERE n > ? OR total > ?)",
                (self._max_rows, self._max_bytes),
            ).rowcount
        return old + many

    def summary(self) -> list[dict[str, Any]]:
        """Return, for each task: task, answers, hits and bytes."""
        return self._opened().query(
            "SELECT task, count(*) AS answers, sum(hits) AS hits, sum(bytes) AS bytes "
            "FROM answers GROUP BY task ORDER BY task"
        )

    def inspect(self) -> dict[str, Any]:
        """Return the file's path, SQLite version, journal mode and rows per table."""
        return self._opened().inspect()

    def close(self) -> None:
        """Close the file; calling twice is harmless."""
        with self._lock:
            self._closed = True
            self._nearest.clear()
            if self._db is not None:
                self._db.close()

    def _opened(self) -> Database:
        db = self._db
        if db is not None:
            return db
        with self._lock:
            return self._open()

    def _open(self) -> Database:
        """Open the file where it is not open; the lock is held."""
        if self._closed:
            raise StoreError(
                f"State file {self._path} cannot be used: the runtime is closed.",
                hint="Open the runtime again.",
            )
        if self._db is None:
            self._db = open_migrated(self._path, MIGRATIONS)
        return self._db

    def _delete(self, where: str, args: tuple[Any, ...]) -> int:
        if self._is_missing():
            return 0
        with self._opened().transaction() as connection:
            return connection.execute(
                f"DELETE FROM answers WHERE {where}",  # noqa: S608 - constants
                args,
            ).rowcount

    def _check_bounds(self, at: float) -> None:
        with self._lock:
            self._unchecked += 1
            if self._unchecked < _BETWEEN_CHECKS:
                return
            self._unchecked = 0
        self.prune(at)

    def _is_missing(self) -> bool:
        """Whether nothing was ever kept; then nothing is made in order to look."""
        return self._db is None and not self._path.exists()

    def _one(self, where: str, args: tuple[Any, ...]) -> Kept | None:
        with self._opened().reading() as connection:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM answers WHERE {where}",  # noqa: S608 - constants
                args,
            ).fetchone()
        return None if row is None else _kept(row)

    def _loaded(self, key: str) -> Nearest:
        """Return the index of a key with all that any process has kept; the lock is held."""
        nearest = self._nearest.setdefault(key, Nearest())
        self._read_new(key, nearest)
        if sum(map(len, self._nearest.values())) > 2 * self._max_rows + _BETWEEN_CHECKS:
            # Rows that left the file, and keys that nobody asks for, stay until all is built anew.
            self._nearest = {key: (nearest := Nearest())}
            self._read_new(key, nearest)
        return nearest

    def _read_new(self, key: str, nearest: Nearest) -> None:
        with self._open().reading() as connection:
            rows = connection.execute(
                "SELECT seq, marks, made_at, vector FROM answers "
                "WHERE key = ? AND vector IS NOT NULL AND seq > ? ORDER BY seq",
                (key, nearest.latest),
            ).fetchall()
        if rows:
            seqs, marks, made_at, blobs = zip(*rows, strict=True)
            vectors = np.frombuffer(b"".join(blobs), np.float16).reshape(len(rows), -1)
            nearest.add(seqs, marks, made_at, vectors)


def _kept(row: tuple[Any, ...]) -> Kept:
    seq, task, key, text, answer, confidence, low, high, certified, *rest = row
    route, tier, model, device, trace_id, policy, made_at = rest
    return Kept(
        seq=seq,
        task=task,
        key=key,
        input_sha256=text,
        value=json.loads(answer),
        confidence=confidence,
        interval=None if low is None else (low, high),
        certified=bool(certified),
        route=route,
        tier=tier,
        model=model,
        device=device,
        trace_id=trace_id,
        policy=policy,
        made_at=made_at,
    )
