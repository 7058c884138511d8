"""Hub, gateway, provider and device as they are: money granted, spent, given back, and closed."""

import tempfile
import time
from pathlib import Path

import pytest
import yaml
from sqlalchemy import select

import edge
from edge.store.leases import Leases
from edge.types import Reason, Route
from edge_sync.agent.start import Standalone, open_device
from edge_sync.hub.budget import caps, gateways, leasekey
from edge_sync.hub.home import Hub
from edge_sync.store.schema import leases

from .gateway_process import (
    POOL,
    PRICE_IN,
    PRICE_OUT,
    SECRET,
    TOKENS_IN,
    TOKENS_OUT,
    Provider,
    gateway,
    settings,
)
from .hub_process import GROUP, make_hub, serving

COST = PRICE_IN * TOKENS_IN + PRICE_OUT * TOKENS_OUT
API = "api"
FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a folder in memory


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Return hub, its server, an enrolment code, the gateway and the provider behind it."""
    home, folder = tmp_path_factory.mktemp("fleet") / "home", tmp_path_factory.mktemp("gateway")
    code, provider = make_hub(home, None), Provider()
    key = leasekey.find(home / "keys")
    config = settings(folder, provider.url)
    whole = yaml.safe_load(config.read_text("utf-8"))
    whole["hub"]["keys"] = {key.key_id: key.public_key}
    config.write_text(yaml.safe_dump(whole), "utf-8")
    with gateway(config) as counting, serving(home) as served, Hub.open(home) as hub:
        gateways.add(hub, POOL, url=counting.url, secret=SECRET, who="test")
        gateways.add_escrow(hub, API, who="test")
        caps.set_cap(hub, f"group:{GROUP}", "month", 10**6, who="test")
        yield hub, served, code, counting, provider
    provider.close()


class Station:
    """A device: its agent's steps, and the runtime that an app opens over the same folder."""

    def __init__(self, folder, fleet):
        self.hub, served, code, self.gateway, self.provider = fleet
        self.state, self.pack = folder / "state", folder / "pack.yaml"
        price = {"input_usd_per_mtok": PRICE_IN, "output_usd_per_mtok": PRICE_OUT}
        pool = {"model": "m", "price": price}
        pools = {
            POOL: {**pool, "base_url": f"{self.gateway.url}/v1", "gateway": True},
            API: {**pool, "base_url": self.provider.url},
        }
        tasks = {
            name: {"kind": "generate", "budget": {"max_output_tokens": 16},
                   "routing": {"pool": at}, "privacy": {"allow_cloud": "raw"}}
            for name, at in (("reply", POOL), ("sort", POOL), ("draft", API))
        }  # fmt: skip
        whole = {"name": "field", "version": 1, "pools": pools, "tasks": tasks}
        self.pack.write_text(yaml.safe_dump(whole), "utf-8")
        runs = Standalone(str(self.pack), self.state)
        self.device, _ = open_device(runs, served.url, state=self.state, pack="field", env={})
        self.device.enrol(code)
        self.id = self.device.memory().device_id

    def open(self):
        return edge.open(self.pack, state=self.state, offline=False)

    def granted(self, pool):
        """Sync until there is a lease for a pool; the hub admits a new gateway first."""
        file = Leases.open(self.state)
        for _ in range(400):
            self.device.sync()
            if any(each.pool == pool and each.largest_microusd for each in file.leftover().pools):
                return file.close()
            time.sleep(0.1)
        raise AssertionError("the hub grants nothing")

    def leases(self):
        columns = (leases.c.pool_id, leases.c.state, leases.c.told_microusd, leases.c.used_microusd)
        asked = select(*columns).where(leases.c.device_id == self.id)
        with self.hub.store.reading() as connection:
            rows = connection.execute(asked).fetchall()
        return [tuple(row) for row in rows]


