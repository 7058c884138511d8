"""A device of the kiosk pack and a real hub process: joined, changed, refused, killed, replayed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
from sqlalchemy import insert, select

import edge
from edge.errors import HubDistrusted
from edge_sync import keys
from edge_sync.agent.activation import Change
from edge_sync.agent.device import Senses
from edge_sync.agent.report import packed
from edge_sync.agent.start import Standalone, open_device, start
from edge_sync.hub import enrolment, fleet, policies
from edge_sync.hub.home import Hub
from edge_sync.store.schema import audit, codes, devices

PATIENCE_S = 90
SERVE = (
    "import sys; from pathlib import Path; from edge_sync.hub.home import Hub; "
    "from edge_sync.server.serve import serve; serve(Hub.open(Path(sys.argv[1])))"
)
AGENT = "import typer; from edge_sync.agent.command import agent; typer.run(agent)"
STRICT = "tasks: {spam: {routing: {keep_above: %s}}}"
BAD = "tasks: {action: {budget: {max_input_tokens: 1}}}"


class HubProcess:
    """A hub in a process of its own, and its folder, open here for what an admin does."""

    def __init__(self, home):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.home = home
        self.hub = Hub.create(home, listen=f"127.0.0.1:{self.port}")
        fleet.add_group(self.hub, "default", who="test")
        self.process = None

    def start(self):
        with (self.home / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE, str(self.home)], stdout=log, stderr=log
            )
        until(self.answers)

    def answers(self):
        assert self.process.poll() is None, (self.home / "serve.log").read_text()
        try:
            return httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE_S)

    def code(self):
        made = enrolment.make_code(self.hub, group="default", uses=5, expires_s=3_600.0, who="test")
        return made.text

    def publish(self, text, group="default"):
        checked = policies.check(self.hub, text.encode(), what="policy.yaml")
        made = policies.publish(self.hub, checked, message="A test", who="test", at_once=[group])
        return made.revision

    def device(self):
        """Return what the hub knows of its only device."""
        with self.hub.store.reading() as connection:
            return dict(connection.execute(select(devices)).mappings().one())

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(PATIENCE_S)
        self.hub.close()


def until(what):
    end = time.monotonic() + PATIENCE_S
    while not (found := what()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    made = HubProcess(tmp_path_factory.mktemp("hub") / "home")
    made.start()
    yield made
    made.close()


@pytest.fixture
def server(tmp_path):
    """A hub of this test alone."""
    made = HubProcess(tmp_path / "home")
    made.start()
    yield made
    made.close()


@pytest.fixture
def opened(tmp_path):
    """Open devices without a thread."""
    made = []

    def open_(url, *, state="state", senses=None):
        folder = tmp_path / state
        device, _ = open_device(
            Standalone("kiosk", folder), url, state=folder, pack="kiosk", env={}, senses=senses
        )
        made.append(device)
        return device

    yield open_
    for device in made:
        device.close()


def test_an_app_follows_its_hub_through_changes_refusals_and_a_crash(server, tmp_path):
    with edge.open("kiosk", state=tmp_path / "state", offline=True) as runtime:
        agent = start(runtime, server.url, code=server.code(), name="till 3", env={})
        try:
            assert agent.wait(lambda status: status.syncs >= 1, PATIENCE_S), agent.status
            first = server.publish(
                STRICT % 0.9
            )  # the next sync is minutes away: the poll brings it
            assert until(lambda: server.device()["revision"] == first), agent.status
            assert runtime.policy_revision == first
            runtime.run("spam", "running ten minutes late, save me a seat please")
            assert runtime.traces.latest(1)[0]["policy"] == first

            bad = server.publish(BAD)
            assert until(lambda: json.loads(server.device()["refused"]).get("revision") == bad)
            assert "action" in json.loads(server.device()["refused"])["reason"]
            assert runtime.policy_revision == first

            server.kill()
            mended = server.publish(STRICT % 0.8)
            server.start()
            assert until(lambda: server.device()["revision"] == mended), agent.status
            assert runtime.policy_revision == mended
            assert server.device()["refused"] == "{}"
            assert server.device()["status"] == "active"
        finally:
            agent.close()


def test_another_process_over_the_same_state_goes_by_what_the_agent_brought(server, tmp_path):
    state = tmp_path / "state"
    revision = server.publish(STRICT % 0.9)
    with edge.open("kiosk", state=state, offline=True) as runtime:
        assert runtime.policy_revision == 0
        told = once(server, state, "--code", server.code())
        if told["change"] == "none":  # the hub's process had not seen the new policy yet
            assert until(lambda: once(server, state)["change"] == "activated")
            told = once(server, state)
        assert told["policy"] == revision
        assert runtime.policy_revision == revision
    assert once(server, state)["change"] == "none"


def once(server, state, *more):
    run = subprocess.run(
        [
            *(sys.executable, "-c", AGENT, "--hub", server.url, "--state", str(state)),
            *("--once", "--json", *more),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
        env={name: value for name, value in os.environ.items() if name != "EDGE_OFFLINE"},
    )
    return json.loads(run.stdout)


def test_a_hub_with_another_root_is_distrusted(served, tmp_path, opened):
    other = Hub.create(tmp_path / "other")
    fleet.add_group(other, "default", who="test")
    meant = enrolment.make_code(other, group="default", uses=1, expires_s=60.0, who="test").text
    other.close()
    row = {
        "digest": enrolment.code_digest(meant),
        "group_name": "default",
        "uses_left": 1,
        "expires_at": time.time() + 60,
        "made_by": "somebody",
    }
    served.hub.store.write(
        lambda connection: connection.execute(insert(codes).values(row)).rowcount
    )
    device = opened(served.url)
    with pytest.raises(HubDistrusted, match="root"):
        device.enrol(meant)
    assert not device.memory().enrolled


def test_a_clock_ten_years_off_is_reported_and_follows_all_the_same(server, opened):
    revision = server.publish(STRICT % 0.9)
    ahead = 10 * 365 * 86_400.0
    device = opened(server.url, senses=Senses(own_s=lambda: time.time() + ahead))
    device.enrol(server.code())
    assert until(lambda: device.sync().change is Change.ACTIVATED)
    device.sync()
    assert server.device()["revision"] == revision
    assert server.device()["clock_skew_s"] > ahead - 3_600
    with server.hub.store.reading() as connection:
        assert "device.clock" in set(connection.execute(select(audit.c.what)).scalars())
    assert not device.summary()["tightened"]


def test_a_moved_device_follows_its_new_group_and_no_longer_the_old_one(server, opened):
    """The new group runs nothing at first."""
    fleet.add_group(server.hub, "shops", who="test")
    device = opened(server.url)
    device.enrol(server.code())
    first = server.publish(STRICT % 0.9)
    assert until(lambda: device.sync().change is Change.ACTIVATED)
    assert move(server.hub, device, "shops") == 0
    assert until(lambda: device.sync().change is Change.TRUST)
    assert device.summary()["group"] == "shops"
    server.publish(STRICT % 0.8)
    second = server.publish(STRICT % 0.7, "shops")
    assert until(lambda: device.sync().change is Change.ACTIVATED)
    assert device.summary()["policy"] == second > first
    assert move(server.hub, device, "default") > second  # older content, as a new revision
    assert until(lambda: device.sync().change is Change.ACTIVATED)
    assert device.summary()["policy"] > second
    assert device.summary()["group"] == "default"


def move(hub, device, group):
    found = fleet.find_device(hub, device.memory().device_id)
    return fleet.move(hub, found, group=group, who="test")


def test_a_replayed_sync_is_refused_and_the_device_works_on(server, opened, tmp_path):
    device = opened(server.url)
    device.enrol(server.code())
    key = keys.load_key(tmp_path / "state" / "device.key")
    recorded = []
    send = device._send
    device._send = lambda pending: recorded.append(pending.body) or send(pending)
    device.sync()
    device.sync()
    body, headers = packed(recorded[0])
    headers |= {"Edge-Device": key.device_id, "Edge-Signature": key.sign_sync(body)}
    answer = httpx.post(f"{server.url}/v1/sync", content=body, headers=headers)
    assert answer.status_code == 409
    assert answer.json()["code"] == "replayed"
    device.sync()
    assert server.device()["status"] == "active"


def test_offline_no_socket_is_opened_and_the_hub_is_left_out(tmp_path, monkeypatch):
    def no_socket(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", no_socket)
    hub = "http://hub.test"
    with edge.open("kiosk", state=tmp_path / "state", offline=True, hub=hub) as runtime:
        assert runtime.run("spam", "running ten minutes late, save me a seat please").value
        assert runtime.policy_revision == 0
