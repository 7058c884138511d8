"""Bring the hub's database to the schema that this version knows, or say why not.

Guarantees: all missing migrations are one transaction; two processes that migrate at once do it
once; a database of a newer version is refused and left alone.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from edge.errors import StoreError
from edge_sync.store.database import Store

VERSIONS = ("0001", "0002")
"""All migrations that were ever shipped, in order; a test compares them with the files."""
_FOLDER = Path(__file__).with_name("migrations")


def version(store: Store) -> str | None:
    """Return the migration that a database is at; ``None`` for an empty one.

    Raises:
        StoreError: it is of a newer version, belongs to something else, or cannot be read.

    """
    with store.reading() as connection:
        return _version(connection, store)


def migrate(store: Store) -> tuple[str, ...]:
    """Run the missing migrations and return them; none where the database is up to date.

    Raises:
        StoreError: as ``version``; or a migration failed, and nothing was changed.

    """

    def work(connection: Connection) -> tuple[str, ...]:
        at = _version(connection, store)
        missing = VERSIONS if at is None else VERSIONS[VERSIONS.index(at) + 1 :]
        if missing:
            _upgrade(connection)
        return missing

    if version(store) == VERSIONS[-1]:
        return ()
    return store.write(work)


def require_current(store: Store) -> None:
    """Refuse a database that is not at the newest migration.

    Raises:
        StoreError: it is empty, behind, newer or of something else; the hint is the remedy.

    """
    at = version(store)
    if at is None:
        raise StoreError(
            f"The hub's database {store.url} is empty.", hint="Run `edge-hub init` first."
        )
    if at != VERSIONS[-1]:
        raise StoreError(
            f"The hub's database {store.url} has schema {at}; this version needs {VERSIONS[-1]}.",
            hint="Back it up and run `edge-hub migrate`.",
        )


def _version(connection: Connection, store: Store) -> str | None:
    names = set(inspect(connection).get_table_names())
    if not names:
        return None
    if "alembic_version" not in names:
        raise StoreError(
            f"The database {store.url} belongs to something else: it has tables, none of a hub.",
            hint="Name another database; this one is left alone.",
        )
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if found is None:
        return None
    if found not in VERSIONS:
        raise StoreError(
            f"The hub's database {store.url} has schema {found}; "
            f"this version knows {VERSIONS[-1]} at most.",
            hint="Install the newer edge-runtime that wrote it.",
        )
    return str(found)


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
