"""Leases on a device: which one pays, what ends one, what the hub is told, what never returns."""

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.errors import BudgetExceeded
from edge.store.book import Book
from edge.store.leases import REMEMBERED_S, Leases, Offer, Use
from edge.store.ledger import Need

NOW = 1_780_000_000.0
DAY_S = 86_400.0
FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a folder in memory


class Fleet:
    """A state folder with a ledger and the leases that a hub gave it."""

    def __init__(self, folder, *, cap=None):
        self.now = NOW
        self.book = Book.open(folder, cap_microusd=cap, period="month", clock=lambda: self.now)
        self.leases = Leases.open(folder, clock=lambda: self.now)

    @property
    def ledger(self):
        return self.book.ledger

    def give(self, *offers, **said):
        return self.leases.replace(offers, **said)

    def reserve(self, worst=10, *, task="draft", pool="gpu", gateway=True, trace="t"):
        return self.ledger.reserve(
            trace, task=task, pool=pool, worst_case_microusd=worst, gateway=gateway
        )

    def spend(self, cost=10, worst=None, **what):
        hold = self.reserve(cost if worst is None else worst, **what)
        self.ledger.mark_sent(hold)
        self.ledger.settle(hold, cost, tokens_in=1, tokens_out=1)
        return hold

    def told(self, now=None):
        uses = self.leases.uses(now=self.now if now is None else now, most=100)
        return {use.lease_id: (use.used_microusd, use.done, use.open) for use in uses}

    def wants(self, horizon_s=600.0):
        wants = self.leases.wants(horizon_s=horizon_s, most=20)
        return {(want.pool, want.task): want.microusd for want in wants}

    def close(self):
        self.leases.close()
        self.book.close()


def offer(name="a", amount=100, *, pool="gpu", task="", not_after=NOW + DAY_S):
    return Offer(name * 32, pool, task, amount, not_after, f"text of {name}")


def need(task, call, *, pool="gpu", gateway=True):
    return Need(pool=pool, task=task, gateway=gateway, call_microusd=call)


def ended(lease_id, used, *, open_):
    return Use(lease_id=lease_id, used_microusd=used, done=True, open=open_)


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(dir=FAST) as made:
        yield Path(made)


@pytest.fixture
def fleet(folder):
    made = Fleet(folder)
    yield made
    made.close()


A, B, C = "a" * 32, "b" * 32, "c" * 32


def test_a_gateway_is_never_asked_without_a_lease_that_has_room(fleet):
    with pytest.raises(
        BudgetExceeded, match="holds no lease for it \\(no sync is known\\)"
    ) as refused:
        fleet.reserve()
    assert "Sync with the fleet's hub" in refused.value.hint
    assert "admin for a cap" in refused.value.hint
    fleet.give(offer(amount=25))
    hold = fleet.reserve(20)
    assert (hold.lease_id, fleet.ledger.lease_text(hold)) == (A, "text of a")
    fleet.now += 7_300
    with pytest.raises(BudgetExceeded, match=r"\$0.000005 left \(last sync 2 hours ago\)"):
        fleet.reserve(6)
    assert fleet.reserve(5).lease_id == A


def test_a_lease_of_the_task_pays_first_and_of_another_never(fleet):
    fleet.give(offer("a"), offer("b", 30, task="draft"), offer("c", task="other"))
    assert [fleet.reserve(15).lease_id for _ in range(3)] == [B, B, A]
    assert fleet.reserve(15, task="other").lease_id == C
    assert fleet.reserve(15, task="third").lease_id == A


def test_leases_pay_in_the_order_of_the_hub(fleet):
    fleet.give(offer("b", 20), offer("a", 20))
    assert [fleet.reserve(15).lease_id for _ in range(2)] == [B, A]


def test_the_devices_own_cap_still_counts(folder):
    fleet = Fleet(folder, cap=30)
    fleet.give(offer(amount=100))
    fleet.spend(25)
    with pytest.raises(BudgetExceeded, match="of the cap of"):
        fleet.reserve(6)
    assert fleet.ledger.remaining_microusd() == 5
    assert fleet.leases.low() is False  # no lease would help
    fleet.close()


