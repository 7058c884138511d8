"""A device comes back after three policy versions: round trips, bytes on the wire, verification.

The hub is a real process with SQLite; every byte between it and the device goes through a relay
that counts. The device checks and activates on the kiosk pack as `edge agent` does.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
from _common import Row, at_most, main, median_s

from edge.store.policies import Policies
from edge_sync.agent.device import Device
from edge_sync.agent.start import Standalone, open_device
from edge_sync.hub import enrolment, fleet, policies
from edge_sync.hub.home import Hub
from edge_sync.trust.trusted import Trusted, TrustState
from edge_sync.wire import SYNC_PATH, Bundle, SyncReply

MOST_TRIPS, MOST_BYTES, MOST_MS = 2, 64_000, 10.0
PATIENCE_S = 60.0
SERVE = (
    "import sys; from pathlib import Path; from edge_sync.hub.home import Hub; "
    "from edge_sync.server.serve import serve; serve(Hub.open(Path(sys.argv[1])))"
)
POLICY = """
TASK_BUDGETS: {max_model_calls: 2, max_input_tokens: 440, max_output_tokens: 64}
CONTEXT: {account_tier: text, sentiment: text}
PROMPTS:
  action: {version: %d, template: "<utt>{text_spaced}<again>{text_spaced}<answer>"}
TASKS:
  support_intent:
    routing:
      keep_above: %s
      escalate_if:
        - condition: "confidence < 0.72"
        - condition: "account_tier == 'enterprise' and sentiment == 'high_risk'"
  spam: {routing: {keep_above: 0.8}, samples: [%s]}
"""
"""About 10 kB each, so that the bytes are those of a policy that says something."""


class Relay:
    """Passes connections on to the hub and counts their bytes and requests."""

    def __init__(self, port: int) -> None:
        self._to = ("127.0.0.1", port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.sent, self.received, self.requests = 0, 0, 0
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self) -> None:
        """Count from 0."""
        self.sent, self.received, self.requests = 0, 0, 0

    def close(self) -> None:
        """Take no more connections."""
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                device, _ = self._listening.accept()
                hub = socket.create_connection(self._to)
                threading.Thread(target=self._up, args=(device, hub), daemon=True).start()
                threading.Thread(target=self._down, args=(hub, device), daemon=True).start()

    def _up(self, device: socket.socket, hub: socket.socket) -> None:
        with device, suppress(OSError):
            while data := device.recv(65_536):
                self.sent += len(data)
                self.requests += data.count(b" HTTP/1.1\r\n")
                hub.sendall(data)
            hub.shutdown(socket.SHUT_WR)

    def _down(self, hub: socket.socket, device: socket.socket) -> None:
        with hub, suppress(OSError):
            while data := hub.recv(65_536):
                self.received += len(data)
                device.sendall(data)


@contextmanager
def serving(home: Path) -> Iterator[tuple[Hub, Relay]]:
    """Yield a hub that a process serves, and the relay in front of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Hub.create(home, listen=f"127.0.0.1:{port}") as hub:
        fleet.add_group(hub, "default", who="bench")
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(home)], stderr=subprocess.DEVNULL
        )
        relay = Relay(port)
        try:
            wait_for(f"http://127.0.0.1:{port}/readyz")
            yield hub, relay
        finally:
            relay.close()
            process.terminate()
            process.wait(PATIENCE_S)


def wait_for(url: str) -> None:
    """Wait until a hub answers."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with suppress(httpx.HTTPError):
            if httpx.get(url).is_success:
                return
        time.sleep(0.1)
    raise SystemExit(f"{url} did not answer")


def publish(hub: Hub, number: int) -> int:
    """Publish one version and return its size as a document."""
    samples = ", ".join(f"sample number {each} of a message" for each in range(280))
    text = POLICY % (number, 0.7 + number / 100, samples)
    checked = policies.check(hub, text.encode(), what="policy.yaml")
    made = policies.publish(
        hub, checked, message=f"Version {number}", who="bench", at_once=["default"]
    )
    return len(made.document)


def settle(device: Device, revision: int) -> int:
    """Sync until the hub knows that a revision is in force; return how often."""
    for syncs in range(1, 50):
        more = device.sync().more
        if not more and device.summary()["policy"] == revision:
            return syncs
        time.sleep(0 if more else 0.1)
    raise SystemExit(f"policy {revision} did not come: {device.summary()}")


class Recorder(httpx.AsyncHTTPTransport):
    """The network, and the last bundle that came over it."""

    def __init__(self) -> None:
        super().__init__()
        self.bundle: Bundle | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Pass a request on and keep what it brings."""
        response = await super().handle_async_request(request)
        body = await response.aread()
        if request.url.path == SYNC_PATH and response.is_success:
            self.bundle = SyncReply.model_validate_json(body).bundle or self.bundle
        return response


def verification(bundle: Bundle, before: TrustState, device: Device, rounds: int) -> Row:
    """Time loading what the device trusts and accepting the bundle, hub time included."""
    memory, now = device.memory(), device.now()

    def verify() -> None:
        Trusted.load(before).accept(bundle, device_id=memory.device_id, group=memory.group, now=now)

    took_ms = median_s(verify, rounds=rounds, warm=5) * 1e3
    return at_most("verification, stored trust loaded and bundle accepted", took_ms, MOST_MS, "ms")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        hub, relay = stack.enter_context(serving(folder / "hub"))
        state, recorder = folder / "state", Recorder()
        device, _ = open_device(
            Standalone("kiosk", state),
            relay.url,
            state=state,
            pack="kiosk",
            env={},
            transport=recorder,
        )
        stack.callback(device.close)
        code = enrolment.make_code(hub, group="default", uses=1, expires_s=600.0, who="bench")
        device.enrol(code.text)
        publish(hub, 1)
        settle(device, 1)
        with Policies.open(state) as kept:
            before = TrustState.from_dict(kept.trust())
        size = [publish(hub, number) for number in (2, 3, 4)][-1]
        time.sleep(2.0)  # the server looks for news several times a second
        relay.reset()
        began = time.perf_counter()
        settle(device, 4)
        took_s = time.perf_counter() - began
        yield at_most("round trips until the hub knows", relay.requests, MOST_TRIPS)
        yield at_most("bytes on the wire", relay.sent + relay.received, MOST_BYTES, "B")
        if recorder.bundle is None:
            raise SystemExit("no bundle came")
        yield verification(recorder.bundle, before, device, 50 if arguments.quick else 500)
        yield Row("bytes sent", relay.sent, "B")
        yield Row("bytes received", relay.received, "B")
        yield Row("bytes of one policy document", size, "B")
        yield Row("until the hub knows, self-check of the pack included", round(took_s, 3), "s")


if __name__ == "__main__":
    main("return", measure)
