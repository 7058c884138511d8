import json
import secrets
from dataclasses import dataclass, field

import pytest
from sqlalchemy import insert, select

from edge_sync import keys
from edge_sync.hub.devices import check_enrolment, enrolling
from edge_sync.hub.enrolment import make_code
from edge_sync.hub.home import Hub
from edge_sync.hub.syncing import Arrival, take
from edge_sync.store.schema import audit, groups
from edge_sync.wire import EnrolRequest, SyncRequest

NOW = 1_795_000_000.0
NOTHING = json.dumps({"models": [], "tools": [], "tasks": []})


@dataclass
class Device:
    """A device of a test: remembers its nonce, as a device does."""

    hub: Hub
    key: keys.DeviceKey = field(default_factory=keys.make_key)
    nonce: str = ""

    @property
    def id(self):
        return self.key.device_id

    def enrol(self, code, name="kiosk 7"):
        request = EnrolRequest(
            code=code,
            public_key=self.key.public_key,
            name=name,
            signature=self.key.sign_enrolment(code),
        )
        work = enrolling(self.hub, request, device_id=check_enrolment(request))
        reply = self.hub.store.write(work)
        self.nonce = reply.nonce
        return reply

    def request(self, **values):
        given = {
            "device_id": self.id,
            "incarnation": 1,
            "request_id": secrets.token_hex(16),
            "nonce": self.nonce,
            "at": self.hub.clock(),
        }
        return SyncRequest(**{**given, **values})

    def sync(self, **values):
        taken = send(self.hub, self.request(**values))
        self.nonce = getattr(taken, "nonce", self.nonce)
        return taken


def send(hub, *requests):
    """Take requests in one transaction; return the one result, or all."""
    arrivals = [Arrival(request, hub.clock()) for request in requests]
    results = hub.store.write(lambda connection: take(connection, arrivals))
    return results[0] if len(results) == 1 else results


def entries(hub, what):
    with hub.store.reading() as connection:
        return connection.execute(select(audit).where(audit.c.what == what)).mappings().all()


class Clock:
    def __init__(self):
        self.at = NOW

    def __call__(self):
        return self.at


@pytest.fixture
def hub(database, memory_path):
    with Hub.create(memory_path / "hub", database, clock=Clock()) as hub:

        def work(connection):
            for name in ("kiosks", "lab"):
                connection.execute(insert(groups).values(name=name, serial=0, stopped=NOTHING))

        hub.change("test", "groups.add", about="kiosks", detail={}, work=work)
        yield hub


@pytest.fixture
def code(hub):
    return make_code(hub, group="kiosks", uses=5, expires_s=3_600, who="test").text


@pytest.fixture
def device(hub, code):
    device = Device(hub)
    device.enrol(code)
    return device
