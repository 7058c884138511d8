"""``edge-hub restore``: a backup put back, and what is refused."""

import shutil
import sqlite3
from dataclasses import replace

import pytest
from sqlalchemy import insert

from edge.errors import ConfigError, InputError, StoreError
from edge_sync.gateway.refusals import Refused
from edge_sync.hub import audit, restoring
from edge_sync.hub.backup import backup
from edge_sync.hub.budget import outside
from edge_sync.hub.budget.granting import Granting
from edge_sync.hub.home import Hub, raise_fact
from edge_sync.store import schema
from edge_sync.store.database import Store

from .conftest import look

DOLLAR = 1_000_000


@pytest.fixture
def path(memory_path):
    return memory_path / "hub.backup"


def test_after_a_restore_what_is_free_is_exact(hub, gated, gateway, path):
    before, after = gated.join(), gated.join()
    before.want(100_000)
    gateway.spend(before.leases[0], 10_000)
    backup(hub, path, who="ann")
    gateway.spend(before.leases[0], 20_000)
    after.want(100_000)
    gateway.spend(after.leases[0], 40_000)
    generation = gated.fact("generation")

    made = restoring.restore(hub, path, who="ann", replace=True)
    assert made.epoch == gated.fact("epoch") == outside.read(hub.keys).epoch == 2
    assert (gated.fact("recovering"), gated.fact("granted")) == (1, 2)
    assert gated.fact("generation") > generation
    stranger = gated.join()
    stranger.want(100_000)
    assert stranger.leases == ()
    for lease in before.leases + after.leases:  # good until the gateway has heard of it
        gateway.hold(lease, 1_000)

    gated.step()
    with pytest.raises(Refused, match="epoch"):
        gateway.hold(after.leases[0], 1)
    assert gated.money() == (DOLLAR, DOLLAR - 72_000, 72_000, 0)
    assert gateway.totals()["used_microusd"] == 72_000
    stranger.want(100_000)
    assert len(stranger.leases) == 1
    assert audit.verify(hub.store) is None


@pytest.mark.parametrize("first", ["device", "copy"])
def test_whoever_synced_since_is_no_copy_and_a_copy_is_still_noticed(hub, gated, path, first):
    device, idle, bad = (gated.join() for _ in range(3))
    device.sync()
    copy = replace(device)  # of its disk, with the nonce of now
    bad.sync(incarnation=2)
    backup(hub, path, who="ann")
    for _ in range(2):
        device.sync()
    restoring.restore(hub, path, who="ann", replace=True)
    gated.step()
    assert not idle.sync().quarantined
    assert bad.sync().quarantined
    assert gated.join().sync(incarnation=2).quarantined
    one, other = (device, copy) if first == "device" else (copy, device)
    assert not one.sync().quarantined
    assert not idle.sync().quarantined
    assert not one.sync().quarantined
    assert other.sync().quarantined
    assert one.sync().quarantined


def test_it_can_be_done_where_nothing_was_granted_since(hub, gated, path):
    backup(hub, path, who="ann")
    restoring.restore(hub, path, who="ann", replace=True)
    gated.step()
    assert (gated.fact("epoch"), gated.fact("recovering")) == (2, 0)


def test_a_file_that_knows_more_names_caps_and_an_older_one_does_not(hub, gated, path):
    from edge_sync.hub.budget import caps

    gated.join().want(100_000)
    (older := hub.keys / "older").write_bytes((hub.keys / outside.NAME).read_bytes())
    gated.join().want(100_000)
    caps.set_cap(hub, "fleet", "month", 700_000, who="ann")
    backup(hub, path, who="ann")
    caps.set_cap(hub, "fleet", "month", 600_000, who="ann")
    restoring.restore(hub, path, who="ann", replace=True)
    assert [cap.amount_microusd for cap in look(hub, caps.read_caps).caps] == [600_000]
    older.replace(hub.keys / outside.NAME)
    restoring.restore(hub, path, who="ann", replace=True)
    assert [cap.amount_microusd for cap in look(hub, caps.read_caps).caps] == [700_000]
    assert gated.fact("epoch") == 3
    gated.step()


def test_what_the_database_holds_is_not_lost_unasked(hub, gated, path):
    backup(hub, path, who="ann")
    with pytest.raises(InputError, match="would be lost"):
        restoring.restore(hub, path, who="ann")
    assert (gated.fact("epoch"), outside.read(hub.keys).epoch) == (1, 1)


