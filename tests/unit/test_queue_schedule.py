"""Whose turn it is in the queue, whose time is over, and what cancelling comes to."""

from __future__ import annotations

import json
import time

import pytest
from stub_pool import Clock

from edge.errors import InputError
from edge.store.book import Book
from edge.store.db import migrate, open_database
from edge.store.money import MIGRATIONS
from edge.store.queue import Queue
from edge.store.queue_view import UNTOLD
from edge.store.queued import AGING_S, AUDIT, BY_TIME, OVER, SELECT


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def queue(memory_path, clock):
    with Book.open(memory_path, cap_microusd=1000, period="total", clock=clock) as book:
        yield book.queue


@pytest.fixture
def other(memory_path, clock, queue):
    opened = Queue.open(memory_path, clock=clock)
    yield opened
    opened.close()


def put(queue: Queue, trace: str = "t", **changes) -> str:
    fields = {"text": "hi", "payload": {}, "reason": "offline", "provisional": None}
    return queue.put("triage", **(fields | changes), trace_id=trace)


def claimed(queue: Queue, **how) -> list[str]:
    return [task.id for task in queue.claim(10, **how)]


def state(queue: Queue, task_id: str) -> tuple[str, bool, bool]:
    task = queue.get(task_id)
    return task.state, task.late, task.told


def test_priority_comes_before_deadline_and_deadline_before_age(queue):
    old = put(queue)
    later = put(queue, expires_s=900)
    sooner = put(queue, expires_s=300)
    low = put(queue, priority=0, expires_s=1)
    high = put(queue, priority=9)
    assert claimed(queue) == [high, sooner, later, old, low]


@pytest.mark.parametrize(("hours", "first"), [(9, False), (10, True)])
def test_each_hour_of_waiting_is_a_step_so_that_the_lowest_starves_never(
    queue, clock, hours, first
):
    low = put(queue, priority=0)
    clock.now += hours * AGING_S
    high = put(queue, priority=9, expires_s=5)
    assert claimed(queue)[0] == (low if first else high)


def test_what_is_passed_over_waits_without_an_attempt(queue):
    first, second = put(queue, payload={"pool": "a"}), put(queue, payload={"pool": "b"})
    assert claimed(queue, unless=lambda _, payload: payload["pool"] == "a") == [second]
    assert (queue.get(first).state, queue.get(first).attempts) == ("waiting", 0)


def test_a_task_whose_time_is_over_is_dropped_and_never_claimed(queue, clock):
    brief, ever = put(queue, expires_s=60), put(queue)
    assert queue.get(brief).answer_by == clock.now + 60
    clock.now += 59
    assert queue.expire() == 0
    clock.now += 1
    assert claimed(queue) == [ever]
    assert queue.expire() == 1
    assert queue.expire() == 0
    task = queue.get(brief)
    assert (task.state, task.late, task.told, task.ended_at) == ("expired", False, False, clock.now)
    assert "time was over" in task.error
    assert queue.retry([brief]) == 0
    assert queue.counts()["expired"] == 1


def test_what_has_expired_makes_room(memory_path, clock):
    queue = Queue.open(memory_path, clock=clock, max_waiting=1)
    put(queue, expires_s=60)
    clock.now += 60
    assert state(queue, put(queue)) == ("waiting", False, False)
    queue.close()


def test_an_answer_after_its_time_is_late_and_no_answer(queue, clock):
    task_id = put(queue, expires_s=60)
    queue.claim()
    clock.now += 61
    assert queue.expire() == 1  # its lease has passed as well
    assert queue.complete(task_id, {"value": "x"}) is False
    task = queue.get(task_id)
    assert (task.state, task.late, task.result) == ("expired", True, None)
    assert "1 s after its time" in task.error


def test_an_answer_that_is_under_way_when_time_is_over_is_judged_when_it_comes(queue, clock):
    task_id = put(queue, expires_s=30)
    queue.claim()
    clock.now += 31
    assert queue.expire() == 0
    assert queue.get(task_id).state == "claimed"
    assert queue.complete(task_id, {"value": "x"}) is False
    assert state(queue, task_id) == ("expired", True, False)


def test_a_clock_set_back_lengthens_no_wait_but_that_of_the_task_itself(queue, clock):
    task_id = put(queue, expires_s=60)
    clock.now -= 10_000
    assert claimed(queue) == [task_id]
    queue.give_back(task_id, "offline", retry_after_s=0)
    clock.now += 60
    assert queue.expire() == 1


def test_a_cancelled_task_is_never_claimed_again(queue):
    task_id = put(queue)
    assert queue.cancel(task_id) == "released"
    assert claimed(queue) == []
    assert queue.retry() == 0
    assert queue.cancel(task_id) == "ended"
    assert state(queue, task_id) == ("cancelled", False, False)
    assert queue.drop([task_id]) == 1


def test_what_is_cancelled_in_flight_keeps_its_place_until_the_answer_came(queue, other):
    task_id = put(queue)
    queue.claim()
    assert other.cancel(task_id) == "in_flight"
    assert other.drop() == 0
    assert other.prune(0) == 0
    assert queue.complete(task_id, {"value": "x"}) is False
    assert state(queue, task_id) == ("cancelled", True, False)
    assert queue.get(task_id).result is None
    assert other.drop() == 1


