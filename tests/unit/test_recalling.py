"""Unclear calls at a gateway: what each of its words makes of the money and of the task."""

import json
import tempfile
from pathlib import Path

import httpx
import pytest

from edge.cloud.pool import Pool
from edge.runtime import Drained, Runtime
from edge.store.leases import Leases, Offer
from edge.task import Pack
from edge.types import Reason

FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a folder in memory
PACK = {
    "name": "field",
    "version": 1,
    "pools": {
        "gpu": {
            "base_url": "http://gateway.example/v1",
            "model": "m",
            "price": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 10},
            "gateway": True,
        }
    },
    "tasks": {
        "sort": {
            "kind": "classify",
            "labels": ["yes", "open"],
            "routing": {"pool": "gpu"},
            "budget": {"max_output_tokens": 16, "max_model_calls": 2},
            "privacy": {"allow_cloud": "raw"},
        }
    },
}
COST, TEXT = 77, "is the shop open on friday?"
LEASE = Offer("a" * 32, "gpu", "", 10**6, 10.0**11, "{}")


class Signer:
    """Signs nothing: this gateway believes everything."""

    def check(self):
        pass

    def headers(self, body, *, lease_id, lease, key):
        return {"Edge-Lease": lease_id}


class Gateway:
    """Answers from a script, the last step for good; knows each key and body that it was sent."""

    def __init__(self):
        self.script, self.calls = [], []

    def handle(self, request):
        self.calls.append((request.headers["Idempotency-Key"], request.content))
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return step()

    @property
    def keys(self):
        return [key for key, _ in self.calls]


class Body(httpx.SyncByteStream):
    """A body that was not read yet, as a network's is."""

    def __init__(self, value):
        self.raw = json.dumps(value).encode()

    def __iter__(self):
        yield self.raw


def replied(status, value, **headers):
    return lambda: httpx.Response(status, stream=Body(value), headers=headers)


