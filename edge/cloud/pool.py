"""One OpenAI-compatible endpoint: asks it once, at most twice, and says what that cost.

Guarantees: the whole call ends at its deadline, whatever the server does; a request is sent again
only after an attempt that was certainly not billed; every error says whether its attempt may have
been billed; no exception holds text of a prompt, an answer or the key, not even as its context.
Redirects are not followed, certificates are verified, and the environment (proxies, netrc,
SSL_CERT_FILE) changes nothing. Does not know budgets: whoever calls holds the money first.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from edge.cloud.breaker import Breaker
from edge.cloud.chat import Message, request_body
from edge.cloud.exchange import (
    MAX_BODY_BYTES,
    Call,
    Completed,
    Exchange,
    endpoint,
    late,
    was_closed,
)
from edge.cloud.gateway import Right, Signer
from edge.cloud.keys import pool_key
from edge.cloud.pricing import TEMPLATE_TOKENS, cost_microusd, most_tokens_in
from edge.cloud.wire import DeadlineTransport
from edge.errors import (
    AnswerLost,
    CloudError,
    CloudRejected,
    ConfigError,
    InputError,
    LeaseRefused,
)
from edge.task import PoolSpec
from edge.types import Usage

__all__ = ["MAX_BODY_BYTES", "CloudAnswer", "Message", "Pool", "Right"]

_PAUSE_S = 0.25


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudAnswer:
    """What a pool answered.

    Attributes:
        text: the answer; empty where the model gave none, see ``finish``.
        tokens_in: tokens of the request, as reported; the upper bound where none were.
        tokens_out: tokens of the answer, as reported; the upper bound where none were.
        cost_microusd: what the pool's gateway says that it cost; without one, what the tokens
            cost, the worst case where the server reported no usage.
        model: the name the server gave, else the one asked for.
        latency_ms: of the whole call, a retry included.
        attempts: 1 or 2.
        request_id: the server's name for the request, for its support; may be empty.
        finish: the server's ``finish_reason``: ``stop``, ``length`` where the answer was cut.
        usage_reported: whether tokens and cost rest on the server's own count.

    """

    text: str
    tokens_in: int
    tokens_out: int
    cost_microusd: int
    model: str
    latency_ms: float
    attempts: int
    request_id: str
    finish: str
    usage_reported: bool


class Pool:
    """A client for ``{base_url}/chat/completions``. Safe to call from several threads.

    Making one opens nothing; the first call opens a connection and later ones reuse it.

    Args:
        name: the pool's name in the pack.
        spec: address, model, price, limits.
        env: where the key's variable is looked up, at each call.
        transport: replaces the network, for tests.
        clock: monotonic seconds.
        sleep: waits the given seconds, before a second attempt.
        rng: uniform in 0..1, spreads second attempts.
        wall: Unix seconds, for a ``Retry-After`` date where the answer has no ``Date``.
        signer: signs calls; needed where the pool is a gateway.

    Raises:
        ConfigError: the pool's ``base_url`` is no address.

    """

    def __init__(
        self,
        name: str,
        spec: PoolSpec,
        *,
        env: Mapping[str, str],
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        rng: Callable[[], float] = random.random,
        wall: Callable[[], float] = time.time,
        signer: Signer | None = None,
    ) -> None:
        self.name = name
        self.spec = spec
        self.breaker = Breaker(spec.breaker_failures, spec.breaker_cooldown_s, clock, name=name)
        self._env = env
        self._transport = transport
        self._clock = clock
        self._sleep = sleep
        self._rng = rng
        self._signer = signer
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._closed = False
        self._exchange = Exchange(
            name=name,
            url=endpoint(name, spec.base_url),
            key_env=spec.api_key_env,
            closed=lambda: self._closed,
            clock=clock,
            wall=wall,
        )

    def check(self) -> None:
        """Make sure that the pool could be asked; opens nothing.

        Raises:
            ConfigError: the key's variable is not set, or calls cannot be signed.

        """
        pool_key(self.name, self.spec.api_key_env, self._env)
        if self.spec.gateway:
            self._signing().check()

    def body(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        response_schema: dict[str, Any] | None = None,
    ) -> bytes:
        """Return the body that ``complete`` with the same arguments sends.

        Raises:
            InputError: the arguments cannot be sent.

        """
        return request_body(
            self.spec.model,
            messages,
            max_tokens=max_tokens,
            temperature=temperature,
            response_schema=response_schema,
        )

    def worst_case_microusd(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        response_schema: dict[str, Any] | None = None,
    ) -> int:
        """Return the most that ``complete`` with the same arguments can cost.

        A second attempt adds nothing: it follows only on one that was not billed. A gateway holds
        for every byte of the whole body, so no less is set aside here.
        """
        most = most_tokens_in(messages, response_schema=response_schema)
        if self.spec.gateway:
            body = self.body(messages, max_tokens=max_tokens, response_schema=response_schema)
            most = len(body) + TEMPLATE_TOKENS * (len(messages) + 1)
        return cost_microusd(self.spec.price, most, max_tokens)

    def complete(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        deadline_s: float | None = None,
        response_schema: dict[str, Any] | None = None,
        idempotency_key: str,
        on_send: Callable[[], None] | None = None,
        again: Callable[[], bool] | None = None,
        right: Right | None = None,
    ) -> CloudAnswer:
        """Ask the pool.

        Args:
            messages: the conversation.
            max_tokens: the longest answer, at least 1.
            temperature: 0 is greedy.
            deadline_s: seconds for all of it; the pool's ``timeout_s`` where none is given.
            response_schema: JSON Schema the answer is asked to fit; check it all the same.
            idempotency_key: same key, same request: a provider that knows it bills once.
            on_send: called once, before anything can leave; where it raises, nothing is sent.
            again: asked before a second attempt; without it there may be one.
            right: the lease that pays; needed where the pool is a gateway.

        Raises:
            InputError: the arguments cannot be sent.
            ConfigError: the key's variable is not set, or the call cannot be signed.
            LeaseRefused: the gateway takes nothing more from the lease.
            CircuitOpen: the pool is left alone for now.
            CloudTimeout: no answer before the deadline.
            RateLimited: the pool asked for a pause that does not fit the deadline.
            CloudServerError: the pool failed or is out of reach.
            CloudRejected: the pool refused the request.
            CloudError: the pool was closed.

        """
        begun = self._clock()
        limit_s = self.spec.timeout_s if deadline_s is None else deadline_s
        body = self.body(
            messages,
            max_tokens=max_tokens,
            temperature=temperature,
            response_schema=response_schema,
        )
        call = Call(
            body=body,
            headers=self._headers(idempotency_key, body, right),
            begun=begun,
            deadline=begun + limit_s,
            bound=Usage(most_tokens_in(messages, response_schema=response_schema), max_tokens),
            gateway=self.spec.gateway,
        )
        if not limit_s > 0:
            raise late(self.name, sent=False)
        return self._guarded(call, on_send, again or _always)

    def recall(self, body: bytes, *, idempotency_key: str, right: Right) -> CloudAnswer:
        """Ask a gateway again what became of a request: same key, same body, never a second bill.

        Where the request never arrived it is answered, and billed, now.

        Args:
            body: as it was sent.
            idempotency_key: as it was sent.
            right: the lease that pays.

        Raises:
            AnswerLost: it was billed; the answer is not kept any more.
            LeaseRefused: the gateway takes nothing from the lease; where its code is one of
                ``gateway.ENDED``, the request was never billed.
            CloudError: the gateway does not know, or cannot be asked; as ``complete``.

        """
        begun = self._clock()
        call = Call(
            body=body,
            headers=self._headers(idempotency_key, body, right),
            begun=begun,
            deadline=begun + self.spec.timeout_s,
            bound=Usage(len(body), 0),
            gateway=True,
        )
        return self._guarded(call, None, _always)

    def close(self) -> None:
        """Close the connections; calls under way fail soon. Calling twice is harmless."""
        with self._lock:
            client, self._client, self._closed = self._client, None, True
        if client is not None:
            client.close()

    def _headers(self, idempotency_key: str, body: bytes, right: Right | None) -> dict[str, str]:
        if not (idempotency_key and idempotency_key.isascii() and idempotency_key.isprintable()):
            raise InputError("An idempotency key must be printable ASCII and not empty.")
        headers = {
            "Accept": "application/json",
            # Compressed answers could unpack to any size.
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "Idempotency-Key": idempotency_key,
            "User-Agent": "edge-runtime",
        }
        key = pool_key(self.name, self.spec.api_key_env, self._env)
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        if not self.spec.gateway:
            return headers
        if right is None:
            raise InputError(f"A call to the gateway of pool {self.name} needs a lease.")
        signed = self._signing().headers(
            body, lease_id=right.lease_id, lease=right.text, key=idempotency_key
        )
        return headers | dict(signed)

    def _signing(self) -> Signer:
        if self._signer is None:
            raise ConfigError(
                f"Calls to the gateway of pool {self.name} cannot be signed.",
                hint="Open the runtime over its state folder, with edge-runtime[sync] installed.",
            )
        return self._signer

    def _open(self) -> httpx.Client:
        """Return the client, opened on first use.

        Raises:
            CloudError: the pool was closed.

        """
        with self._lock:
            if self._closed:
                raise was_closed(self.name)
            if self._client is None:
                transport = self._transport or DeadlineTransport(clock=self._clock)
                self._client = httpx.Client(transport=transport, trust_env=False)
            return self._client

    def _guarded(
        self, call: Call, on_send: Callable[[], None] | None, again: Callable[[], bool]
    ) -> CloudAnswer:
        """Ask under the breaker: a refusal is an answer, a pause asked for is a failure."""
        client = self._open()
        self.breaker.before()
        learned = self.breaker.cancel
        try:
            if on_send is not None:
                on_send()
            answer = self._attempts(client, call, again)
            learned = self.breaker.success
        except (AnswerLost, CloudRejected, LeaseRefused):
            learned = self.breaker.success
            raise
        except CloudError:
            if not self._closed:
                learned = self.breaker.failure
            raise
        finally:
            learned()
        return answer

    def _attempts(self, client: httpx.Client, call: Call, again: Callable[[], bool]) -> CloudAnswer:
        error: CloudError = late(self.name, sent=False)
        for attempt in range(1, self.spec.retries + 2):
            outcome = self._exchange.send(client, call)
            if isinstance(outcome, Completed):
                return self._answer(call, outcome, attempt)
            error = outcome.error
            pause_s = (outcome.wait_s or 0.0) + _PAUSE_S * (0.5 + self._rng())
            too_late = self._clock() + pause_s >= call.deadline
            if attempt > self.spec.retries or not outcome.again or too_late or not again():
                break
            self._sleep(pause_s)
            if self._closed:
                raise was_closed(self.name)
        raise error

    def _answer(self, call: Call, done: Completed, attempts: int) -> CloudAnswer:
        usage = done.reply.usage or call.bound
        cost = cost_microusd(self.spec.price, usage.tokens_in, usage.tokens_out)
        return CloudAnswer(
            text=done.reply.text,
            tokens_in=usage.tokens_in,
            tokens_out=usage.tokens_out,
            cost_microusd=cost if done.cost_microusd is None else done.cost_microusd,
            model=done.reply.model or self.spec.model,
            latency_ms=(self._clock() - call.begun) * 1000.0,
            attempts=attempts,
            request_id=done.request_id,
            finish=done.reply.finish,
            usage_reported=done.reply.usage is not None,
        )
