"""Published policies, many and one, read from the database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, func, select

from edge.overlay import difference, read_policy
from edge_sync.store.schema import devices, policies
from edge_sync.web.paging import PER_PAGE, Page, bounds


@dataclass(frozen=True, slots=True)
class Policy:
    """One version's line."""

    revision: int
    message: str
    author: str
    at: float
    restores: int | None
    devices: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting before and after, written out; ``None`` where it is not set."""

    path: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class OnePolicy:
    """All that the page of one version shows."""

    line: Policy
    before: int | None
    changes: tuple[Difference, ...]
    source: str
    digest: str
    bytes: int

    def __getattr__(self, name: str) -> Any:
        """What its line in the list shows."""
        return getattr(self.line, name)


def policy_list(connection: Connection, query: Mapping[str, str]) -> Page:
    """Return a page of versions, the newest first."""
    count = connection.execute(select(func.count()).select_from(policies)).scalar_one()
    number, skip = bounds(query.get("page", ""), count)
    force = _in_force(connection)
    rows = connection.execute(
        select(policies).order_by(policies.c.revision.desc()).limit(PER_PAGE).offset(skip)
    ).mappings()
    return Page(count, number, {}, {"policies": [_line(row, force) for row in rows]})


def one_policy(connection: Connection, revision: int) -> OnePolicy | None:
    """Return one version, or ``None`` where there is none of that number."""
    query = select(policies).where(policies.c.revision <= revision)
    rows = connection.execute(query.order_by(policies.c.revision.desc()).limit(2)).mappings().all()
    if not rows or rows[0]["revision"] != revision:
        return None
    before = rows[1] if len(rows) > 1 else None
    return OnePolicy(
        _line(rows[0], _in_force(connection)),
        None if before is None else before["revision"],
        changes(None if before is None else before["source"], rows[0]["source"]),
        rows[0]["source"],
        rows[0]["digest"],
        len(rows[0]["document"].encode()),
    )


def newest(connection: Connection) -> tuple[int, str | None]:
    """Return number and wording of the newest version; 0 and ``None`` where there is none."""
    row = connection.execute(
        select(policies.c.revision, policies.c.source).order_by(policies.c.revision.desc()).limit(1)
    ).first()
    return (0, None) if row is None else (row[0], row[1])


@lru_cache(maxsize=8)
def changes(old: str | None, new: str) -> tuple[Difference, ...]:
    """Return what differs between two wordings; large ones take seconds, so some are remembered.

    Raises:
        ConfigError: one is no policy.

    """
    before = None if old is None else read_policy(old, what="The version before")
    found = difference(before, read_policy(new, what="The policy"))
    return tuple(
        Difference(each.path, _written(each.before), _written(each.after)) for each in found
    )


def _written(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _in_force(connection: Connection) -> dict[int, int]:
    rows = connection.execute(
        select(devices.c.revision, func.count())
        .where(devices.c.status != "revoked")
        .group_by(devices.c.revision)
    )
    return {row[0]: row[1] for row in rows}


def _line(row: Any, force: Mapping[int, int]) -> Policy:
    revision = row["revision"]
    return Policy(
        revision,
        row["message"],
        row["author"],
        row["created_at"],
        row["restores"],
        force.get(revision, 0),
    )
