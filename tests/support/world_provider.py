"""A provider that answers and bills. It knows prices and requests, nothing of leases or caps.

What it bills it counts by itself: what the system spent is what stands here.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from world_net import Gone

from edge_sync.gateway.client import Cut, Unsent

IN_MICROUSD_PER_MTOK, OUT_MICROUSD_PER_MTOK = 100_000, 1_000_000_000
"""A tenth of a micro-dollar for a token that comes, a tenth of a cent for one that goes."""
_KEY = re.compile(r"Idempotency-Key: (\S+)", re.IGNORECASE)


class Way(Enum):
    """How the provider, or the gateway before it, fares in one call."""

    FINE = "it answers"
    NO_USAGE = "its answer tells no usage"
    NEGATIVE = "its usage is negative"
    OVER = "its usage is above the maximum"
    HTML = "it answers with a page"
    CUT = "it cuts the answer"
    HANG = "it bills and never answers"
    DEAF = "it never answers and bills nothing"
    REFUSED = "it refuses the request"
    BUSY = "it asks for a pause"
    NOBODY = "it cannot be reached"
    GATEWAY_DIES_BEFORE = "the gateway dies before it asks"
    GATEWAY_DIES_AFTER = "the gateway dies with the answer in its hands"


@dataclass(frozen=True)
class Bill:
    """What one request was billed."""

    key: str
    microusd: int


class Provider:
    """One for all pools.

    Attributes:
        way: how the next call fares.
        share: which part of what it may use the next call uses, 0 to 1.
        bills: in order.
        die: ends the gateway that asks.

    """

    def __init__(self) -> None:
        self.way, self.share = Way.FINE, 0.5
        self.bills: list[Bill] = []

    @property
    def billed_microusd(self) -> int:
        """All of it."""
        return sum(bill.microusd for bill in self.bills)

    def billed(self, key: str) -> int:
        """Return what was billed for a key."""
        return sum(bill.microusd for bill in self.bills if bill.key == key)

    async def serve(self, body: bytes, headers: str, die: Any) -> Answer:
        """Answer one request."""
        way, asked = self.way, json.loads(body)
        if way is Way.NOBODY:
            raise Unsent
        if way is Way.GATEWAY_DIES_BEFORE:
            die()
            raise Gone
        if way is Way.BUSY:
            return Answer(429, b"{}", {"retry-after": "1"})
        if way is Way.REFUSED:
            return Answer(400, b'{"error": "no"}', {})
        if way is Way.DEAF:
            await asyncio.sleep(1e9)
        tokens_in = len(body) // 4
        tokens_out = max(1, int(self.share * asked["max_tokens"]))
        cost = tokens_in * IN_MICROUSD_PER_MTOK + tokens_out * OUT_MICROUSD_PER_MTOK
        self.bills.append(Bill(_KEY.search(headers)[1], -(-cost // 1_000_000)))
        if way is Way.HANG:
            await asyncio.sleep(1e9)
        if way is Way.GATEWAY_DIES_AFTER:
            die()
            raise Gone
        usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out}
        return _answer(way, usage)


def _answer(way: Way, usage: dict[str, int]) -> Answer:
    if way is Way.HTML:
        return Answer(200, b"<html>", {"content-type": "text/html"})
    told: dict[str, Any] = {
        "model": "m",
        "choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}],
    }
    if way is Way.OVER:
        usage = {**usage, "completion_tokens": 1_000_000}
    if way is Way.NEGATIVE:
        usage = {**usage, "completion_tokens": -5}
    if way is not Way.NO_USAGE:
        told["usage"] = usage
    return Answer(200, json.dumps(told).encode(), {}, cut=way is Way.CUT)


class Answer:
    """As the gateway reads it from its client; see ``gateway.client.Response``."""

    def __init__(
        self, status: int, body: bytes, headers: dict[str, str], *, cut: bool = False
    ) -> None:
        self.status, self.headers = status, {"content-type": "application/json", **headers}
        self._body, self._cut = body, cut

    async def whole(self, _limit: int) -> bytes:
        if self._cut:
            raise Cut("the connection ended")
        return self._body

    def close(self) -> None:
        """Nothing is open."""
