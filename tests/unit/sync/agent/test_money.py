"""Money between a device and its hub: what a report says of it, and what an answer changes."""

import secrets
import sqlite3
import threading

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge.errors import BudgetExceeded, HubDistrusted, HubUnreachable, StoreError
from edge.store.book import Book
from edge.store.forgetting import KEPT_S
from edge.store.ledger import Need
from edge_sync.agent import money, rows, waiting
from edge_sync.agent.loop import Agent
from edge_sync.agent.memory import Batch, Rows
from edge_sync.money.lease import Lease
from edge_sync.wire import LeaseUse, Want

from .conftest import NOW

HUB_KEY = Ed25519PrivateKey.from_private_bytes(b"h" * 32)


def lease(device_id, amount=1_000, *, scope="group:lab", **values):
    given = {"lease_id": secrets.token_hex(16), "scope": scope, "period": "total",
             "device_id": device_id, "pool_id": "gpu", "epoch": 1, "amount_microusd": amount,
             "not_after": int(NOW) + 86_400, "policy_version": 1, "key_id": "k1"}  # fmt: skip
    return Lease(**{**given, **values}).signed(HUB_KEY)


class Spender:
    """The runtime's side of the same state folder."""

    def __init__(self, device, clocks):
        self.book = Book.open(
            device.state, cap_microusd=None, period="total", clock=lambda: clocks.own_s
        )
        self.ledger = self.book.ledger
        self.ledger.expect([Need("gpu", "draft", True, 40)])  # noqa: FBT003
        self.id = device.memory().device_id

    def reserve(self, worst=100):
        return self.ledger.reserve(
            secrets.token_hex(16), task="draft", pool="gpu", worst_case_microusd=worst, gateway=True
        )

    def spend(self, cost=100):
        hold = self.reserve(cost)
        self.ledger.mark_sent(hold)
        self.ledger.settle(hold, cost, tokens_in=1, tokens_out=1)
        return hold


@pytest.fixture
def spender(device, clocks):
    made = Spender(device, clocks)
    yield made
    made.book.close()


def use(given, used, *, done=False, open_=0):
    return LeaseUse(lease_id=given.lease_id, used_microusd=used, done=done, open=open_)


def test_a_device_asks_for_a_call_gets_a_lease_and_tells_what_it_used(device, hub, spender):
    hub.leases = [lease(spender.id)]
    assert device.sync().granted == 1
    assert hub.seen[-1].wants == [Want(pool="gpu", demand_microusd=40)]
    spender.spend(100)
    held = spender.reserve(30)
    assert held.lease_id == hub.leases[0].lease_id
    assert spender.ledger.lease_text(held) == hub.leases[0].text()
    assert device.sync().granted == 0
    assert hub.seen[-1].uses == [use(hub.leases[0], 130, open_=1)]


def test_a_lease_of_a_task_is_known_as_one(device, hub, spender):
    hub.leases = [lease(spender.id, scope="group:lab;task:other")]
    device.sync()
    with pytest.raises(BudgetExceeded):
        spender.reserve()


def test_what_is_no_lease_of_this_device_is_passed_over(device, hub, spender):
    good = lease(spender.id)
    hub.leases = [lease("0" * 32), good, lease(spender.id, scope="fleet")]
    assert device.sync().granted == 1
    assert spender.reserve().lease_id == good.lease_id
    assert money.offers([{"lease_id": "x"}], device_id=spender.id) == []


def test_a_lost_answer_and_a_doubled_one_give_the_same_leases(device, hub, spender):
    hub.leases = [lease(spender.id)]
    hub.faults["/v1/sync"] = lambda request: hub._sync(request) and httpx.Response(503)
    with pytest.raises(HubUnreachable):
        device.sync()
    hub.faults.clear()
    assert device.sync().granted == 1
    spender.spend(10)
    device.sync()
    assert hub.seen[-1].uses == [use(hub.leases[0], 10)]


def test_an_answer_that_nobody_signed_changes_no_money(opened, hub, clocks):
    device = opened()
    device.enrol(hub.code)
    spender = Spender(device, clocks)
    hub.signs, hub.leases = False, [lease(spender.id)]
    with pytest.raises(HubDistrusted, match="not signed"):
        device.sync()
    with pytest.raises(BudgetExceeded, match="no sync is known"):
        spender.reserve()
    spender.book.close()


def test_leases_that_were_put_in_on_the_way_count_nothing(device, hub, spender):
    mine = lease(spender.id)

    def richer(request):
        answer = hub._sync(request)
        content = answer.content.replace(b'"leases":[]', b'"leases":[%s]' % mine.text().encode())
        assert content != answer.content
        return httpx.Response(200, content=content, headers=answer.headers)

    hub.faults["/v1/sync"] = richer
    with pytest.raises(HubDistrusted):
        device.sync()
    with pytest.raises(BudgetExceeded):
        spender.reserve()


def test_used_up_is_done_and_the_next_lease_comes_with_the_same_answer(device, hub, spender):
    first, second = lease(spender.id), lease(spender.id)
    hub.leases = [first]
    device.sync()
    spender.spend(980)
    assert device.low()
    hub.leases = [second]
    device.sync()
    assert hub.seen[-1].uses == [use(first, 980, done=True)]
    assert spender.reserve().lease_id == second.lease_id
    device.sync()
    assert hub.seen[-1].uses == [use(second, 100, open_=1)]
    assert not device.low()


