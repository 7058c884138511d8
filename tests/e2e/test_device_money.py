"""A runtime before a real gateway and a counting provider: nothing is billed twice, books agree."""

import os
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

import edge
from edge.runtime import Drained
from edge.store.leases import Leases, Offer
from edge.types import Reason, Route
from edge_sync import keys

from .gateway_process import (
    POOL,
    PRICE_IN,
    PRICE_OUT,
    TOKENS_IN,
    TOKENS_OUT,
    Device,
    Provider,
    gateway,
    settings,
)

COST = PRICE_IN * TOKENS_IN + PRICE_OUT * TOKENS_OUT
FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a folder in memory

CHILD = """
import sys
import edge
with edge.open(sys.argv[1], state=sys.argv[2], offline=False) as runtime:
    runtime.run("reply", sys.argv[3])
"""


@pytest.fixture(scope="module")
def provider():
    made = Provider()
    yield made
    made.close()


@pytest.fixture(scope="module")
def served(provider, tmp_path_factory):
    path = settings(tmp_path_factory.mktemp("gateway"), provider.url)
    path.write_text(path.read_text().replace("cooldown_s: 0.2", "failures: 100"))
    with gateway(path) as running:
        yield running


class Station:
    """One device: its key, its state folder, its pack; a hub's word comes as a list of leases."""

    def __init__(self, folder, served, *, url=None, timeout_s=10.0):
        self.state, self.served, self.device = folder / "state", served, Device()
        keys.save_key(self.device.key, self.state / "device.key")
        self.pack = folder / "pack.yaml"
        self.leases = {}
        self.write_pack(url or served.url, timeout_s)

    def write_pack(self, url, timeout_s=10.0):
        price = {"input_usd_per_mtok": PRICE_IN, "output_usd_per_mtok": PRICE_OUT}
        pool = {"base_url": f"{url}/v1", "model": "m", "price": price, "gateway": True,
                "timeout_s": timeout_s}  # fmt: skip
        reply = {"kind": "generate", "budget": {"max_output_tokens": 16},
                 "routing": {"pool": POOL}, "privacy": {"allow_cloud": "raw"}}  # fmt: skip
        whole = {"name": "field", "version": 1, "pools": {POOL: pool}, "tasks": {"reply": reply}}
        self.pack.write_text(yaml.safe_dump(whole), "utf-8")

    def give(self, *leases):
        """Take a hub's list; return the leases."""
        file = Leases.open(self.state)
        offers = [
            Offer(each.lease_id, POOL, "", each.amount_microusd, each.not_after, each.text())
            for each in leases
        ]
        file.replace(offers)
        file.close()
        self.leases.update((each.lease_id, each) for each in leases)
        return leases

    def open(self, **options):
        return edge.open(self.pack, state=self.state, offline=False, **options)

    def agrees(self):
        """Check that the device's ledger says what the gateway's register says."""
        rows = [row for row in self.served.rows() if row["lease_id"] in self.leases]
        with self.open() as runtime:
            holds = [hold for hold in runtime.book.ledger.holds() if hold.lease_id]
        assert {hold.state for hold in holds} <= {"settled", "released"}
        mine = sum(hold.cost_microusd for hold in holds)
        assert {row["state"] for row in rows} <= {"settled", "released"}
        assert mine == sum(row["actual"] or 0 for row in rows)
        return mine


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(dir=FAST) as made:
        yield Path(made)


@pytest.fixture
def station(folder, served):
    made = Station(folder, served)
    made.give(made.device.lease())
    return made


def test_a_call_is_paid_from_a_lease_and_settled_at_what_the_gateway_says(station, provider):
    before = len(provider.billed)
    with station.open() as runtime:
        result = runtime.run("reply", "ok")
        assert (result.route, result.value, result.cost_microusd) == (Route.CLOUD, "Yes.", COST)
        left = runtime.book.ledger.leftover()
        assert left.remaining_microusd == 100_000 - COST
        assert (left.pools[0].grade, left.notes) == ("gateway", [])
    assert provider.billed[before:] == [COST]
    assert station.agrees() == COST


def test_the_devices_worst_case_is_what_the_gateway_holds(station):
    with station.open() as runtime:
        runtime.run("reply", "ok")
        (hold,) = runtime.book.ledger.holds()
    (row,) = [row for row in station.served.rows() if row["lease_id"] in station.leases]
    assert hold.worst_case_microusd == row["most"]


