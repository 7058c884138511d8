"""The same call with the same key is answered once, whatever happens in between."""

from __future__ import annotations

import threading

import httpx
import pytest
from stub_pool import COST, PACK, Clock, StubPool, status

from edge.errors import ConfigError, InputError
from edge.repeating import result_from
from edge.runtime import Drained
from edge.store.book import Book
from edge.store.repeats import KEPT_S, Repeats
from edge.types import Reason, Result, Route


@pytest.fixture
def pool():
    return StubPool()


@pytest.fixture
def runtime(pool, memory_path):
    with pool.runtime(memory_path) as opened:
        yield opened


def test_the_same_key_and_input_give_the_first_result(runtime, pool, memory_path):
    first = runtime.run("reply", "hi", idempotency_key="k")
    assert runtime.run("reply", "hi", idempotency_key="k") == first
    with pool.runtime(memory_path, offline=True) as later:
        assert later.run("reply", "hi", idempotency_key="k") == first
    assert (pool.billed, first.value, first.route) == (["hi"], "HI", Route.CLOUD)
    assert runtime.run("reply", "hi", idempotency_key="another") != first
    assert len(pool.billed) == 2


def test_what_the_fleet_has_stopped_since_is_not_given_again(runtime, pool):
    first = runtime.run("reply", "hi", idempotency_key="k")
    runtime.activate(None, stopped={"tasks": ["reply"]})
    again = runtime.run("reply", "hi", idempotency_key="k")
    assert (again.value, again.route) == (None, Route.ABSTAINED)
    assert again.reasons[0] is Reason.STOPPED
    runtime.activate(None, stopped={})
    assert runtime.run("reply", "hi", idempotency_key="k") == first
    assert pool.billed == ["hi"]


def test_a_call_to_a_tool_that_was_stopped_since_is_not_given_again(pool, memory_path):
    task = {**PACK["tasks"]["reply"], "kind": "extract", "output_schema": {"type": "object"}}
    text = '{"name":"pay"}'
    pool.step = lambda _: status(200, {"choices": [{"message": {"content": text}}], "usage": None})
    with pool.runtime(memory_path, tasks={"call": task}) as runtime:
        assert runtime.run("call", "pay", idempotency_key="k").value == {"name": "pay"}
        runtime.activate(None, stopped={"tools": ["pay"]})
        again = runtime.run("call", "pay", idempotency_key="k")
        assert (again.value, again.reasons[0]) == (None, Reason.STOPPED)


@pytest.mark.parametrize(
    ("task", "text", "words"),
    [("reply", "ho", "another input"), ("note", "hi", "another task, reply")],
)
def test_another_input_under_the_same_key_is_named(runtime, task, text, words):
    runtime.run("reply", "hi", idempotency_key="order 7")
    with pytest.raises(InputError, match=f"'order 7' was used for {words}"):
        runtime.run(task, text, idempotency_key="order 7")


def test_a_key_of_another_pack_does_not_give_its_answer(runtime, pool, memory_path):
    runtime.run("reply", "hi", idempotency_key="k")
    with (
        pool.runtime(memory_path, name="second") as second,
        pytest.raises(InputError, match="another input or pack"),
    ):
        second.run("reply", "hi", idempotency_key="k")


def test_another_context_is_another_input(pool, memory_path):
    with pool.runtime(memory_path, context={"vip": "flag"}) as runtime:
        runtime.run("reply", "hi", idempotency_key="k", context={"vip": True})
        with pytest.raises(InputError, match="another input"):
            runtime.run("reply", "hi", idempotency_key="k", context={"vip": False})


@pytest.mark.parametrize("key", ["", " ", "x" * 201, 7, b"k", "\ud800"])
def test_a_key_that_is_none_is_refused(runtime, pool, key):
    with pytest.raises(InputError, match="1 to 200 characters"):
        runtime.run("reply", "hi", idempotency_key=key)
    assert pool.asked == []


