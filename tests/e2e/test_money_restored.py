"""A hub, a gateway and a provider as processes of their own: what is billed never beats the cap,
and what is free is exact, whatever is killed, set back or out of reach."""

import shutil
import sqlite3
import time
from contextlib import contextmanager

import pytest
import yaml

from edge_sync.hub import restoring
from edge_sync.hub.backup import backup
from edge_sync.hub.budget import books, caps, gateways, leasekey, outside
from edge_sync.hub.home import Hub, read_fact
from edge_sync.money.lease import Lease
from edge_sync.wire import LeaseUse, Want

from . import gateway_process, hub_process
from .gateway_process import POOL, PRICE_IN, PRICE_OUT, SECRET, TOKENS_IN, TOKENS_OUT, Provider

COST = PRICE_IN * TOKENS_IN + PRICE_OUT * TOKENS_OUT
CAP = 40_000
DEMAND = 4_000


class Fleet:
    """The folder of a hub, its gateway's settings, and what the books say."""

    def __init__(self, folder, provider):
        self.home, self.database = folder / "hub", folder / "hub.db"
        self.provider = provider
        self.code = hub_process.make_hub(self.home, f"sqlite:///{self.database}")
        with self.opened() as hub:
            key = leasekey.find(hub.keys)
            caps.set_cap(hub, "fleet", "month", CAP, who="ann")
        self.config = gateway_process.settings(folder, provider.url)
        settings = yaml.safe_load(self.config.read_text())
        settings["hub"]["keys"] = {key.key_id: key.public_key}
        self.config.write_text(yaml.safe_dump(settings))

    def opened(self):
        return Hub.open(self.home)

    def look(self, work):
        with self.opened() as hub, hub.store.reading() as connection:
            return work(connection)

    def serving(self, name="a"):
        return hub_process.serving(self.home, name=name)

    @contextmanager
    def gateway(self):
        with gateway_process.gateway(self.config) as served:
            with self.opened() as hub:
                gateways.add(hub, POOL, url=served.url, secret=SECRET, who="ann")
            yield served

    def join(self, hub):
        device = Device([hub.url])
        assert device.enrol(self.code).status_code == 200
        return device

    def pot(self):
        (found,) = self.look(books.all_pots)
        return found

    def fact(self, name):
        return self.look(lambda connection: read_fact(connection, name))

    def row(self):
        return self.look(lambda connection: gateways.find(connection, POOL))

    def wait(self, holds):
        """Wait until something holds; the test's own limit ends it where it never does."""
        while not holds():
            time.sleep(0.05)

    def wait_sealed(self):
        self.wait(lambda: not self.look(books.rights))


class Device(hub_process.Device):
    """A device that asks the hub for leases and spends them at the gateway."""

    leases = ()

    def want(self, demand=DEMAND, *, done=()):
        uses = [LeaseUse(lease_id=one.lease_id, used_microusd=0, done=True) for one in done]
        reply = self.sync(wants=[Want(pool=POOL, demand_microusd=demand)], uses=uses)
        self.leases = tuple(Lease(**one) for one in reply.leases)
        return self.leases

    def wait_for_a_lease(self):
        while not self.want():
            time.sleep(0.05)
        return self.leases[0]

    def give_back(self):
        self.want(demand=0, done=self.leases)

    def spend(self, served, *, calls=1, of=None):
        """Ask the pool; return the statuses."""
        asking, lease = gateway_process.Device(self.key), of or self.leases[0]
        return [asking.ask(served, lease).status_code for _ in range(calls)]


@pytest.fixture
def provider():
    made = Provider()
    yield made
    made.close()


@pytest.fixture
def fleet(memory_path, provider):
    return Fleet(memory_path, provider)


def test_what_a_lease_did_not_come_to_is_free_again_though_the_hub_was_killed(fleet, provider):
    with fleet.gateway() as gate:
        devices = []
        for at in range(2):
            with fleet.serving(str(at)) as hub:
                devices.append(fleet.join(hub))
                for device in devices:
                    device.urls = [hub.url]
                    device.wait_for_a_lease()
                    assert device.spend(gate, calls=3) == [200] * 3
                hub.kill()
            assert devices[0].spend(gate, calls=2) == [200] * 2
        with fleet.serving("last") as hub:
            for device in devices:
                device.urls = [hub.url]
                lease = device.wait_for_a_lease()
                device.give_back()
            fleet.wait_sealed()
            assert device.spend(gate, of=lease) == [403]
    pot, billed = fleet.pot(), sum(provider.billed)
    assert billed == 13 * COST
    assert fleet.look(books.unbalanced) == ()
    assert (pot.free_microusd, pot.open_microusd, pot.settled_microusd) == (CAP - billed, 0, billed)


