"""Escalation and the queue: what each outcome of the pool does to the money and to the task."""

import json
import tempfile
import threading
from pathlib import Path

import httpx
import pytest

from edge.cloud.pool import Pool
from edge.errors import InputError
from edge.overlay import compile_policy, read_policy
from edge.runtime import Drained, Runtime
from edge.task import Pack
from edge.types import Reason, Route

SCHEMA = {"type": "object", "required": ["day"], "properties": {"day": {"type": "string"}}}
PACK = {
    "name": "field",
    "version": 1,
    "budget": {"cap_usd": "0.01", "period": "total"},
    "pools": {
        "default": {
            "base_url": "http://pool.example/v1",
            "model": "small",
            "api_key_env": "POOL_KEY",
            "price": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 10},
            "retries": 0,
        }
    },
    "tasks": {
        "reply": {
            "kind": "generate",
            "budget": {"max_output_tokens": 16},
            "privacy": {"allow_cloud": "raw"},
        },
        "when": {
            "kind": "extract",
            "output_schema": SCHEMA,
            "budget": {"max_output_tokens": 16},
            "privacy": {"allow_cloud": "raw"},
        },
    },
}
TEXT = "is the shop open on friday?"
COST = 70
FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a folder in memory


class World:
    """A pool's server in the same process; answers from a script, the last step for good."""

    def __init__(self):
        self.script, self.requests, self.opened = [completion("yes")], [], []
        self.env = {"POOL_KEY": "key"}

    def handle(self, request):
        self.requests.append(request)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return step()

    def open_pool(self, name):
        self.opened.append(name)
        spec = self.pack.pools[name]
        return Pool(name, spec, env=self.env, transport=httpx.MockTransport(self.handle))

    def runtime(self, folder, *, offline=False, **changes):
        self.pack = Pack.model_validate({**PACK, **changes})
        return Runtime(self.pack, folder, offline=offline, open_pool=self.open_pool)


class Body(httpx.SyncByteStream):
    def __init__(self, raw):
        self.raw = raw

    def __iter__(self):
        yield self.raw


def answer(status, content=None):
    return lambda: httpx.Response(status, stream=Body(json.dumps(content).encode()))


def completion(text):
    content = {
        "model": "small-2",
        "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 30, "completion_tokens": 4},
    }
    return answer(200, content)


def fails(error):
    def step():
        raise error

    return step


@pytest.fixture
def world():
    return World()


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(dir=FAST) as made:
        yield Path(made)


def money(runtime):
    ledger = runtime.book.ledger
    return [hold.state for hold in ledger.holds()], ledger.spent_microusd(), ledger.held_microusd()


def worst(runtime):
    return runtime.book.ledger.holds()[-1].worst_case_microusd


