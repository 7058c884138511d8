"""The ledger: states, periods, refusals, and that no interleaving spends more than the cap."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)

from edge.errors import BudgetExceeded, InputError, StoreError
from edge.store.book import Book
from edge.store.ledger import Hold, Ledger

MONDAY = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC).timestamp()
DAY_S = 86_400.0
FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a folder in memory


class Clock:
    def __init__(self, now: float = MONDAY) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ledger(tmp_path, clock):
    opened = Ledger.open(tmp_path, cap_microusd=100, period="day", clock=clock)
    yield opened
    opened.close()


def take(ledger: Ledger, worst: int = 10, trace: str = "t") -> Hold:
    return ledger.reserve(trace, task="triage", pool="gpu", worst_case_microusd=worst)


def sent(ledger: Ledger, worst: int = 10, trace: str = "t") -> Hold:
    hold = take(ledger, worst, trace)
    ledger.mark_sent(hold)
    return hold


def settle(ledger: Ledger, hold: Hold, cost: int) -> None:
    ledger.settle(hold, cost, tokens_in=3, tokens_out=2)


def money(ledger: Ledger) -> tuple[int, int, int]:
    return ledger.spent_microusd(), ledger.held_microusd(), ledger.remaining_microusd()


def test_a_settled_request_frees_the_rest_of_its_hold(ledger):
    hold = sent(ledger, 60)
    assert money(ledger) == (0, 60, 40)
    settle(ledger, hold, 25)
    assert money(ledger) == (25, 0, 75)
    kept = ledger.hold(hold.id)
    assert (kept.state, kept.cost_microusd, kept.tokens_in, kept.tokens_out) == (
        "settled",
        25,
        3,
        2,
    )


def test_the_cap_is_met_exactly_and_never_passed(ledger):
    take(ledger, 60)
    take(ledger, 40)
    with pytest.raises(BudgetExceeded) as refused:
        take(ledger, 1)
    for named in ("$0.000100", "$0.000000 is spent", "$0.000100 is held", "up to $0.000001"):
        assert named in str(refused.value)
    assert len(ledger.holds()) == 2


@pytest.mark.parametrize("worst", [0, 1])
def test_without_a_cap_no_money_is_spent(tmp_path, worst):
    ledger = Ledger.open(tmp_path, cap_microusd=None, period="total")
    with pytest.raises(BudgetExceeded, match="Set a cap"):
        take(ledger, worst)
    assert money(ledger) == (0, 0, 0)
    ledger.close()


@pytest.mark.parametrize("worst", [-1, 1.5, True, "1", 10**16])
def test_money_is_an_integer_in_range(ledger, worst):
    with pytest.raises(InputError):
        take(ledger, worst)


@pytest.mark.parametrize(("cap", "period"), [(-1, "day"), (1, "year")])
def test_a_wrong_setting_leaves_no_open_file(tmp_path, cap, period):
    with pytest.raises(InputError):
        Ledger.open(tmp_path, cap_microusd=cap, period=period)


def test_a_settle_counts_once_and_at_one_cost(ledger):
    hold = sent(ledger, 30)
    settle(ledger, hold, 20)
    settle(ledger, hold, 20)
    assert money(ledger) == (20, 0, 80)
    with pytest.raises(StoreError, match=r"\$0\.000020, not \$0\.000021"):
        settle(ledger, hold, 21)
    assert money(ledger) == (20, 0, 80)


def test_a_cost_above_its_hold_is_recorded_in_full(ledger):
    settle(ledger, sent(ledger, 50), 130)
    assert money(ledger) == (130, 0, 0)
    with pytest.raises(BudgetExceeded):
        take(ledger, 1)


@pytest.mark.parametrize(
    ("way", "step", "outcome"),
    [
        ([], "release", "released"),
        ([], "release_unbilled", "released"),
        ([], "settle", None),
        ([], "unclear", None),
        ([], "resolve", None),
        (["send"], "send", None),
        (["send"], "release", None),
        (["send"], "release_unbilled", "released"),
        (["send"], "unclear", "unclear"),
        (["send"], "resolve", None),
        (["send", "unclear"], "unclear", "unclear"),
        (["send", "unclear"], "settle", "settled"),
        (["send", "unclear"], "resolve", "settled"),
        (["send", "unclear"], "release", None),
        (["send", "unclear"], "release_unbilled", None),
        (["send", "settle"], "release_unbilled", None),
        (["send", "settle"], "unclear", None),
        (["send", "settle"], "resolve", "settled"),
        (["release"], "release", "released"),
        (["release"], "send", None),
        (["release"], "settle", None),
    ],
)
def test_the_states_of_a_hold(ledger, way, step, outcome):
    hold = take(ledger, 10)
    steps = {
        "send": lambda: ledger.mark_sent(hold),
        "settle": lambda: settle(ledger, hold, 7),
        "release": lambda: ledger.release(hold),
        "release_unbilled": lambda: ledger.release(hold, certainly_unbilled=True),
        "unclear": lambda: ledger.leave_unclear(hold, "timeout"),
        "resolve": lambda: ledger.resolve(hold.id, 7),
    }
    for earlier in way:
        steps[earlier]()
    before = ledger.hold(hold.id)
    if outcome is None:
        with pytest.raises(StoreError, match=hold.id):
            steps[step]()
        assert ledger.hold(hold.id) == before
    else:
        steps[step]()
        assert ledger.hold(hold.id).state == outcome
    expected = {"settled": (7, 0), "released": (0, 0)}.get(ledger.hold(hold.id).state, (0, 10))
    assert money(ledger)[:2] == expected


def test_an_unknown_hold_is_named(ledger):
    with pytest.raises(StoreError, match="Hold nobody does not exist"):
        ledger.resolve("nobody", 1)


def test_two_holds_of_one_task_are_not_both_sent(ledger):
    first, second, other = take(ledger), take(ledger), take(ledger, trace="u")
    ledger.mark_sent(first)
    ledger.mark_sent(other)
    with pytest.raises(StoreError, match=first.id):
        ledger.mark_sent(second)
    ledger.leave_unclear(first, "timeout")
    with pytest.raises(StoreError, match=first.id):
        ledger.mark_sent(second)
    ledger.mark_sent(take(ledger))


def test_a_refused_request_does_not_bar_the_next_one(ledger):
    first, second = take(ledger), take(ledger)
    ledger.mark_sent(first)
    ledger.release(first, certainly_unbilled=True)
    ledger.mark_sent(second)


@pytest.mark.parametrize(
    ("period", "same_s", "next_s"),
    [
        ("day", 11.9 * 3600, 12.1 * 3600),
        ("week", 6.4 * DAY_S, 6.6 * DAY_S),
        ("month", 29.4 * DAY_S, 29.6 * DAY_S),
        ("total", 4000 * DAY_S, None),
    ],
)
def test_a_period_ends_when_it_says(tmp_path, clock, period, same_s, next_s):
    ledger = Ledger.open(tmp_path, cap_microusd=100, period=period, clock=clock)
    settle(ledger, sent(ledger, 100), 100)
    clock.now = MONDAY + same_s
    assert ledger.remaining_microusd() == 0
    if next_s is not None:
        clock.now = MONDAY + next_s
        assert ledger.remaining_microusd() == 100
    ledger.close()


def test_a_clock_set_back_opens_no_new_period(tmp_path, clock):
    ledger = Ledger.open(tmp_path, cap_microusd=100, period="day", clock=clock)
    settle(ledger, sent(ledger, 100), 100)
    ledger.close()
    for days in (-1, -40, -4000):
        clock.now = MONDAY + days * DAY_S
        ledger = Ledger.open(tmp_path, cap_microusd=100, period="day", clock=clock)
        with pytest.raises(BudgetExceeded):
            take(ledger, 1)
        ledger.close()


def test_another_kind_of_period_still_counts_what_was_spent(tmp_path, clock):
    ledger = Ledger.open(tmp_path, cap_microusd=100, period="day", clock=clock)
    settle(ledger, sent(ledger, 90), 90)
    ledger.close()
    ledger = Ledger.open(tmp_path, cap_microusd=100, period="month", clock=clock)
    assert money(ledger) == (90, 0, 10)
    ledger.close()


def test_holds_count_in_the_period_they_were_made_in_and_stay_visible(ledger, clock):
    hold = sent(ledger, 100)
    clock.now += DAY_S
    assert money(ledger) == (0, 0, 100)
    settle(ledger, sent(ledger, 10, "u"), 10)
    ledger.leave_unclear(hold, "timeout")
    assert [old.id for old in ledger.holds("unclear")] == [hold.id]
    settle(ledger, hold, 80)
    assert money(ledger) == (10, 0, 90)
    by_day = {row["period"]: row["cost_microusd"] for row in ledger.summary()}
    assert by_day == {"2026-06-01": 80, "2026-06-02": 10}


@pytest.mark.parametrize("now", [-1.0, float("nan"), float("inf"), 1e12])
def test_an_absurd_clock_is_refused(ledger, clock, now):
    clock.now = now
    with pytest.raises(StoreError, match="clock"):
        take(ledger)
    clock.now = MONDAY
    assert ledger.holds() == []


def test_a_week_is_named_by_its_monday(tmp_path, clock):
    ledger = Ledger.open(tmp_path, cap_microusd=100, period="week", clock=clock)
    for days in (0, 6, 7):
        clock.now = MONDAY + days * DAY_S
        settle(ledger, sent(ledger, 1, f"t{days}"), 1)
    rows = [(row["period"], row["requests"], row["settled"]) for row in ledger.summary()]
    assert rows == [("2026-06-08", 1, 1), ("2026-06-01", 2, 2)]
    ledger.close()


def test_a_dead_owner_frees_what_it_never_sent_and_nothing_else(tmp_path):
    first = Ledger.open(tmp_path, cap_microusd=100, period="total")
    unsent, in_flight = take(first, 40, "a"), sent(first, 60, "b")
    second = Ledger.open(tmp_path, cap_microusd=100, period="total")
    with pytest.raises(BudgetExceeded):
        take(second, 1, "c")
    first.close()
    assert take(second, 40, "c").state == "reserved"
    states = (second.hold(unsent.id).state, second.hold(in_flight.id).state)
    assert states == ("released", "unclear")
    with pytest.raises(BudgetExceeded):
        take(second, 1, "d")
    second.close()


def test_a_settle_inside_a_failing_transaction_never_happened(tmp_path):
    with Book.open(tmp_path, cap_microusd=100, period="total") as book:
        hold = sent(book.ledger, 50)

        def fails() -> None:
            with book.transaction():
                settle(book.ledger, hold, 20)
                book.queue.complete("no such task", {})

        with pytest.raises(InputError):
            fails()
        assert book.ledger.hold(hold.id).state == "sent"
        assert money(book.ledger) == (0, 50, 50)


WORKER = """
import sys, threading
from pathlib import Path
from edge.errors import BudgetExceeded
from edge.store.ledger import Ledger