def test_bad_input_takes_no_key(runtime):
    with pytest.raises(InputError, match="is empty"):
        runtime.run("reply", "", idempotency_key="k")
    with pytest.raises(ConfigError, match="no task named"):
        runtime.run("nope", "hi", idempotency_key="k")
    assert runtime.run("reply", "hi", idempotency_key="k").value == "HI"


def test_a_call_that_waits_is_queued_once_and_gives_what_became_of_it(pool, memory_path):
    with pool.runtime(memory_path, offline=True) as offline:
        first = offline.run("reply", "hi", idempotency_key="k")
        assert offline.run("reply", "hi", idempotency_key="k") == first
        assert len(offline.book.queue.list()) == 1
    with pool.runtime(memory_path) as runtime:
        assert runtime.run("reply", "hi", idempotency_key="k") == first
        assert runtime.drain() == Drained(done=1)
        later = runtime.run("reply", "hi", idempotency_key="k")
        assert (later.value, later.route, later.task_id) == ("HI", Route.CLOUD, first.task_id)
        assert pool.billed == ["hi"]


def test_a_call_whose_task_was_cancelled_is_not_made_again(pool, memory_path):
    with pool.runtime(memory_path, offline=True) as offline:
        first = offline.run("reply", "hi", idempotency_key="k")
        offline.cancel(first.trace_id)
    with pool.runtime(memory_path) as runtime:
        again = runtime.run("reply", "hi", idempotency_key="k")
        assert (again.value, again.reasons) == (None, (Reason.CANCELLED,))
    assert pool.asked == []


def test_callers_at_once_get_one_answer(runtime, pool):
    entered, go = threading.Event(), threading.Event()

    def slowly(_):
        entered.set()
        go.wait(30)

    pool.step = slowly
    found = []

    def run():
        found.append(runtime.run("reply", "hi", idempotency_key="k"))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert entered.wait(30)
    go.set()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert set(map(id, found)) != {id(found[0])}
    assert all(result == found[0] for result in found)
    assert pool.billed == ["hi"]


class Killed(BaseException):
    """Ends a call as the end of its process does, but for the ledger's file."""


def killed(step):
    def then(text):
        step(text)
        raise Killed

    return then


def test_a_call_that_was_broken_off_unsent_is_made_again(runtime, pool, monkeypatch):
    def broken_off(*_, **__):
        raise Killed

    monkeypatch.setattr(runtime.book.ledger, "reserve", broken_off)
    with pytest.raises(Killed):
        runtime.run("reply", "hi", idempotency_key="k")
    monkeypatch.undo()
    assert runtime.run("reply", "hi", idempotency_key="k").value == "HI"
    assert pool.billed == ["hi"]


def test_a_call_that_may_have_been_billed_is_not_sent_again(runtime, pool):
    pool.step = killed(pool.billed.append)
    with pytest.raises(Killed):
        runtime.run("reply", "hi", idempotency_key="k")
    pool.step = lambda _: None
    for _ in range(2):
        result = runtime.run("reply", "hi", idempotency_key="k")
        assert (result.route, result.provisional) == (Route.DEFERRED, False)
        assert Reason.MAYBE_BILLED in result.reasons
        assert result.task_id is None
    assert runtime.drain() == Drained()
    assert pool.billed == ["hi"]


def test_a_call_whose_answer_was_lost_after_it_was_paid_is_not_paid_again(
    runtime, pool, monkeypatch
):
    def lost(*_):
        raise Killed

    monkeypatch.setattr(runtime.traces, "append", lost)
    with pytest.raises(Killed):
        runtime.run("reply", "hi", idempotency_key="k")
    monkeypatch.undo()
    assert runtime.book.ledger.spent_microusd() == COST
    result = runtime.run("reply", "hi", idempotency_key="k")
    assert Reason.MAYBE_BILLED in result.reasons
    assert pool.billed == ["hi"]


