"""The hub as a process of its own on one core, and a fleet of devices in its database."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from _common import ROOT
from sqlalchemy import Connection

from edge_sync import keys
from edge_sync.hub.home import Hub
from edge_sync.hub.tokens_hmac import make_token
from edge_sync.store import bulk
from edge_sync.store.schema import devices, groups
from edge_sync.wire import (
    DEVICE_HEADER,
    SIGNATURE_HEADER,
    SYNC_PATH,
    Have,
    Health,
    LedgerRow,
    SyncRequest,
)

GROUP = "kiosks"
_SERVE = """
import os, sys
from pathlib import Path
os.sched_setaffinity(0, {int(sys.argv[2])})
from edge_sync.hub.home import Hub
from edge_sync.server.serve import serve
with Hub.open(Path(sys.argv[1])) as hub:
    serve(hub, listen="127.0.0.1:0")
"""


@dataclass(slots=True)
class Simulated:
    """A device that lives in the bench."""

    key: keys.DeviceKey
    nonce: str
    token: str

    @property
    def id(self) -> str:
        """Its id."""
        return self.key.device_id


def prepare(home: Path, *, count: int, database: str | None = None) -> list[Simulated]:
    """Make a hub with so many devices in one group."""
    with Hub.create(home, database) as hub:
        fleet = []
        for _ in range(count):
            key = keys.make_key()
            token = make_token(hub.token_key, key.device_id, now=time.time())
            fleet.append(Simulated(key, secrets.token_hex(16), token))

        def work(connection: Connection) -> None:
            stopped = json.dumps({"models": [], "tools": [], "tasks": []})
            columns = ("name", "serial", "stopped")
            bulk.put(connection, groups, rows=[(GROUP, 0, stopped)], columns=columns)
            _insert(connection, fleet)

        hub.change("bench", "bench.fill", about=GROUP, detail={}, work=work)
    return fleet


def _insert(connection: Connection, fleet: list[Simulated]) -> None:
    columns = ("id", "name", "group_name", "public_key", "status", "enrolled_at", "incarnation",
               "nonce", "runtime", "pack", "revision", "serial", "refused", "models",
               "waiting")  # fmt: skip
    rows = [
        (one.id, one.id, GROUP, one.key.public_key, "active", 0.0, 1, one.nonce, "0.1.0", "kiosk",
         0, 0, "{}", "{}", 0)
        for one in fleet
    ]  # fmt: skip
    bulk.put(connection, devices, rows=rows, columns=columns)


def sync_request(one: Simulated, *, rows: int, have: Have | None = None) -> bytes:
    """Return a signed sync of a device as it goes over the wire."""
    now = time.time()
    request = SyncRequest(
        device_id=one.id,
        incarnation=1,
        request_id=secrets.token_hex(16),
        nonce=one.nonce,
        at=now,
        runtime="0.1.0",
        pack="kiosk",
        have=have or Have(),
        health=[
            Health(
                revision=0,
                hour=int(now / 3_600),
                tasks=40,
                local=38,
                cloud=2,
                cost_microusd=800,
                latency=[0] * 10 + [20, 20],
            )
        ],
        rows=[
            LedgerRow(
                row_id=secrets.token_hex(16),
                task="support_intent",
                pool="default",
                state="settled",
                held_microusd=900,
                cost_microusd=400,
                at=now,
                revision=1,
            )
            for _ in range(rows)
        ],
    )
    body = request.model_dump_json(exclude_defaults=True).encode()
    headers = f"{DEVICE_HEADER}: {one.id}\r\n{SIGNATURE_HEADER}: {one.key.sign_sync(body)}\r\n"
    head = f"POST {SYNC_PATH} HTTP/1.1\r\nHost: hub\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


@dataclass(frozen=True, slots=True)
class Serving:
    """A running hub."""

    port: int
    pid: int

    @property
    def rss_bytes(self) -> int:
        """Its resident memory."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text("ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    @property
    def cpu_s(self) -> float:
        """The processor time it has used, in seconds."""
        parts = Path(f"/proc/{self.pid}/stat").read_text("ascii").rsplit(")", 1)[1].split()
        return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(home: Path, *, core: int) -> Iterator[Serving]:
    """Run the hub of a folder on one core, from ready to ended."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "sync")])
    log = home / "serve.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(home), str(core)],
            stderr=file,
            env={**os.environ, "PYTHONPATH": path},
        )
    try:
        yield Serving(_port(process, log), process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    for _ in range(600):
        time.sleep(0.05)
        for line in log.read_text("utf-8").splitlines():
            if '"listening"' in line:
                return int(json.loads(line)["port"])
        if process.poll() is not None:
            break
    raise SystemExit(f"the hub did not start: {log.read_text('utf-8')}")