def answer(text="yes", cost=COST):
    body = {
        "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    }
    return replied(200, body, **{"edge-cost-microusd": str(cost)})


def refusal(code, status=403, cost=None):
    body = {"error": {"type": "edge_gateway", "code": code, "message": "No."}}
    headers = {} if cost is None else {"edge-cost-microusd": str(cost)}
    return replied(status, body, **headers)


def lost():
    raise httpx.ReadError("")


@pytest.fixture
def gateway():
    return Gateway()


@pytest.fixture
def runtime(gateway):
    pack = Pack.model_validate(PACK)
    transport = httpx.MockTransport(gateway.handle)

    def open_pool(name):
        return Pool(name, pack.pools[name], env={}, transport=transport, signer=Signer())

    with (
        tempfile.TemporaryDirectory(dir=FAST) as folder,
        Runtime(pack, Path(folder), offline=False, open_pool=open_pool) as made,
    ):
        give(Path(folder), LEASE)
        made.folder = Path(folder)
        yield made


def give(folder, *offers):
    file = Leases.open(folder)
    file.replace(offers)
    file.close()


def lose(runtime, gateway):
    """Lose the reply to a call; return the id of the task that waits for it."""
    gateway.script = [lost]
    result = runtime.run("sort", TEXT)
    assert Reason.QUEUED in result.reasons
    assert money(runtime)[0] == ["unclear"]
    return result.task_id


def drain(runtime, gateway, *script):
    gateway.script = list(script)
    runtime.book.queue.retry()
    return runtime.drain()


def money(runtime):
    ledger = runtime.book.ledger
    return [hold.state for hold in ledger.holds()], ledger.spent_microusd()


def test_the_first_answer_ends_task_and_hold_with_the_same_key_and_body(runtime, gateway):
    task_id = lose(runtime, gateway)
    assert drain(runtime, gateway, answer()) == Drained(done=1)
    assert gateway.calls[0] == gateway.calls[1]
    assert money(runtime) == (["settled"], COST)
    assert runtime.book.queue.get(task_id).result["cost_microusd"] == COST
    (hold,) = runtime.book.ledger.holds()
    assert runtime.book.ledger.request(hold.id) is None


@pytest.mark.parametrize(
    "word",
    [
        refusal("in_progress", 409),
        refusal("unclear", 409),
        refusal("upstream_late", 504),
        refusal("exhausted", 402),
        refusal("revoked"),
        refusal("bad_lease", 401),
        refusal("too_many", 429),
        replied(503, "<html>"),
        replied(404, {"error": "no such route"}),
        lost,
    ],
)
def test_a_word_that_settles_nothing_leaves_hold_and_task(runtime, gateway, word):
    task_id = lose(runtime, gateway)
    assert drain(runtime, gateway, word) == Drained(waiting=1)
    assert money(runtime) == (["unclear"], 0)
    assert drain(runtime, gateway, answer()) == Drained(done=1)
    assert len(set(gateway.keys)) == 1
    assert runtime.book.queue.get(task_id).state == "done"


@pytest.mark.parametrize("code", ["sealed", "fenced", "expired_lease"])
def test_a_lease_that_is_over_never_bills_and_another_pays_for_the_task(runtime, gateway, code):
    lose(runtime, gateway)
    other = Offer("b" * 32, "gpu", "", 10**6, 10.0**11, "{}")
    give(runtime.folder, LEASE, other)
    assert drain(runtime, gateway, refusal(code), answer()) == Drained(done=1)
    assert money(runtime) == (["settled", "settled"], COST)
    assert [hold.lease_id[0] for hold in runtime.book.ledger.holds()] == ["a", "b"]
    assert len(set(gateway.keys)) == 2


def test_an_answer_that_is_gone_is_paid_for_and_asked_again_only_by_name(runtime, gateway):
    task_id = lose(runtime, gateway)
    assert drain(runtime, gateway, refusal("answered", 409, COST)) == Drained(failed=1)
    assert money(runtime) == (["settled"], COST)
    assert "not kept" in runtime.book.queue.get(task_id).error
    gateway.script = [answer(cost=5)]
    assert runtime.drain([task_id]) == Drained(done=1)
    assert money(runtime) == (["settled", "settled"], COST + 5)


def test_naming_a_task_asks_for_its_first_answer_too(runtime, gateway):
    task_id = lose(runtime, gateway)
    gateway.script = [answer()]
    assert runtime.drain([task_id]) == Drained(done=1)
    assert len(set(gateway.keys)) == 1


def test_an_answer_that_is_none_is_paid_for_and_ends_the_task(runtime, gateway):
    lose(runtime, gateway)
    assert drain(runtime, gateway, answer("")) == Drained(failed=1)
    assert money(runtime) == (["settled"], COST)
    assert len(gateway.calls) == 2


def test_the_answer_to_a_narrow_question_is_paid_for_and_the_whole_is_asked(runtime, gateway):
    lose(runtime, gateway)
    (hold,) = runtime.book.ledger.holds()
    body = json.loads(runtime.book.ledger.request(hold.id))
    body["messages"][0]["content"] = "Choose from fewer labels."
    with runtime.book.transaction(), runtime.book._file.db.reading() as connection:
        connection.execute("UPDATE requests SET body = ?", (json.dumps(body).encode(),))
    assert drain(runtime, gateway, answer(""), answer("open", cost=5)) == Drained(done=1)
    assert money(runtime) == (["settled", "settled"], COST + 5)
    assert len(set(gateway.keys)) == 2


def test_a_call_that_no_task_waits_for_is_settled_by_a_drain(runtime, gateway):
    task_id = lose(runtime, gateway)
    runtime.book.queue.drop([task_id])
    assert drain(runtime, gateway, answer()) == Drained()
    assert money(runtime) == (["settled"], COST)


def test_offline_nothing_is_asked_again(runtime, gateway):
    task_id = lose(runtime, gateway)
    runtime.book.queue.drop([task_id])
    runtime.activate(None, tightened=True)
    assert drain(runtime, gateway, answer()) == Drained()
    assert money(runtime) == (["unclear"], 0)
    assert len(gateway.calls) == 1


def test_a_cost_that_is_none_is_counted_from_the_tokens(runtime, gateway):
    gateway.script = [answer(cost="a lot")]
    assert runtime.run("sort", TEXT).cost_microusd == 3 + 10
