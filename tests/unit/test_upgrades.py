"""How what became of work that waited comes back to the app, and how it is cancelled."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

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


def test_an_answer_comes_back_as_a_result(runtime):
    told = []
    runtime.on_upgrade(told.append)
    first = runtime.run("reply", "hi")
    assert told == []
    pay(runtime)
    runtime.drain()
    (result,) = told
    assert (result.value, result.route, result.provisional) == ("HI", Route.CLOUD, False)
    assert (result.trace_id, result.task_id) == (first.trace_id, first.task_id)
    assert (result.model, result.device, result.reasons) == (
        "small-2",
        "cloud",
        (Reason.ESCALATED,),
    )
    assert (result.cost_microusd, result.tokens_in, result.tokens_out) == (COST, 30, 4)
    assert json.loads(json.dumps(result.as_dict()))["route"] == "cloud"
    runtime.drain()
    assert len(told) == 1


def test_a_task_that_is_given_up_says_why(runtime, pool):
    told = []
    runtime.run("reply", "rejected")
    runtime.run("reply", "broken")
    pay(runtime)
    pool.step = lambda text: status(400 if text == "rejected" else 500)
    runtime.on_upgrade(told.append)
    assert runtime.drain() == Drained(failed=2)
    assert [result.reasons for result in told] == [(Reason.CLOUD_REJECTED,), (Reason.CLOUD_FAILED,)]
    assert {(result.value, result.route) for result in told} == {(None, Route.ABSTAINED)}


def test_a_function_that_fails_gets_its_result_again_and_holds_up_no_other(runtime):
    for text in ("bad", "good"):
        runtime.run("reply", text)
    pay(runtime)
    runtime.drain()
    told, broken = [], True

    def take(result):
        told.append(result.value)
        if broken and result.value == "BAD":
            raise KeyError(result.value)

    with pytest.raises(KeyError, match="BAD"):
        runtime.on_upgrade(take)
    assert told == ["BAD", "GOOD"]
    broken = False
    runtime.drain()
    runtime.drain()
    assert told == ["BAD", "GOOD", "BAD"]


def test_a_function_that_always_fails_at_one_result_does_not_stop_the_queue(runtime, pool):
    told, failures = [], []
    runtime.cancel(runtime.run("reply", "bad").trace_id)
    for text in ("one", "two"):
        runtime.run("reply", text)
    pay(runtime)

    def take(result):
        try:
            told.append(result.value.lower())
        except AttributeError:  # it has no answer
            failures.append(result.reasons)
            raise

    with pytest.raises(AttributeError):
        runtime.on_upgrade(take)
    with pytest.raises(AttributeError):
        runtime.drain()
    assert (told, pool.billed) == (["one", "two"], ["one", "two"])
    assert failures == [(Reason.CANCELLED,)] * 2  # once for each of the two


def test_a_function_may_drain_and_run(runtime):
    told = []

    def take(result):
        told.append(result.value)
        if len(told) == 1:
            runtime.run("reply", "second", priority=9)
            runtime.drain()

    pay(runtime, 0)
    runtime.run("reply", "first")
    pay(runtime)
    runtime.on_upgrade(take)
    runtime.drain()
    assert runtime.run("reply", "third").route is Route.CLOUD
    assert told == ["FIRST"]


def test_each_answer_is_handed_to_every_function_by_one_thread_at_a_time(runtime):
    texts = [f"text {number}" for number in range(12)]
    for text in texts:
        runtime.run("reply", text)
    pay(runtime)
    first, second, inside = [], [], threading.Semaphore(1)

    def take(result):
        assert inside.acquire(blocking=False)
        first.append(result.value)
        inside.release()

    runtime.on_upgrade(take)
    runtime.on_upgrade(lambda result: second.append(result.value))
    threads = [threading.Thread(target=runtime.drain) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(first) == sorted(second) == sorted(text.upper() for text in texts)


def test_an_async_iterator_takes_a_result_once_the_next_is_asked_for(runtime, pool, memory_path):
    for text in ("one", "two"):
        runtime.run("reply", text)
    pay(runtime)
    runtime.drain()

    async def read(opened, most=9):
        found = []
        async for result in opened.upgrades(follow=False):
            found.append(result.value)
            if len(found) == most:
                break
        return found

    assert asyncio.run(read(runtime, 1)) == ["ONE"]
    with pool.runtime(memory_path) as again:  # the app broke off before it asked for the next
        assert asyncio.run(read(again)) == ["ONE", "TWO"]
        assert asyncio.run(read(again)) == []


def test_an_async_iterator_waits_for_what_comes_later(runtime):
    runtime.run("reply", "hi")

    async def read():
        stream = runtime.upgrades(poll_s=0.01)
        later = asyncio.create_task(anext(stream))
        done, _ = await asyncio.wait([later], timeout=0.1)
        assert not done
        pay(runtime)
        await asyncio.to_thread(runtime.drain)
        result = await later
        await stream.aclose()
        return result.value

    assert asyncio.run(read()) == "HI"


@pytest.mark.parametrize("poll_s", [0, -1, float("nan"), "1", None])
def test_a_pause_that_is_none_is_refused(runtime, poll_s):
    with pytest.raises(InputError, match="poll_s"):
        runtime.upgrades(poll_s=poll_s)


@pytest.mark.parametrize("timeout_s", [float("nan"), "1", None])
def test_a_timeout_that_is_none_is_refused(runtime, timeout_s):
    asked = runtime.run("reply", "hi")
    with pytest.raises(InputError, match="timeout_s"):
        runtime.wait(asked.trace_id, timeout_s=timeout_s)


@pytest.mark.parametrize("name", [None, 7, b"t", "", "\ud800"])
def test_what_is_no_id_of_a_task_is_named(runtime, name):
    runtime.run("reply", "hi")
    for ask in (runtime.cancel, lambda name: runtime.wait(name, timeout_s=0)):
        with pytest.raises(InputError, match="does not exist"):
            ask(name)


def test_one_id_is_no_list_of_ids(runtime):
    asked = runtime.run("reply", "hi")
    with pytest.raises(InputError, match="one text, not a list"):
        runtime.drain(asked.task_id)


def test_what_cannot_be_called_takes_no_results(runtime):
    with pytest.raises(InputError, match="of type NoneType, which cannot be called"):
        runtime.on_upgrade(None)
    assert runtime.drain() == Drained()


def test_waiting_returns_what_another_thread_drains(runtime):
    asked = runtime.run("reply", "hi")
    assert runtime.wait(asked.trace_id, timeout_s=0) is None
    pay(runtime)
    thread = threading.Thread(target=runtime.drain)
    thread.start()
    assert runtime.wait(asked.trace_id, timeout_s=30).value == "HI"
    thread.join()
    assert runtime.wait(asked.task_id, timeout_s=0).value == "HI"
    told = []
    runtime.on_upgrade(told.append)
    assert told == []  # it was taken
    with pytest.raises(InputError, match="'nobody' does not exist"):
        runtime.wait("nobody", timeout_s=0)


def test_waiting_ends_when_the_time_of_the_task_is_over(runtime, clock):
    asked = runtime.run("reply", "hi", deadline_s=60)
    clock.now += 60
    assert runtime.wait(asked.trace_id, timeout_s=30).reasons == (Reason.EXPIRED,)


def test_a_cancelled_task_is_never_sent(runtime, pool):
    told = []
    runtime.on_upgrade(told.append)
    asked = runtime.run("reply", "hi")
    assert runtime.cancel(asked.trace_id) == "released"
    pay(runtime)
    assert runtime.drain([asked.task_id]) == Drained()
    assert runtime.drain() == Drained()
    assert (pool.asked, runtime.book.ledger.holds()) == ([], [])
    (result,) = told
    assert (result.value, result.reasons) == (None, (Reason.CANCELLED,))
    assert runtime.cancel(asked.task_id[:12]) == "ended"


def test_what_is_cancelled_in_flight_is_paid_for_and_not_given_out(runtime, pool):
    told, outcomes = [], []
    runtime.on_upgrade(told.append)
    asked = runtime.run("reply", "hi")
    pay(runtime)
    pool.step = lambda _: outcomes.append(runtime.cancel(asked.trace_id))
    assert runtime.drain() == Drained(cancelled=1)
    assert outcomes == ["in_flight"]
    assert runtime.book.ledger.spent_microusd() == COST
    (result,) = told
    assert (result.value, result.reasons) == (None, (Reason.CANCELLED, Reason.LATE))
    assert result.cost_microusd == COST


def test_what_the_fleet_has_stopped_since_is_not_given_out(runtime):
    told = []
    asked = runtime.run("reply", "hi")
    pay(runtime)
    runtime.drain()
    runtime.activate(None, stopped={"tasks": ["reply"]})
    runtime.on_upgrade(told.append)
    assert told == []
    assert runtime.wait(asked.trace_id, timeout_s=0) is None
    runtime.activate(None, stopped={})
    pay(runtime, 0)
    runtime.drain()
    assert [result.value for result in told] == ["HI"]


def test_an_answer_that_calls_a_tool_that_was_stopped_since_is_withheld(pool, memory_path):
    task = {**PACK["tasks"]["reply"], "kind": "extract", "output_schema": {"type": "object"}}
    text = '{"name":"pay"}'
    with pool.runtime(memory_path, offline=True, tasks={"call": task}) as offline:
        offline.run("call", text)
    pool.step = lambda _: status(200, {"choices": [{"message": {"content": text}}], "usage": None})
    with pool.runtime(memory_path, tasks={"call": task}) as runtime:
        assert runtime.drain() == Drained(done=1)
        runtime.activate(None, stopped={"tools": ["pay"]})
        told = []
        runtime.on_upgrade(told.append)
        (result,) = told
        assert (result.value, result.reasons) == (None, (Reason.STOPPED,))
        assert result.route is Route.ABSTAINED


def test_another_pack_over_the_same_folder_takes_nothing_of_this_one(runtime, pool, memory_path):
    runtime.run("reply", "hi")
    pay(runtime)
    runtime.drain()
    told = []
    with pool.runtime(memory_path, name="another") as other:
        other.on_upgrade(told.append)
        assert told == []
    with pool.runtime(memory_path) as same:
        same.on_upgrade(told.append)
    assert [result.value for result in told] == ["HI"]


def test_a_result_that_waits_is_taken_across_a_restart(pool, memory_path):
    with pool.runtime(memory_path, offline=True) as runtime:
        asked = runtime.run("reply", "hi")
    with pool.runtime(memory_path) as runtime:
        runtime.drain()
    told = []
    for _ in range(2):
        with pool.runtime(memory_path, offline=True) as runtime:
            runtime.on_upgrade(told.append)
    assert [result.trace_id for result in told] == [asked.trace_id]
    assert Path(memory_path, "money.db").is_file()