def test_a_lease_that_the_hub_closed_is_told_until_its_last_hold_has_an_outcome(
    device, hub, spender
):
    first = lease(spender.id)
    hub.leases = [first]
    device.sync()
    hold = spender.reserve(60)
    spender.ledger.mark_sent(hold)
    spender.ledger.leave_unclear(hold, "timeout")
    hub.leases = []
    device.sync()
    for _ in range(2):
        device.sync()
        assert hub.seen[-1].uses == [use(first, 60, done=True, open_=1)]
    spender.ledger.resolve(hold.id, 45)
    device.sync()
    assert hub.seen[-1].uses == [use(first, 45, done=True)]
    device.sync()
    assert hub.seen[-1].uses == []


def test_a_lease_ends_by_the_hubs_time_and_not_by_the_devices(device, hub, spender, clocks):
    hub.leases = [lease(spender.id)]
    device.sync()
    clocks.own_s += 10 * 365 * 86_400
    device.sync()
    assert hub.seen[-1].uses == [use(hub.leases[0], 0)]
    clocks.pass_(90_000)
    device.sync()  # takes the hub's time
    device.sync()
    assert hub.seen[-1].uses == [use(hub.leases[0], 0, done=True)]


def test_rows_go_once_a_backup_has_them_and_sums_stay(device, hub, spender, clocks):
    hub.leases = [lease(spender.id, 10_000)]
    device.sync()
    old = [spender.spend(10).id for _ in range(3)]
    unclear = spender.reserve(5)
    spender.ledger.mark_sent(unclear)
    spender.ledger.leave_unclear(unclear, "timeout")
    device.sync()
    covered = hub.receipt
    clocks.pass_(KEPT_S + 60)
    late = spender.spend(10)
    device.sync()
    assert len(spender.ledger.holds()) == 5  # no backup yet
    hub.watermark = covered
    clocks.pass_(KEPT_S + 60)
    device.sync()
    assert [hold.id for hold in spender.ledger.holds()] == [unclear.id, late.id]
    assert spender.ledger.spent_microusd() == 40
    device.sync()
    assert hub.seen[-1].uses == [use(hub.leases[0], 45, done=True, open_=1)]
    told = {row.row_id: row.state for seen in hub.seen for row in seen.rows}
    assert {told[name] for name in old} == {"settled"}
    spender.ledger.resolve(unclear.id, 5)
    device.sync()
    assert [(row.row_id, row.state) for row in hub.seen[-1].rows] == [(unclear.id, "settled")]


def test_a_row_that_is_open_when_a_hub_is_set_back_is_told_when_it_ends(device, hub, spender):
    hub.leases = [lease(spender.id)]
    device.sync()
    hold = spender.reserve()
    device.sync()
    hub.watermark = hub.receipt
    device.sync()
    hub.receipt = hub.watermark - 1  # a backup
    device.sync()
    spender.ledger.release(hold)
    device.sync()
    assert [(row.row_id, row.state) for row in hub.seen[-1].rows] == [(hold.id, "released")]


@pytest.mark.parametrize(
    ("seq", "lows", "covered"), [(9, [], 9), (9, [4, 7], 4), (9, [12], 9), (0, [], 0)]
)
def test_what_a_backup_covers_ends_before_the_first_row_it_may_lack(seq, lows, covered):
    batches = tuple(Batch(receipt=at, low=low) for at, low in enumerate(lows))
    assert rows.covered(Rows(seq=seq, batches=batches)) == covered


def test_a_killed_agent_takes_the_list_again(device, hub, spender, monkeypatch):
    hub.leases = [lease(spender.id)]

    def full(*_):
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr("edge_sync.agent.device.acknowledge", full)
        with pytest.raises(StoreError):
            device.sync()
    assert device.memory().pending is not None
    device.sync()
    assert spender.reserve().lease_id == hub.leases[0].lease_id


class Counting:
    """Counts the steps of a device; waits end when they may."""

    def __init__(self, device):
        self.device, self.syncs, self.granted = device, 0, 0
        self.memory, self.low = device.memory, device.low

    def sync(self):
        self.syncs += 1
        return self.device.sync()

    def ask(self, wait_s, *, until):
        return self.device.ask(1, until=until)


def test_money_that_runs_out_prompts_a_sync_and_asking_in_vain_becomes_rare(
    device, hub, spender, clocks
):
    hub.assign()
    steps = Counting(device)
    agent = Agent(steps, device.exchange, boot_s=lambda: clocks.boot_s)
    for _ in range(5):
        agent.turn()
    first = steps.syncs
    agent.turn()
    assert steps.syncs == first

    def hungry(seconds):
        before = steps.syncs
        with pytest.raises(BudgetExceeded):
            spender.reserve()
        clocks.pass_(seconds)
        agent.turn()
        return steps.syncs - before

    assert [hungry(each) for each in (4, 2, 6, 5, 10, 11, 10)] == [0, 1, 0, 1, 0, 1, 0]
    hub.leases = [lease(spender.id)]
    assert hungry(31) == 1
    spender.spend(980)
    clocks.pass_(6)
    agent.turn()
    assert steps.syncs == first + 5


def test_a_wait_for_policy_ends_when_money_runs_out(device, hub):
    begun = threading.Event()

    class Slow(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request):
            import asyncio

            begun.set()
            await asyncio.sleep(60)

    device.exchange._client = httpx.AsyncClient(transport=Slow())
    device.exchange._runner.run(old_closed())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waiting, "EVERY_S", 0.01)
        done = device.ask(55, until=begun.is_set)
    assert (done.change.value, done.more) == ("none", False)


async def old_closed():
    """Stand for the client that the test took away."""
