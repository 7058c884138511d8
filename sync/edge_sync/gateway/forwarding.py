"""One call through the gateway: hold, forward, settle.

Guarantees:

- nothing is sent before the hold is on disk; where it cannot be, nothing is sent at all;
- a hold is given back only where no byte of the request left; an upstream that refuses (429, a
  refusal in JSON) settles it at nothing; whatever else leaves doubt keeps it at its maximum;
- the end of an answer is sent after its cost is on disk, the parts of a stream before, at once; a
  disk that takes nothing keeps no answer back, and the hold at its maximum until it takes the cost;
- the device has an answer by its deadline, also where that answer is a refusal.

An answer is read to its end for its usage even if the device has gone.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from edge.cloud.refusals import retry_after_s
from edge.errors import StoreError
from edge_sync.gateway import messages
from edge_sync.gateway.book import Book
from edge_sync.gateway.bounds import Bounded, bound
from edge_sync.gateway.calls import DEADLINE_HEADER, IDEMPOTENCY_HEADER, Call, Doorkeeper
from edge_sync.gateway.client import Cut, Response, Unsent
from edge_sync.gateway.config import Settings
from edge_sync.gateway.messages import Receive, Scope, Send
from edge_sync.gateway.metrics import Metrics
from edge_sync.gateway.records import Answer, Ask, Flag
from edge_sync.gateway.refusals import Refused
from edge_sync.gateway.register import Turns
from edge_sync.gateway.upstreams import Pool, Upstream
from edge_sync.gateway.usage import Events, NoEvents, Usage, read_object, read_usage

EVENTS = "text/event-stream"
FLAG_HEADER, AGAIN_HEADER = b"edge-flag", b"edge-again"
_OK, _TOO_MANY, _UNAVAILABLE = 200, 429, 503
_REFUSALS = frozenset({400, 401, 403, 404, 405, 413, 415, 422})
_REFUSAL_BYTES = 65_536
_PAUSE_S = 1.0
_PAUSES_S = (0.5, 2.0, 10.0, 30.0, 60.0)
_LAST_WORD_S = 5.0


class Tell(Protocol):
    """Writes one line of the log."""

    def __call__(self, event: str, *, level: str = "info", **fields: str | float | None) -> None:
        """Write it."""


@dataclass
class Forwarder:
    """Serves calls.

    Attributes:
        settings: of the gateway.
        turns: to the register.
        pool: the upstreams.
        doorkeeper: checks who calls.
        clock: seconds since the epoch.

    """

    settings: Settings
    turns: Turns
    pool: Pool
    doorkeeper: Doorkeeper
    metrics: Metrics
    tell: Tell
    clock: Callable[[], float] = time.time
    _later: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, path: str, scope: Scope, receive: Receive, send: Send) -> int:
        """Serve a request behind ``/v1`` and return its status.

        Raises:
            Refused: it is not forwarded, or its answer cannot be had.
            StoreError: the hold is not on disk; nothing was sent.

        """
        limits = self.settings.limits
        begun = asyncio.get_running_loop().time()
        body = await messages.read_body(scope, receive, limit=limits.body_bytes)
        call = self.doorkeeper.admit(path, scope["headers"], body)
        request = bound(path, body, limit=limits.max_tokens)
        within_s = limits.timeout_s
        if call.within_s is not None:
            within_s = min(within_s, call.within_s)
        if within_s <= 0:
            raise Refused("upstream_late", "No time is left for an answer.", hint="Ask anew.")
        ask = Ask(
            lease=call.lease,
            hub=self.settings.hub.name,
            hold_id=call.hold_id,
            request_hash=call.request_hash,
            most_microusd=self.pool.most_microusd(request.tokens_in, request.tokens_out),
            now=self.clock(),
        )
        before = await self.turns.write(lambda book: book.hold(ask))
        if before is not None:
            told = str(before.cost_microusd).encode()
            headers = [(AGAIN_HEADER, b"1"), (messages.COST_HEADER, told)]
            return await messages.answer(
                send, before.status, before.body, kind=before.kind, headers=headers
            )
        return await _Exchange(self, call, request, path, begun + within_s, send).run()

    def durably(self, work: Callable[[Book], Any], about: str) -> None:
        """Try a write again later that a full disk refused; until then its hold stays."""
        task = asyncio.create_task(self._again(work, about))
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def _again(self, work: Callable[[Book], Any], about: str) -> None:
        for pause_s in _PAUSES_S:
            await asyncio.sleep(pause_s)
            try:
                await self.turns.write(work)
            except StoreError:
                continue
            except Refused as refused:
                self.tell("settle.refused", level="error", hold=about, reason=str(refused))
            return
        self.tell("settle.given_up", level="error", hold=about, reason="the register takes nothing")


@dataclass
class _Exchange:
    """A call whose hold is on disk."""

    gateway: Forwarder
    call: Call
    request: Bounded
    path: str
    deadline: float
    send: Send
    closed: bool = False
    begun: bool = False
    asked_at: float = 0.0

    async def run(self) -> int:
        """Forward it; the hold is settled, released or kept whatever happens."""
        try:
            async with asyncio.timeout_at(self.deadline):
                return await self._attempts()
        except TimeoutError:
            refused = _failure("upstream_late", "did not answer in time")
        except (Cut, NoEvents) as error:
            refused = _failure("upstream_failed", f"failed: {error or 'no stream of events'}")
        finally:
            if not self.closed:
                await self._keep()
        if not self.begun:
            raise refused
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORD_S):
                await messages.more(self.send, b"data: " + refused.body() + b"\n\n")
                await messages.end(self.send)
        return refused.status

    async def _attempts(self) -> int:
        pool = self.gateway.pool
        tried: list[str] = []
        sent = False
        upstream = pool.first()
        while upstream is not None:
            try:
                response = await self._post(upstream)
            except Unsent:
                pass
            else:
                pause_s = self._pause_s(response)
                if pause_s is None:
                    return await self._answer(upstream, response)
                response.close()
                pool.paused(upstream, pause_s)
                sent = True
            tried.append(upstream.name)
            upstream = pool.again(tried)
        await self._nobody(sent=sent)
        code, what = ("too_many", "ask for a pause") if sent else ("unavailable", "do not answer")
        hint = "Ask again later, with the same key or another."
        raise Refused(code, f"The pool's servers {what}.", hint=hint, retry_after_s=pool.wait_s())

    async def _post(self, upstream: Upstream) -> Response:
        fields = {**self.request.fields, "model": upstream.settings.model}
        self.asked_at = asyncio.get_running_loop().time()
        left_s = self.deadline - self.asked_at
        headers = (
            f"{upstream.key_header}{DEADLINE_HEADER}: {left_s:.3f}\r\n"
            f"{IDEMPOTENCY_HEADER}: {self.call.hold_id}\r\n"  # so that a bill can be told to a hold
        )
        try:
            body = json.dumps(fields).encode()
            return await upstream.client.post(self.path, body, headers=headers)
        except BaseException:
            self.gateway.pool.failed(upstream)
            raise

    def _pause_s(self, response: Response) -> float | None:
        """Return how long the upstream wants to be left alone; it has processed nothing then."""
        told = retry_after_s(response.headers, now=self.gateway.clock())
        if response.status == _TOO_MANY:
            return _PAUSE_S if told is None else told
        return told if response.status == _UNAVAILABLE else None

    async def _answer(self, upstream: Upstream, response: Response) -> int:
        head_s = asyncio.get_running_loop().time() - self.asked_at
        good = False
        try:
            kind = response.headers.get("content-type", "")
            if response.status in _REFUSALS:
                status = await self._refused(response)
            elif response.status != _OK:
                raise Cut(f"it answered {response.status}")
            elif self.request.stream and kind.startswith(EVENTS):
                status = await self._stream(upstream, response)
            else:
                status = await self._whole(upstream, response)
            good = True
        finally:
            response.close()
            if good:
                self.gateway.pool.succeeded(upstream, head_s)
            else:
                self.gateway.pool.failed(upstream)
        return status

    async def _refused(self, response: Response) -> int:
        """Pass on a refusal of the request itself, for which nothing is billed."""
        body = await response.whole(_REFUSAL_BYTES)
        if read_object(body) is None:
            raise Cut(f"it answered {response.status} with something else than JSON")
        await self._settle(0, "refused", None)
        return await messages.answer(self.send, response.status, body)

    async def _whole(self, upstream: Upstream, response: Response) -> int:
        limits = self.gateway.settings.limits
        body = await response.whole(limits.answer_bytes)
        found = read_object(body)
        if found is None:
            raise Cut("its answer is no JSON")
        usage, flag = read_usage(found)
        stored = Answer(_OK, messages.JSON, body)
        headers = await self._settle(_cost(upstream, usage), flag, stored)
        return await messages.answer(self.send, _OK, body, headers=headers)

    async def _stream(self, upstream: Upstream, response: Response) -> int:
        """Pass events on as they come; the hold is kept where the stream does not say its end."""
        events = Events(hide_usage=self.request.hide_usage)
        most = self.gateway.settings.limits.keep_answer_bytes
        kept: list[bytes] = []
        size = 0
        await messages.begin(self.send, _OK, EVENTS, [(b"cache-control", b"no-store")])
        self.begun = True
        while not events.done and (chunk := await response.read()):
            if passed := events.feed(chunk):
                await messages.more(self.send, passed)
                size += len(passed)
                if size <= most:
                    kept.append(passed)
        if not events.done or events.failed:
            raise Cut("the stream ended before its end")
        usage, flag = events.usage
        stored = Answer(_OK, EVENTS, b"".join(kept)) if size <= most else None
        await self._settle(_cost(upstream, usage), flag, stored)
        await messages.end(self.send)
        with suppress(Cut, TimeoutError):  # so that the connection can be used again
            async with asyncio.timeout(_PAUSE_S):
                while await response.read():
                    pass
        return _OK

    async def _settle(
        self, cost: int | None, flag: Flag, answer: Answer | None
    ) -> list[tuple[bytes, bytes]]:
        """Settle the hold; return the headers that tell of it."""
        limits, now, hold_id = self.gateway.settings.limits, self.gateway.clock(), self.call.hold_id
        keep = answer is not None and limits.keep_answers_s > 0
        if answer is None or len(answer.body) > limits.keep_answer_bytes or not keep:
            answer = None

        def work(book: Book) -> Any:
            return book.settle(hold_id, cost, now=now, flag=flag, answer=answer)

        self.closed = True
        try:
            settled = await self.gateway.turns.write(work)
        except StoreError as error:
            self.gateway.tell("settle.failed", level="error", hold=hold_id, reason=str(error))
            self.gateway.durably(work, hold_id)
            return []
        self.gateway.metrics.note(settled)
        if settled.excess_microusd:
            self.gateway.tell(
                "provider.bills_more", level="error", hold=hold_id, excess=settled.excess_microusd
            )
        headers = [(messages.COST_HEADER, str(settled.actual_microusd).encode())]
        return [*headers, (FLAG_HEADER, settled.flag.encode())] if settled.flag else headers

    async def _nobody(self, *, sent: bool) -> None:
        """Close the hold of a call that no upstream took."""
        if sent:
            await self._settle(0, "refused", None)
            return
        now, hold_id = self.gateway.clock(), self.call.hold_id
        self.closed = True
        await self._write(lambda book: book.release(hold_id, now=now))

    async def _keep(self) -> None:
        hold_id = self.call.hold_id
        self.closed = True
        self.gateway.metrics.unclear.inc()
        self.gateway.tell("hold.kept", level="warning", hold=hold_id, pool=self.call.lease.pool_id)
        await self._write(lambda book: book.keep(hold_id))

    async def _write(self, work: Callable[[Book], None]) -> None:
        try:
            await self.gateway.turns.write(work)
        except StoreError as error:
            self.gateway.tell(
                "settle.failed", level="error", hold=self.call.hold_id, reason=str(error)
            )
            self.gateway.durably(work, self.call.hold_id)


def _cost(upstream: Upstream, usage: Usage | None) -> int | None:
    if usage is None:
        return None
    return upstream.price.cost_microusd(usage.tokens_in, usage.tokens_out)


def _failure(code: str, what: str) -> Refused:
    return Refused(
        code,
        f"The pool's server {what}.",
        hint="It may have been billed, and its hold is kept; ask again with a new key.",
    )