ledger = Ledger.open(Path(sys.argv[1]), cap_microusd=400, period="total")
def spend(name):
    for number in range(20):
        try:
            hold = ledger.reserve(f"{name}-{number}", task="t", pool="p", worst_case_microusd=10)
        except BudgetExceeded:
            return
        ledger.mark_sent(hold)
        ledger.settle(hold, 10, tokens_in=1, tokens_out=1)
threads = [threading.Thread(target=spend, args=(f"{sys.argv[2]}{n}",)) for n in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_two_processes_of_two_threads_spend_exactly_the_cap(tmp_path):
    workers = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", WORKER, str(tmp_path), name])
        for name in "ab"
    ]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0]
    ledger = Ledger.open(tmp_path, cap_microusd=400, period="total")
    assert money(ledger) == (400, 0, 0)
    assert len(ledger.holds()) == 40
    ledger.close()


def test_threads_of_one_process_share_a_ledger(ledger):
    refused = []

    def spend(name: int) -> None:
        for number in range(5):
            try:
                take(ledger, 9, f"{name}-{number}")
            except BudgetExceeded:
                refused.append(name)

    threads = [threading.Thread(target=spend, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert money(ledger) == (0, 99, 1)
    assert len(refused) == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_a_fork_does_not_use_its_parents_connection(ledger):
    child = os.fork()
    if child == 0:
        try:
            take(ledger, 1)
        except StoreError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert take(ledger, 1).state == "reserved"


def test_another_cap_counts_for_all_that_hold_the_book(tmp_path, clock):
    with Book.open(tmp_path, cap_microusd=100, period="day", clock=clock) as book:
        kept = book.ledger
        hold = take(book.ledger, 60)
        book.limit(cap_microusd=100, period="day")
        assert book.ledger is kept
        book.limit(cap_microusd=50, period="day")
        assert book.ledger.remaining_microusd() == 0
        with pytest.raises(BudgetExceeded):
            take(book.ledger, 1)
        book.ledger.mark_sent(hold)
        book.ledger.settle(hold, 60, tokens_in=1, tokens_out=1)
        assert book.ledger.spent_microusd() == 60
        book.limit(cap_microusd=100, period="total")
        assert book.ledger.remaining_microusd() == 40
        with pytest.raises(InputError):
            book.limit(cap_microusd=-1, period="day")
        assert book.ledger.remaining_microusd() == 40
        book.limit(cap_microusd=None, period="month")
        with pytest.raises(BudgetExceeded, match="no cap"):
            take(book.ledger, 1)


class LedgerMachine(RuleBasedStateMachine):
    """Two owners on one folder, one clock that jumps both ways, and a model of every hold.

    The model holds each hold's state and worst case; costs stay at or below the hold, so the cap
    of each day must hold for certain.
    """

    made = Bundle("made")
    cap = 100

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=FAST)
        self.clock = Clock()
        self.highest = self.clock.now
        self.model: dict[str, list] = {}
        self.ledgers: list[Ledger] = []

    @initialize()
    def start(self) -> None:
        self.ledgers = [self.opened(), self.opened()]

    def opened(self) -> Ledger:
        return Ledger.open(
            Path(self.folder.name), cap_microusd=self.cap, period="day", clock=self.clock
        )

    def committed(self) -> int:
        start = self.highest // DAY_S * DAY_S
        return sum(
            cost if state == "settled" else 0 if state == "released" else worst
            for state, worst, cost, at, _ in self.model.values()
            if at >= start
        )

    @rule(target=made, who=st.integers(0, 1), worst=st.integers(0, 60))
    def reserve(self, who: int, worst: int):
        self.highest = max(self.highest, self.clock.now)
        fits = self.committed() + worst <= self.cap
        try:
            hold = take(self.ledgers[who], worst, trace=f"t{len(self.model)}")
        except BudgetExceeded:
            assert not fits
            return multiple()
        assert fits
        self.model[hold.id] = ["reserved", worst, 0, self.highest, who]
        return hold

    @rule(hold=made, who=st.integers(0, 1), share=st.floats(0, 1))
    def settle(self, hold: Hold, who: int, share: float) -> None:
        entry, cost = self.model[hold.id], int(hold.worst_case_microusd * share)
        allowed = entry[0] in {"sent", "unclear"} or (entry[0] == "settled" and entry[2] == cost)
        if self.agrees(allowed, lambda: settle(self.ledgers[who], hold, cost)):
            self.highest = max(self.highest, self.clock.now)
            entry[0], entry[2] = "settled", cost

    @rule(hold=made, who=st.integers(0, 1))
    def send(self, hold: Hold, who: int) -> None:
        entry = self.model[hold.id]
        allowed = entry[0] == "reserved"
        if self.agrees(allowed, lambda: self.ledgers[who].mark_sent(hold)):
            entry[0] = "sent"

    @rule(hold=made, who=st.integers(0, 1), unbilled=st.booleans())
    def release(self, hold: Hold, who: int, unbilled: bool) -> None:
        entry = self.model[hold.id]
        allowed = {"reserved", "released"} | ({"sent"} if unbilled else set())
        call = lambda: self.ledgers[who].release(hold, certainly_unbilled=unbilled)  # noqa: E731
        if self.agrees(entry[0] in allowed, call):
            entry[0] = "released"

    @rule(hold=made, who=st.integers(0, 1))
    def unclear(self, hold: Hold, who: int) -> None:
        entry = self.model[hold.id]
        allowed = entry[0] in {"sent", "unclear"}
        if self.agrees(allowed, lambda: self.ledgers[who].leave_unclear(hold, "timeout")):
            entry[0] = "unclear"

    @rule(who=st.integers(0, 1))
    def crash(self, who: int) -> None:
        self.ledgers[who].close()
        self.ledgers[who] = self.opened()
        after = {"reserved": "released", "sent": "unclear"}
        for entry in self.model.values():
            if entry[4] == who:
                entry[0] = after.get(entry[0], entry[0])

    @rule(days=st.sampled_from([-400.0, -1.0, -0.01, 0.3, 1.0, 31.0]))
    def move_the_clock(self, days: float) -> None:
        self.clock.now += days * DAY_S

    def agrees(self, allowed: bool, call) -> bool:
        with contextlib.nullcontext() if allowed else pytest.raises(StoreError):
            call()
        return allowed

    @invariant()
    def nothing_is_lost_or_overspent(self) -> None:
        for ledger in self.ledgers:
            rows = {hold.id: hold for hold in ledger.holds()}
            assert {k: (v.state, v.cost_microusd) for k, v in rows.items()} == {
                k: (v[0], v[2]) for k, v in self.model.items()
            }
            assert ledger.spent_microusd() + ledger.held_microusd() <= self.cap
        days: dict[float, int] = {}
        for state, worst, cost, at, _ in self.model.values():
            amount = cost if state == "settled" else 0 if state == "released" else worst
            days[at // DAY_S] = days.get(at // DAY_S, 0) + amount
        assert all(amount <= self.cap for amount in days.values())

    def teardown(self) -> None:
        for ledger in self.ledgers:
            ledger.close()
        self.folder.cleanup()


LedgerMachine.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestLedgerMachine = LedgerMachine.TestCase
