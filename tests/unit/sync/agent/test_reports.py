"""What is reported: counts by policy and hour, rows of the ledger, each once."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.store.book import Book
from edge.store.states import States
from edge.store.traces import Traces
from edge_sync.agent import health, rows
from edge_sync.agent.memory import Batch, Counted, Memory, Pending, Rows
from edge_sync.agent.report import acknowledge, packed
from edge_sync.wire import LATENCY_BUCKETS, MAX_ROWS, Attested, SyncReply

HOUR = 3_600.0


def trace(at, route="local", *, policy=0, cost=0, ms=10.0, number=0):
    return {
        "trace_id": f"{number:032x}",
        "at": at,
        "task": "spam",
        "route": route,
        "policy": policy,
        "cost_microusd": cost,
        "latency_ms": ms,
    }


@pytest.fixture
def records(tmp_path):
    with Traces.open(tmp_path) as traces:
        states = States.open(tmp_path)
        yield traces, states
        states.close()


def test_counts_go_by_policy_and_hour(records):
    traces, states = records
    routes = ["cache", "local", "cloud", "deferred", "abstained", "error"]
    for number, route in enumerate(routes):
        traces.append(trace(2 * HOUR + number, route, policy=3, cost=5, number=number))
    traces.append(trace(HOUR, policy=2, number=99))
    taken = health.take(traces, states, Counted())
    first, second = taken.health
    assert (first.revision, first.hour, first.tasks, first.local) == (2, 1, 1, 1)
    assert (second.revision, second.hour, second.tasks) == (3, 2, 6)
    assert [second.cached, second.local, second.cloud, second.deferred, second.abstained] == [1] * 5
    assert second.errors == 1
    assert second.cost_microusd == 30
    assert sum(second.latency) == 5  # a call that failed has no latency to go by
    assert health.take(traces, states, taken.after).health == []


def test_an_answer_that_a_task_had_waited_for_is_counted_when_it_comes(records):
    traces, states = records
    traces.append(trace(HOUR, "deferred"))
    taken = health.take(traces, states, Counted())
    traces.append(trace(HOUR, "cloud"))
    assert [each.cloud for each in health.take(traces, states, taken.after).health] == [1]


def test_corrections_count_under_the_policy_of_their_answer(records):
    traces, states = records
    traces.append(trace(HOUR, policy=4, number=7))
    states.label(f"{7:032x}", task="spam", right=False, source="user", at=5 * HOUR)
    states.label(f"{8:032x}", task="spam", right=True, source="user", at=5 * HOUR)
    taken = health.take(traces, states, Counted())
    assert [(each.revision, each.hour, each.corrections) for each in taken.health] == [
        (4, 1, 0),
        (4, 5, 1),
    ]
    assert health.take(traces, states, taken.after).health == []


def test_a_new_trace_file_is_counted_from_its_start(records):
    traces, states = records
    traces.append(trace(HOUR))
    assert health.take(traces, states, Counted(traces=900)).health[0].tasks == 1


def test_a_long_absence_is_told_in_parts():
    hours = health.MAX_HOURS + 5
    many = [trace(at * HOUR) | {"seq": at + 1} for at in range(hours)]
    taken = health.count(many, [], Counted())
    assert len(taken.health) == health.MAX_HOURS
    assert taken.more
    rest = health.count(many[taken.after.traces :], [], taken.after)
    assert len(rest.health) == 5
    assert not rest.more


@given(st.floats(min_value=0, max_value=1e9))
def test_a_bucket_holds_what_its_bounds_say(ms):
    at = health.bucket(ms)
    assert 0 <= at < LATENCY_BUCKETS
    if at < LATENCY_BUCKETS - 1:
        assert ms < 2 ** (at / 2)
    if at:
        assert ms >= 2 ** ((at - 1) / 2)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_clock_gives_an_hour_that_the_wire_can_carry(at):
    taken = health.count([trace(at) | {"seq": 1}], [], Counted())
    assert 0 <= taken.health[0].hour < 10**8
    assert math.isfinite(taken.health[0].hour)


class Money:
    """A ledger to fill, and what the hub would be told of it."""

    def __init__(self, folder, traces):
        self.book = Book.open(folder, cap_microusd=10**9, period="total")
        self.traces = traces
        self.sent = Rows()

    def hold(self, number=0):
        return self.book.ledger.reserve(
            f"{number:032x}", task="spam", pool="cheap", worst_case_microusd=100
        )

    def take(self):
        return rows.take(self.book.ledger._file.db, self.traces, self.sent)

    def told(self, receipt=1, watermark=0):
        taken = self.take()
        self.sent = rows.acknowledged(taken.after, taken.low, receipt=receipt, watermark=watermark)
        return [(row.row_id, row.state) for row in taken.rows]


@pytest.fixture
def money(tmp_path, records):
    made = Money(tmp_path, records[0])
    yield made
    made.book.close()


def test_rows_are_sent_when_they_are_new_and_when_they_change(money):
    first, second = money.hold(1), money.hold(2)
    assert money.told() == [(first.id, "reserved"), (second.id, "reserved")]
    assert money.told() == []
    money.book.ledger.mark_sent(first)
    money.book.ledger.settle(first, 40, tokens_in=1, tokens_out=1)
    assert money.told() == [(first.id, "settled")]
    assert money.sent.open == {second.id: "reserved"}
    money.book.ledger.release(second)
    assert money.told() == [(second.id, "released")]
    assert money.sent.open == {}


def test_a_row_carries_its_money_and_the_policy_of_its_task(money):
    money.traces.append(trace(HOUR, policy=6, number=1))
    hold = money.hold(1)
    money.book.ledger.mark_sent(hold)
    (row,) = money.take().rows
    assert (row.held_microusd, row.cost_microusd, row.revision) == (100, 0, 6)
    assert (row.task, row.pool, row.at) == ("spam", "cheap", hold.reserved_at)


def test_unacknowledged_rows_are_sent_again(money):
    hold = money.hold()
    assert [row.row_id for row in money.take().rows] == [hold.id]
    assert [row.row_id for row in money.take().rows] == [hold.id]


def test_more_rows_than_a_report_holds_are_sent_in_turn(money):
    with money.book.transaction():
        ids = {money.hold(number).id for number in range(MAX_ROWS + 3)}
    assert money.take().more
    seen = [row for row, _ in money.told()] + [row for row, _ in money.told()]
    assert len(seen) == len(ids)
    assert set(seen) == ids


def test_what_a_restored_hub_lost_is_sent_again(money):
    holds = [money.hold(1), money.hold(2), money.hold(3)]
    money.told(receipt=7, watermark=6)
    money.told(receipt=8, watermark=8)
    money.sent = rows.after_restore(money.sent)
    assert [row.row_id for row in money.take().rows] == [hold.id for hold in holds]
    assert rows.covered(money.sent) == 0


@pytest.mark.parametrize(
    ("epoch", "receipt", "seq"), [(1, 9, 40), (2, 9, 0), (1, 4, 0), (0, 9, 40)]
)
def test_a_hub_that_was_set_back_is_told_all_again_once(epoch, receipt, seq):
    memory = Memory(receipt=5, watermark=5, epoch=1, rows=Rows(seq=30))
    pending = Pending(
        request_id="r", body="", told="", refusals=0, rows=Rows(seq=40), counted=Counted(), low=30
    )
    time = Attested(request_id="r", time_ms=1, keyid="k", signature="s")
    reply = SyncReply(nonce="n", token="t", receipt=receipt, watermark=8, time=time, epoch=epoch)
    after = acknowledge(memory, pending, reply)
    assert (after.rows.seq, after.epoch) == (seq, max(1, epoch))
    assert acknowledge(after, pending, reply).rows.seq == 40


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 300)), max_size=250))
def test_merged_batches_never_forget_a_row(steps):
    sent, all_batches, watermark = Rows(seq=1_000), [], 0
    for receipt, (low, behind) in enumerate(steps, start=1):
        watermark = max(watermark, receipt - behind)
        sent = rows.acknowledged(sent, low, receipt=receipt, watermark=watermark)
        all_batches.append((receipt, low))
    assert len(sent.batches) <= rows.MAX_BATCHES
    needed = min([low for receipt, low in all_batches if receipt > watermark], default=1_000)
    assert rows.covered(sent) <= needed


def test_another_ledger_is_sent_from_its_start(money):
    hold = money.hold()
    money.sent = Rows(seq=50, open={"0" * 32: "sent"}, batches=(Batch(receipt=1, low=0),))
    assert [row.row_id for row in money.take().rows] == [hold.id]


def test_names_that_the_wire_cannot_carry_are_written_otherwise(money):
    money.book.ledger.reserve("1" * 32, task="über task", pool="-p", worst_case_microusd=1)
    (row,) = money.take().rows
    assert (row.task, row.pool) == ("x_ber_task", "x-p")


def test_only_long_bodies_are_packed_and_always_to_the_same_bytes():
    assert "Content-Encoding" not in packed("{}")[1]
    long = "x" * 5_000
    assert packed(long) == packed(long)
    assert len(packed(long)[0]) < 200
