import pytest
from sqlalchemy import select

from edge.errors import InputError, StoreError
from edge_sync.hub import audit
from edge_sync.hub.backup import backup
from edge_sync.hub.home import raise_fact, read_fact
from edge_sync.store.database import Store
from edge_sync.store.migration import require_current
from edge_sync.store.schema import tables


def watermark(hub):
    with hub.store.reading() as connection:
        return read_fact(connection, "watermark")


def rows(store):
    with store.reading() as connection:
        return {
            table.name: sorted(map(tuple, connection.execute(select(table))), key=repr)
            for table in tables.sorted_tables
        }


def test_a_backup_is_the_whole_database_and_raises_the_watermark(
    hub, publish, device, spend, tmp_path
):
    publish("routing: {keep_above: 0.8}\n", at_once=["lab"])
    spend(device(1), 5)
    hub.store.write(lambda c: raise_fact(c, "receipt", by=7))
    before = rows(hub.store)
    made = backup(hub, tmp_path / "hub.backup", who="ann")
    assert (made.receipt, watermark(hub)) == (7, 7)
    copy = Store.open(f"sqlite:///{made.path}")
    try:
        require_current(copy)
        assert rows(copy) == before
        assert audit.verify(copy) is None
    finally:
        copy.close()
    assert audit.verify(hub.store) is None
    assert [path.name for path in tmp_path.iterdir()] == ["hub.backup"]


def test_nothing_is_overwritten(hub, tmp_path, dump):
    path = tmp_path / "hub.backup"
    path.write_text("mine")
    before = dump()
    with pytest.raises(InputError, match="is there already"):
        backup(hub, path, who="ann")
    assert (path.read_text(), dump()) == ("mine", before)


def test_a_backup_that_fails_leaves_the_watermark(hub, tmp_path, dump):
    hub.store.write(lambda c: raise_fact(c, "receipt", by=7))
    before = dump()
    with pytest.raises(StoreError, match="cannot be written"):
        backup(hub, tmp_path / "missing" / "hub.backup", who="ann")
    assert dump() == before


def test_the_watermark_never_falls(hub, tmp_path):
    hub.store.write(lambda c: raise_fact(c, "receipt", by=7))
    hub.store.write(lambda c: raise_fact(c, "watermark", by=9))
    backup(hub, tmp_path / "hub.backup", who="ann")
    assert watermark(hub) == 9
