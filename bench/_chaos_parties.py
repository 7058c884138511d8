"""The processes of a fleet: replicas of the hub, a gateway, devices; each can be killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from _chaos_links import Link, Links
from _chaos_provider import PRICE_IN, PRICE_OUT
from _common import ROOT

POOL, GROUP = "field", "kiosks"
SECRET = "a secret of the hub and its gateway"  # noqa: S105 - of this bench
SYNC_EVERY_S = 2.0
MILLION = 10**6
_PATIENCE_S = 60.0
_PATH = os.pathsep.join([str(ROOT), str(ROOT / "sync")])
_GATEWAY = "import sys; from edge_sync.cli.main import main; main()"
_HUB = (
    "import sys, time; from pathlib import Path; from edge_sync.hub.home import Hub;"
    "from edge_sync.server.serve import serve; late = float(sys.argv[3]);"
    "hub = Hub.open(Path(sys.argv[1]), clock=lambda: time.time() - late);"
    "serve(hub, listen=sys.argv[2]); hub.close()"
)
PACK = """
name: field
version: 1
budget: {{cap_usd: 1000, period: total}}
task_budgets: {{max_output_tokens: 24}}
privacy: {{allow_cloud: raw}}
pools:
  field:
    base_url: {url}/v1
    model: m
    gateway: true
    timeout_s: 4
    breaker_cooldown_s: 1
    price: {{input_usd_per_mtok: {price_in}, output_usd_per_mtok: {price_out}}}
tasks:
  reply:
    kind: generate
    cloud_prompt: Confirm in one sentence.
    routing: {{pool: field}}
"""


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@dataclass
class Party:
    """A process that is started again after it was killed.

    Attributes:
        command: arguments after the interpreter.
        log: what it says on stderr.

    """

    name: str
    command: list[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it; does not wait."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": _PATH, **self.env},
            )

    def kill(self) -> None:
        """Kill it at once; ``start`` brings it back."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def end(self) -> None:
        """End it for good."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@dataclass
class Server(Party):
    """A party that answers ``/readyz`` on its port."""

    port: int = 0

    def ready(self) -> None:
        """Wait until it answers; start it again where it ended, as without its database."""
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until:
            if self.process is not None and self.process.poll() is not None:
                self.start()
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise SystemExit(f"{self.name} does not answer: {self.log.read_text('utf-8')[-2000:]}")


def hub_server(home: Path, name: str, *, late_s: float = 0.0) -> Server:
    """Return a replica of the hub in a folder, whose clock may be late."""
    port = free_port()
    command = ["-c", _HUB, str(home), f"127.0.0.1:{port}", str(late_s)]
    return Server(name, command, home / f"{name}.log", port=port)


def gateway_server(folder: Path, *, upstream: str, keys: Mapping[str, str]) -> Server:
    """Return the gateway, its register in a folder."""
    port = free_port()
    settings = {
        "pool": POOL,
        "hub": {"keys": dict(keys)},
        "upstreams": [
            {
                "name": "provider",
                "base_url": upstream,
                "model": "m",
                "failures": 20,
                "cooldown_s": 0.5,
                "input_microusd_per_mtok": PRICE_IN * MILLION,
                "output_microusd_per_mtok": PRICE_OUT * MILLION,
            }
        ],
        "limits": {"max_tokens": 64, "timeout_s": 5},
    }
    folder.mkdir()
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump(settings), "utf-8")
    command = ["-c", _GATEWAY, "gateway", "--config", str(path), "--listen", f"127.0.0.1:{port}"]
    env = {"EDGE_GATEWAY_SECRET": SECRET}
    return Server("gateway", command, folder / "gateway.log", env, port=port)


class Device(Party):
    """A device process with lines of its own to every server."""

    def __init__(self, folder: Path, links: Links, *, servers: list[Server], code: str,
                 threads: int) -> None:  # fmt: skip
        folder.mkdir()
        self.lines: list[Link] = [links.make(server.port) for server in servers]
        *hubs, gateway = self.lines
        pack = folder / "pack.yaml"
        pack.write_text(
            PACK.format(
                url=f"http://127.0.0.1:{gateway.port}", price_in=PRICE_IN, price_out=PRICE_OUT
            ),
            "utf-8",
        )
        self.state = folder / "state"
        urls = ",".join(f"http://127.0.0.1:{link.port}" for link in hubs)
        script = str(Path(__file__).with_name("_chaos_device.py"))
        command = [script, str(pack), str(self.state), urls, str(threads)]
        super().__init__(
            folder.name, command, folder / "device.log", {"EDGE_HUB_CODE": code, "EDGE_OFFLINE": ""}
        )
        self._lock = threading.Lock()

    def say(self, command: str) -> dict[str, Any]:
        """Send a command and return the answer.

        Raises:
            OSError: it is dead.

        """
        with self._lock:
            if self.process is None or not self.process.stdin or not self.process.stdout:
                raise OSError(f"{self.name} was not started")
            self.process.stdin.write(f"{command}\n")
            self.process.stdin.flush()
            while line := self.process.stdout.readline():
                told: dict[str, Any] = json.loads(line)
                if "ready" not in told:
                    return told
            raise OSError(f"{self.name} has ended: {self.log.read_text('utf-8')[-1000:]}")
