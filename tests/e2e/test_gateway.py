"""A gateway process before a provider that counts what it bills: the bill never beats a lease."""

import json
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from .gateway_process import (
    PRICE_IN,
    PRICE_OUT,
    TOKENS_IN,
    TOKENS_OUT,
    Device,
    Provider,
    Signing,
    gateway,
    settings,
)

COST = PRICE_IN * TOKENS_IN + PRICE_OUT * TOKENS_OUT


@pytest.fixture(scope="module")
def provider():
    made = Provider()
    yield made
    made.close()


@pytest.fixture(scope="module")
def served(provider, tmp_path_factory):
    with gateway(settings(tmp_path_factory.mktemp("gateway"), provider.url)) as running:
        yield running


@pytest.fixture
def device():
    return Device()


def test_a_call_is_answered_and_settled_at_what_it_cost(served, provider, device):
    lease, before = device.lease(), len(provider.billed)
    answer = device.ask(served, lease)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "Yes."
    assert answer.headers["edge-cost-microusd"] == str(COST)
    assert provider.billed[before:] == [COST]
    standing = served.lease(lease.lease_id)
    assert (standing["redeemed_microusd"], standing["held_microusd"]) == (COST, 0)
    headers, asked = provider.asked[-1]
    assert (asked["model"], asked["max_tokens"]) == ("m", 32)
    assert 0 < float(headers["edge-deadline"]) <= 120
    assert not [name for name in headers if name in {"edge-lease", "edge-key", "edge-signature"}]


# What the provider does; status and flag; None where the hold is kept.
OUTCOMES = [
    ("twice", 200, "", COST),
    ("mute", 200, "no_usage", "most"),
    ("negative", 200, "bad_usage", "most"),
    ("absurd", 200, "over", "most"),
    ("refuse", 404, "refused", 0),
    ("cut", 502, None, None),
    ("short-body", 502, None, None),
    ("long-body", 502, None, None),
    ("html", 502, None, None),
    ("html-refusal", 502, None, None),
    ("broken", 502, None, None),
]


@pytest.mark.parametrize(("text", "status", "flag", "cost"), OUTCOMES)
def test_whatever_the_provider_does_money_is_exactly_accounted(
    tmp_path, provider, device, text, status, flag, cost, one_each
):
    served, lease = one_each, device.lease()
    answer = device.ask(served, lease, text)
    assert answer.status_code == status, answer.text
    standing = served.lease(lease.lease_id)
    (row,) = [row for row in served.rows() if row["lease_id"] == lease.lease_id]
    if flag is None:
        assert (row["state"], standing["held_microusd"]) == ("unclear", row["most"])
        assert answer.json()["error"]["code"] == "upstream_failed"
    else:
        assert (row["state"], row["flag"], standing["held_microusd"]) == ("settled", flag, 0)
        due = row["most"] if cost == "most" else cost
        assert (standing["redeemed_microusd"], row["actual"]) == (due, due)
    assert standing["used_microusd"] <= lease.amount_microusd


@pytest.fixture(scope="module")
def one_each(provider, tmp_path_factory):
    """A gateway whose breaker does not open on what the tests make the provider do."""
    path = settings(tmp_path_factory.mktemp("each"), provider.url)
    path.write_text(path.read_text().replace("cooldown_s: 0.2", "failures: 100"))
    with gateway(path) as running:
        yield running


def test_a_provider_that_hangs_keeps_the_hold_and_the_device_has_an_answer(
    one_each, provider, device
):
    lease = device.lease()
    answer = device.ask(one_each, lease, "hang", headers={"Edge-Deadline": "0.3"})
    assert (answer.status_code, answer.json()["code"]) == (504, "upstream_late")
    assert one_each.lease(lease.lease_id)["held_microusd"] > 0
    (row,) = [row for row in one_each.rows() if row["lease_id"] == lease.lease_id]
    settled = one_each.admin("reconcile", hold_id=row["hold_id"], actual_microusd=COST)
    assert settled.json()["actual_microusd"] == COST
    assert one_each.lease(lease.lease_id)["used_microusd"] == COST


