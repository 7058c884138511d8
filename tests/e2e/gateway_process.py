"""A gateway in a process of its own, a provider that counts what it bills, and a device."""

import base64
import json
import os
import secrets
import signal
import socketserver
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sync import keys
from edge_sync.gateway.calls import call_payload
from edge_sync.money.lease import Lease

SECRET = "a secret of the hub and its gateway"
POOL = "field"
PRICE_IN, PRICE_OUT = 2, 8
TOKENS_IN, TOKENS_OUT = 7, 3
HUB_KEY = Ed25519PrivateKey.from_private_bytes(b"h" * 32)
_COMMAND = "import sys; from edge_sync.cli.main import main; main()"
_SYNC = Path(__file__).resolve().parents[2] / "sync"


class Provider(socketserver.ThreadingTCPServer):
    """Sells answers; the last message says how it behaves. Knows nothing of leases."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Sale)
        self.billed = []
        self.asked = []
        self.go = threading.Event()
        self._lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def bill(self, tokens_in=TOKENS_IN, tokens_out=TOKENS_OUT):
        with self._lock:
            self.billed.append(PRICE_IN * tokens_in + PRICE_OUT * tokens_out)

    def close(self):
        self.go.set()
        self.shutdown()
        self.server_close()


class _Sale(socketserver.StreamRequestHandler):
    def handle(self):
        while self.rfile.readline():
            self.headers = {}
            while (line := self.rfile.readline().strip()) and b":" in line:
                name, _, value = line.decode().partition(":")
                self.headers[name.lower()] = value.strip()
            body = self.rfile.read(int(self.headers["content-length"]))
            asked = json.loads(body)
            self.server.asked.append((self.headers, asked))
            behaviour = asked["messages"][-1]["content"] if "messages" in asked else "ok"
            if getattr(self, f"do_{behaviour.replace('-', '_')}")(asked) is False:
                return

    def say(self, body, *, status=200, kind="application/json", length=None, extra=""):
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        told = len(text) if length is None else length
        head = (
            f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {told}\r\n{extra}\r\n"
        )
        self.wfile.write(head.encode() + text)

    def answer(self, usage=None):
        told = {"prompt_tokens": TOKENS_IN, "completion_tokens": TOKENS_OUT}
        choice = {"index": 0, "message": {"role": "assistant", "content": "Yes."},
                  "finish_reason": "stop"}  # fmt: skip
        return {"id": "x", "object": "chat.completion", "created": 1, "model": "m",
                "choices": [choice], "usage": told if usage is None else usage}  # fmt: skip

    def do_ok(self, asked):
        self.server.bill()
        if asked.get("stream"):
            return self.stream(["Y", "es", "."])
        return self.say(self.answer())

    def stream(self, words, *, usage=True, end=True, wait=False):
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        self.wfile.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for at, word in enumerate(words):
            if wait and at:
                self.server.go.wait(20)
            self.event({"choices": [{"index": 0, "delta": {"content": word}}]})
        if usage:
            told = {"prompt_tokens": TOKENS_IN, "completion_tokens": TOKENS_OUT}
            self.event({"choices": [], "usage": told})
        if not end:
            return False
        self.chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")
        return True

    def event(self, value):
        told = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        self.chunk(b"data: " + json.dumps({**told, **value}).encode() + b"\n\n")

    def chunk(self, data):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def do_slow_stream(self, asked):
        self.server.bill()
        return self.stream(["one", "two"], wait=True)

    def do_mute_stream(self, asked):
        self.server.bill()
        return self.stream(["one"], usage=False)

    def do_cut_stream(self, asked):
        self.server.bill()
        return self.stream(["one"], usage=False, end=False)

    def do_hang(self, asked):
        self.server.bill()
        self.server.go.wait(20)
        return False

    def do_slow(self, asked):
        self.server.go.wait(20)
        return self.do_ok(asked)

    def do_cut(self, asked):
        self.server.bill()
        return False

    def do_twice(self, asked):
        self.server.bill()
        self.say(self.answer())
        self.say(self.answer({"prompt_tokens": 1, "completion_tokens": 0}))

    def do_short_body(self, asked):
        self.server.bill()
        self.say(self.answer(), length=5_000)
        return False

    def do_long_body(self, asked):
        self.server.bill()
        self.say(self.answer(), length=40)

    def do_html(self, asked):
        self.say(b"<html>Sign in</html>", kind="text/html")

    def do_html_refusal(self, asked):
        self.say(b"<html>No</html>", kind="text/html", status=403)

    def do_mute(self, asked):
        self.server.bill()
        whole = self.answer()
        del whole["usage"]
        self.say(whole)

    def do_negative(self, asked):
        self.server.bill()
        self.say(self.answer({"prompt_tokens": -5, "completion_tokens": 3}))

    def do_absurd(self, asked):
        self.server.bill(10**6, 10**6)
        self.say(self.answer({"prompt_tokens": 10**6, "completion_tokens": 10**6}))

    def do_busy(self, asked):
        self.say({"error": {"message": "slow down"}}, status=429, extra="Retry-After: 7\r\n")

    def do_refuse(self, asked):
        self.say({"error": {"message": "no such model"}}, status=404)

    def do_broken(self, asked):
        self.server.bill()
        self.say({"error": {"message": "oops"}}, status=500)


def settings(folder, *urls, **limits):
    """Write gateway.yaml and return its path."""
    upstreams = [
        {"name": f"u{at}", "base_url": url, "model": "m", "cooldown_s": 0.2,
         "input_microusd_per_mtok": PRICE_IN * 10**6, "output_microusd_per_mtok": PRICE_OUT * 10**6}
        for at, url in enumerate(urls)
    ]  # fmt: skip
    key = HUB_KEY.public_key().public_bytes_raw().hex()
    whole = {"pool": POOL, "hub": {"keys": {"k1": key}}, "upstreams": upstreams,
             "limits": {"max_tokens": 32, **limits}}  # fmt: skip
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump(whole), "utf-8")
    return path


@dataclass
class Gateway:
    """One gateway process, as the hub sees it."""

    process: subprocess.Popen
    url: str
    log: Path
    client: httpx.Client

    def admin(self, name, **values):
        headers = {"Authorization": f"Bearer {SECRET}"}
        url = f"{self.url}/v1/register/{name}"
        if values:
            return self.client.post(url, json=values, headers=headers)
        return self.client.get(url, headers=headers)

    def state(self):
        return self.admin("state").json()

    def rows(self):
        return self.admin("rows").json()["rows"]

    def lease(self, lease_id):
        (found,) = [one for one in self.state()["leases"] if one["lease_id"] == lease_id]
        return found

    def kill(self):
        self.process.kill()
        self.process.wait()


@contextmanager
def gateway(config, *, before=None, admitted=True):
    """Run ``edge-hub gateway``, from ready until the end of the block."""
    log = config.with_name(f"log-{secrets.token_hex(4)}")
    command = [sys.executable, "-c", _COMMAND, "gateway", "--config", str(config)]
    env = {**os.environ, "PYTHONPATH": str(_SYNC), "EDGE_GATEWAY_SECRET": SECRET}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--listen", "127.0.0.1:0"],
            stderr=file,
            env=env,
            preexec_fn=before,  # noqa: PLW1509
        )
    try:
        with httpx.Client(timeout=20, trust_env=False) as client:
            served = Gateway(process, _ready(process, log), log, client)
            if admitted:
                served.admin("epoch", epoch=0)
            yield served
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
                    if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                        return url
                except httpx.TransportError:
                    pass
        time.sleep(0.02)
    raise AssertionError(log.read_text("utf-8"))


class Signing(httpx.Auth):
    """Adds what a device sends with every request."""

    requires_request_body = True

    def __init__(self, device, lease, idempotency_key=None):
        self.device, self.lease, self.key = device, lease, idempotency_key

    def auth_flow(self, request):
        key = self.key or secrets.token_hex(16)
        request.headers.update(self.device.headers(request.content, self.lease, key))
        yield request


@dataclass
class Device:
    """A device with its key."""

    key: keys.DeviceKey = field(default_factory=keys.make_key)

    def lease(self, amount=100_000, **values):
        given = {"lease_id": secrets.token_hex(16), "scope": "fleet", "period": "total",
                 "device_id": self.key.device_id, "pool_id": POOL, "epoch": 1,
                 "amount_microusd": amount, "not_after": int(time.time()) + 3_600,
                 "policy_version": 1, "key_id": "k1"}  # fmt: skip
        return Lease(**{**given, **values}).signed(HUB_KEY)

    def headers(self, body, lease, key):
        payload = call_payload(body, lease_id=lease.lease_id, idempotency_key=key)
        return {
            "Edge-Device": self.key.device_id,
            "Edge-Key": self.key.public_key,
            "Edge-Lease": base64.b64encode(lease.text().encode()).decode(),
            "Idempotency-Key": key,
            "Edge-Signature": base64.b64encode(self.key.private.sign(payload)).decode(),
        }

    def ask(self, served, lease, text="ok", *, key=None, headers=None, client=None, **fields):
        body = json.dumps({"messages": [{"role": "user", "content": text}], **fields}).encode()
        sent = self.headers(body, lease, key or secrets.token_hex(16)) | (headers or {})
        client = client or served.client
        return client.post(f"{served.url}/v1/chat/completions", content=body, headers=sent)
