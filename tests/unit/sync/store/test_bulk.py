import pytest

from edge_sync.store import bulk
from edge_sync.store.database import Store
from edge_sync.store.migration import migrate
from edge_sync.store.schema import metadata_files, tokens

COLUMNS = ("digest", "name", "role", "created_at")


@pytest.fixture
def store(database):
    store = Store.open(database)
    migrate(store)
    yield store
    store.close()


def rows(store):
    with store.reading() as connection:
        found = bulk.find(
            connection,
            tokens,
            keys=[("a",), ("b",), ("missing",)],
            by=("digest",),
            columns=("digest", "name", "created_at", "expires_at"),
        )
    return sorted(found)


def put(store, values, instead="NOTHING"):
    store.write(
        lambda connection: bulk.put(
            connection, tokens, rows=values, columns=COLUMNS, instead=instead
        )
    )


def test_rows_are_put_and_found(store):
    put(store, [("a", "ann 'quoted' %s ü", "admin", 1.5), ("b", "bob", "viewer", 2.5)])
    assert rows(store) == [("a", "ann 'quoted' %s ü", 1.5, None), ("b", "bob", 2.5, None)]


def test_a_taken_key_is_left_or_updated(store):
    put(store, [("a", "ann", "admin", 1.0)])
    put(store, [("a", "eve", "admin", 2.0), ("b", "bob", "viewer", 3.0)])
    assert rows(store) == [("a", "ann", 1.0, None), ("b", "bob", 3.0, None)]
    put(store, [("a", "eve", "admin", 2.0)], "UPDATE SET created_at = excluded.created_at")
    assert rows(store)[0] == ("a", "ann", 2.0, None)


def test_columns_are_changed_by_key(store):
    put(store, [("a", "ann", "admin", 1.0), ("b", "bob", "viewer", 3.0)])
    columns = ("expires_at", "digest", "name")
    changed = [(9.0, "a", "anna"), (None, "b", "rob"), (1.0, "missing", "x")]
    store.write(
        lambda connection: bulk.change(
            connection, tokens, rows=changed, columns=columns, by="digest"
        )
    )
    assert rows(store) == [("a", "anna", 1.0, 9.0), ("b", "rob", 3.0, None)]


def test_keys_of_two_columns(store):
    def work(connection):
        for role, version in (("root", 1), ("root", 2), ("targets", 1)):
            connection.execute(
                metadata_files.insert().values(
                    role=role, version=version, body=b"x", created_at=0.0
                )
            )
        return bulk.find(
            connection,
            metadata_files,
            keys=[("root", 2), ("targets", 2), ("targets", 1)],
            by=("role", "version"),
            columns=("role", "version"),
        )

    assert sorted(store.write(work)) == [("root", 2), ("targets", 1)]


def test_nothing_is_nothing(store):
    put(store, [])
    with store.reading() as connection:
        assert bulk.find(connection, tokens, keys=[], by=("digest",), columns=COLUMNS) == []
