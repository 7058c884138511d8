"""What a hub, or what stands in its place, can answer, and what a device makes of it."""

import httpx
import pytest

from edge.errors import ConfigError, HubUnreachable
from edge_sync.agent.exchange import Exchange, HubBusy, HubRefused


@pytest.fixture
def asking():
    opened = []

    def ask(answer, *, urls=("https://hub.test",)):
        exchange = Exchange(urls, transport=httpx.MockTransport(answer))
        opened.append(exchange)
        return exchange

    yield ask
    for exchange in opened:
        exchange.close()


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>Log in to the airport's network</html>"),
        httpx.Response(200, json={"timestamp": 7}),
        httpx.Response(200, json=[]),
        httpx.Response(302, headers={"Location": "https://login.test"}),
        httpx.Response(404, text="not here"),
        httpx.Response(502, text="bad gateway"),
        httpx.Response(200, content=b"\xff\xfe"),
        httpx.Response(200, content=b"x" * 16_000_001),
    ],
)
def test_what_no_hub_says_is_an_unreachable_hub(asking, answer):
    with pytest.raises(HubUnreachable):
        asking(lambda _: answer).policy("token", etag="", root=1, wait_s=0)


def test_a_refusal_keeps_its_code_and_remedy(asking):
    body = {"code": "revoked", "message": "The key was revoked.", "hint": "Enrol again."}
    with pytest.raises(HubRefused, match=r"revoked\. Enrol again\.") as raised:
        asking(lambda _: httpx.Response(403, json=body)).policy("t", etag="", root=1, wait_s=0)
    assert raised.value.code == "revoked"
    assert not raised.value.retryable


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("999999", 3_600.0), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("", None)],
)
def test_a_pause_is_read(asking, header, seconds):
    answer = httpx.Response(503, headers={"Retry-After": header})
    with pytest.raises(HubBusy) as raised:
        asking(lambda _: answer).policy("token", etag="", root=1, wait_s=0)
    assert raised.value.retry_after_s == seconds


@pytest.mark.parametrize("url", ["", "hub.test", "ftp://hub.test", "https://", "file:///etc"])
def test_what_is_no_url_is_told(url):
    with pytest.raises(ConfigError, match="URL"):
        Exchange([url])
    with pytest.raises(ConfigError, match="hub"):
        Exchange([])


def test_a_refusal_is_not_asked_of_the_next_replica(asking):
    seen = []

    def answer(request):
        seen.append(request.url.host)
        return httpx.Response(403, json={"code": "revoked", "message": "No."})

    exchange = asking(answer, urls=["https://a.test", "https://b.test"])
    with pytest.raises(HubRefused):
        exchange.policy("token", etag="", root=1, wait_s=0)
    assert seen == ["a.test"]


def test_the_replica_that_answered_is_asked_first_from_then_on(asking):
    seen = []

    def answer(request):
        seen.append(request.url.host)
        return httpx.Response(500 if request.url.host == "a.test" else 304)

    exchange = asking(answer, urls=["https://a.test", "https://b.test"])
    for _ in range(2):
        assert exchange.policy("token", etag='"1.1.1"', root=1, wait_s=0) is None
    assert seen == ["a.test", "b.test", "b.test"]
