"""Many rows in one statement, on both databases.

PostgreSQL takes them as one JSON array, SQLite one after another in C. Knows nothing of what the
tables mean; values must be what JSON can hold.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql


def put(
    connection: Connection,
    table: Table,
    *,
    rows: Sequence[Sequence[Any]],
    columns: Sequence[str],
    instead: str = "NOTHING",
) -> None:
    """Insert rows; where the primary key is taken, do what ``instead`` says.

    Args:
        connection: inside a write.
        table: where to.
        rows: values in the order of ``columns``; no two with the same key.
        columns: by name.
        instead: ``NOTHING``, or ``UPDATE SET …`` with the new row as ``excluded``.

    """
    if not rows:
        return
    keys = ", ".join(column.name for column in table.primary_key)
    end = f"ON CONFLICT ({keys}) DO {instead}"
    names = ", ".join(columns)
    if connection.dialect.name == "sqlite":
        marks = ", ".join("?" * len(columns))
        sql = f"INSERT INTO {table.name} ({names}) VALUES ({marks}) {end}"  # noqa: S608 - names of the schema
        connection.exec_driver_sql(sql, [tuple(row) for row in rows])
        return
    source = _recordset(table, tuple(columns))
    sql = f"INSERT INTO {table.name} ({names}) SELECT {names} FROM {source} {end}"  # noqa: S608 - likewise
    connection.exec_driver_sql(sql, (_json(columns, rows),))


def change(
    connection: Connection,
    table: Table,
    *,
    rows: Sequence[Sequence[Any]],
    columns: Sequence[str],
    by: str,
) -> None:
    """Set columns of existing rows; the one called ``by`` finds the row.

    Args:
        connection: inside a write.
        table: whose rows.
        rows: values in the order of ``columns``; no two for the same row.
        columns: by name, ``by`` among them.
        by: the column that finds a row.

    """
    if not rows:
        return
    others = [name for name in columns if name != by]
    if connection.dialect.name == "sqlite":
        sets = ", ".join(f"{name} = ?" for name in others)
        order = [columns.index(name) for name in (*others, by)]
        sql = f"UPDATE {table.name} SET {sets} WHERE {by} = ?"  # noqa: S608 - names of the schema
        connection.exec_driver_sql(sql, [tuple(row[at] for at in order) for row in rows])
        return
    sets = ", ".join(f"{name} = given.{name}" for name in others)
    source = _recordset(table, tuple(columns))
    sql = f"UPDATE {table.name} SET {sets} FROM {source} WHERE {table.name}.{by} = given.{by}"  # noqa: S608 - likewise
    connection.exec_driver_sql(sql, (_json(columns, rows),))


def find(
    connection: Connection,
    table: Table,
    *,
    keys: Sequence[Sequence[Any]],
    by: Sequence[str],
    columns: Sequence[str],
) -> list[tuple[Any, ...]]:
    """Return columns of the rows whose columns ``by`` are one of ``keys``; in no order."""
    if not keys:
        return []
    names = ", ".join(f"{table.name}.{name}" for name in columns)
    if connection.dialect.name == "sqlite":
        # CROSS JOIN keeps the order: one search in the index for each key.
        parts = ", ".join(f"json_extract(value, '$.{name}') AS {name}" for name in by)
        source = f"(SELECT {parts} FROM json_each(?)) AS given CROSS JOIN {table.name}"  # noqa: S608 - names of the schema
        on = " AND ".join(f"{table.name}.{name} = given.{name}" for name in by)
        sql = f"SELECT {names} FROM {source} WHERE {on}"  # noqa: S608 - likewise
    else:
        source = _recordset(table, tuple(by))
        on = " AND ".join(f"{table.name}.{name} = given.{name}" for name in by)
        sql = f"SELECT {names} FROM {source} JOIN {table.name} ON {on}"  # noqa: S608 - likewise
    return [tuple(row) for row in connection.exec_driver_sql(sql, (_json(by, keys),))]


def _json(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    return json.dumps([dict(zip(columns, row, strict=True)) for row in rows])


@lru_cache(maxsize=64)
def _recordset(table: Table, columns: tuple[str, ...]) -> str:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    typed = ", ".join(f"{name} {table.c[name].type.compile(dialect)}" for name in columns)
    return f"json_to_recordset(%s::json) AS given({typed})"