def test_a_provider_that_asks_for_a_pause_gets_it(tmp_path, provider, device):
    with gateway(settings(tmp_path, provider.url)) as served:
        lease = device.lease()
        asked = len(provider.asked)
        first, second = (device.ask(served, lease, text) for text in ("busy", "ok"))
        assert (first.status_code, first.headers["retry-after"]) == (429, "7")
        assert second.status_code == 503
        assert len(provider.asked) == asked + 1
        assert served.lease(lease.lease_id)["used_microusd"] == 0


def test_another_server_takes_what_one_could_not(tmp_path, provider, device):
    dead = Provider()
    dead.close()
    with gateway(settings(tmp_path, dead.url, provider.url)) as served:
        lease, before = device.lease(), len(provider.billed)
        answers = [device.ask(served, lease) for _ in range(12)]
        assert [answer.status_code for answer in answers] == [200] * 12
        assert provider.billed[before:] == [COST] * 12
        assert served.lease(lease.lease_id)["used_microusd"] == 12 * COST


def test_the_same_key_is_one_bill(served, provider, device):
    lease, before = device.lease(), len(provider.billed)
    first, again = (device.ask(served, lease, key="key-of-mine") for _ in range(2))
    assert first.json() == again.json()
    assert again.headers["edge-again"] == "1"
    other = device.ask(served, lease, "mute", key="key-of-mine")
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    stranger = Device()
    assert stranger.ask(served, stranger.lease(), key="key-of-mine").status_code == 200
    assert len(provider.billed) == before + 2


def test_a_request_that_is_under_way_says_so(served, provider, device):
    lease, before = device.lease(), len(provider.billed)
    provider.go.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: device.ask(served, lease, "slow", key="slow-key-1"))
        while (
            len(provider.asked) == 0 or provider.asked[-1][1]["messages"][-1]["content"] != "slow"
        ):
            time.sleep(0.005)
        with httpx.Client(trust_env=False) as client:
            again = device.ask(served, lease, "slow", key="slow-key-1", client=client)
        assert (again.status_code, again.json()["code"]) == (409, "in_progress")
        assert again.headers["retry-after"] == "1"
        provider.go.set()
        assert first.result().status_code == 200
    assert len(provider.billed) == before + 1


def test_a_stream_passes_unbuffered_and_is_settled(served, provider, device):
    lease = device.lease()
    provider.go.clear()
    body = json.dumps(
        {"messages": [{"role": "user", "content": "slow-stream"}], "stream": True}
    ).encode()
    headers = device.headers(body, lease, "stream-key-1")
    url = f"{served.url}/v1/chat/completions"
    with served.client.stream("POST", url, content=body, headers=headers) as answer:
        lines = (line for line in answer.iter_lines() if line)
        assert "one" in next(lines)  # and the provider still waits
        provider.go.set()
        rest = list(lines)
    assert "two" in rest[0]
    assert rest[1:] == ["data: [DONE]"]  # the usage was asked for by the gateway alone
    assert served.lease(lease.lease_id)["redeemed_microusd"] == COST
    again = served.client.post(url, content=body, headers=headers)
    assert again.text.count("data:") == 3
    assert again.headers["content-type"] == "text/event-stream"


@pytest.mark.parametrize(("text", "state"), [("mute-stream", "settled"), ("cut-stream", "unclear")])
def test_a_stream_without_usage_or_end(one_each, device, text, state):
    lease = device.lease()
    answer = device.ask(one_each, lease, text, stream=True)
    (row,) = [row for row in one_each.rows() if row["lease_id"] == lease.lease_id]
    assert (row["state"], one_each.lease(lease.lease_id)["used_microusd"]) == (state, row["most"])
    assert ("[DONE]" in answer.text) == (state == "settled")
    assert ('"error"' in answer.text) == (state == "unclear")


