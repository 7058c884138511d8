"""The agent's thread and its pauses: at once after news, with jitter after failures."""

import random
import threading
import time

import httpx
import pytest

from edge.errors import HubDistrusted, HubUnreachable, PolicyError, StoreError
from edge_sync.agent import pauses
from edge_sync.agent.activation import Change
from edge_sync.agent.exchange import Exchange, HubBusy, HubRefused
from edge_sync.agent.loop import Agent

PATIENCE_S = 60


@pytest.fixture
def agent(opened, hub, clocks):
    """An agent whose hub holds long polls until it is told to answer, and whose time stands."""
    hub.released = threading.Event()
    running = []

    def start(device=None, **rest):
        device = device or opened()
        made = Agent(
            device,
            device.exchange,
            boot_s=lambda: clocks.boot_s,
            draw=lambda: 0.0,
            **{"code": hub.code, **rest},
        )
        made.start()
        running.append(made)
        return made

    yield start
    hub.released.set()
    for made in running:
        made.close()


def reports(hub, revision):
    return [request for request in hub.seen if request.have.revision == revision]


def until(what, *, seconds=PATIENCE_S):
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.01)
    return what()


def test_it_joins_syncs_follows_and_reports(agent, hub):
    made = agent()
    assert made.wait(lambda status: status.syncs >= 1, PATIENCE_S)
    revision = hub.publish("routing: {keep_above: 0.9}")
    assert until(lambda: reports(hub, revision))
    assert made.status.error is None


def test_a_refusal_is_reported_at_once(agent, opened, hub):
    device = opened()
    device.runs.bad[1] = PolicyError("The self-check failed.")
    made = agent(device)
    assert made.wait(lambda status: status.syncs >= 1, PATIENCE_S)
    hub.publish("routing: {keep_above: 0.9}")
    assert until(lambda: any(request.refused for request in hub.seen))


def test_a_wrong_code_ends_it(agent, hub):
    made = agent(code=hub.code.replace("0123456789", "9876543210"))
    assert made.wait(lambda status: status.ended, PATIENCE_S)
    assert made.status.error.code == "bad_code"
    assert len(hub.requests) == 1


def test_without_a_code_it_ends_and_says_so(agent):
    made = agent(code="")
    assert made.wait(lambda status: status.ended, PATIENCE_S)
    assert "not joined" in str(made.status.error)


def test_a_hub_that_is_down_is_asked_again(agent, hub):
    def down(request):
        raise httpx.ConnectError("refused")

    hub.faults["*"] = down
    made = agent()
    assert made.wait(lambda status: status.error is not None, PATIENCE_S)
    hub.faults.clear()
    assert made.wait(lambda status: status.syncs >= 1 and status.error is None, PATIENCE_S)


def test_an_expired_token_leads_to_a_sync(agent, hub):
    made = agent()
    assert made.wait(lambda status: status.syncs >= 1, PATIENCE_S)
    syncs = made.status.syncs
    real = hub._policy
    seen = threading.Event()

    def once(request):
        if not seen.is_set():
            seen.set()
            return httpx.Response(401, json={"code": "expired_token", "message": "Too old."})
        return real(request)

    hub.faults["/v1/policy"] = once
    assert made.wait(lambda status: status.syncs > syncs, PATIENCE_S)


def test_a_forgotten_device_joins_again(agent, hub):
    made = agent()
    assert made.wait(lambda status: status.syncs >= 1, PATIENCE_S)
    hub.devices.clear()
    hub.publish("routing: {keep_above: 0.9}")
    assert until(lambda: reports(hub, 1))
    assert len(hub.devices) == 1


def joins(hub):
    return [request.url.path for request in hub.requests].count("/v1/enrol")


