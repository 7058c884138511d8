"""Leases through the real application: signed answers, and what is noted before one leaves."""

import asyncio
import json

import httpx
import pytest

from edge_sync.hub.budget import outside
from edge_sync.hub.budget.caps import set_cap
from edge_sync.money.lease import Lease
from edge_sync.server.app import App
from edge_sync.server.logs import Log
from edge_sync.trust.reply import verify_reply
from edge_sync.wire import (
    DEVICE_HEADER,
    REPLY_HEADER,
    SIGNATURE_HEADER,
    SYNC_PATH,
    SyncReply,
    Want,
)

from .conftest import POOL, held


class Served:
    """The application, begun and ended as a server does, in a loop of its own."""

    def __init__(self, hub):
        self.app = App(hub, Log(_Nowhere()))
        self.runner = asyncio.Runner()
        self.said = asyncio.Queue()
        self.came = asyncio.Queue()
        self.runner.run(self._begin())

    async def _begin(self):
        scope = {"type": "lifespan"}
        self.life = asyncio.ensure_future(self.app(scope, self.came.get, self.said.put))
        await self.came.put({"type": "lifespan.startup"})
        assert (await self.said.get())["type"] == "lifespan.startup.complete"

    async def _end(self):
        await self.came.put({"type": "lifespan.shutdown"})
        await self.life

    def close(self):
        self.runner.run(self._end())
        self.runner.close()

    def send(self, *requests):
        """Send signed requests at once; return the answers."""

        async def all_of_them():
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://hub") as client:
                sent = [client.post(SYNC_PATH, content=body, headers=headers)
                        for body, headers in map(_signed, requests)]  # fmt: skip
                return await asyncio.gather(*sent)

        return self.runner.run(all_of_them())


class _Nowhere:
    def write(self, _text):
        return 0

    def flush(self):
        pass


def _signed(asked):
    device, request = asked
    body = request.model_dump_json().encode()
    signature = device.key.sign_sync(body)
    return body, {DEVICE_HEADER: device.id, SIGNATURE_HEADER: signature}


def wanting(device, demand=20_000):
    return device, device.request(wants=[Want(pool=POOL, demand_microusd=demand)])


@pytest.fixture
def served(hub):
    set_cap(hub, "fleet", "month", 2_000_000, who="ann")
    served = Served(hub)
    yield served
    served.close()


def test_leases_come_with_a_signed_answer(hub, spender, served, key):
    device = spender()
    asked = wanting(device)
    (answer,) = served.send(asked)
    assert answer.status_code == 200
    reply = SyncReply.model_validate_json(answer.content)
    (lease,) = [Lease.parse(json.dumps(each)) for each in reply.leases]
    lease.verify(key.private.public_key())
    assert (lease.device_id, lease.amount_microusd) == (device.id, 20_000)
    root = hub.repository.root.signed
    signed = answer.headers[REPLY_HEADER]
    verify_reply(root, signed, request_id=asked[1].request_id, body=answer.content)
    assert outside.read(hub.keys).granted == 1
    (again,) = served.send(asked)
    assert SyncReply.model_validate_json(again.content).leases == reply.leases
    assert len(held(hub)) == 1


def test_many_at_once_are_each_answered_with_their_own(hub, spender, served):
    devices = [spender() for _ in range(5)]
    answers = served.send(*map(wanting, devices))
    for device, answer in zip(devices, answers, strict=True):
        (lease,) = SyncReply.model_validate_json(answer.content).leases
        assert lease["device_id"] == device.id
    assert outside.read(hub.keys).granted == 5


def test_no_lease_leaves_that_was_not_noted(hub, spender, served):
    """Its request is answered as one that failed, and gets the same lease when it comes again."""
    lock = hub.keys / "money.lock"
    asked = wanting(spender())
    lock.unlink()
    lock.mkdir()  # so that the file can be read, and not be written
    (answer,) = served.send(asked)
    assert answer.status_code == 503
    assert b"lease_id" not in answer.content
    lock.rmdir()
    (answer,) = served.send(asked)
    first = SyncReply.model_validate_json(answer.content).leases
    (answer,) = served.send(asked)
    assert SyncReply.model_validate_json(answer.content).leases == first
    assert [each["lease_id"] for each in first] == [each.right.lease_id for each in held(hub)]
