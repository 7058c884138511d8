"""Traces: one row for every task that was run, also for one that failed.

Cheap before all: WAL and ``synchronous=NORMAL``, so a power cut can cost the last rows but never
the file's order, and a killed process costs nothing. A text is kept only where the caller passes
one. A second row with the same trace id replaces the first. Money is counted in the ledger, not
here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import sqlite_utils

from edge.errors import InputError
from edge.store.db import Database, Migration, open_migrated

ERROR = "error"
"""The route of a call that raised; its reasons hold the name of the error's class."""

_FIRST: dict[str, type] = {
    "trace_id": str,
    "at": float,
    "task": str,
    "route": str,
    "model": str,
    "device": str,
    "confidence": float,
    "cost_microusd": int,
    "latency_ms": float,
    "tokens_in": int,
    "tokens_out": int,
    "reasons": str,
    "input_sha256": str,
    "input_chars": int,
    "text": str,
    "detail": str,
}
COLUMNS: dict[str, type] = {**_FIRST, "policy": int}
_REQUIRED = ("trace_id", "at", "task", "route")
_FIRST_ZERO = ("cost_microusd", "latency_ms", "tokens_in", "tokens_out", "input_chars")
_ZERO = (*_FIRST_ZERO, "policy")
_JSON: dict[str, Any] = {"reasons": [], "detail": {}}
_INSERT = (
    f"INSERT OR REPLACE INTO traces ({', '.join(COLUMNS)}) "  # noqa: S608 - constants
    f"VALUES ({', '.join('?' * len(COLUMNS))})"
)


def _create_traces(tables: sqlite_utils.Database) -> None:
    traces = tables.create_table(
        "traces",
        {"seq": int, **_FIRST},
        pk="seq",
        not_null={*_REQUIRED, *_FIRST_ZERO, *_JSON},
        strict=True,
    )
    traces.create_index(["trace_id"], unique=True)
    traces.create_index(["task", "seq"])


def _add_policy(tables: sqlite_utils.Database) -> None:
    tables.table("traces").add_column("policy", int, not_null_default=0)


MIGRATIONS: tuple[Migration, ...] = (_create_traces, _add_policy)


class Traces:
    """The traces of one state folder; safe to share between threads."""

    def __init__(self, db: Database) -> None:
        self._db = db

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open or create ``traces.db``.

        Raises:
            StoreError: the folder cannot be used.

        """
        return cls(open_migrated(folder / "traces.db", MIGRATIONS))

    def append(self, trace: Mapping[str, Any]) -> None:
        """Add one row; ``trace_id``, ``at``, ``task`` and ``route`` are required.

        Raises:
            InputError: a required key is missing, a key is unknown, or a value does not fit.
            StoreError: the file cannot be written.

        """
        row = _row(trace)
        with self._db.reading() as connection:
            connection.execute(_INSERT, row)

    def append_all(self, traces: Iterable[Mapping[str, Any]]) -> None:
        """Add many rows in one transaction, all or none; raises like ``append``."""
        rows = [_row(trace) for trace in traces]
        with self._db.transaction() as connection:
            connection.executemany(_INSERT, rows)

    def get(self, trace_id: str) -> dict[str, Any] | None:
        """Return one trace with its JSON columns read, or ``None``."""
        rows = self._select("WHERE trace_id = ?", (trace_id,))
        return rows[0] if rows else None

    def after(self, seq: int, limit: int) -> Iterator[dict[str, Any]]:
        """Yield the oldest traces behind a number: what a report of the fleet needs of each.

        Keys: seq, trace_id, at, task, route, latency_ms, cost_microusd and policy, the revision in
        force (0 for none). A number is higher than that of every row there was before it.

        Args:
            seq: the last one seen; 0 for the first.
            limit: how many at most.

        """
        yield from self._db.query(
            "SELECT seq, trace_id, at, task, route, latency_ms, cost_microusd, policy "
            "FROM traces WHERE seq > ? ORDER BY seq LIMIT ?",
            (seq, limit),
        )

    def latest(self, limit: int, task: str | None = None) -> list[dict[str, Any]]:
        """Return the newest traces first, of one task or all."""
        return self._select(
            "WHERE ? IS NULL OR task = ? ORDER BY seq DESC LIMIT ?", (task, task, limit)
        )

    def summary(self, task: str | None = None) -> dict[str, Any]:
        """Return count, routes (count by route), cost_microusd, p50_ms and p95_ms.

        A percentile is the nearest rank: the smallest latency that at least that share of the
        rows does not exceed; ``None`` without rows.
        """
        where, args = "WHERE ? IS NULL OR task = ?", (task, task)
        with self._db.reading():
            routes = self._db.query(
                "SELECT route, count(*) AS n, sum(cost_microusd) AS cost_microusd "  # noqa: S608
                f"FROM traces {where} GROUP BY route ORDER BY n DESC, route",
                args,
            )
            count = sum(row["n"] for row in routes)
            return {
                "count": count,
                "routes": {row["route"]: row["n"] for row in routes},
                "cost_microusd": sum(row["cost_microusd"] for row in routes),
                "p50_ms": self._latency(50, count, where, args),
                "p95_ms": self._latency(95, count, where, args),
            }

    def prune(self, keep_rows: int) -> int:
        """Drop the oldest rows beyond ``keep_rows``; return how many."""
        if keep_rows < 0:
            raise InputError(f"keep_rows is {keep_rows} but must be >= 0.")
        with self._db.transaction() as connection:
            return connection.execute(
                "DELETE FROM traces WHERE seq IN "
                "(SELECT seq FROM traces ORDER BY seq DESC LIMIT -1 OFFSET ?)",
                (keep_rows,),
            ).rowcount

    def inspect(self) -> dict[str, Any]:
        """Return the file's path, SQLite version, journal mode and rows per table."""
        return self._db.inspect()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _select(self, tail: str, args: tuple[Any, ...]) -> list[dict[str, Any]]:
        rows = self._db.query(
            f"SELECT {', '.join(COLUMNS)} FROM traces {tail}",  # noqa: S608 - constants
            args,
        )
        return [row | {name: json.loads(row[name]) for name in _JSON} for row in rows]

    def _latency(self, percent: int, count: int, where: str, args: tuple[Any, ...]) -> float | None:
        if count == 0:
            return None
        rank = -(-percent * count // 100)
        rows = self._db.query(
            f"SELECT latency_ms FROM traces {where} "  # noqa: S608 - constant
            "ORDER BY latency_ms LIMIT 1 OFFSET ?",
            (*args, rank - 1),
        )
        return float(rows[0]["latency_ms"])


def _row(trace: Mapping[str, Any]) -> tuple[Any, ...]:
    missing = [name for name in _REQUIRED if trace.get(name) is None]
    unknown = [name for name in trace if name not in COLUMNS]
    if missing or unknown:
        raise InputError(f"A trace lacks {missing} and has unknown {unknown}.")
    return tuple(_value(name, trace.get(name)) for name in COLUMNS)


def _value(name: str, value: Any) -> Any:
    if name in _JSON:
        return _dump(name, _JSON[name] if value is None else value)
    if value is None:
        return 0 if name in _ZERO else None
    wanted = COLUMNS[name]
    fits = isinstance(value, (int, float) if wanted is float else wanted)
    if not fits or (isinstance(value, int) and abs(value) >= 2**63):
        raise InputError(f"Trace column {name!r} is {value!r} but must be {wanted.__name__}.")
    return value


def _dump(name: str, value: Any) -> str:
    if name == "reasons":
        value = list(value)
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise InputError(f"Trace column {name!r} is not JSON: {error}.") from error
