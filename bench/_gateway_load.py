"""A trivial upstream, a fleet's signed calls, and the gateway as a process on one core."""

from __future__ import annotations

import asyncio
import base64
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
from typing import cast

import yaml
from _common import ROOT
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sync import keys
from edge_sync.gateway.calls import call_payload
from edge_sync.gateway.config import read_settings
from edge_sync.gateway.register import Register
from edge_sync.money.lease import Lease

PATH = "/v1/chat/completions"
SECRET = "a secret of the bench and its gateway"  # noqa: S105 - there is nothing behind it
_HUB = Ed25519PrivateKey.from_private_bytes(b"b" * 32)
_SERVE = """
import os, sys
from pathlib import Path
os.sched_setaffinity(0, {int(sys.argv[2])})
from edge_sync.gateway.config import read_settings
from edge_sync.gateway.serve import serve
from edge_sync.server.logs import Log
serve(read_settings(Path(sys.argv[1])), tell=Log().event, listen="127.0.0.1:0")
"""
_ANSWER = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Yes."},
             "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }
).encode()  # fmt: skip
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: "
_WHOLE = _HEAD + str(len(_ANSWER)).encode() + b"\r\n\r\n" + _ANSWER
_STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


class Trivial(asyncio.Protocol):
    """An upstream that answers at once; a stream has an event every ``GAP_S``."""

    GAP_S = 0.02
    EVENTS = 20

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or self._transport is None:
            return
        at = self._buffer.lower().find(b"content-length: ")
        length = int(self._buffer[at + 16 : self._buffer.find(b"\r\n", at)])
        if len(self._buffer) < end + 4 + length:
            return
        body = self._buffer[end + 4 : end + 4 + length]
        self._buffer = self._buffer[end + 4 + length :]
        if b'"stream": true' in body:
            self._transport.write(_STREAM)
            self._event(0)
        else:
            self._transport.write(_WHOLE)

    def _event(self, number: int) -> None:
        if self._transport is None:
            return
        if number == self.EVENTS:
            usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 20}}
            self._chunk(json.dumps(usage))
            self._chunk("[DONE]")
            self._transport.write(b"0\r\n\r\n")
            return
        delta = {"choices": [{"index": 0, "delta": {"content": f"{time.perf_counter():.6f}"}}]}
        self._chunk(json.dumps(delta))
        asyncio.get_running_loop().call_later(self.GAP_S, self._event, number + 1)

    def _chunk(self, text: str) -> None:
        data = f"data: {text}\n\n".encode()
        if self._transport is not None:
            self._transport.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


async def upstream() -> tuple[asyncio.Server, int]:
    """Serve the trivial upstream on this loop; return it and its port."""
    server = await asyncio.get_running_loop().create_server(Trivial, "127.0.0.1", 0)
    return server, int(server.sockets[0].getsockname()[1])


def configure(folder: Path, port: int) -> Path:
    """Write a gateway's settings before an upstream and return their path."""
    key = _HUB.public_key().public_bytes_raw().hex()
    one = {"name": "trivial", "base_url": f"http://127.0.0.1:{port}/v1", "model": "m",
           "input_microusd_per_mtok": 2_000_000, "output_microusd_per_mtok": 8_000_000}  # fmt: skip
    whole = {"pool": "bench", "hub": {"keys": {"k1": key}}, "upstreams": [one]}
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump(whole), "utf-8")
    return path


def calls(count: int, *, devices: int, stream: bool = False) -> list[bytes]:
    """Return signed calls of many devices as they go over the wire, each with its own key."""
    fleet = [keys.make_key() for _ in range(devices)]
    leases = [_lease(key) for key in fleet]
    fields: dict[str, object] = {"messages": [{"role": "user", "content": "Is it raining?"}]}
    body = json.dumps(fields | {"max_tokens": 64} | ({"stream": True} if stream else {})).encode()
    found = []
    for at in range(count):
        key, lease = fleet[at % devices], leases[at % devices]
        idempotency = secrets.token_hex(16)
        payload = call_payload(body, lease_id=lease.lease_id, idempotency_key=idempotency)
        signature = base64.b64encode(key.private.sign(payload)).decode()
        text = base64.b64encode(lease.text().encode()).decode()
        headers = (
            f"Edge-Device: {key.device_id}\r\nEdge-Key: {key.public_key}\r\nEdge-Lease: {text}\r\n"
            f"Idempotency-Key: {idempotency}\r\nEdge-Signature: {signature}\r\n"
        )
        found.append(request(body, headers))
    return found


def request(body: bytes, headers: str) -> bytes:
    """Return a call as it goes over the wire."""
    head = f"POST {PATH} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def _lease(key: keys.DeviceKey) -> Lease:
    unsigned = Lease(
        lease_id=secrets.token_hex(16), scope="fleet", period="total", device_id=key.device_id,
        pool_id="bench", epoch=1, amount_microusd=10**12, not_after=int(time.time()) + 86_400,
        policy_version=1, key_id="k1",
    )  # fmt: skip
    return unsigned.signed(_HUB)


@dataclass(frozen=True, slots=True)
class Serving:
    """A running gateway."""

    port: int
    pid: int

    @property
    def cpu_s(self) -> float:
        """Processor seconds that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(config: Path, *, core: int) -> Iterator[Serving]:
    """Run a gateway on one core until the end of the block."""
    settings = read_settings(config)
    register = Register.open(Path(settings.register_path))
    register.write(lambda book: book.fence(settings.hub.name, 1))
    register.close()
    env = {**os.environ, "PYTHONPATH": str(ROOT / "sync"), "EDGE_GATEWAY_SECRET": SECRET}
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(config), str(core)], stderr=subprocess.PIPE, env=env
    )
    try:
        if process.stderr is None:
            raise SystemExit("the gateway has no standard error")
        line = process.stderr.readline()
        yield Serving(int(json.loads(line)["port"]), process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()