def test_without_a_lease_nothing_leaves_and_the_task_waits(folder, served, provider):
    station, asked = Station(folder, served), len(provider.asked)
    with station.open() as runtime:
        result = runtime.run("reply", "ok")
        assert result.reasons[-2:] == (Reason.BUDGET_EXCEEDED, Reason.QUEUED)
        assert runtime.drain() == Drained(waiting=1)
        station.give(station.device.lease())
        runtime.book.queue.retry()
        assert runtime.drain() == Drained(done=1)
    assert len(provider.asked) == asked + 1
    assert station.agrees() == COST


def test_a_device_that_never_joined_is_told_to(folder, served):
    station = Station(folder, served)
    (station.state / "device.key").unlink()
    with station.open() as runtime:
        assert Reason.POOL_MISCONFIGURED in runtime.run("reply", "ok").reasons


def test_a_sealed_lease_is_given_up_and_another_pays(station, provider):
    (lease_id,) = station.leases
    station.served.admin("seal", leases=[lease_id])
    billed = len(provider.billed)
    with station.open() as runtime:
        result = runtime.run("reply", "ok")
        assert result.reasons[-2:] == (Reason.BUDGET_EXCEEDED, Reason.QUEUED)
        assert [hold.state for hold in runtime.book.ledger.holds()] == ["released"]
        assert runtime.book.ledger.remaining_microusd() == 0
        station.give(station.device.lease(), station.leases[lease_id])
        runtime.book.queue.retry()
        assert runtime.drain() == Drained(done=1)
    assert len(provider.billed) == billed + 1
    assert station.agrees() == COST


