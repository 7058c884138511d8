"""The pool's interface before scripted replicas: answers, streams, refusals, and the count."""

import asyncio
import json

import httpx
import pytest

from edge_sync.pool.again import ReplicaLost
from edge_sync.pool.asked import End, Failed, Text
from edge_sync.pool.config import Settings
from edge_sync.pool.server import Server

SETTINGS = Settings(name="m", model="m.gguf", limits={"body_bytes": 2_000, "timeout_s": 5})
WORDS = [Text("a"), Text("b"), End("length", 7, 2)]


class Pool:
    """A server whose replicas give what was scripted, each life once; the last one again."""

    def __init__(self, *lives, running=1):
        self.lives, self.running, self.lines = list(lives), running, []
        self.server = Server(SETTINGS, ask=self.ask, running=self.count, tell=self.tell,
                             clock=lambda: 1_000.0)  # fmt: skip

    async def ask(self, _asked):
        for event in self.lives.pop(0) if len(self.lives) > 1 else self.lives[0]:
            if event is ReplicaLost:
                raise ReplicaLost
            if isinstance(event, float):
                await asyncio.sleep(event)
            else:
                yield [event]

    async def count(self):
        return self.running

    def tell(self, event, *, level="info", **fields):
        self.lines.append((event, fields))

    def request(self, method, path, *, headers=None, **fields):
        async def send():
            transport = httpx.ASGITransport(app=self.server.app())
            async with httpx.AsyncClient(transport=transport, base_url="http://pool") as client:
                return await client.request(method, path, headers=headers, **fields)

        return asyncio.run(send())

    def post(self, *, headers=None, **fields):
        body = {"messages": [{"role": "user", "content": "hello"}], **fields}
        return self.request("POST", "/v1/chat/completions", json=body, headers=headers)

    def value(self, name):
        return self.server.metrics.registry.get_sample_value(name) or 0


def events(response):
    return [line.removeprefix("data: ") for line in response.text.splitlines() if line]


def test_a_whole_answer_is_counted_with_its_tokens_and_named_by_its_caller():
    pool = Pool(WORDS)
    answer = pool.post(headers={"Idempotency-Key": "hold1"}).json()
    assert answer == {
        "id": "chatcmpl-hold1", "object": "chat.completion", "created": 1_000, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "ab"},
                     "finish_reason": "length"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }  # fmt: skip
    assert pool.lines == [("answered", {"call": "chatcmpl-hold1", "tokens_in": 7, "tokens_out": 2})]
    assert pool.value("edge_pool_answered_total") == 1
    assert pool.value("edge_pool_tokens_out_total") == 2
    assert pool.value("edge_pool_under_way") == 0


@pytest.mark.parametrize("usage", [True, False])
def test_a_stream_ends_with_its_usage_where_it_is_asked_for(usage):
    response = Pool(WORDS).post(stream=True, stream_options={"include_usage": usage})
    *told, last = events(response)
    assert (last, response.headers["content-type"][:17]) == ("[DONE]", "text/event-stream")
    told = [json.loads(each) for each in told]
    if usage:
        assert told.pop()["usage"]["total_tokens"] == 9
    choices = [each["choices"][0] for each in told]
    assert "".join(each["delta"].get("content", "") for each in choices) == "ab"
    assert choices[-1]["finish_reason"] == "length"


def test_a_replica_that_dies_is_told_in_the_log_only():
    pool = Pool([Text("a"), ReplicaLost], WORDS)
    response = pool.post(stream=True)
    assert [json.loads(each)["choices"][0]["delta"] for each in events(response)[1:3]] == [
        {"content": "a"},
        {"content": "b"},
    ]
    assert [name for name, _ in pool.lines] == ["replica.lost", "answered"]
    assert pool.value("edge_pool_asked_again_total") == 1


def test_a_stream_that_fails_says_so_and_has_no_end():
    pool = Pool([Text("a"), ReplicaLost], [Text("x"), End("stop", 1, 1)])
    told = events(pool.post(stream=True))
    assert json.loads(told[-1])["error"]["code"] == "differs"
    assert pool.value("edge_pool_answered_total") == 0


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("life", "status", "later"),
    [
        ([Failed(400, "bad_request", "too long")], 400, False),
        ([Failed(429, "too_many", "full")], 429, True),
        ([Failed(500, "engine_failed", "oops")], 503, True),
        ([ReplicaLost], 503, True),
    ],
)
def test_before_the_first_byte_a_failure_says_that_nothing_counts(life, status, later, stream):
    pool = Pool(life)
    response = pool.post(stream=stream)
    assert (response.status_code, "retry-after" in response.headers) == (status, later)
    assert pool.value("edge_pool_answered_total") == pool.value("edge_pool_under_way") == 0


def test_a_deadline_ends_a_call():
    response = Pool([5.0, *WORDS]).post(headers={"Edge-Deadline": "0.05"})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "late")
    assert response.headers["retry-after"] == "0"


@pytest.mark.parametrize("value", ["soon", "-1", "nan"])
def test_a_deadline_that_is_none_is_refused(value):
    assert Pool(WORDS).post(headers={"Edge-Deadline": value}).status_code == 400


def test_a_body_too_long_or_no_request_is_refused():
    pool = Pool(WORDS)
    assert pool.post(user="x" * 3_000).status_code == 400
    assert pool.request("POST", "/v1/chat/completions", content=b"{").status_code == 400
    assert pool.request("GET", "/v1/chat/completions").status_code == 405


def test_models_and_health():
    assert Pool(WORDS).request("GET", "/v1/models").json()["data"][0]["id"] == "m"
    assert Pool(WORDS).request("GET", "/healthz").status_code == 200
    assert Pool(WORDS, running=0).request("GET", "/healthz").status_code == 503
    assert "edge_pool_answered_total" in Pool(WORDS).request("GET", "/metrics").text