def test_a_device_that_leaves_is_billed_for_what_it_used(served, provider, device):
    lease = device.lease()
    provider.go.clear()
    body = json.dumps({"messages": [{"role": "user", "content": "slow-stream"}], "stream": True})
    headers = device.headers(body.encode(), lease, "leaving-1")
    url = f"{served.url}/v1/chat/completions"
    with httpx.stream("POST", url, content=body, headers=headers, trust_env=False) as answer:
        next(answer.iter_lines())
    provider.go.set()
    while (standing := served.lease(lease.lease_id))["held_microusd"]:
        time.sleep(0.01)
    assert standing["used_microusd"] == COST


def leases(device):
    stranger = Device()
    good = device.lease()
    return [
        ("forged", device.lease(amount=10**9, key_id="k1", signature="0" * 128), 401, "bad_lease"),
        ("expired", device.lease(not_after=1), 403, "expired_lease"),
        ("of another", stranger.lease(), 403, "foreign_lease"),
        ("for another pool", device.lease(pool_id="other"), 403, "foreign_lease"),
        ("of another key", device.lease(key_id="k2"), 401, "bad_lease"),
        ("overdrawn", device.lease(amount=10), 402, "exhausted"),
        ("good", good, 200, None),
    ]


def test_only_a_good_lease_is_taken(served, provider, device):
    for what, lease, status, code in leases(device):
        before = len(provider.asked)
        if what == "forged":
            lease = type(lease)(  # noqa: PLW2901 - the same one, forged
                **{**json.loads(lease.text()), "signature": "0" * 128}
            )
        answer = device.ask(served, lease)
        assert (answer.status_code, answer.json().get("code")) == (status, code), what
        assert len(provider.asked) - before == (status == 200), what


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Edge-Signature": "AAAA"}, 401),
        ({"Edge-Signature": "not base64!"}, 401),
        ({"Edge-Lease": "e30="}, 401),
        ({"Edge-Key": "00"}, 400),
        ({"Idempotency-Key": "other-key-1"}, 401),
        ({"Idempotency-Key": "short"}, 400),
        ({"Edge-Deadline": "soon"}, 400),
        ({"Edge-Deadline": "0"}, 504),
    ],
)
def test_bad_headers_forward_nothing(served, provider, device, headers, status):
    asked = len(provider.asked)
    assert device.ask(served, device.lease(), headers=headers).status_code == status
    assert len(provider.asked) == asked


def test_what_nothing_bounds_is_refused(served, provider, device):
    asked = len(provider.asked)
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    for fields in ({"max_tokens": 10**6}, {"prediction": {}}, {"n": 9}, {"messages": image}):
        answer = device.ask(served, device.lease(), **fields)
        assert (answer.status_code, answer.json()["code"]) == (400, "unbounded"), fields
    long = device.ask(served, device.lease(), "x" * 1_000_001)
    assert long.status_code == 413
    assert len(provider.asked) == asked


def test_many_at_once_spend_no_more_than_the_lease(served, provider, device):
    most = PRICE_IN * 500 + PRICE_OUT * 32
    lease, before = device.lease(amount=6 * most), sum(provider.billed)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: device.ask(served, lease), range(64)))
    assert {answer.status_code for answer in answers} <= {200, 402}
    spent = sum(provider.billed) - before
    standing = served.lease(lease.lease_id)
    assert standing["redeemed_microusd"] == spent <= lease.amount_microusd
    assert standing["held_microusd"] == 0


def test_a_sealed_or_fenced_lease_takes_nothing_more(tmp_path, provider, device):
    config = settings(tmp_path, provider.url)
    with gateway(config) as served:
        lease, other, unseen = (device.lease() for _ in range(3))
        assert device.ask(served, lease).status_code == 200
        ids = [lease.lease_id, unseen.lease_id]
        found = served.admin("seal", leases=ids).json()["leases"]
        assert [(one["used_microusd"], one["final"]) for one in found] == [(COST, True), (0, True)]
        for each in (lease, unseen):
            assert device.ask(served, each).json()["code"] == "sealed"
        assert device.ask(served, other).status_code == 200
        assert served.admin("epoch", epoch=5).json()["epoch"] == 5
        assert served.admin("epoch", epoch=3).json()["epoch"] == 5
        assert device.ask(served, other).json()["code"] == "fenced"
        newer = device.lease(epoch=5)
        assert device.ask(served, newer).status_code == 200
        served.admin("revoke", devices=[device.key.device_id], revoked=True)
        assert device.ask(served, newer).json()["code"] == "revoked"
        served.admin("revoke", devices=[device.key.device_id], revoked=False)
        assert device.ask(served, newer).status_code == 200
        state = served.state()
        served.kill()
    with gateway(config) as served:
        assert served.state() == state
        assert device.ask(served, other).json()["code"] == "fenced"


