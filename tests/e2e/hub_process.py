"""A hub in processes of its own, and a device that speaks to it as real ones do."""

import atexit
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from sqlalchemy import insert

from edge_sync import keys
from edge_sync.hub.assigning import assign_group
from edge_sync.hub.enrolment import make_code
from edge_sync.hub.home import Hub
from edge_sync.store.schema import groups
from edge_sync.wire import (
    DEVICE_HEADER,
    ENROL_PATH,
    POLICY_PATH,
    SIGNATURE_HEADER,
    SYNC_PATH,
    EnrolReply,
    EnrolRequest,
    SyncReply,
    SyncRequest,
)

GROUP = "kiosks"
CLIENT = httpx.Client(timeout=30)
atexit.register(CLIENT.close)
_SERVE = (
    "import sys; from pathlib import Path; from edge_sync.hub.home import Hub;"
    "from edge_sync.server.serve import serve;"
    "hub = Hub.open(Path(sys.argv[1])); serve(hub, listen=sys.argv[2]); hub.close()"
)
_SYNC = Path(__file__).resolve().parents[2] / "sync"


@dataclass
class Served:
    """One server process."""

    process: subprocess.Popen
    url: str
    log: Path

    def lines(self):
        return [json.loads(line) for line in self.log.read_text("utf-8").splitlines()]

    def kill(self):
        self.process.kill()
        self.process.wait()


@contextmanager
def serving(home, *, listen="127.0.0.1:0", name="a"):
    """Serve a hub, from ready until the end of the block."""
    log = home / f"serve-{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(home), listen],
            stderr=file,
            env={**os.environ, "PYTHONPATH": str(_SYNC)},
        )
    try:
        yield Served(process, _ready(process, log), log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ready(process, log):
    while process.poll() is None:
        for line in log.read_text("utf-8").splitlines():
            if '"listening"' in line:
                url = f"http://127.0.0.1:{json.loads(line)['port']}"
                try:
                    if CLIENT.get(f"{url}/readyz").status_code == 200:
                        return url
                except httpx.TransportError:
                    pass
        time.sleep(0.03)
    raise AssertionError(log.read_text("utf-8"))


def make_hub(home, database):
    """Make a hub with one group and return a code for many devices."""
    with Hub.create(home, database) as hub:
        stopped = json.dumps({"models": [], "tools": [], "tasks": []})

        def work(connection):
            connection.execute(insert(groups).values(name=GROUP, serial=0, stopped=stopped))

        hub.change("test", "groups.add", about=GROUP, detail={}, work=work)
        return make_code(hub, group=GROUP, uses=1_000, expires_s=3_600, who="test").text


def assign(hub, group=GROUP):
    """Give a group a newer assignment and return its serial."""
    return hub.change(
        "test",
        "assign",
        about=group,
        detail={},
        work=lambda c: assign_group(hub, c, hub.signing(c), group=group, revision=0),
    )


@dataclass
class Device:
    """A device that tries the next URL when one does not answer, as the agent does."""

    urls: list[str]
    key: keys.DeviceKey = field(default_factory=keys.make_key)
    nonce: str = ""
    token: str = ""

    @property
    def id(self):
        return self.key.device_id

    def ask(self, method, path, **values):
        for attempt in range(40):
            url = self.urls[attempt % len(self.urls)]
            try:
                answer = CLIENT.request(method, url + path, **values)
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            if answer.status_code != 503:
                return answer
            time.sleep(0.1)
        raise AssertionError("no replica answered")

    def enrol(self, code):
        request = EnrolRequest(
            code=code,
            public_key=self.key.public_key,
            signature=self.key.sign_enrolment(code),
        )
        answer = self.ask("POST", ENROL_PATH, content=request.model_dump_json())
        if answer.status_code == 200:
            self.nonce = EnrolReply.model_validate_json(answer.content).nonce
        return answer

    def body(self, **values):
        given = {
            "device_id": self.id,
            "incarnation": 1,
            "request_id": secrets.token_hex(16),
            "nonce": self.nonce,
            "at": time.time(),
        }
        return SyncRequest(**{**given, **values}).model_dump_json().encode()

    def send(self, body, headers=None, *, signed=None):
        """Send a body as it is, signed unless another signature is given."""
        given = {
            DEVICE_HEADER: self.id,
            SIGNATURE_HEADER: self.key.sign_sync(body) if signed is None else signed,
            **(headers or {}),
        }
        return self.ask("POST", SYNC_PATH, content=body, headers=given)

    def sync(self, **values):
        reply = SyncReply.model_validate_json(self.send(self.body(**values)).content)
        self.nonce, self.token = reply.nonce, reply.token
        return reply

    def policy(self, *, etag="", wait=0, root=0, token=None):
        headers = {"Authorization": f"Bearer {token or self.token}"}
        if etag:
            headers["If-None-Match"] = etag
        return self.ask("GET", f"{POLICY_PATH}?wait={wait}&root={root}", headers=headers)