@pytest.mark.parametrize("end", ["give_back", "fail"])
def test_what_is_cancelled_in_flight_stays_so_whatever_comes_of_it(queue, end):
    task_id = put(queue)
    queue.claim()
    queue.cancel(task_id)
    given = queue.give_back(task_id, "x", retry_after_s=0) if end == "give_back" else None
    assert (given or queue.fail(task_id, "x")) is False
    assert state(queue, task_id) == ("cancelled", False, False)
    assert queue.drop() == 1


def test_what_a_dead_process_was_asking_for_can_still_be_cancelled_unsent(queue, other):
    task_id = put(queue)
    other.claim()
    other.close()
    assert queue.cancel(task_id) == "released"


@pytest.mark.parametrize("end", ["done", "failed", "expired"])
def test_it_is_too_late_to_cancel_what_has_ended(queue, clock, end):
    task_id = put(queue, expires_s=60)
    if end == "expired":
        clock.now += 60
    else:
        queue.claim()
        queue.complete(task_id, {"value": 1}) if end == "done" else queue.fail(task_id, "no")
    assert queue.cancel(task_id) == "ended"
    assert queue.get(task_id).state == end


def test_only_named_tasks_can_be_cancelled(queue):
    with pytest.raises(InputError, match="'nobody' does not exist"):
        queue.cancel("nobody")


def test_what_has_ended_is_untold_until_it_is_taken_as_it_is(queue):
    done, audit, waits = put(queue), put(queue, reason=AUDIT), put(queue, payload={"pack": "mine"})
    for each in (done, audit):
        queue.complete(each, {"value": 1})
    queue.cancel(waits)
    assert [task.id for task in queue.untold()] == [done, waits]
    (mine,) = queue.untold("mine")
    assert mine.id == waits
    assert queue.take(mine)
    assert [task.id for task in queue.untold()] == [done]
    queue.retry([done])
    assert [task.id for task in queue.untold()] == [done]


def test_news_of_a_late_answer_is_not_taken_with_what_came_before(queue, clock):
    task_id = put(queue, expires_s=60)
    queue.claim()
    clock.now += 61
    queue.expire()
    (before,) = queue.untold()
    queue.complete(task_id, {"value": 1})
    assert queue.take(before) is False
    (after,) = queue.untold()
    assert after.late
    assert queue.take(after)
    assert queue.untold() == []


def test_a_task_is_found_by_its_trace_or_the_beginning_of_its_id(queue):
    task_id, audit = put(queue, "trace-1"), put(queue, "trace-2", reason=AUDIT)
    assert queue.find("trace-1").id == queue.find(task_id[:12]).id == task_id
    assert queue.find(audit).id == audit
    with pytest.raises(InputError, match="'trace-2' does not exist"):
        queue.find("trace-2")


def test_a_folder_of_the_version_before_keeps_its_tasks(memory_path):
    db = open_database(memory_path / "money.db", durable=True)
    migrate(db, MIGRATIONS[:2])
    rows = [("waiting", None), ("done", json.dumps({"text": "yes"})), ("failed", None)]
    with db.transaction() as connection:
        for at, (kept, result) in enumerate(rows):
            connection.execute(
                "INSERT INTO queued (id, task, text, payload, reason, provisional, trace_id, "
                "state, put_at, result) VALUES (?, 'triage', 'hi', '{}', 'offline', 'null', ?, ?, "
                "?, ?)",
                (f"id{at}", f"trace{at}", kept, time.time(), result),
            )
        connection.execute(
            "INSERT INTO holds (id, trace_id, task, pool, owner, state, worst_case_microusd, "
            "held_microusd, cost_microusd, reserved_at) "
            "VALUES ('h', 'trace1', 'triage', 'gpu', 'o', 'settled', 9, 0, 7, ?)",
            (time.time(),),
        )
    db.close()
    with Book.open(memory_path, cap_microusd=1000, period="total") as book:
        waiting, done, failed = book.queue.list()
        assert [each.state for each in (waiting, done, failed)] == ["waiting", "done", "failed"]
        assert (waiting.priority, waiting.answer_by, waiting.late) == (5, None, False)
        assert (done.result, done.cost_microusd) == ({"text": "yes"}, 7)
        assert book.queue.untold() == []
        assert [task.id for task in book.queue.claim()] == ["id0"]
        book.queue.complete("id0", {"value": "ham"})
        assert [task.id for task in book.queue.untold()] == ["id0"]


def test_what_waits_or_was_taken_is_not_looked_at_for_what_is_over_or_untold(queue):
    """A long queue costs nothing where there is nothing to say."""
    plans = {
        f"SELECT 1 FROM {BY_TIME} WHERE {OVER}": "queued_answer_by (answer_by<?)",  # noqa: S608
        SELECT + UNTOLD: "queued_untold (state=?)",
    }
    with queue._file.db.reading() as connection:
        for query, index in plans.items():
            values = ("",) * query.count("?")
            steps = connection.execute(f"EXPLAIN QUERY PLAN {query}", values).fetchall()
            assert index in steps[0][3]