# name -> (step of the server, reason, state of the hold, what is spent, queued)
RUNS = {
    "answer": (completion("yes"), Reason.ESCALATED, "settled", COST, False),
    "empty answer": (completion("  "), Reason.INVALID_OUTPUT, "settled", COST, False),
    "429": (answer(429), Reason.CLOUD_FAILED, "released", 0, True),
    "400": (answer(400), Reason.CLOUD_REJECTED, "released", 0, False),
    "500": (answer(500), Reason.CLOUD_FAILED, "unclear", 0, True),
    "200 of another kind": (answer(200, ["?"]), Reason.CLOUD_FAILED, "unclear", 0, True),
    "no connection": (fails(httpx.ConnectError("")), Reason.CLOUD_FAILED, "released", 0, True),
    "not connected in time": (
        fails(httpx.ConnectTimeout("")), Reason.CLOUD_TIMEOUT, "released", 0, True,
    ),
    "not answered in time": (
        fails(httpx.ReadTimeout("")), Reason.CLOUD_TIMEOUT, "unclear", 0, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_what_an_outcome_does_to_money_and_queue(world, folder, name):
    step, reason, state, spent, queued = RUNS[name]
    world.script = [step]
    with world.runtime(folder) as runtime:
        result = runtime.run("reply", TEXT)
        held = worst(runtime) if state == "unclear" else 0
        assert money(runtime) == ([state], spent, held)
        assert result.cost_microusd == spent
        assert result.reasons[:2] == (Reason.NO_LOCAL_MODEL, reason)
        assert (result.task_id is not None) is queued
        answered = reason is Reason.ESCALATED
        assert (result.route, result.value) == (
            (Route.CLOUD, "yes") if answered else (Route.DEFERRED, None)
        )
        if queued:
            entry = runtime.book.queue.get(result.task_id)
            assert (entry.state, entry.text, entry.reason) == ("waiting", TEXT, reason)
            assert (entry.unclear_hold_id is not None) is (state == "unclear")
        assert runtime.traces.get(result.trace_id)["cost_microusd"] == spent
        assert world.requests[0].headers["idempotency-key"] == runtime.book.ledger.holds()[0].id


# name -> (step of the server, what drain counts, state of the task, states of the holds, spent)
DRAINS = {
    "answer": (completion("yes"), Drained(done=1), "done", ["settled"], COST),
    "empty answer": (completion(""), Drained(failed=1), "failed", ["settled"], COST),
    "400": (answer(400), Drained(failed=1), "failed", ["released"], 0),
    "500": (answer(500), Drained(failed=1), "failed", ["unclear"], 0),
    "429": (answer(429), Drained(waiting=1), "waiting", ["released"], 0),
    "no connection": (
        fails(httpx.ConnectError("")), Drained(waiting=1), "waiting", ["released"], 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAINS)
def test_what_draining_makes_of_a_queued_task(world, folder, name):
    step, drained, state, holds, spent = DRAINS[name]
    with world.runtime(folder, offline=True) as runtime:
        task_id = runtime.run("reply", TEXT).task_id
        assert runtime.drain() == Drained(waiting=1)
        assert world.requests == []
    world.script = [step]
    with world.runtime(folder) as runtime:
        assert runtime.drain([task_id]) == drained
        entry = runtime.book.queue.get(task_id)
        assert (entry.state, entry.text) == (state, TEXT)
        assert money(runtime)[:2] == (holds, spent)
        if state == "done":
            told = {"value": "yes", "text": "yes", "model": "small-2", "cost_microusd": COST}
            assert entry.result == {**told, "tokens_in": 30, "tokens_out": 4}
        else:
            assert entry.result is None
            assert entry.error
        asked = len(world.requests)
        assert runtime.drain() == Drained()
        assert len(world.requests) == asked == 1


def test_an_unclear_attempt_is_repeated_only_by_its_id(world, folder):
    world.script = [fails(httpx.ReadTimeout("")), completion("yes")]
    with world.runtime(folder) as runtime:
        task_id = runtime.run("reply", TEXT).task_id
        assert runtime.drain() == Drained(failed=1)
        assert runtime.drain() == Drained()
        assert len(world.requests) == 1
        assert runtime.drain([task_id]) == Drained(done=1)
        states, spent, held = money(runtime)
        assert (states, spent) == (["unclear", "settled"], COST)
        assert held == worst(runtime)
        keys = [request.headers["idempotency-key"] for request in world.requests]
        assert keys == [hold.id for hold in runtime.book.ledger.holds()]


@pytest.mark.parametrize("budget", [None, {"cap_usd": "0.000100"}, {"cap_usd": 0}])
def test_without_money_nothing_is_sent_and_the_task_waits(world, folder, budget):
    with world.runtime(folder, budget=budget) as runtime:
        result = runtime.run("reply", TEXT)
        assert result.reasons[1:] == (Reason.BUDGET_EXCEEDED, Reason.QUEUED)
        assert money(runtime) == ([], 0, 0)
        assert runtime.drain() == Drained(waiting=1)
    assert world.requests == []


def test_the_cap_holds_under_many_threads(world, folder):
    with world.runtime(folder, budget={"cap_usd": "0.001000"}) as runtime:
        found = []
        threads = [
            threading.Thread(target=lambda: found.append(runtime.run("reply", TEXT)))
            for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(result.cost_microusd for result in found) == money(runtime)[1] <= 1000
        routes = [result.route for result in found]
        assert routes.count(Route.CLOUD) == len(world.requests)
        assert routes.count(Route.CLOUD) + runtime.book.queue.counts()["waiting"] == 16
        assert world.opened == ["default"]


def test_first_calls_at_once_open_one_client(world, folder):
    second, open_pool = threading.Event(), world.open_pool

    def slowly(name):
        opened = open_pool(name)
        if len(world.opened) > 1:
            second.set()
        second.wait(0.1)
        return opened

    world.open_pool = slowly
    with world.runtime(folder) as runtime:
        threads = [threading.Thread(target=runtime.run, args=("reply", TEXT)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert world.opened == ["default"]


@pytest.mark.parametrize("key", [None, "", "of two\nlines"])
def test_a_pool_without_a_key_holds_nothing_and_the_task_waits(world, folder, key):
    world.env = {} if key is None else {"POOL_KEY": key}
    with world.runtime(folder) as runtime:
        result = runtime.run("reply", TEXT)
        assert (result.route, result.provisional) == (Route.DEFERRED, True)
        assert result.reasons[1:] == (Reason.POOL_MISCONFIGURED, Reason.QUEUED)
        assert runtime.traces.get(result.trace_id)["route"] == "deferred"
        assert runtime.drain() == Drained(waiting=1)
        entry = runtime.book.queue.get(result.task_id)
        assert (entry.state, entry.error) == ("waiting", "pool_misconfigured")
        assert money(runtime) == ([], 0, 0)
        assert world.requests == []
        world.env["POOL_KEY"] = "key"
        assert runtime.drain([result.task_id]) == Drained(done=1)


def test_a_pool_whose_address_is_none_is_misconfigured(world, folder):
    pool = {**PACK["pools"]["default"], "base_url": "http://pool.example:99999/v1"}
    with world.runtime(folder, pools={"default": pool}) as runtime:
        result = runtime.run("reply", TEXT)
        assert result.reasons[1:] == (Reason.POOL_MISCONFIGURED, Reason.QUEUED)
        assert money(runtime) == ([], 0, 0)


def test_named_tasks_are_drained_alone(world, folder):
    with world.runtime(folder) as runtime, world.runtime(folder, offline=True) as offline:
        first, second, third = (offline.run("reply", TEXT).task_id for _ in range(3))
        assert runtime.drain([second, third[:12]]) == Drained(done=2)
        for beginning, words in (("no-such-id", "no-such-id"), ("", "does not exist")):
            with pytest.raises(InputError, match=words):
                runtime.drain([first, beginning])
        states = [runtime.book.queue.get(each).state for each in (first, second, third)]
        assert states == ["waiting", "done", "done"]
        assert len(world.requests) == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"day": "friday"}', {"day": "friday"}),
        ('```json\n{"day": "friday"}\n```', {"day": "friday"}),
        ('```{"day": "friday"}```', {"day": "friday"}),
        ("friday", None),
        ('{"day": 5}', None),
        ("{}", None),
        ("", None),
        ("[" * 100_000, None),
        ('{"day": "friday", "n": NaN}', None),
        ('{"day": "friday", "n": -Infinity}', None),
        ('{"day": "friday", "n": 1e999}', None),
        ('{"day": "\\ud83d"}', None),
        ('{"day": "friday", "\\udc00": 1}', None),
    ],
)
def test_an_extracted_answer_fits_the_schema_or_is_none(world, folder, text, value):
    world.script = [completion(text)]
    with world.runtime(folder) as runtime:
        result = runtime.run("when", TEXT)
        assert result.value == value
        assert (Reason.INVALID_OUTPUT in result.reasons) is (value is None)
        sent = json.loads(world.requests[0].content)
        assert sent["response_format"]["json_schema"]["schema"] == SCHEMA
        assert json.dumps(SCHEMA) in sent["messages"][0]["content"]
        assert sent["messages"][1] == {"role": "user", "content": TEXT}


@pytest.mark.parametrize(
    ("schema", "text", "reason"),
    [
        ({"type": "null"}, "null", Reason.ESCALATED),
        ({}, "null", Reason.ESCALATED),
        ({}, "card_arrival", Reason.INVALID_OUTPUT),
        ({"type": "null"}, "card_arrival", Reason.INVALID_OUTPUT),
        ({}, "", Reason.INVALID_OUTPUT),
    ],
)
def test_an_answer_of_null_is_one_and_a_text_that_is_not_json_is_none(
    world, folder, schema, text, reason
):
    world.script = [completion(text)]
    tasks = {"when": {**PACK["tasks"]["when"], "output_schema": schema}}
    with world.runtime(folder, tasks=tasks) as runtime:
        result = runtime.run("when", TEXT)
        assert (result.value, result.reasons[1]) == (None, reason)
        assert (result.route is Route.CLOUD) is (reason is Reason.ESCALATED)
        assert result.task_id is None


def test_a_pool_is_never_asked_for_a_vector(world, folder):
    tasks = {"vector": {"kind": "embed", "privacy": {"allow_cloud": "raw"}}}
    with world.runtime(folder, tasks=tasks) as runtime:
        result = runtime.run("vector", TEXT)
        assert (result.route, result.value, result.task_id) == (Route.DEFERRED, None, None)
        assert result.reasons == (Reason.NO_LOCAL_MODEL, Reason.NO_POOL)
    assert world.requests == []


def policy(revision, sections):
    return compile_policy(read_policy(json.dumps(sections)), revision=revision, created_at=0.0)


CALL = {"name": "pay", "day": "friday"}


def test_a_pools_answer_that_calls_a_denied_tool_is_paid_for_and_not_given_out(world, folder):
    world.script = [completion(json.dumps(CALL))]
    with world.runtime(folder) as runtime:
        assert runtime.run("when", TEXT).value == CALL
        runtime.activate(policy(1, {"tools": {"pay": {"allow": False}}}))
        result = runtime.run("when", TEXT)
        assert (result.route, result.value) == (Route.ABSTAINED, None)
        assert result.reasons[0] is Reason.TOOL_DENIED
        assert result.cost_microusd == COST
        assert money(runtime) == (["settled", "settled"], 2 * COST, 0)


def test_a_drained_answer_that_calls_a_stopped_tool_ends_its_task(world, folder):
    world.script = [completion(json.dumps(CALL))]
    with world.runtime(folder, offline=True) as runtime:
        task_id = runtime.run("when", TEXT).task_id
        runtime.activate(None, stopped={"tools": ["pay"]})
    with world.runtime(folder) as runtime:
        assert runtime.drain([task_id]) == Drained(failed=1)
        entry = runtime.book.queue.get(task_id)
        assert (entry.state, entry.error.partition(":")[0]) == ("failed", "stopped")
        assert entry.result is None
        assert money(runtime) == (["settled"], COST, 0)


def test_what_is_stopped_or_expired_asks_no_pool_and_may_wait(world, folder):
    with world.runtime(folder) as runtime:
        runtime.activate(None, tightened=True)
        result = runtime.run("reply", TEXT)
        assert result.reasons[-2:] == (Reason.POLICY_EXPIRED, Reason.QUEUED)
        runtime.activate(None, tightened=False, stopped={"tasks": ["reply"]})
        assert runtime.drain([result.task_id]) == Drained(waiting=1)
        assert runtime.run("reply", TEXT).reasons == (Reason.STOPPED,)
        assert world.requests == []
        runtime.activate(None, stopped={})
        assert runtime.drain([result.task_id]) == Drained(done=1)


def test_a_pool_with_other_settings_is_another_pool_and_the_same_stays_open(world, folder):
    with world.runtime(folder) as runtime:
        runtime.run("reply", TEXT)
        runtime.activate(policy(1, {"tasks": {"reply": {"description": "new"}}}))
        runtime.run("reply", TEXT)
        assert world.opened == ["default"]
        runtime.activate(policy(2, {"pools": {"default": {"model": "large"}}}))
        runtime.run("reply", TEXT)
        assert world.opened == ["default", "default"]


def test_a_task_that_waits_for_a_pool_that_was_taken_away_asks_its_own(world, folder):
    with world.runtime(folder) as runtime:
        task_id = runtime.book.queue.put(
            "reply",
            text=TEXT,
            payload={"pool": "gone"},
            reason="offline",
            provisional=None,
            trace_id="t",
        )
        assert runtime.drain() == Drained(done=1)
        assert runtime.book.queue.get(task_id).state == "done"
        assert world.opened == ["default"]
