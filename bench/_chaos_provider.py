"""A provider that sells answers and keeps its own bill, by the reference of each request.

Knows nothing of leases, gateways or devices. Sometimes it bills and cuts the line, hangs, fails
without billing, asks for a pause or lies about what was used.
"""

from __future__ import annotations

import json
import random
import socketserver
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

PRICE_IN, PRICE_OUT = 2, 8
"""Micro-dollars per token."""
_HANG_S = 6.0


@dataclass
class Bill:
    """What was sold; told of each sale under a lock.

    Attributes:
        by_reference: micro-dollars by the ``Idempotency-Key`` of the request.
        twice: references that were sold more than once.
        over: the most by which the total was above the cap at a sale.

    """

    cap: Callable[[], int]
    total: int = 0
    sales: int = 0
    over: int = 0
    by_reference: dict[str, int] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, reference: str, cost: int) -> None:
        """Count a sale."""
        with self.lock:
            if reference in self.by_reference:
                self.twice.append(reference)
            self.by_reference[reference] = self.by_reference.get(reference, 0) + cost
            self.total += cost
            self.sales += 1
            self.over = max(self.over, self.total - self.cap())


class Provider(socketserver.ThreadingTCPServer):
    """The provider's server, on a free port.

    Args:
        cap: the fleet's cap now, to compare the bill with.
        faults: share of the requests that go wrong.
        seed: of what goes wrong.

    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, cap: Callable[[], int], *, faults: float, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Sale)
        self.bill = Bill(cap)
        self.faults = faults
        self._rng = random.Random(seed)  # noqa: S311 - no secret
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def mood(self) -> str:
        """Draw how the next request is served."""
        with self.bill.lock:
            if self._rng.random() >= self.faults:
                return "sell"
            return self._rng.choice(["cut", "hang", "fail", "busy", "lie", "mute", "html"])

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of lines that the gateway cut; it is killed all the time."""

    def close(self) -> None:
        """End it."""
        self.shutdown()
        self.server_close()


class _Sale(socketserver.StreamRequestHandler):
    server: Provider

    def handle(self) -> None:
        while line := self.rfile.readline():
            headers: dict[str, str] = {}
            while (line := self.rfile.readline().strip()) and b":" in line:
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            body = json.loads(self.rfile.read(int(headers["content-length"])))
            if not self._serve(headers["idempotency-key"], body):
                return

    def _serve(self, reference: str, body: dict[str, object]) -> bool:
        """Answer; return whether the line goes on."""
        mood = self.server.mood()
        if mood == "busy":
            return self._say({"error": {"message": "slow down"}}, 429, "Retry-After: 1\r\n")
        if mood == "fail":
            self._say({"error": {"message": "out of order"}}, 500)
            return False
        tokens_in = len(json.dumps(body["messages"])) // 8
        tokens_out = 4 + len(reference.encode()) % 5
        self.server.bill.add(reference, PRICE_IN * tokens_in + PRICE_OUT * tokens_out)
        if mood == "hang":
            time.sleep(_HANG_S)
        if mood in {"cut", "hang"}:
            return False
        if mood == "html":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>")
            return False
        usage: dict[str, int] | None = {
            "prompt_tokens": tokens_in,
            "completion_tokens": tokens_out,
        }
        if mood == "lie":
            usage = {"prompt_tokens": 10**9, "completion_tokens": -1}
        return self._say(_answer(None if mood == "mute" else usage), 200)

    def _say(self, body: dict[str, object], status: int, extra: str = "") -> bool:
        text = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{extra}"
        self.wfile.write(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
        return True


def _answer(usage: dict[str, int] | None) -> dict[str, object]:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "Yes, that is done."},
        "finish_reason": "stop",
    }
    answer: dict[str, object] = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
    }
    return answer if usage is None else {**answer, "usage": usage}