def test_a_device_that_was_forgotten_while_its_hub_was_away_joins_again(agent, hub):
    made = agent()
    assert made.wait(lambda status: status.syncs >= 1, PATIENCE_S)
    tries = []

    def down(request):
        tries.append(request.url.path)
        raise httpx.ConnectError("refused")

    hub.faults["*"] = down
    hub.released.set()
    assert until(lambda: len(tries) > 4)
    # It comes back with an older database, to which no token is known either.
    hub.devices.clear()
    hub.publish("routing: {keep_above: 0.9}")
    stale = {"code": "expired_token", "message": "Too old."}
    hub.faults["/v1/policy"] = lambda _: httpx.Response(401, json=stale)
    del hub.faults["*"]
    assert until(lambda: reports(hub, 1))
    assert (len(hub.devices), joins(hub)) == (1, 2)


def test_a_hub_that_forgets_a_device_at_once_is_asked_to_take_it_one_time(agent, hub):
    made = agent()
    assert made.wait(lambda status: status.syncs >= 1, PATIENCE_S)
    tries = []

    def unknown(request):
        tries.append(request.url.path)
        return httpx.Response(401, json={"code": "unknown_device", "message": "Who is that?"})

    hub.faults |= {"/v1/sync": unknown, "/v1/policy": unknown}
    hub.released.set()
    assert until(lambda: len(tries) > 8)
    assert joins(hub) == 2
    hub.faults.clear()
    syncs = made.status.syncs
    assert made.wait(lambda status: status.syncs > syncs, PATIENCE_S)
    assert joins(hub) == 2


class Hanging(httpx.AsyncBaseTransport):
    """Never answers."""

    def __init__(self):
        self.asked = threading.Event()

    async def handle_async_request(self, request):
        import asyncio

        self.asked.set()
        await asyncio.sleep(PATIENCE_S)


def test_closing_ends_a_request_that_hangs():
    transport = Hanging()
    exchange = Exchange(["https://hub.test"], transport=transport)
    told = []

    def ask():
        try:
            exchange.policy("token", etag="", root=1, wait_s=55)
        except HubUnreachable as error:
            told.append(error)
        exchange.close()

    thread = threading.Thread(target=ask)
    thread.start()
    assert transport.asked.wait(PATIENCE_S)
    exchange.stop()
    thread.join(PATIENCE_S / 2)
    assert not thread.is_alive()
    assert "closing" in str(told[0])


def test_pauses_grow_with_full_jitter_and_are_bounded():
    draw = random.Random(3).random  # noqa: S311
    error = HubUnreachable("no answer")
    longest = [max(pauses.after(error, n, draw) for _ in range(400)) for n in range(1, 12)]
    assert longest == sorted(longest[:8]) + longest[8:]
    assert all(found <= pauses.LONGEST_S for found in longest)
    assert min(pauses.after(error, 5, draw) for _ in range(400)) < 1.0


def test_a_pause_that_the_hub_asked_for_is_kept():
    busy = HubBusy("busy", retry_after_s=40.0)
    assert pauses.after(busy, 1, lambda: 0.0) == 40.0
    assert pauses.after(busy, 9, lambda: 1.0) == pytest.approx(48.0)


@pytest.mark.parametrize(
    "error",
    [HubDistrusted("forged"), PolicyError("expired"), HubRefused("revoked", code="revoked")],
)
def test_what_fails_verification_is_not_asked_again_soon(error):
    assert pauses.after(error, 1, lambda: 1.0) >= 60.0
    assert pauses.after(error, 30, lambda: 1.0) == 3_600.0


@pytest.mark.parametrize("code", ["expired_token", "replayed"])
def test_what_a_sync_mends_is_asked_at_once_but_once(code):
    error = HubRefused("no", code=code)
    assert pauses.after(error, 1, lambda: 1.0) == 0.0
    assert pauses.after(error, 2, lambda: 1.0) > 0.0


def test_only_a_person_can_mend_a_code():
    assert pauses.is_final(HubRefused("no", code="bad_code"))
    assert not pauses.is_final(HubRefused("no", code="revoked"))
    assert not pauses.is_final(StoreError("full"))


def test_syncs_are_spread():
    assert pauses.until_sync(300.0, lambda: 0.0) == pytest.approx(240.0)
    assert pauses.until_sync(300.0, lambda: 1.0) == pytest.approx(360.0)
    assert Change.NONE.value == "none"