REFUSED = {
    "forged": {"key_id": "k9"},
    "expired": {"not_after": 1},
    "of another pool": {"pool_id": "elsewhere"},
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_lease_that_the_gateway_does_not_take_costs_nothing(folder, served, provider, what):
    station, asked = Station(folder, served), len(provider.asked)
    station.give(station.device.lease(**REFUSED[what]))
    with station.open() as runtime:
        assert Reason.BUDGET_EXCEEDED in runtime.run("reply", "ok").reasons
        assert runtime.book.ledger.remaining_microusd() == 0
    assert len(provider.asked) == asked
    assert station.agrees() == 0


def test_many_threads_spend_a_lease_and_no_more(folder, served, provider):
    station, before = Station(folder, served), sum(provider.billed)
    with station.open() as runtime:
        station.give(station.device.lease())
        runtime.run("reply", "ok")
        worst = runtime.book.ledger.holds()[0].worst_case_microusd
        station.give(station.device.lease(amount=3 * worst))
        threads = [threading.Thread(target=runtime.run, args=("reply", "ok")) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    spent = station.agrees()
    assert spent == sum(provider.billed) - before
    assert spent - COST <= 3 * worst


class Dropper(socketserver.ThreadingTCPServer):
    """Passes requests on to a gateway and loses so many replies."""

    daemon_threads = True

    def __init__(self, url):
        super().__init__(("127.0.0.1", 0), _Passing)
        host, _, port = url.removeprefix("http://").partition(":")
        self.to, self.losing, self.lost = (host, int(port)), 0, 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class _Passing(socketserver.StreamRequestHandler):
    def handle(self):
        while head := self.read_head(self.rfile):
            with socket.create_connection(self.server.to) as there, there.makefile("rb") as back:
                there.sendall(head + self.rfile.read(length(head)))
                answer = self.read_head(back)
                answer += back.read(length(answer))
            if self.server.losing:
                self.server.losing -= 1
                self.server.lost += 1
                return
            self.wfile.write(answer)

    @staticmethod
    def read_head(file):
        head = b""
        while (line := file.readline()) not in {b"", b"\r\n"}:
            head += line
        return head + b"\r\n" if head else b""


def length(head):
    lines = head.lower().split(b"\r\n")
    return int(next(line.split(b":")[1] for line in lines if line.startswith(b"content-length:")))


@contextmanager
def dropping(url):
    made = Dropper(url)
    yield made
    made.shutdown()
    made.server_close()


def test_a_lost_reply_is_asked_for_again_and_billed_once(folder, served, provider):
    with dropping(served.url) as between:
        station = Station(folder, served, url=between.url)
        station.give(station.device.lease())
        billed, between.losing = len(provider.billed), 2
        with station.open() as runtime:
            result = runtime.run("reply", "ok")
            assert Reason.QUEUED in result.reasons
            assert [hold.state for hold in runtime.book.ledger.holds()] == ["unclear"]
            assert runtime.drain() == Drained(waiting=1)
            runtime.book.queue.retry()
            assert runtime.drain() == Drained(done=1)
            done = runtime.book.queue.get(result.task_id)
            assert (done.result["text"], done.result["cost_microusd"]) == ("Yes.", COST)
            assert [hold.state for hold in runtime.book.ledger.holds()] == ["settled"]
        assert between.lost == 2
    assert len(provider.billed) == billed + 1
    assert station.agrees() == COST


def test_what_the_gateway_does_not_know_itself_waits_for_the_admins_word(station, provider):
    with station.open() as runtime:
        result = runtime.run("reply", "cut")
        assert [hold.state for hold in runtime.book.ledger.holds()] == ["unclear"]
        assert runtime.drain() == Drained(waiting=1)
        (row,) = [row for row in station.served.rows() if row["lease_id"] in station.leases]
        assert row["state"] == "unclear"
        station.served.admin("reconcile", hold_id=row["hold_id"], actual_microusd=COST)
        runtime.book.queue.retry()
        assert runtime.drain() == Drained(failed=1)
        entry = runtime.book.queue.get(result.task_id)
        assert "answer is not kept" in entry.error
        assert runtime.book.ledger.spent_microusd() == COST
    assert station.agrees() == COST


def killed(station, text, when):
    """Run a call in a process that is killed once something is true."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", CHILD, str(station.pack), str(station.state), text]
    ) as child:
        until(when)
        os.kill(child.pid, signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL


def until(when):
    for _ in range(2_000):
        if when():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to that")


def test_killed_amid_a_call_the_ledger_learns_what_it_cost(station, provider):
    billed, asked = len(provider.billed), len(provider.asked)
    provider.go.clear()
    killed(station, "slow", lambda: len(provider.asked) > asked)
    with station.open() as runtime:
        assert [hold.state for hold in runtime.book.ledger.holds()] == ["unclear"]
        assert runtime.book.ledger.held_microusd() > 0
        runtime.drain()  # the gateway is still waiting for the provider
        assert [hold.state for hold in runtime.book.ledger.holds()] == ["unclear"]
        provider.go.set()
        until(lambda: len(provider.billed) > billed)
        until(lambda: cleared(runtime))
    assert len(provider.billed) == billed + 1
    assert station.agrees() == COST


def cleared(runtime):
    runtime.drain()
    return runtime.book.ledger.held_microusd() == 0


def test_a_gateway_killed_amid_a_call_bills_nothing_twice(folder, provider, tmp_path):
    config = settings(tmp_path, provider.url)
    with gateway(config) as served:
        station = Station(folder, served)
        station.give(station.device.lease())
        billed, asked = len(provider.billed), len(provider.asked)
        provider.go.clear()
        with station.open() as runtime:
            thread = threading.Thread(target=runtime.run, args=("reply", "slow"))
            thread.start()
            until(lambda: len(provider.asked) > asked)
            served.kill()
            provider.go.set()
            thread.join()
            assert [hold.state for hold in runtime.book.ledger.holds()] == ["unclear"]
    with gateway(config) as served:
        station.served = served
        station.write_pack(served.url)
        with station.open() as runtime:
            assert runtime.drain() == Drained(waiting=1)
            (row,) = [row for row in served.rows() if row["lease_id"] in station.leases]
            assert row["state"] == "unclear"
            served.admin("reconcile", hold_id=row["hold_id"], actual_microusd=COST)
            runtime.book.queue.retry()
            assert runtime.drain() == Drained(failed=1)
        assert station.agrees() == COST
    assert len(provider.billed) <= billed + 1


def test_a_kiosk_task_is_asked_through_the_gateway(folder, served, provider, tmp_path):
    station = Station(folder, served)
    station.give(station.device.lease(amount=10**7))
    price = {"input_usd_per_mtok": PRICE_IN, "output_usd_per_mtok": PRICE_OUT}
    pool = {"base_url": f"{served.url}/v1", "model": "m", "price": price, "gateway": True}
    task = {"routing": {"pool": POOL, "keep_above": 1.0, "below": "escalate"},
            "privacy": {"allow_cloud": "raw"}}  # fmt: skip
    whole = {"pools": {POOL: pool}, "tasks": {"assistant_intent": task},
             "task_budgets": {"max_output_tokens": 16}}  # fmt: skip
    policy = tmp_path / "policy.yaml"
    policy.write_text(yaml.safe_dump(whole))
    billed = len(provider.billed)
    with edge.open("kiosk", state=station.state, policy=policy, offline=False) as runtime:
        result = runtime.run("assistant_intent", "ok")
        assert result.cost_microusd > 0
        wants = {(each.pool, each.grade) for each in runtime.book.ledger.leftover().pools}
        assert wants == {(POOL, "gateway")}
    bills = provider.billed[billed:]
    assert len(bills) >= 1
    assert station.agrees() == sum(bills)