def test_a_call_that_was_queued_and_not_told_is_the_same_queued_task(
    pool, memory_path, monkeypatch
):
    with pool.runtime(memory_path, offline=True) as offline:

        def lost(*_):
            raise Killed

        monkeypatch.setattr(offline.book.repeats, "finish", lost)
        with pytest.raises(Killed):
            offline.run("reply", "hi", idempotency_key="k")
        monkeypatch.undo()
        (queued,) = offline.book.queue.list()
        again = offline.run("reply", "hi", idempotency_key="k")
        assert (again.task_id, again.trace_id) == (queued.id, queued.trace_id)
        assert (again.provisional, again.reasons) == (True, (Reason.OFFLINE, Reason.QUEUED))
        assert len(offline.book.queue.list()) == 1


def test_a_failed_call_may_be_made_again(runtime, pool):
    def refuse(_):
        raise httpx.ConnectError("refused")

    pool.step = refuse
    first = runtime.run("reply", "hi", idempotency_key="k")
    assert first.provisional
    pool.step = lambda _: None
    assert runtime.run("reply", "hi", idempotency_key="k") == first  # it waits in the queue
    runtime.drain()
    assert runtime.run("reply", "hi", idempotency_key="k").value == "HI"


@pytest.mark.parametrize("interval", [None, (0.1, 0.9)])
def test_a_kept_result_is_the_same(interval):
    result = Result(
        value={"a": [1, None]},
        confidence=0.5,
        certified=True,
        route=Route.LOCAL,
        provisional=False,
        model="m",
        device="cpu",
        cost_microusd=1,
        latency_ms=0.25,
        tokens_in=1,
        tokens_out=2,
        trace_id="t",
        reasons=(Reason.CONFIDENT, Reason.AUDITED),
        task="x",
        interval=interval,
    )
    assert result_from(result.as_dict()) == result


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def book(memory_path, clock):
    with Book.open(memory_path, cap_microusd=1000, period="total", clock=clock) as opened:
        yield opened


def begin(repeats, key, trace="t"):
    return repeats.begin(key, task="t", input_sha256="s", trace_id=trace)


def test_keys_are_kept_for_a_month_and_no_more_than_there_is_room_for(book, clock):
    repeats = Repeats(book._file, kept_keys=3)
    for key in "abcd":
        begin(repeats, key)
        repeats.finish(key, {"key": key})
    assert [begin(repeats, key).state for key in "bcd"] == ["known"] * 3
    assert begin(repeats, "a").state == "mine"  # its place was taken
    clock.now += KEPT_S + 1
    assert begin(repeats, "e").state == "mine"
    assert begin(repeats, "d").state == "mine"
    assert begin(repeats, "a").state == "running"


def test_a_key_whose_task_waits_is_kept_beyond_that(book, clock):
    repeats = Repeats(book._file, kept_keys=1)
    fields = {"text": "hi", "payload": {}, "reason": "offline", "provisional": None}
    task_id = book.queue.put("t", **fields, trace_id="trace")
    begin(repeats, "a", "trace")
    repeats.finish("a", {})
    clock.now += KEPT_S + 1
    for key in "bc":
        begin(repeats, key)
        repeats.finish(key, {})
    assert begin(repeats, "a").state == "known"
    book.queue.complete(task_id, {})
    begin(repeats, "d")
    assert begin(repeats, "a").state == "mine"


def test_the_key_of_a_dead_process_is_free_and_says_what_was_sent(book, memory_path, clock):
    with Book.open(memory_path, cap_microusd=1000, period="total", clock=clock) as other:
        assert begin(other.repeats, "k", "first").state == "mine"
        assert begin(book.repeats, "k", "second").state == "running"
        hold = other.ledger.reserve("first", task="t", pool="p", worst_case_microusd=1)
        other.ledger.mark_sent(hold)
    repeat = begin(book.repeats, "k", "second")
    assert (repeat.state, repeat.trace_id, repeat.again, repeat.paid) == (
        "mine",
        "first",
        True,
        True,
    )
