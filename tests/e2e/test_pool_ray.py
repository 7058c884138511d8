"""A pool of two replicas on Ray behind the real gateway: a replica killed under load costs nothing.

No call is lost, none is billed twice, and what the register settled is what the engine counted.
"""

import importlib.util
import json
import os
import secrets
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from .gateway_process import PRICE_IN, PRICE_OUT, Device, Signing, gateway, settings
from .pool_process import configure, pool

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason='Ray is not installed: pip install "edge-runtime[ray]"',
    ),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to find the replicas"),
]
CALLS, CALLERS, KILL_AFTER = 60, 12, 15
NUMBERS = {"type": "array", "minItems": 60, "maxItems": 60,
           "items": {"type": "integer", "minimum": 0, "maximum": 99}}  # fmt: skip
SHAPE = {"type": "json_schema", "json_schema": {"name": "numbers", "schema": NUMBERS}}
MOST = 250


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with pool(configure(tmp_path_factory.mktemp("pool"))) as served:
        yield served


@pytest.fixture
def served(running, tmp_path):
    with gateway(settings(tmp_path, f"{running.url}/v1", max_tokens=MOST)) as found:
        yield found


def question(at):
    return f"play some jazz by {at % 7}"


def direct(running, at, **fields):
    """Return what the pool answers without a gateway."""
    body = {"messages": [{"role": "user", "content": question(at)}], "response_format": SHAPE,
            "temperature": 0, "max_tokens": MOST, **fields}  # fmt: skip
    url = f"{running.url}/v1/chat/completions"
    return httpx.post(url, json=body, timeout=60, trust_env=False)


def text_of(response):
    """Return the text of a whole answer, or of a stream with its end."""
    if not response.headers["content-type"].startswith("text/event-stream"):
        return response.json()["choices"][0]["message"]["content"]
    *events, last = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert last == "[DONE]", response.text[-500:]
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    return "".join(delta.get("content", "") for delta in deltas)


class Load:
    """Calls of one device from many threads, half of them streams."""

    def __init__(self, served):
        self.served, self.device = served, Device()
        self.lease = self.device.lease(amount=10**9)
        self.done = 0
        self.killed = threading.Event()

    def one(self, at):
        with httpx.Client(timeout=60, trust_env=False) as client:
            response = self.device.ask(
                self.served, self.lease, question(at), key=secrets.token_hex(16), client=client,
                response_format=SHAPE, temperature=0, max_tokens=MOST, stream=bool(at % 2),
            )  # fmt: skip
        self.done += 1
        return at, response

    def kill(self, running):
        while self.done < KILL_AFTER:
            time.sleep(0.01)
        victim = running.busiest()
        os.kill(victim, signal.SIGKILL)
        return victim, self.done


def test_a_replica_killed_under_load_loses_no_call_and_bills_none_twice(running, served):
    expected = {at: text_of(direct(running, at)) for at in range(7)}
    before = {each["call"] for each in running.events("answered")}
    load = Load(served)
    with ThreadPoolExecutor(CALLERS + 1) as threads:
        killing = threads.submit(load.kill, running)
        answers = [each.result() for each in [threads.submit(load.one, at) for at in range(CALLS)]]
    victim, done = killing.result()
    assert KILL_AFTER <= done < CALLS - CALLERS
    assert running.count("edge_pool_asked_again_total") >= 1
    for at, response in answers:
        assert response.status_code == 200, response.text
        assert text_of(response) == expected[at % 7]
    rows = [row for row in served.rows() if row["lease_id"] == load.lease.lease_id]
    told = [each for each in running.events("answered") if each["call"] not in before]
    assert len(told) == len({each["call"] for each in told}) == CALLS
    cost = sum(PRICE_IN * each["tokens_in"] + PRICE_OUT * each["tokens_out"] for each in told)
    account = served.lease(load.lease.lease_id)
    assert (account["redeemed_microusd"], account["held_microusd"]) == (cost, 0), account
    assert {f"chatcmpl-{row['hold_id']}" for row in rows} == {each["call"] for each in told}
    assert {row["state"] for row in rows} == {"settled"}
    limit = time.monotonic() + 40
    while len(running.replicas()) < 2 or running.running() < 2:
        assert time.monotonic() < limit, "Ray has not replaced the replica"
        time.sleep(0.2)
    assert victim not in running.replicas()


def test_usage_is_the_engines_and_the_official_client_can_ask(running, served):
    openai = pytest.importorskip("openai")
    device = Device()
    lease = device.lease(amount=10**8)
    plain = direct(running, 1).json()
    with httpx.Client(auth=Signing(device, lease), trust_env=False) as http:
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", http_client=http)
        fields = {"model": "m", "temperature": 0, "max_tokens": MOST, "response_format": SHAPE}
        messages = [{"role": "user", "content": question(1)}]
        whole = client.chat.completions.create(messages=messages, **fields)
        stream = client.chat.completions.create(
            messages=messages, stream=True, stream_options={"include_usage": True}, **fields
        )
        events = list(stream)
    assert whole.choices[0].message.content == plain["choices"][0]["message"]["content"]
    assert len(json.loads(whole.choices[0].message.content)) == 60
    assert whole.usage.to_dict() == plain["usage"] == events[-1].usage.to_dict()
    assert len(events) > 10
    used = PRICE_IN * whole.usage.prompt_tokens + PRICE_OUT * whole.usage.completion_tokens
    assert served.lease(lease.lease_id)["redeemed_microusd"] == 2 * used


def test_what_the_pool_does_not_do_is_refused_and_costs_nothing(running, served):
    device = Device()
    lease = device.lease()
    for fields in ({"n": 2}, {"response_format": {"type": "json_schema"}}, {"logprobs": True}):
        response = device.ask(served, lease, **fields)
        assert response.status_code == 400, response.text
    long = device.ask(served, device.lease(amount=10**6), "jazz " * 2_000)
    assert (long.status_code, "context" in long.text) == (400, True)
    assert served.lease(lease.lease_id)["redeemed_microusd"] == 0


def test_a_caller_that_leaves_ends_its_call(running):
    answered = running.count("edge_pool_answered_total")
    with (
        httpx.Client(timeout=60, trust_env=False) as client,
        client.stream(
            "POST", f"{running.url}/v1/chat/completions",
            json={"messages": [{"role": "user", "content": question(1)}], "stream": True,
                  "response_format": SHAPE, "temperature": 0, "max_tokens": MOST},
        ) as response,
    ):  # fmt: skip
        next(response.iter_raw())
    limit = time.monotonic() + 10
    while running.count("edge_pool_under_way"):
        assert time.monotonic() < limit
        time.sleep(0.05)
    assert running.count("edge_pool_answered_total") == answered


def test_it_ends_with_its_calls_answered_and_nothing_left_behind(running):
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(direct, running, at) for at in range(4)]
        while running.count("edge_pool_under_way") < 4:
            time.sleep(0.005)
        code = running.end()
        assert [call.result().status_code for call in calls] == [200] * 4
    assert code == 0, running.log.read_text("utf-8")[-2_000:]
    assert running.left() == []
    assert running.events("stopped")
