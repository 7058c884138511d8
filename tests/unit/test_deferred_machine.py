"""Any order of queueing, draining, cancelling, waiting and dying keeps the promises of the queue.

No task is lost, none is billed twice, none is sent or given out after its time, one that was
cancelled before it was sent never is, and whatever ends is told.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import httpx
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)
from stub_pool import COST, Clock, StubPool, status

from edge.errors import StoreError

FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a folder in memory
CAP = 1_000_000
DYING = ("dies unsent", "dies billed")
STEPS = ("answers", "is slow", "refuses", "is busy", "breaks", "rejects", "cancels", *DYING)


class Died(BaseException):
    """The process is gone: its file is closed and its lock is free."""


class Machine(RuleBasedStateMachine):
    tasks = Bundle("tasks")

    @initialize(target=tasks)
    def begin(self):
        self.folder = tempfile.TemporaryDirectory(dir=FAST)
        self.clock, self.pool = Clock(), StubPool()
        self.pool.step = self.answers
        self.texts, self.named, self.never, self.forgone = {}, {}, {}, set()
        self.asked_at, self.billed_at, self.given, self.told = {}, {}, {}, set()
        self.way = "answers"
        self.open()
        waits = [self.wait(None, by, key=by is None) for by in (None, None, 5000, 50)]
        return multiple(*waits)

    def open(self):
        self.runtime = self.pool.runtime(Path(self.folder.name))
        self.runtime.book._file.clock = self.clock
        self.queue = self.runtime.book.queue

    def die(self):
        self.runtime.book._file.close()
        raise Died

    def answers(self, text):
        self.asked_at.setdefault(text, []).append(self.clock.now)
        if self.way in {"refuses", "dies unsent"}:
            self.die() if self.way == "dies unsent" else None
            raise httpx.ConnectError("refused")
        if self.way in {"is busy", "rejects"}:
            return status(429 if self.way == "is busy" else 400)
        if self.way == "is slow":
            self.clock.now += 6000
        if self.way == "cancels":
            assert self.runtime.cancel(self.texts[text]) == "in_flight"
            self.forgone.add(text)
        self.billed_at.setdefault(text, []).append(self.clock.now)
        if self.way == "dies billed":
            self.pool.billed.append(text)
            self.die()
        if self.way == "breaks":
            self.pool.billed.append(text)
            return status(500)
        return None

    @rule(
        target=tasks,
        priority=st.sampled_from([None, 0, 9]),
        deadline_s=st.sampled_from([None, 50, 5000]),
        key=st.booleans(),
    )
    def waits(self, priority, deadline_s, key):
        return self.wait(priority, deadline_s, key=key)

    def wait(self, priority, deadline_s, *, key):
        text = f"text {len(self.texts)}"
        how = {"priority": priority, "deadline_s": deadline_s}
        self.runtime.book.limit(cap_microusd=0, period="total")
        result = self.runtime.run("reply", text, idempotency_key=text if key else None, **how)
        if key:
            again = self.runtime.run("reply", text, idempotency_key=text, **how)
            assert again.task_id == result.task_id
        self.runtime.book.limit(cap_microusd=CAP, period="total")
        self.texts[text] = result.task_id
        return text

    @rule(way=st.sampled_from(STEPS), limit=st.integers(1, 3))
    def drains(self, way, limit):
        self.drain(way, None, limit)

    @rule(way=st.sampled_from(DYING))
    def dies_draining(self, way):
        self.drain(way, None, 1)

    @rule(way=st.sampled_from(STEPS), text=tasks)
    def drains_a_named_one(self, way, text):
        self.named[text] = self.named.get(text, 0) + 1
        self.drain(way, [self.texts[text]], 1)

    def drain(self, way, ids, limit):
        self.way = way
        try:
            self.runtime.drain(ids, limit=limit)
        except (Died, StoreError):
            assert way in DYING
            self.runtime.close()
            self.open()
        self.way = "answers"

    @rule(seconds=st.sampled_from([1, 40, 60, 3600, 40_000]))
    def time_passes(self, seconds):
        self.clock.now += seconds

    @rule(text=tasks)
    def is_waited_for(self, text):
        result = self.runtime.wait(self.texts[text], timeout_s=0)
        assert (result is not None) is self.ended(text)
        if result is not None:
            self.told.add(result.task_id)
            if result.value is not None:
                self.given[text] = result.value

    @rule(text=consumes(tasks))
    def is_cancelled(self, text):
        outcome = self.runtime.cancel(self.texts[text])
        assert outcome in {"released", "ended"}
        if outcome == "released":
            self.never[text] = len(self.asked_at.get(text, ()))

    @rule(taken=st.booleans())
    def are_told(self, taken):
        for task, result in self.runtime._upgrades.waiting():
            if result.value is not None:
                self.given[task.text] = result.value
            if taken:
                self.queue.take(task)
                self.told.add(task.id)

    @rule()
    def restarts(self):
        self.runtime.close()
        self.open()

    def ended(self, text):
        return self.queue.get(self.texts[text]).state not in {"waiting", "claimed"}

    @invariant()
    def no_task_is_lost(self):
        kept = {task.text: task for task in self.queue.list(limit=10_000)}
        assert set(kept) == set(self.texts)
        assert not [task for task in kept.values() if task.state == "claimed"]

    @invariant()
    def none_is_billed_twice_and_each_bill_is_on_the_books(self):
        for text in self.texts:
            assert self.pool.billed.count(text) <= 1 + self.named.get(text, 0)
        ledger = self.runtime.book.ledger
        assert COST * len(self.pool.billed) <= ledger.spent_microusd() + ledger.held_microusd()
        assert ledger.spent_microusd() <= CAP

    @invariant()
    def none_is_sent_or_given_out_after_its_time(self):
        for task in self.queue.list(limit=10_000):
            by = task.answer_by or float("inf")
            assert all(at < by for at in self.asked_at.get(task.text, ()))
            if task.state == "done":
                assert any(at < by for at in self.billed_at[task.text])
            if task.text in self.given:
                assert (task.state, self.given[task.text]) == ("done", task.text.upper())

    @invariant()
    def what_was_cancelled_is_never_sent_or_given_out(self):
        for text, asked in self.never.items():
            assert len(self.asked_at.get(text, ())) == asked
            assert self.queue.get(self.texts[text]).state == "cancelled"
        assert not self.forgone & set(self.given)

    def teardown(self):
        try:
            self.heals()
        finally:
            self.runtime.close()
            self.folder.cleanup()

    def heals(self):
        self.restarts()  # with it goes the breaker, whose cool-down is by the real clock
        for _ in range(len(self.texts) + 1):
            self.clock.now += 40_000
            self.runtime.drain()
        told = []
        self.runtime.on_upgrade(lambda result: told.append(result.task_id))
        assert all(self.ended(text) for text in self.texts)
        assert self.told | set(told) == set(self.texts.values())
        self.no_task_is_lost()
        self.none_is_billed_twice_and_each_bill_is_on_the_books()
        self.none_is_sent_or_given_out_after_its_time()
        self.what_was_cancelled_is_never_sent_or_given_out()


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=30,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