@pytest.fixture
def station(fleet):
    with tempfile.TemporaryDirectory(dir=FAST) as folder:
        made = Station(Path(folder), fleet)
        yield made
        made.device.close()


def test_money_goes_from_the_cap_to_the_call_and_is_told_back(station):
    with station.open() as runtime:
        asked = runtime.run("reply", "ok")
        assert asked.reasons[-2:] == (Reason.BUDGET_EXCEEDED, Reason.QUEUED)
        assert station.device.low()
        station.granted(POOL)
        runtime.book.queue.retry()
        assert runtime.drain().done == 1
        assert runtime.run("reply", "ok").route is Route.CLOUD
        left = runtime.book.ledger.leftover()
        grades = {each.pool: each.grade for each in left.pools}
        assert grades[POOL] == "gateway"
        assert left.age_s < 60
        assert runtime.book.ledger.spent_microusd() == 2 * COST
    station.device.sync()
    assert sum(told for pool, _, told, _ in station.leases() if pool == POOL) == 2 * COST
    rows = [row for row in station.gateway.rows() if row["actual"]]
    assert sum(row["actual"] for row in rows) >= 2 * COST


def test_where_no_gateway_counts_the_device_does_and_says_so(station):
    with station.open() as runtime:
        station.granted(API)
        billed = len(station.provider.billed)
        assert runtime.run("draft", "ok").cost_microusd == COST
        assert len(station.provider.billed) == billed + 1
        (note,) = runtime.book.ledger.leftover().notes
        assert "escrow-grade" in note
        assert any("escrow-grade" in line for line in station.device.summary()["money"])
    caps.remove_cap(station.hub, f"group:{GROUP}", "month", who="test")
    try:
        station.device.sync()  # the list is empty now
        station.device.sync()  # and the device tells its count
        ended = [row for row in station.leases() if row[0] == API]
        assert ended == [(API, "sealed", COST, COST)]
        with station.open() as runtime:
            assert Reason.BUDGET_EXCEEDED in runtime.run("draft", "ok").reasons
    finally:
        caps.set_cap(station.hub, f"group:{GROUP}", "month", 10**6, who="test")


def test_a_cap_of_a_task_holds_while_another_task_goes_on(station):
    scope, most = "fleet;task:reply", 10_000

    def answered(runtime, task):
        """Run a task; where no lease pays for it, let the device tell its hub and run it again."""
        for _ in range(2):
            result = runtime.run(task, "ok")
            if result.route is Route.CLOUD:
                return True
            assert Reason.BUDGET_EXCEEDED in result.reasons
            assert station.device.low()
            station.device.sync()
        return False

    def held():
        """Return the tasks that the device's open leases of the pool are for."""
        ours = (leases.c.device_id == station.id, leases.c.pool_id == POOL)
        asked = select(leases.c.task).where(*ours, leases.c.state == "open")
        with station.hub.store.reading() as connection:
            return set(connection.execute(asked).scalars())

    with station.open() as runtime:
        station.granted(POOL)
        assert held() == {""}
        caps.set_cap(station.hub, scope, "month", most, who="test")
        try:
            station.device.sync()
            billed, count = len(station.provider.billed), 0
            while answered(runtime, "reply"):
                count += 1
            assert len(station.provider.billed) - billed == count
            assert most // 2 < count * COST <= most
            assert answered(runtime, "sort")
            assert not answered(runtime, "reply")
            assert "" not in held()
        finally:
            caps.remove_cap(station.hub, scope, "month", who="test")
        assert answered(runtime, "reply")
        assert "" in held()


def test_a_revoked_device_spends_nothing_more(station):
    with station.open() as runtime:
        station.granted(POOL)
        assert runtime.run("reply", "ok").route is Route.CLOUD
        station.gateway.admin("revoke", devices=[station.id], revoked=True)
        assert Reason.BUDGET_EXCEEDED in runtime.run("reply", "ok").reasons
        assert runtime.book.ledger.holds("unclear") == []
