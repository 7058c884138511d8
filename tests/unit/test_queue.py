"""The queue: claims, leases, pauses, bounds, and the holds that may have been billed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from edge.errors import Busy, InputError
from edge.store.book import Book
from edge.store.queue import Queue
from edge.store.queued import STATES


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def book(tmp_path, clock):
    with Book.open(tmp_path, cap_microusd=1000, period="total", clock=clock, max_waiting=3) as book:
        yield book


def put(queue: Queue, trace: str = "t", **changes) -> str:
    fields = {"text": "née", "payload": {"k": [1]}, "reason": "offline", "provisional": "spam"}
    return queue.put("triage", **(fields | changes), trace_id=trace)


def claim_one(queue: Queue, **how) -> str:
    (task,) = queue.claim(**how)
    return task.id


def test_a_task_comes_back_as_it_was_put(book, clock):
    task_id = put(book.queue, provisional=None)
    task = book.queue.get(task_id)
    assert (task.id, task.task, task.text, task.payload) == (task_id, "triage", "née", {"k": [1]})
    assert (task.reason, task.provisional, task.trace_id) == ("offline", None, "t")
    assert (task.state, task.attempts, task.put_at) == ("waiting", 0, clock.now)
    assert (task.result, task.unclear_holds, task.unclear_hold_id) == (None, 0, None)
    assert book.queue.get("nobody") is None


def test_the_oldest_come_first_and_each_once(book):
    ids = [put(book.queue, trace) for trace in "abc"]
    assert [task.id for task in book.queue.claim(2)] == ids[:2]
    assert [task.id for task in book.queue.claim(2)] == ids[2:]
    assert book.queue.claim(2) == []
    assert book.queue.counts() == dict.fromkeys(STATES, 0) | {"claimed": 3}


def test_another_process_does_not_get_a_live_claim(book, tmp_path, clock):
    task_id = put(book.queue)
    claim_one(book.queue)
    other = Queue.open(tmp_path, clock=clock)
    assert other.claim() == []
    clock.now += 61
    assert claim_one(other) == task_id
    assert book.queue.give_back(task_id, "late", retry_after_s=0) is False
    assert book.queue.fail(task_id, "late") is False
    other.close()
    assert claim_one(book.queue) == task_id
    assert book.queue.get(task_id).attempts == 3


def test_only_the_first_answer_counts_and_a_late_one_is_kept(book, tmp_path, clock):
    task_id = put(book.queue)
    claim_one(book.queue)
    clock.now += 61
    other = Queue.open(tmp_path, clock=clock)
    claim_one(other)
    assert book.queue.complete(task_id, {"value": "first"}) is True
    assert other.complete(task_id, {"value": "second"}) is False
    assert other.get(task_id).result == {"value": "first"}
    assert other.give_back(task_id, "x", retry_after_s=0) is False
    assert other.claim() == []
    other.close()


def test_a_pause_doubles_with_every_attempt_and_ends_at_six_hours(book, clock):
    task_id = put(book.queue)
    for pause_s in (10, 20, 40):
        claim_one(book.queue)
        assert book.queue.give_back(task_id, "offline", retry_after_s=10) is True
        assert book.queue.get(task_id).until == clock.now + pause_s
        clock.now += pause_s - 1
        assert book.queue.claim() == []
        clock.now += 1
    claim_one(book.queue)
    book.queue.give_back(task_id, "offline", retry_after_s=1e9)
    task = book.queue.get(task_id)
    assert (task.until - clock.now, task.error, task.attempts) == (21_600, "offline", 4)


def test_a_pause_that_is_not_the_tasks_fault_does_not_double_or_count(book, clock):
    """So that after a week without a network nothing waits for hours more."""
    task_id = put(book.queue)
    for _ in range(50):
        claim_one(book.queue)
        assert book.queue.give_back(task_id, "offline", retry_after_s=10, blameless=True)
        assert book.queue.get(task_id).until == clock.now + 10
        clock.now += 10
    claim_one(book.queue)
    book.queue.give_back(task_id, "its own", retry_after_s=10)
    task = book.queue.get(task_id)
    assert (task.until - clock.now, task.attempts) == (10, 1)


def test_a_pause_is_as_long_as_is_said_at_most(book, clock):
    task_id = put(book.queue)
    for pause_s in (10, 20, 25, 25):
        claim_one(book.queue)
        book.queue.give_back(task_id, "unclear", retry_after_s=10, longest_s=25)
        assert book.queue.get(task_id).until == clock.now + pause_s
        clock.now += pause_s


@pytest.mark.parametrize("days", [1, 4000])
def test_a_clock_set_back_restarts_a_pause_and_no_more(book, clock, days):
    task_id = put(book.queue)
    claim_one(book.queue)
    book.queue.give_back(task_id, "offline", retry_after_s=10)
    clock.now = 1_000_000.0 - days * 200.0
    assert book.queue.claim() == []
    clock.now += 10
    assert claim_one(book.queue) == task_id


def test_the_queue_is_bounded_by_what_is_unfinished(book):
    ids = [put(book.queue, trace) for trace in "abc"]
    claim_one(book.queue)
    with pytest.raises(Busy, match="3 tasks wait"):
        put(book.queue, "d")
    book.queue.complete(ids[0], {})
    put(book.queue, "d")


def test_retry_brings_back_failed_and_pausing_tasks(book):
    failed, pausing, done = (put(book.queue, trace) for trace in "abc")
    book.queue.claim(3)
    assert book.queue.fail(failed, "no such pool") is True
    book.queue.give_back(pausing, "offline", retry_after_s=100)
    book.queue.complete(done, {})
    assert book.queue.claim(3) == []
    assert book.queue.get(failed).error == "no such pool"
    assert book.queue.retry([failed, done]) == 1
    assert book.queue.retry() == 1
    assert [task.id for task in book.queue.claim(3)] == [failed, pausing]


def test_a_claim_takes_only_the_tasks_it_is_told(book):
    first, second, third = (put(book.queue, trace) for trace in "abc")
    assert book.queue.claim(3, among=[]) == []
    assert book.queue.claim(3, among=["nobody"]) == []
    assert [task.id for task in book.queue.claim(3, among=[third, first])] == [first, third]
    assert book.queue.claim(3, among=[third, first]) == []
    assert claim_one(book.queue) == second


def test_the_beginning_of_an_id_is_enough_where_it_is_one_tasks(book, monkeypatch):
    names = iter(["abc1", "abd2", "x%_3"])
    monkeypatch.setattr("uuid.uuid4", lambda: SimpleNamespace(hex=next(names)))
    for trace in "abc":
        put(book.queue, trace)
    assert [book.queue.resolve(start) for start in ("abc", "abd2", "x")] == ["abc1", "abd2", "x%_3"]
    for start, words in (
        ("ab", "2 queued tasks begin with 'ab'"),
        ("zz", "'zz' does not exist"),
        ("abc12", "'abc12' does not exist"),
        ("", "'' does not exist"),
        ("%", "'%' does not exist"),
    ):
        with pytest.raises(InputError, match=words):
            book.queue.resolve(start)


def test_pauses_say_when_who_waits_is_due(book, clock):
    ids = [put(book.queue, trace) for trace in "abc"]
    assert book.queue.pauses() == ()
    book.queue.claim(3)
    book.queue.give_back(ids[1], "offline", retry_after_s=60)
    book.queue.give_back(ids[0], "offline", retry_after_s=30)
    assert book.queue.pauses() == (clock.now + 30, clock.now + 60)
    clock.now += 30
    assert book.queue.pauses() == (clock.now + 30,)


def test_list_and_prune(book):
    ids = [put(book.queue, trace) for trace in "abc"]
    for task_id in ids[:2]:
        book.queue.complete(task_id, {})
    assert [task.id for task in book.queue.list()] == ids
    assert [task.id for task in book.queue.list(limit=1)] == ids[:1]
    assert [task.id for task in book.queue.list("done")] == ids[:2]
    assert book.queue.prune(1) == 1
    assert [task.id for task in book.queue.list()] == ids[1:]


@pytest.mark.parametrize("changes", [{"payload": {"k": object()}}, {"provisional": float("nan")}])
def test_what_is_no_json_is_refused(book, changes):
    with pytest.raises(InputError, match="not JSON"):
        put(book.queue, **changes)
    assert book.queue.list() == []


@pytest.mark.parametrize(
    "call",
    [
        lambda queue: queue.complete("nobody", {}),
        lambda queue: queue.give_back("nobody", "x", retry_after_s=1),
        lambda queue: queue.fail("nobody", "x"),
    ],
)
def test_an_unknown_task_is_named(book, call):
    with pytest.raises(InputError, match="nobody"):
        call(book.queue)


def test_a_task_says_which_hold_may_have_been_billed(book):
    task_id = put(book.queue, "trace")
    ledger = book.ledger
    hold = ledger.reserve("trace", task="triage", pool="gpu", worst_case_microusd=10)
    assert book.queue.get(task_id).unclear_hold_id is None
    ledger.mark_sent(hold)
    assert book.queue.get(task_id).unclear_hold_id == hold.id
    ledger.leave_unclear(hold, "timeout")
    (task,) = book.queue.claim()
    assert (task.unclear_holds, task.unclear_hold_id) == (1, hold.id)
    ledger.resolve(hold.id, 0)
    assert book.queue.get(task_id).unclear_holds == 0


def test_cost_and_answer_are_one_change(book):
    task_id = put(book.queue, "trace")
    hold = book.ledger.reserve("trace", task="triage", pool="gpu", worst_case_microusd=10)
    book.ledger.mark_sent(hold)

    def settle(result):
        with book.transaction():
            book.ledger.settle(hold, 7, tokens_in=1, tokens_out=1)
            book.queue.complete(task_id, result)

    with pytest.raises(InputError):
        settle({"value": object()})
    assert book.ledger.hold(hold.id).state == "sent"
    settle({"value": "ham"})
    settle({"value": "ham"})
    assert book.ledger.spent_microusd() == 7
    assert book.queue.get(task_id).result == {"value": "ham"}


def test_drop_deletes_what_waits_and_keeps_answers(book):
    ids = [put(book.queue, f"t{at}") for at in range(3)]
    (claimed,) = book.queue.claim()
    book.queue.complete(claimed.id, {"value": 1})
    rest = [each for each in ids if each != claimed.id]
    assert book.queue.drop([rest[0], claimed.id]) == 1
    assert book.queue.drop() == 1
    assert [task.id for task in book.queue.list()] == [claimed.id]
