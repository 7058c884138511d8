"""Published policies, read: one, many, and which groups are to run which.

Changes nothing; ``edge_sync.hub.policies`` publishes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select

from edge.errors import ConfigError
from edge_sync.hub.home import Hub
from edge_sync.store.schema import assignments, groups, policies


@dataclass(frozen=True, slots=True)
class Published:
    """One revision.

    Attributes:
        digest: sha256 of the document.
        document: as it is signed.
        source: as the admin wrote it.
        restores: the earlier revision whose content it brings back.

    """

    revision: int
    digest: str
    message: str
    author: str
    created_at: float
    restores: int | None
    source: str = field(repr=False)
    document: str = field(repr=False)


def get(hub: Hub, revision: int | None = None) -> Published:
    """Return a revision, the newest for ``None``.

    Raises:
        ConfigError: there is none.

    """
    with hub.store.reading() as connection:
        return find(connection, revision)


def find(connection: Connection, revision: int | None = None) -> Published:
    """Return a revision, as ``get``, inside a transaction."""
    query = select(policies).order_by(policies.c.revision.desc()).limit(1)
    if revision is not None:
        query = query.where(policies.c.revision == revision)
    row = connection.execute(query).mappings().first()
    if row is None:
        named = "a policy yet" if revision is None else f"a policy revision {revision}"
        raise ConfigError(f"There is not {named}.", hint="See `edge-hub policy list`.")
    return _from_row(dict(row))


def newest(hub: Hub) -> Published | None:
    """Return the newest revision, ``None`` before the first."""
    with hub.store.reading() as connection:
        if connection.execute(select(policies.c.revision).limit(1)).first() is None:
            return None
        return find(connection)


def list_policies(hub: Hub, *, limit: int = 50) -> list[Published]:
    """Return revisions, the newest first."""
    query = select(policies).order_by(policies.c.revision.desc()).limit(limit)
    with hub.store.reading() as connection:
        return [_from_row(dict(row)) for row in connection.execute(query).mappings()]


def groups_by_revision(hub: Hub) -> dict[int, list[str]]:
    """Return the groups by the revision that all of them are to run; 0 for the pack's own."""
    query = (
        select(groups.c.name, assignments.c.revision)
        .outerjoin(assignments, assignments.c.serial == groups.c.serial)
        .order_by(groups.c.name)
    )
    found: dict[int, list[str]] = {}
    with hub.store.reading() as connection:
        for name, revision in connection.execute(query):
            found.setdefault(int(revision or 0), []).append(str(name))
    return found


def _from_row(row: dict[str, Any]) -> Published:
    return Published(**{name: row[name] for name in Published.__slots__})
