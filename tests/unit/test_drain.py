"""Draining through the runtime: whose turn it is, what is left alone, what comes too late."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest
from stub_pool import COST, PACK, Clock, StubPool, status

from edge.errors import InputError
from edge.runtime import Drained
from edge.types import Reason, Route


@pytest.fixture
def pool():
    return StubPool()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def runtime(pool, clock, memory_path):
    """Return a runtime whose tasks wait, since it has no money until ``pay``."""
    with pool.runtime(memory_path, budget={"cap_usd": "0", "period": "total"}) as opened:
        opened.book._file.clock = clock
        yield opened


def pay(runtime, cap_microusd=1_000_000):
    runtime.book.limit(cap_microusd=cap_microusd, period="total")


def refuse(_):
    raise httpx.ConnectError("refused")


def test_the_drain_asks_by_priority_and_deadline(runtime, pool):
    for text, how in (
        ("old", {}),
        ("later", {"deadline_s": 900}),
        ("sooner", {"deadline_s": 300}),
        ("low", {"priority": 0, "deadline_s": 60}),
        ("high", {"priority": 9}),
    ):
        assert runtime.run("reply", text, **how).provisional
    pay(runtime)
    assert runtime.drain() == Drained(done=5)
    assert pool.asked == ["high", "sooner", "later", "old", "low"]


def test_the_pack_says_how_a_task_waits_and_the_call_says_it_better(pool, memory_path, clock):
    tasks = {"reply": {**PACK["tasks"]["reply"], "deferred": {"priority": 7, "expires_s": 60}}}
    with pool.runtime(memory_path, offline=True, tasks=tasks) as runtime:
        runtime.book._file.clock = clock
        queue = runtime.book.queue
        usual = queue.get(runtime.run("reply", "a").task_id)
        (mapped,) = (queue.get(each.task_id) for each in runtime.map("reply", ["b"], priority=1))
        own = asyncio.run(runtime.arun("reply", "c", priority=0, deadline_s=5.5))
        own = queue.get(own.task_id)
        assert (usual.priority, mapped.priority, own.priority) == (7, 1, 0)
        # The time runs from the call, and queueing took some of it.
        for task, most_s in ((usual, 60), (mapped, 60), (own, 5.5)):
            assert most_s - 5 < task.answer_by - clock.now <= most_s


@pytest.mark.parametrize("priority", [-1, 10, 1.0, True, "high"])
def test_a_priority_that_is_none_is_refused(runtime, priority):
    with pytest.raises(InputError, match="priority is"):
        runtime.run("reply", "hi", priority=priority)
    with pytest.raises(InputError, match="priority is"):
        runtime.map("reply", [], priority=priority)


@pytest.mark.parametrize("deadline_s", [0, -1, float("nan"), float("inf"), True, "1"])
def test_a_deadline_that_is_none_is_refused(runtime, deadline_s):
    with pytest.raises(InputError, match="deadline_s is"):
        runtime.run("reply", "hi", deadline_s=deadline_s)
    assert runtime.book.queue.list() == []


def test_a_pool_that_is_out_of_reach_is_asked_once_and_the_other_one_goes_on(runtime, pool):
    for task in ("reply", "note"):
        for number in range(5):
            runtime.run(task, f"{task} {number}")
    pay(runtime)
    pool.step = lambda text: refuse(text) if text.startswith("reply") else None
    drained = runtime.drain()
    assert drained == Drained(done=5, waiting=1)
    assert drained.stopped == {"default": "cloud_failed"}
    assert [text for text in pool.asked if text.startswith("reply")] == ["reply 0"]
    assert sorted(task.attempts for task in runtime.book.queue.list("waiting")) == [0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("step", "reason", "drained"),
    [
        (lambda _: status(429), "cloud_failed", Drained(waiting=1)),
        (lambda _: status(500), "cloud_failed", Drained(failed=1)),
    ],
)
def test_what_a_pool_answers_for_all_ends_its_pass(runtime, pool, step, reason, drained):
    for number in range(3):
        runtime.run("reply", f"{number}")
    pay(runtime)
    pool.step = step
    found = runtime.drain()
    assert (found, found.stopped) == (drained, {"default": reason})
    assert len(pool.asked) == 1


def test_an_open_circuit_and_no_money_are_no_reason_to_try_the_next_one(runtime, pool, clock):
    for number in range(4):
        runtime.run("reply", f"{number}")
    found = runtime.drain()
    assert (found, found.stopped) == (Drained(waiting=1), {"default": "budget_exceeded"})
    pay(runtime)
    pool.step = refuse
    for _ in range(3):
        clock.now += 3600
        found = runtime.drain()
    assert found.stopped == {"default": "circuit_open"}
    assert len(pool.asked) == 2


def test_named_tasks_are_tried_each(runtime, pool):
    ids = [runtime.run("reply", f"{number}").task_id for number in range(3)]
    pay(runtime)
    pool.step = refuse
    assert runtime.drain(ids[:2]) == Drained(waiting=2)
    assert len(pool.asked) == 2


def test_the_drain_leaves_the_share_that_calls_as_they_come_need(pool, memory_path):
    cap = {"cap_usd": "0.002", "period": "total", "interactive_share": 0.5}
    with pool.runtime(memory_path, offline=True, budget=cap) as offline:
        ids = [offline.run("reply", f"text {number}").task_id for number in range(30)]
    with pool.runtime(memory_path, budget=cap) as runtime:
        drained = runtime.drain()
        assert drained.stopped == {"default": "budget_exceeded"}
        assert 0 < drained.done < len(ids)
        spent = runtime.book.ledger.spent_microusd()
        assert spent == drained.done * COST <= 1000
        left = runtime.book.ledger.remaining_microusd()
        assert runtime.run("reply", "now").route is Route.CLOUD
        assert left - runtime.book.ledger.remaining_microusd() == COST
        waiting = [task.id for task in runtime.book.queue.list("waiting")]
        assert runtime.drain(waiting[:1]) == Drained(done=1)  # somebody named it


def test_a_share_of_more_than_all_is_refused(pool, memory_path):
    with pytest.raises(ValueError, match="interactive_share"):
        pool.runtime(memory_path, budget={"cap_usd": "1", "interactive_share": 1.5})


def test_a_task_whose_time_is_over_is_not_sent_and_the_app_is_told(runtime, pool, clock):
    told = []
    asked = runtime.run("reply", "hi", deadline_s=60)
    pay(runtime)
    clock.now += 61
    runtime.on_upgrade(told.append)
    (result,) = told
    assert (result.trace_id, result.task_id) == (asked.trace_id, asked.task_id)
    assert (result.value, result.route, result.provisional) == (None, Route.ABSTAINED, False)
    assert (result.reasons, result.cost_microusd) == ((Reason.EXPIRED,), 0)
    assert runtime.drain() == Drained()
    assert pool.asked == []
    assert runtime.book.queue.counts()["expired"] == 1


def test_the_pass_counts_what_it_dropped(runtime, clock):
    runtime.run("reply", "brief", deadline_s=60)
    runtime.run("reply", "long")
    pay(runtime)
    clock.now += 61
    assert runtime.drain() == Drained(done=1, expired=1)


def test_an_answer_after_its_time_is_paid_for_and_said_to_be_late(runtime, pool, clock):
    told = []
    runtime.on_upgrade(told.append)
    asked = runtime.run("reply", "hi", deadline_s=60)
    pay(runtime)

    def slowly(_):
        clock.now += 61

    pool.step = slowly
    assert runtime.drain() == Drained(expired=1)
    assert pool.billed == ["hi"]
    assert runtime.book.ledger.spent_microusd() == COST
    (result,) = told
    assert (result.value, result.reasons) == (None, (Reason.EXPIRED, Reason.LATE))
    assert result.cost_microusd == COST
    task = runtime.book.queue.get(asked.task_id)
    assert (task.state, task.late, task.result) == ("expired", True, None)


def test_a_task_of_another_pack_is_left_to_it(pool, memory_path):
    with pool.runtime(memory_path, offline=True) as runtime:
        asked = [runtime.run(task, "of the first pack") for task in ("reply", "note")]
    tasks = {"note": PACK["tasks"]["note"]}
    with pool.runtime(memory_path, name="second", tasks=tasks) as second:
        own = second.run("note", "of the second")
        assert (own.value, second.drain()) == ("OF THE SECOND", Drained())
        with pytest.raises(InputError, match="is of pack field, not of second"):
            second.drain([asked[0].task_id])
        assert second.book.queue.unfinished() == {"field": 2}
    assert pool.asked == ["of the second"]
    with pool.runtime(memory_path) as runtime:
        assert runtime.drain() == Drained(done=2)


def test_the_deadline_of_an_action_is_none_for_what_is_asked_for_later(pool, memory_path):
    reply = {**PACK["tasks"]["reply"], "budget": {"max_output_tokens": 16, "deadline_ms": 1}}
    with pool.runtime(memory_path, offline=True, tasks={"reply": reply}) as runtime:
        runtime.run("reply", "hi")
    pool.step = lambda _: time.sleep(0.01)
    with pool.runtime(memory_path, tasks={"reply": reply}) as runtime:
        assert runtime.drain() == Drained(done=1)