def test_a_pool_that_was_leased_once_takes_nothing_without_a_lease(folder):
    fleet = Fleet(folder, cap=1_000)
    assert fleet.reserve(gateway=False).lease_id == ""
    fleet.give(offer())
    assert fleet.reserve(gateway=False).lease_id == A
    fleet.give()
    with pytest.raises(BudgetExceeded, match="holds no lease"):
        fleet.reserve(gateway=False)
    assert fleet.reserve(pool="own", gateway=False).lease_id == ""
    fleet.close()


def test_an_expired_lease_pays_no_pool_that_has_no_gateway(fleet):
    fleet.give(offer(not_after=NOW + 60))
    fleet.now += 61
    with pytest.raises(BudgetExceeded):
        fleet.reserve(gateway=False)
    assert fleet.reserve(gateway=True).lease_id == A  # its gateway has a better clock


def test_a_list_replaces_what_may_be_spent_and_holds_stay_accounted(fleet):
    assert fleet.give(offer("a"), offer("b")) == 2
    hold = fleet.reserve(60)
    assert fleet.give(offer("b"), offer("c")) == 1
    assert fleet.told() == {A: (60, True, 1), B: (0, False, 0), C: (0, False, 0)}
    fleet.ledger.mark_sent(hold)
    fleet.ledger.settle(hold, 7, tokens_in=0, tokens_out=0)
    assert fleet.told()[A] == (7, True, 0)


def test_the_same_list_again_changes_nothing(fleet):
    for _ in range(3):
        fleet.give(offer("a"))
        assert fleet.told() == {A: (0, False, 0)}
    fleet.spend(40)
    fleet.give(offer("a"))
    assert fleet.told() == {A: (40, False, 0)}


def test_a_lease_that_is_done_never_comes_back(fleet):
    fleet.give(offer("a"))
    fleet.give()
    fleet.give(offer("a"))
    with pytest.raises(BudgetExceeded):
        fleet.reserve()
    assert fleet.told() == {A: (0, True, 0)}


def test_the_end_of_a_lease_is_told_until_the_hub_has_the_final_count(fleet):
    fleet.give(offer("a"))
    hold = fleet.reserve(60)
    fleet.give()
    fleet.give(told=[ended(A, 60, open_=1)])
    assert fleet.told() == {A: (60, True, 1)}
    fleet.ledger.release(hold)
    assert fleet.told() == {A: (0, True, 0)}
    fleet.give(told=[ended(A, 0, open_=0)])
    assert fleet.told() == {}
    fleet.give(offer("a"))  # a hub that was set back
    assert fleet.told() == {A: (0, True, 0)}


def test_a_lease_with_too_little_left_is_done_and_prompts_a_sync(fleet):
    fleet.ledger.expect([need("draft", 20)])
    fleet.give(offer(amount=100))
    fleet.spend(75, worst=75)
    assert not fleet.leases.low()
    fleet.spend(6)
    assert fleet.leases.low()
    assert fleet.told() == {A: (81, True, 0)}
    with pytest.raises(BudgetExceeded):
        fleet.reserve(1)


def test_a_small_lease_is_not_given_back_unused(fleet):
    fleet.ledger.expect([need("draft", 500)])
    fleet.give(offer(amount=100))
    fleet.spend(50)
    assert fleet.told() == {A: (50, False, 0)}


def test_a_call_that_a_lease_cannot_bear_ends_it(fleet):
    fleet.give(offer(amount=100))
    assert not fleet.leases.low()
    with pytest.raises(BudgetExceeded):
        fleet.reserve(101)
    assert fleet.leases.low()
    assert fleet.told() == {A: (0, True, 0)}
    assert fleet.wants()["gpu", ""] == 101


