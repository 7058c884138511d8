"""A database that was set back while leases are live: nothing is granted before all gateways told,
and then what is free is exact."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
from sqlalchemy import delete

from edge.errors import ConfigError, StoreError
from edge_sync.gateway.refusals import Refused
from edge_sync.hub import audit as trail
from edge_sync.hub import fleet, restoring
from edge_sync.hub.backup import backup
from edge_sync.hub.budget import books, caps, gateways, hearing, outside, recovery
from edge_sync.hub.budget.rounds import Rounds
from edge_sync.hub.home import Hub
from edge_sync.store.schema import audit, leases

from .conftest import POOL, ask, entries_of, held, look

DOLLAR = 1_000_000


@pytest.fixture
def saved(hub, memory_path):
    """Return a function that saves the database; it returns what sets it back to that."""
    count = 0

    def save():
        nonlocal count
        count += 1
        path = memory_path / f"saved-{count}.db"
        backup(hub, path, who="ann")

        def set_back():
            with restoring._opened(path, hub.home) as source:
                hub.store.write(lambda connection: restoring._copy(source, connection))

        set_back.path = path
        return set_back

    return save


def used(gated):
    """Return what the gateways say was spent or is held."""
    return sum(each.totals()["used_microusd"] for each in gated.gateways.values())


def test_leases_of_before_and_after_are_void_and_what_they_came_to_is_counted(hub, gated, saved):
    (gateway,) = gated.gateways.values()
    before, after, idle = (gated.join() for _ in range(3))
    before.want(100_000)
    gateway.spend(before.leases[0], 10_000)
    set_back = saved()
    gateway.spend(before.leases[0], 20_000)
    after.want(100_000)
    gateway.spend(after.leases[0], 40_000)
    open_hold = gateway.hold(after.leases[0], 5_000)
    idle.want(100_000)
    lost = [*before.leases, *after.leases, *idle.leases]
    set_back()

    assert gated.fact("granted") == 1
    stranger = gated.join()
    stranger.want(100_000)
    assert stranger.leases == ()

    gated.step()
    assert (gated.fact("epoch"), gateway.epoch(), gated.fact("recovering")) == (2, 2, 0)
    assert gated.fact("granted") == 3
    assert outside.read(hub.keys).epoch == 2
    assert gated.lines == ["budget.restored", "budget.recovered"]
    assert gated.money() == (DOLLAR, DOLLAR - 75_000, 45_000, 30_000)
    for lease in lost:
        with pytest.raises(Refused, match="epoch"):
            gateway.hold(lease, 1)

    stranger.want(100_000)
    assert [lease.epoch for lease in stranger.leases] == [2]
    gateway.settle(open_hold, 1_000)
    gated.step()
    gated.step()
    assert gated.money() == (DOLLAR, DOLLAR - 171_000, 100_000, 71_000)
    assert used(gated) == 71_000
    (told,) = entries_of(hub, audit, "budget.recovered")
    assert told == {"leases": 2, "used_microusd": 75_000}


def test_nothing_is_granted_before_every_gateway_has_answered(hub, gated, saved, new_gateway):
    slow = new_gateway("slow")
    gated.add(slow)
    gated.step()
    set_back = saved()
    device = gated.join()
    device.want(100_000, pool="slow")
    slow.spend(device.leases[0], 90_000)
    set_back()
    slow.down = True
    other = gated.join()
    for _ in range(3):
        gated.step()
        other.want(100_000)
        assert other.leases == ()
        assert gated.fact("recovering") == 1
    assert "nobody is there" in gated.row("slow").error
    assert gated.row().error == ""
    slow.down = False
    gated.step()
    other.want(100_000)
    assert len(other.leases) == 1
    assert gated.money() == (DOLLAR, DOLLAR - 190_000, 100_000, 90_000)


def test_a_gateway_that_is_gone_for_good_is_given_up_by_hand(hub, gated, saved, new_gateway):
    gone = new_gateway("gone")
    gated.add(gone)
    gated.step()
    device = gated.join()
    device.want(100_000, pool="gone")
    set_back = saved()
    other = gated.join()
    other.want(50_000)
    set_back()
    gone.down = True
    gated.step()
    assert gated.fact("recovering") == 1
    gateways.remove(hub, "gone", who="ann", strand=True)
    gated.step()
    assert gated.fact("recovering") == 0
    assert gated.money() == (DOLLAR, DOLLAR - 100_000, 0, 100_000)


@pytest.mark.parametrize("lost", ["all", "some"])
def test_a_gateway_that_lost_its_register_too_is_not_believed(
    hub, gated, gateway, saved, memory_path, lost
):
    device = gated.join()
    device.want(100_000)
    gateway.spend(device.leases[0], 60_000)
    older = memory_path / "older.db"
    gateway.shut()
    shutil.copyfile(gateway.register.path, older)
    gateway.open(gateway.register.path)
    gateway.spend(device.leases[0], 20_000)
    gated.step()
    set_back = saved()
    gated.join().want(10_000)
    set_back()
    gateway.shut()
    gateway.open(older if lost == "some" else memory_path / "fresh.db")
    for _ in range(2):
        gated.step()
        assert gated.fact("recovering") == 1
        assert "set back" in gated.row().error
    gateways.remove(hub, POOL, who="ann", strand=True)
    gated.add(gateway)
    gated.step()
    assert gated.fact("recovering") == 0
    free = gated.money()[1]
    assert free <= DOLLAR - 80_000


def test_a_crash_after_the_file_leads_to_a_higher_epoch(hub, gated, saved):
    device = gated.join()
    device.want()
    recovery.claim(hub, above=1)
    assert outside.read(hub.keys).epoch == 2
    device.want(uses=[device.done()])
    assert device.leases == ()
    gated.step()
    assert (gated.fact("epoch"), gated.fact("recovering")) == (3, 0)
    device.want()
    assert [lease.epoch for lease in device.leases] == [3]


def test_a_crash_after_the_database_goes_on_where_it_was(hub, gated, gateway):
    device = gated.join()
    device.want()
    gateway.spend(device.leases[0], 30_000)
    recovery.begin(hub, why="test")
    assert (gated.fact("epoch"), gated.fact("recovering")) == (2, 1)
    assert {state for state, _, _ in gated.states().values()} == {"closing"}
    gated.step()
    assert (gated.fact("epoch"), gated.fact("recovering")) == (2, 0)
    assert gated.money() == (DOLLAR, DOLLAR - 30_000, 0, 30_000)


def test_a_gateway_at_a_higher_epoch_shows_that_all_was_set_back(hub, gated, gateway):
    device = gated.join()
    device.want(100_000)
    gateway.spend(device.leases[0], 60_000)
    gateway.register.write(lambda book: book.fence("hub", 7))
    device.sync(uses=[device.done(used=60_000)])
    gated.step()
    gated.step()
    assert (gated.fact("epoch"), gateway.epoch(), gated.fact("recovering")) == (8, 8, 0)
    assert gated.money() == (DOLLAR, DOLLAR - 60_000, 0, 60_000)


def test_a_gateway_that_knows_more_leases_shows_it_where_the_file_was_lost_too(
    hub, gated, gateway, saved
):
    set_back = saved()
    device = gated.join()
    device.want(100_000)
    gateway.spend(device.leases[0], 60_000)
    set_back()
    (hub.keys / outside.NAME).unlink()
    gated.step()
    assert gated.fact("recovering") == 1
    gated.step()
    assert (gated.fact("epoch"), gated.fact("recovering")) == (2, 0)
    assert gated.money() == (DOLLAR, DOLLAR - 60_000, 0, 60_000)


def test_a_gateway_of_an_earlier_hub_keeps_its_leases_counted(hub, gated, gateway):
    device = gated.join()
    device.want(100_000)
    (lease,) = device.leases
    gateway.spend(lease, 60_000)
    hub.store.write(lambda connection: connection.execute(delete(leases)) and None)
    books_after = look(hub, books.all_pots)
    hub.store.write(
        lambda connection: books.put_pots(
            connection,
            [books.open_pot(connection, pot.scope, pot.period, cap_microusd=pot.cap_microusd)
             for pot in books_after],
        )
    )  # fmt: skip
    gateways.remove(hub, POOL, who="ann")
    gated.add(gateway)
    gated.step()
    gated.step()
    assert (gated.fact("epoch"), gated.fact("recovering")) == (2, 0)
    assert gated.money() == (DOLLAR, DOLLAR - 60_000, 0, 60_000)


def test_who_was_revoked_since_is_revoked_again(hub, gated, gateway, saved, monkeypatch):
    monkeypatch.setattr(hearing, "PAGE", 2)
    before, after, others = gated.join(), gated.join(), [gated.join() for _ in range(3)]
    for device in (before, after, *others):
        device.want(10_000)
    revoke(hub, before)
    gated.step()
    set_back = saved()
    for device in (after, *others[:2]):
        revoke(hub, device)
    others[2].want(10_000, pool=POOL, task="draft")  # shows that the database is older
    gated.step()
    gateway.register.write(lambda book: book.revoke("0" * 32, revoked=True, now=0.0))  # not ours
    set_back()
    gated.step()
    assert gated.fact("recovering") == 0
    for device in (before, after, *others[:2]):
        assert ask(hub, None, device.request()).code == "revoked"
    others[2].want(10_000)
    assert len(others[2].leases) == 1
    again = [each for each in trail.page(hub.store, what="device.revoke") if each.who == "restore"]
    assert {each.about for each in again} == {after.id, others[0].id, others[1].id}
    assert {each.detail["told_by"] for each in again} == {"the gateway of pool gpu"}
    gated.step()
    assert len(trail.page(hub.store, what="device.revoke")) == 4


def revoke(hub, device):
    fleet.revoke(hub, fleet.find_device(hub, device.id), who="ann")


def test_caps_and_gateways_are_those_of_now(hub, gated, saved, new_gateway):
    gone, kept = new_gateway("gone"), new_gateway("new")
    gated.add(gone)
    gated.step()
    device = gated.join()
    device.want(100_000, pool="gone")
    set_back = saved()
    gateways.remove(hub, "gone", who="ann", strand=True)
    gated.add(kept)
    gated.step()
    caps.set_cap(hub, "fleet", "month", 500_000, who="ann")
    caps.set_cap(hub, "group:kiosks", "month", 150_000, who="ann")
    gated.join().want(10_000)
    now = outside.read(hub.keys)
    set_back()
    gated.step()
    assert outside.read(hub.keys) == replace(now, epoch=2)
    assert look(hub, caps.read_caps).caps == now.caps
    assert [each.pool_id for each in look(hub, gateways.read_all)] == [POOL, "new"]
    assert {pot.scope.text(): pot.settled_microusd for pot in look(hub, books.all_pots)} == {
        "fleet": 100_000,
        "group:kiosks": 100_000,
    }


def test_a_cut_that_is_lost_is_noticed_where_nothing_was_granted_since(hub, gated, saved):
    set_back = saved()
    caps.set_cap(hub, "fleet", "month", 40_000, who="ann")
    set_back()
    gated.join().want(100_000)
    assert held(hub) == []
    gated.step()
    gated.step()
    assert (gated.fact("recovering"), gated.fact("epoch")) == (0, 2)
    assert gated.money() == (40_000, 40_000, 0, 0)


def test_caps_and_gateways_wait_for_what_the_keys_folder_knows(hub, gated, saved):
    set_back = saved()
    caps.set_cap(hub, "fleet", "month", 40_000, who="ann")
    set_back()
    for change in (
        lambda: caps.set_cap(hub, "fleet", "day", 10_000, who="ann"),
        lambda: caps.remove_cap(hub, "fleet", "month", who="ann"),
        lambda: gateways.add_escrow(hub, "phones", who="ann"),
        lambda: gateways.remove(hub, POOL, who="ann"),
    ):
        with pytest.raises(StoreError, match="set back"):
            change()
    gated.step()
    caps.set_cap(hub, "fleet", "day", 10_000, who="ann")
    gated.step()
    assert {cap.amount_microusd for cap in look(hub, caps.read_caps).caps} == {10_000, 40_000}


def test_an_escrow_pool_waits_for_its_devices(hub, gated, saved):
    gateways.add_escrow(hub, "escrow", who="ann")
    device = gated.join()
    device.want(50_000, pool="escrow")
    set_back = saved()
    gated.join().want(10_000)
    set_back()
    gated.step()
    assert gated.money() == (DOLLAR, DOLLAR - 50_000, 50_000, 0)
    done = device.done(used=20_000)
    device.sync(uses=[done])
    assert gated.money() == (DOLLAR, DOLLAR - 20_000, 0, 20_000)


@contextmanager
def replica(gated, memory_path):
    """Yield another replica over the same database, with keys of its own, and its rounds."""
    home = memory_path / "replica"
    shutil.copytree(gated.hub.home, home)
    with Hub.open(home, clock=gated.hub.clock) as other:
        rounds = Rounds(other, lambda *_, **__: None, transport=gated._transport)
        try:
            yield other, rounds
        finally:
            rounds.close()


def test_every_replica_mirrors_and_any_of_them_notices(hub, gated, gateway, saved, memory_path):
    with replica(gated, memory_path) as (other, rounds):
        set_back = saved()
        device = gated.join()
        device.want(100_000)
        gateway.spend(device.leases[0], 60_000)
        rounds.step()
        assert outside.read(other.keys) == outside.read(hub.keys)
        set_back()
        rounds.step()
        assert gated.fact("recovering") == 0
        gated.step()
        rounds.step()
        assert outside.read(other.keys) == outside.read(hub.keys)
        assert (gated.fact("recovering"), gated.fact("granted")) == (0, 1)
        assert gated.money() == (DOLLAR, DOLLAR - 60_000, 0, 60_000)


def test_replicas_that_go_round_at_once_give_back_once(hub, gated, gateway, memory_path):
    spent = 0
    with replica(gated, memory_path) as (_, rounds), ThreadPoolExecutor(2) as threads:
        devices = [gated.join() for _ in range(3)]
        for cost in (1_000, 2_000, 3_000):
            for device in devices:
                device.want(50_000)
                gateway.spend(device.leases[0], cost)
                device.sync(uses=[device.done(used=cost)])
                spent += cost
            steps = [threads.submit(each.step) for each in (gated.rounds, rounds)]
            for step in steps:
                step.result(30)
    assert gated.money() == (DOLLAR, DOLLAR - spent, 0, spent)
    assert (gated.row().error, gated.lines) == ("", [])


def test_a_replica_that_comes_late_begins_nothing_anew(hub, gated, gateway, memory_path):
    with replica(gated, memory_path) as (other, _):
        late = []

        class Slow:
            """A database that another replica changes between two looks at it."""

            def __getattr__(self, name):
                return getattr(other.store, name)

            def write(self, work):
                if not late:
                    late.append(True)
                    recovery.begin(hub, why="first")
                    gated.step()
                return other.store.write(work)

        recovery.begin(replace(other, store=Slow()), why="second")
        assert (gated.fact("epoch"), gated.fact("recovering")) == (2, 0)
        assert len(entries_of(hub, audit, "budget.restored")) == 1


def test_a_file_that_cannot_be_read_grants_nothing(hub, gated):
    (hub.keys / outside.NAME).write_bytes(b"{")
    device = gated.join()
    with pytest.raises(ConfigError, match=r"money\.json"):
        device.want(100_000)  # as its leases cannot be noted, they would not leave
    with pytest.raises(ConfigError, match=r"money\.json"):
        gated.step()
    assert held(hub) == []