def test_the_hub_alone_may_ask_about_the_register(served):
    url = f"{served.url}/v1/register/state"
    assert served.client.get(url).status_code == 401
    wrong = {"Authorization": "Bearer wrong"}
    assert served.client.get(url, headers=wrong).json()["code"] == "unauthorized"
    assert served.admin("seal", leases=["x"]).status_code == 400
    assert served.admin("nothing").status_code == 404
    assert served.client.get(f"{served.url}/v1/models").status_code == 404


def test_metrics_tell_money_and_servers(served):
    text = served.client.get(f"{served.url}/metrics").text
    assert "edge_gateway_settled_microusd_total" in text
    assert 'edge_gateway_upstream_p95_seconds{upstream="u0"}' in text
    assert served.client.get(f"{served.url}/healthz").status_code == 200


def test_killed_under_load_no_bill_is_missing_from_the_register(tmp_path, provider):
    config, device = settings(tmp_path, provider.url), Device()
    lease = device.lease(amount=10**9)
    before = sum(provider.billed)
    for _ in range(2):
        with gateway(config) as served:
            ended = threading.Event()

            def work(served=served, ended=ended):
                with httpx.Client(trust_env=False) as client:
                    while not ended.is_set():
                        try:
                            device.ask(served, lease, client=client)
                        except httpx.TransportError:
                            return

            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            goal = len(provider.billed) + 25
            while len(provider.billed) < goal:
                time.sleep(0.002)
            served.kill()
            ended.set()
            for thread in threads:
                thread.join()
    with gateway(config) as served:
        standing = served.lease(lease.lease_id)
        rows = [row for row in served.rows() if row["state"] == "unclear"]
        spent = sum(provider.billed) - before
        assert standing["used_microusd"] >= spent >= standing["redeemed_microusd"]
        assert len(rows) <= 2 * 4


def test_a_full_disk_forwards_nothing(tmp_path, provider, device):
    def small():
        resource.setrlimit(resource.RLIMIT_FSIZE, (160_000, 160_000))

    with gateway(settings(tmp_path, provider.url), before=small) as served:
        before, answers = len(provider.billed), []
        lease = device.lease(amount=10**9)
        while not answers or answers[-1].status_code == 200:
            answers.append(device.ask(served, lease))
        billed = len(provider.billed)
        assert (answers[-1].status_code, answers[-1].json()["code"]) == (503, "unavailable")
        assert len(answers) - 1 == billed - before
        # Room may come and go; what was not durably held is never forwarded.
        answers += [device.ask(served, lease) for _ in range(3)]
        paid = sum(answer.status_code == 200 for answer in answers)
        assert paid == len(provider.billed) - before
        assert served.lease(lease.lease_id)["used_microusd"] >= sum(provider.billed[before:])


def test_the_official_client_can_call(served, provider, device):
    openai = pytest.importorskip("openai")
    lease = device.lease()
    http = httpx.Client(auth=Signing(device, lease), trust_env=False)
    with openai.OpenAI(
        base_url=f"{served.url}/v1", api_key="none", http_client=http, max_retries=0
    ) as client:
        ask = [{"role": "user", "content": "ok"}]
        answer = client.chat.completions.create(model="any", messages=ask)
        assert answer.choices[0].message.content == "Yes."
        stream = client.chat.completions.create(model="any", messages=ask, stream=True)
        assert "".join(part.choices[0].delta.content for part in stream) == "Yes."
        lease = device.lease(amount=1)
        http.auth = Signing(device, lease)
        with pytest.raises(openai.APIStatusError) as refused:
            client.chat.completions.create(model="any", messages=ask)
        assert refused.value.code == "exhausted"