def test_a_lease_past_its_end_is_done_by_the_hubs_time(fleet):
    fleet.give(offer(not_after=NOW + 60))
    fleet.now += 10 * 365 * DAY_S  # the device's own clock is no reason
    assert fleet.told(now=NOW) == {A: (0, False, 0)}
    assert fleet.told(now=NOW + 61) == {A: (0, True, 0)}


def test_a_refused_lease_ends_with_the_release_of_its_hold(fleet):
    fleet.give(offer())
    hold = fleet.reserve()
    fleet.ledger.mark_sent(hold, b"body")
    fleet.ledger.release(hold, certainly_unbilled=True, end_lease="sealed")
    assert fleet.told() == {A: (0, True, 0)}
    assert fleet.ledger.request(hold.id) is None
    assert fleet.leases.low()


def test_wants_are_what_was_spent_refused_or_waits_and_at_least_a_call(fleet):
    assert fleet.wants() == {}
    fleet.ledger.expect([need("draft", 40), need("sort", 70)])
    assert fleet.wants() == {("gpu", ""): 70}
    fleet.give(offer(amount=100_000))
    for _ in range(10):
        fleet.spend(100)
    assert fleet.wants() == {("gpu", ""): 1_000}
    assert fleet.wants(horizon_s=7_200) == {("gpu", ""): 2_000}
    fleet.now += 2 * 3_600
    assert fleet.wants() == {("gpu", ""): 100}  # a 24th of the day, but no less than one call
    for number in range(5):
        fleet.book.queue.put(
            "sort", text="x", payload={}, reason="offline", provisional=None, trace_id=str(number)
        )
    assert fleet.wants() == {("gpu", ""): 42 + 5 * 70}


def test_what_was_refused_is_wanted_until_the_hub_has_heard_it(fleet):
    fleet.ledger.expect([need("draft", 40)])
    for _ in range(3):
        with pytest.raises(BudgetExceeded):
            fleet.reserve(50)
    assert fleet.wants() == {("gpu", ""): 150, ("gpu", "draft"): 150}
    fleet.give(wanted=["gpu"])
    assert fleet.wants() == {("gpu", ""): 40}


def test_a_task_that_was_refused_is_asked_for_by_name_too(fleet):
    fleet.ledger.expect([need("draft", 40), need("sort", 30), need("draft", 20, pool="own")])
    with pytest.raises(BudgetExceeded):
        fleet.reserve(50)
    assert fleet.wants() == {("gpu", ""): 50, ("gpu", "draft"): 50, ("own", ""): 20}


def test_where_the_hub_gives_nothing_for_all_tasks_busy_ones_are_asked_for_by_name(fleet):
    fleet.ledger.expect([need("draft", 40), need("sort", 30), need("other", 20)])
    fleet.give(offer("a", task="draft"), wanted=["gpu"])
    fleet.spend(50)
    fleet.book.queue.put(
        "sort", text="x", payload={}, reason="offline", provisional=None, trace_id="s"
    )
    assert fleet.wants() == {("gpu", ""): 80, ("gpu", "draft"): 50, ("gpu", "sort"): 50}
    fleet.give(offer("b"), wanted=["gpu"])
    assert fleet.wants() == {("gpu", ""): 80}


def test_a_lease_is_forgotten_long_after_its_end_and_the_last_one_never(fleet):
    fleet.give(offer("a"))
    fleet.spend(5)
    fleet.give(offer("b"))
    fleet.spend(1)
    fleet.give(told=[ended(A, 5, open_=0), ended(B, 1, open_=0)])
    fleet.now += DAY_S + REMEMBERED_S + 1
    fleet.give()
    assert rows(fleet, "leases") == [A, B]  # there are still rows of theirs
    fleet.leases.forget(up_to=10**9, sparing=[])
    fleet.give()
    assert rows(fleet, "leases") == [B]
    assert fleet.ledger.leftover().spent_microusd == 0


