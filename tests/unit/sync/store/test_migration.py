"""Every shipped version of the database can be brought up to date, on both databases."""

import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import insert, select, text, update

from edge.errors import StoreError
from edge_sync.hub.budget import books
from edge_sync.store import migration
from edge_sync.store.database import Store
from edge_sync.store.schema import devices, facts, ledger_rows, metadata_files, redemptions, tables

DUMPS = Path(__file__).parent / "dumps"
DUMPED_DEVICE = "00112233445566778899aabbccddeeff"


@pytest.fixture
def store(database):
    store = Store.open(database)
    yield store
    store.close()


def differences(store):
    with store.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return compare_metadata(context, tables)


def run(store, script):
    """Run a dump, statement by statement; none of them holds a semicolon inside."""

    def work(connection):
        for statement in script.split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)

    store.write(work)


def test_migrated_is_what_the_schema_says(store):
    assert migration.version(store) is None
    assert migration.migrate(store) == migration.VERSIONS
    assert differences(store) == []
    assert migration.migrate(store) == ()


def test_versions_are_the_files():
    folder = Path(migration.__file__).with_name("migrations")
    config = Config()
    config.set_main_option("script_location", str(folder))
    config.set_main_option("path_separator", "os")
    scripts = list(ScriptDirectory.from_config(config).walk_revisions())
    assert tuple(script.revision for script in reversed(scripts)) == migration.VERSIONS


@pytest.mark.parametrize("version", migration.VERSIONS)
def test_from_every_shipped_version(store, version):
    run(store, (DUMPS / f"{version}.{store.dialect}.sql").read_text("utf-8"))
    assert migration.version(store) == version
    migration.migrate(store)
    assert migration.version(store) == migration.VERSIONS[-1]
    assert differences(store) == []
    with store.reading() as connection:
        row = connection.execute(select(devices)).mappings().one()
        assert (row["id"], row["name"], row["revision"]) == (DUMPED_DEVICE, "kiosk 7", 3)
        cost = connection.execute(select(ledger_rows.c.cost_microusd)).scalar_one()
        assert cost == 4_000_000_000
        assert connection.execute(select(metadata_files.c.body)).scalar_one() == b"\x00{}\xff"
        told = dict(connection.execute(select(facts)).all())
        assert told["generation"] == "7"
        assert (told["epoch"], told["granted"]) == (("3", "1") if version >= "0002" else ("1", "0"))


def test_the_books_of_a_hub_survive(store):
    run(store, (DUMPS / f"0002.{store.dialect}.sql").read_text("utf-8"))
    migration.migrate(store)
    with store.reading() as connection:
        (held,) = books.rights(connection)
        assert (held.right.amount_microusd, held.right.epoch) == (4_000_000_000, 3)
        assert books.unbalanced(connection) == ()
        told = connection.execute(select(redemptions.c.cost_microusd)).scalar_one()
        assert told == held.seen_microusd == 7


def test_two_that_migrate_at_once_do_it_once(store, database):
    other = Store.open(database)
    done = []
    threads = [
        threading.Thread(target=lambda one=one: done.append(migration.migrate(one)))
        for one in (store, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert sorted(done) == [(), migration.VERSIONS]
    assert differences(store) == []


def test_an_empty_database_is_refused(store):
    with pytest.raises(StoreError) as caught:
        migration.require_current(store)
    assert "edge-hub init" in caught.value.hint


def test_an_older_database_is_refused_with_the_remedy(store, monkeypatch):
    migration.migrate(store)
    migration.require_current(store)
    monkeypatch.setattr(migration, "VERSIONS", (*migration.VERSIONS, "9999"))
    with pytest.raises(StoreError, match="needs 9999") as caught:
        migration.require_current(store)
    assert "edge-hub migrate" in caught.value.hint


def test_a_newer_database_is_refused_and_left_alone(store):
    migration.migrate(store)
    store.write(lambda c: c.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    for step in (migration.migrate, migration.require_current):
        with pytest.raises(StoreError, match="schema 9999") as caught:
            step(store)
        assert "newer edge-runtime" in caught.value.hint


def test_a_foreign_database_is_refused(store):
    store.write(lambda connection: connection.execute(text("CREATE TABLE mine (a INTEGER)")))
    with pytest.raises(StoreError, match="something else"):
        migration.migrate(store)


def test_a_failed_migration_changes_nothing(store, monkeypatch):
    def fail(connection):
        upgrade(connection)
        connection.execute(insert(facts).values(name="half", value="1"))
        raise StoreError("the disk is full")

    upgrade = migration._upgrade
    monkeypatch.setattr(migration, "_upgrade", fail)
    with pytest.raises(StoreError, match="disk is full"):
        migration.migrate(store)
    assert migration.version(store) is None


def test_numbers_are_wide_enough(store):
    migration.migrate(store)

    def work(connection):
        connection.execute(insert(facts).values(name="x", value="y" * 100_000))
        connection.execute(update(facts).values(value="z"))

    store.write(work)
    with store.reading() as connection:
        assert connection.execute(select(facts.c.value)).scalar_one() == "z"