def test_a_gateway_out_of_reach_strands_what_is_out_until_it_is_back(fleet, provider):
    with fleet.serving() as hub:
        with fleet.gateway() as gate:
            device = fleet.join(hub)
            lease = device.wait_for_a_lease()
            assert device.spend(gate) == [200]
            gate.kill()
        device.give_back()
        fleet.wait(lambda: fleet.row().error)
        assert fleet.pot().open_microusd == lease.amount_microusd
        with fleet.gateway():
            fleet.wait_sealed()
        assert fleet.pot().settled_microusd == sum(provider.billed) == COST


def _live(fleet, hub, gate):
    """Let two devices spend; return them, and what puts the database back to between the two."""
    early, late = fleet.join(hub), fleet.join(hub)
    early.wait_for_a_lease()
    assert early.spend(gate, calls=2) == [200, 200]
    copy = fleet.database.with_name("copy.db")
    source, target = sqlite3.connect(fleet.database), sqlite3.connect(copy)
    source.backup(target)
    target.close()
    source.close()
    late.wait_for_a_lease()
    assert early.spend(gate, calls=3) == [200] * 3
    assert late.spend(gate, calls=4) == [200] * 4

    def set_back():
        for rest in ("-wal", "-shm", "-journal"):
            fleet.database.with_name(f"hub.db{rest}").unlink(missing_ok=True)
        shutil.copyfile(copy, fleet.database)

    return early, late, set_back


def _spend_all(fleet, hub, gate):
    """Let devices spend until nothing is free and nothing is out any more."""
    devices = [fleet.join(hub) for _ in range(4)]
    while True:
        for device in devices:
            for lease in device.want(done=device.leases):
                while 200 in device.spend(gate, of=lease):
                    pass
        if not any(device.leases for device in devices):
            if not fleet.look(books.rights):
                return
            time.sleep(0.05)


def test_a_database_that_was_set_back_is_noticed_and_overspends_nothing(fleet, provider):
    with fleet.gateway() as gate:
        with fleet.serving() as hub:
            early, late, set_back = _live(fleet, hub, gate)
            hub.kill()
        set_back()
        assert fleet.fact("granted") == 1
        before = sum(provider.billed)
        with fleet.serving("b") as hub:
            other = fleet.join(hub)
            fresh = other.wait_for_a_lease()
            assert (fresh.epoch, fleet.fact("epoch"), gate.state()["epoch"]) == (2, 2, 2)
            for device in (early, late):
                assert device.spend(gate) == [403]
            assert sum(provider.billed) == before
            other.give_back()
            fleet.wait_sealed()
            pot = fleet.pot()
            assert (pot.settled_microusd, pot.open_microusd) == (before, 0)
            _spend_all(fleet, hub, gate)
    assert fleet.look(books.unbalanced) == ()
    assert before < sum(provider.billed) <= CAP
    assert fleet.pot().settled_microusd == sum(provider.billed)


def test_nothing_is_granted_after_a_restore_before_the_gateway_has_answered(fleet, provider):
    path = fleet.database.with_name("hub.backup")
    with fleet.serving() as hub:
        with fleet.gateway() as gate:
            fleet.join(hub).wait_for_a_lease()
            with fleet.opened() as opened:
                backup(opened, path, who="ann")
            late = fleet.join(hub)
            late.wait_for_a_lease()
            assert late.spend(gate, calls=3) == [200] * 3
            gate.kill()
        with fleet.opened() as opened:  # while the hub serves
            restoring.restore(opened, path, who="ann", replace=True)
        assert outside.read(fleet.home / "keys").recovering
        stranger = fleet.join(hub)
        fleet.wait(lambda: fleet.row().error)
        assert stranger.want() == ()
        with fleet.gateway() as gate:
            fresh = stranger.wait_for_a_lease()
            assert fresh.epoch == fleet.fact("epoch") >= 2
            assert late.spend(gate) == [403]
            assert fleet.pot().settled_microusd == sum(provider.billed) == 3 * COST