def rows(fleet, table):
    with fleet.leases.db.reading() as connection:
        return [row[0] for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1")]  # noqa: S608


def test_forgotten_rows_stay_in_every_sum(folder):
    fleet = Fleet(folder, cap=10**6)
    fleet.give(offer("a", 1_000, not_after=NOW + 90 * DAY_S))
    fleet.now = NOW
    for day in range(10):
        fleet.now = NOW + day * DAY_S
        fleet.spend(10)
        fleet.ledger.release(fleet.reserve(5))
    pending = fleet.reserve(7)
    before = fleet.ledger.leftover(), fleet.ledger.summary(), fleet.told()
    spared = fleet.ledger.holds()[0].id
    assert fleet.leases.forget(up_to=10**9, sparing=[spared]) == 3
    assert (fleet.ledger.leftover(), fleet.ledger.summary(), fleet.told()) == before
    assert fleet.leases.forget(up_to=10**9, sparing=[spared]) == 0
    assert fleet.leases.forget(up_to=1, sparing=[]) == 1
    assert (fleet.ledger.leftover(), fleet.ledger.summary(), fleet.told()) == before
    fleet.now += 400 * DAY_S
    assert fleet.ledger.hold(pending.id).state == "reserved"
    fleet.leases.forget(up_to=10**9, sparing=[])
    assert [hold.id for hold in fleet.ledger.holds()] == [pending.id]
    assert fleet.told(now=NOW)[A] == (107, False, 1)
    fleet.close()


def test_the_last_row_stays_so_that_its_number_is_not_given_again(fleet):
    fleet.give(offer("a", 1_000))
    fleet.spend(1)
    last = fleet.spend(1)
    fleet.now += 30 * DAY_S
    fleet.leases.forget(up_to=10**9, sparing=[])
    assert [hold.id for hold in fleet.ledger.holds()] == [last.id]


def test_what_is_left_has_its_age_and_names_pools_without_a_gateway(fleet):
    fleet.ledger.expect([need("draft", 5), need("draft", 5, pool="api", gateway=False)])
    none = fleet.ledger.leftover()
    assert (none.remaining_microusd, none.age_s, none.synced) == (0, None, True)
    fleet.give(offer("a", 100), offer("b", 40, pool="api"))
    fleet.spend(30)
    fleet.reserve(10, pool="api", gateway=False)
    fleet.now += 90
    left = fleet.ledger.leftover()
    assert (left.remaining_microusd, left.age_s) == (100, 90)
    assert [(each.pool, each.grade, each.left_microusd) for each in left.pools] == [
        ("api", "escrow", 30),
        ("gpu", "gateway", 70),
    ]
    (note,) = left.notes
    assert "Pool api is escrow-grade" in note
    assert "$0.000040" in note
    fleet.now = NOW - 5
    assert fleet.ledger.leftover().age_s is None


def test_an_older_file_gets_the_new_tables_and_keeps_its_money(folder):
    from edge.store import money
    from edge.store.db import migrate, open_database

    db = open_database(folder / "money.db", durable=True)
    migrate(db, money.MIGRATIONS[:2])
    with db.transaction() as connection:
        connection.execute(
            "INSERT INTO holds (id, trace_id, task, pool, owner, state, worst_case_microusd, "
            "held_microusd, cost_microusd, reserved_at) VALUES "
            "('x', 't', 'draft', 'gpu', 'o', 'settled', 9, 0, 6, ?)",
            (NOW,),
        )
    db.close()
    fleet = Fleet(folder, cap=100)
    assert (fleet.ledger.spent_microusd(), fleet.ledger.hold("x").lease_id) == (6, "")
    fleet.close()


WORKER = """
import sys, threading
from pathlib import Path
from edge.errors import BudgetExceeded
from edge.store.ledger import Ledger

ledger = Ledger.open(Path(sys.argv[1]), cap_microusd=None, period="total")
def spend(name):
    for number in range(20):
        try:
            hold = ledger.reserve(
                f"{name}-{number}", task="t", pool="gpu", worst_case_microusd=10, gateway=True
            )
        except BudgetExceeded:
            return
        ledger.mark_sent(hold)
        ledger.settle(hold, 10, tokens_in=1, tokens_out=1)
threads = [threading.Thread(target=spend, args=(f"{sys.argv[2]}{n}",)) for n in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_processes_and_threads_spend_exactly_their_leases(folder):
    fleet = Fleet(folder)
    fleet.give(offer("a", 205), offer("b", 155))
    workers = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", WORKER, str(folder), name])
        for name in "ab"
    ]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0]
    assert fleet.told() == {A: (200, True, 0), B: (150, True, 0)}
    fleet.close()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(0, 60), st.sampled_from(["x", "y"])),
        st.tuples(st.just("settle"), st.integers(0, 9), st.integers(0, 100)),
        st.tuples(st.just("release"), st.integers(0, 9)),
        st.tuples(st.just("list"), st.sets(st.sampled_from("abcd"))),
        st.tuples(st.just("forget")),
        st.tuples(st.just("tell")),
    ),
    max_size=40,
)


@given(STEPS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_order_of_steps_overdraws_a_lease_or_revives_one(steps):
    with tempfile.TemporaryDirectory(dir=FAST) as folder:
        fleet = Fleet(Path(folder))
        try:
            Model(fleet).run(steps)
        finally:
            fleet.close()


class Model:
    """Counts on its own what every lease bore, and which ones are over."""

    AMOUNTS: ClassVar = {"a": 100, "b": 70, "c": 50, "d": 120}
    TASKS: ClassVar = {"a": "", "b": "", "c": "x", "d": "y"}

    def __init__(self, fleet):
        self.fleet, self.open, self.over, self.holds = fleet, set(), set(), []
        self.costs, self.held = dict.fromkeys("abcd", 0), {}

    def run(self, steps):
        for step, *values in steps:
            getattr(self, step)(*values)
            self.check()

    def reserve(self, worst, task):
        with contextlib.suppress(BudgetExceeded):
            hold = self.fleet.reserve(worst, task=task, trace=str(len(self.holds)))
            name = hold.lease_id[0]
            assert name in self.open - self.over
            assert self.TASKS[name] in {"", task}
            self.held[hold.id] = (name, worst)
            self.holds.append(hold)

    def settle(self, at, share):
        if at < len(self.holds) and self.holds[at].id in self.held:
            name, worst = self.held.pop(self.holds[at].id)
            cost = worst * share // 100
            self.fleet.ledger.mark_sent(self.holds[at])
            self.fleet.ledger.settle(self.holds[at], cost, tokens_in=0, tokens_out=0)
            self.costs[name] += cost

    def release(self, at):
        if at < len(self.holds) and self.holds[at].id in self.held:
            del self.held[self.holds[at].id]
            self.fleet.ledger.release(self.holds[at])

    def list(self, names):
        self.over |= self.open - names
        self.open = set(names)
        given = [offer(n, self.AMOUNTS[n], task=self.TASKS[n]) for n in sorted(names)]
        self.fleet.give(*given)

    def forget(self):
        self.fleet.now += 8 * DAY_S
        self.fleet.leases.forget(up_to=10**9, sparing=[])

    def tell(self):
        for lease_id, (_, done, _) in self.fleet.told(now=NOW).items():
            if done:
                self.over.add(lease_id[0])

    def check(self):
        told = {}
        with self.fleet.leases.db.reading() as connection:
            told = dict(
                connection.execute(
                    "SELECT lease_id, kept_microusd + (SELECT coalesce(sum(cost_microusd + "
                    "held_microusd), 0) FROM holds WHERE holds.lease_id = leases.lease_id) "
                    "FROM leases"
                ).fetchall()
            )
        for lease_id, used in told.items():
            name = lease_id[0]
            held = sum(worst for at, worst in self.held.values() if at == name)
            assert used == self.costs[name] + held <= self.AMOUNTS[name]