def emptied(hub, memory_path):
    """Return the hub of the same folder over a database that is new."""
    home = memory_path / "again"
    shutil.copytree(hub.home, home)
    text = (home / "hub.yaml").read_text()
    url = hub.settings.database
    (home / "hub.yaml").write_text(text.replace(url, f"sqlite:///{home / 'fresh.db'}"))
    return Hub.open(home, migrating=True, clock=hub.clock)


def test_an_empty_database_takes_it_of_either_kind(hub, gated, gateway, path, memory_path):
    device = gated.join()
    device.want(100_000)
    backup(hub, path, who="ann")
    with emptied(hub, memory_path) as again:
        assert restoring.held(again) == restoring.Held()
        made = restoring.restore(again, path, who="ann")
        assert (made.before, made.receipt) == (0, gated.fact("receipt"))
        assert audit.verify(again.store) is None
        assert restoring.held(again).epoch == 2
        device.hub, device.granting = again, Granting(again)
        assert device.sync().leases == ()


def test_a_database_of_something_else_is_left_alone(hub, path, memory_path):
    backup(hub, path, who="ann")
    other = memory_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE accounts (name TEXT)")
    connection.close()
    home = memory_path / "again"
    shutil.copytree(hub.home, home)
    text = (home / "hub.yaml").read_text()
    (home / "hub.yaml").write_text(text.replace(hub.settings.database, f"sqlite:///{other}"))
    with pytest.raises(StoreError, match="something else"):
        Hub.open(home, migrating=True)


def test_another_hubs_backup_is_refused(hub, memory_path, path):
    with Hub.create(memory_path / "stranger", f"sqlite:///{memory_path / 's.db'}") as stranger:
        backup(stranger, path, who="ann")
    before = restoring.held(hub)
    with pytest.raises(ConfigError, match="another hub"):
        restoring.restore(hub, path, who="ann", replace=True)
    with emptied(hub, memory_path) as again, pytest.raises(ConfigError, match="timestamp"):
        restoring.restore(again, path, who="ann")
    assert restoring.held(hub) == before


def no_backups(memory_path, hub):
    whole = memory_path / "whole"
    backup(hub, whole, who="ann")
    data = whole.read_bytes()
    empty_hub = Store.open(f"sqlite:///{memory_path / 'tables.db'}")
    empty_hub.write(schema.tables.create_all)
    empty_hub.close()
    yield b""
    yield b"what"
    yield data[: len(data) // 2]
    yield data[:4_096] + b"\x00" * 4_096 + data[8_192:]
    yield (memory_path / "tables.db").read_bytes()


def test_what_is_no_whole_backup_is_refused_and_changes_nothing(hub, gated, memory_path, path):
    before = restoring.held(hub)
    for at, data in enumerate(no_backups(memory_path, hub)):
        path.write_bytes(data)
        with pytest.raises((InputError, StoreError)):
            restoring.restore(hub, path, who="ann", replace=True)
        now = restoring.held(hub)
        assert (at, now.root, now.epoch) == (at, before.root, before.epoch)
    with pytest.raises(InputError, match="cannot be read"):
        restoring.restore(hub, memory_path / "nowhere", who="ann", replace=True)
    assert outside.read(hub.keys).epoch == 1
    assert not [each for each in hub.home.iterdir() if each.name.startswith(".restore")]


def test_a_restore_that_fails_leaves_the_database_and_a_higher_epoch(hub, gated, path):
    backup(hub, path, who="ann")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE metadata_files SET body = x'00' WHERE role = 'timestamp'")
    connection.close()
    hub.store.write(lambda connection: raise_fact(connection, "receipt", by=5))
    before = restoring.held(hub)
    with pytest.raises(ConfigError):
        restoring.restore(hub, path, who="ann", replace=True)
    assert restoring.held(hub) == before
    gated.step()  # the file is ahead now: as after a crash, all gateways are asked
    assert (gated.fact("epoch"), gated.fact("recovering")) == (3, 0)


def test_groups_and_devices_are_those_of_the_backup(hub, gated, path):
    backup(hub, path, who="ann")
    row = {"name": "later", "serial": 0, "stopped": "{}"}
    hub.store.write(lambda c: c.execute(insert(schema.groups).values(**row)) and None)
    restoring.restore(hub, path, who="ann", replace=True)
    names = look(hub, lambda c: set(c.execute(schema.groups.select()).scalars()))
    assert names == {"kiosks", "lab"}
