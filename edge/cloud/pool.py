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
from edge.cloud.chat import Message, Reply, read_reply, request_body, short_name
from edge.cloud.keys import pool_key
from edge.cloud.pricing import cost_microusd, most_tokens_in, worst_case_microusd
from edge.cloud.refusals import Refusal, refusal
from edge.cloud.wire import DEADLINE, DeadlineTransport
from edge.errors import (
    CloudError,
    CloudRejected,
    CloudServerError,
    CloudTimeout,
    ConfigError,
    InputError,
)
from edge.task import PoolSpec
from edge.types import Usage

__all__ = ["MAX_BODY_BYTES", "CloudAnswer", "Message", "Pool"]

MAX_BODY_BYTES = 4 * 2**20
"""The longest answer that is read."""

_OK = 200
_LAST_PORT = 65_535
_UNSENT = (httpx.ConnectError, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)
_PAUSE_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudAnswer:
    """What a pool answered.

    Attributes:
        text: the answer; empty where the model gave none, see ``finish``.
        tokens_in: tokens of the request, as reported; the upper bound where none were.
        tokens_out: tokens of the answer, as reported; the upper bound where none were.
        cost_microusd: what that costs; the worst case where the server reported no usage.
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


@dataclass(frozen=True, slots=True)
class _Call:
    """One call to ``complete``: what is sent, and until when."""

    body: bytes
    headers: dict[str, str]
    begun: float
    deadline: float
    bound: Usage


@dataclass(frozen=True, slots=True)
class _Completed:
    reply: Reply
    request_id: str


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
    ) -> None:
        self.name = name
        self.spec = spec
        self.breaker = Breaker(spec.breaker_failures, spec.breaker_cooldown_s, clock, name=name)
        self._url = _endpoint(name, spec.base_url)
        self._env = env
        self._transport = transport
        self._clock = clock
        self._sleep = sleep
        self._rng = rng
        self._wall = wall
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._closed = False

    def check(self) -> None:
        """Make sure that the pool could be asked; opens nothing.

        Raises:
            ConfigError: the key's variable is not set.

        """
        pool_key(self.name, self.spec.api_key_env, self._env)

    def worst_case_microusd(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        response_schema: dict[str, Any] | None = None,
    ) -> int:
        """Return the most that ``complete`` with the same arguments can cost.

        A second attempt adds nothing: it follows only on one that was not billed.
        """
        return worst_case_microusd(
            self.spec.price, messages, max_tokens, response_schema=response_schema
        )

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

        Raises:
            InputError: the arguments cannot be sent.
            ConfigError: the key's variable is not set.
            CircuitOpen: the pool is left alone for now.
            CloudTimeout: no answer before the deadline.
            RateLimited: the pool asked for a pause that does not fit the deadline.
            CloudServerError: the pool failed or is out of reach.
            CloudRejected: the pool refused the request.
            CloudError: the pool was closed.

        """
        begun = self._clock()
        limit_s = self.spec.timeout_s if deadline_s is None else deadline_s
        call = _Call(
            body=request_body(
                self.spec.model,
                messages,
                max_tokens=max_tokens,
                temperature=temperature,
                response_schema=response_schema,
            ),
            headers=self._headers(idempotency_key),
            begun=begun,
            deadline=begun + limit_s,
            bound=Usage(most_tokens_in(messages, response_schema=response_schema), max_tokens),
        )
        if not limit_s > 0:
            raise self._late(sent=False)
        return self._guarded(call, on_send)

    def close(self) -> None:
        """Close the connections; calls under way fail soon. Calling twice is harmless."""
        with self._lock:
            client, self._client, self._closed = self._client, None, True
        if client is not None:
            client.close()

    def _headers(self, idempotency_key: str) -> dict[str, str]:
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
        return headers

    def _open(self) -> httpx.Client:
        """Return the client, opened on first use.

        Raises:
            CloudError: the pool was closed.

        """
        with self._lock:
            if self._closed:
                raise self._was_closed()
            if self._client is None:
                transport = self._transport or DeadlineTransport(clock=self._clock)
                self._client = httpx.Client(transport=transport, trust_env=False)
            return self._client

    def _guarded(self, call: _Call, on_send: Callable[[], None] | None) -> CloudAnswer:
        """Ask under the breaker: a refusal is an answer, a pause asked for is a failure."""
        client = self._open()
        self.breaker.before()
        learned = self.breaker.cancel
        try:
            if on_send is not None:
                on_send()
            answer = self._attempts(client, call)
            learned = self.breaker.success
        except CloudRejected:
            learned = self.breaker.success
            raise
        except CloudError:
            if not self._closed:
                learned = self.breaker.failure
            raise
        finally:
            learned()
        return answer

    def _attempts(self, client: httpx.Client, call: _Call) -> CloudAnswer:
        error: CloudError = self._late(sent=False)
        for attempt in range(1, self.spec.retries + 2):
            outcome = self._attempt(client, call)
            if isinstance(outcome, _Completed):
                return self._answer(call, outcome, attempt)
            error = outcome.error
            pause_s = (outcome.wait_s or 0.0) + _PAUSE_S * (0.5 + self._rng())
            late = self._clock() + pause_s >= call.deadline
            if attempt > self.spec.retries or not outcome.again or late:
                break
            self._sleep(pause_s)
            if self._closed:
                raise self._was_closed()
        raise error

    def _attempt(self, client: httpx.Client, call: _Call) -> _Completed | Refusal:
        """Send once. Foreign errors end here: their context would hold text."""
        left_s = call.deadline - self._clock()
        if left_s <= 0:
            return Refusal(self._late(sent=False))
        response: httpx.Response | None = None
        try:
            request = client.build_request(
                "POST",
                self._url,
                content=call.body,
                headers=call.headers,
                timeout=left_s,
                extensions={DEADLINE: call.deadline},
            )
            response = client.send(request, stream=True)
            body = self._read(response, call.deadline)
        except httpx.ConnectTimeout:
            return Refusal(self._late(sent=False))
        except _UNSENT as error:
            # Nothing was sent, so what the error says is about the connection alone.
            return Refusal(self._unreachable(str(error)), again=True)
        except (httpx.HTTPError, httpx.StreamError, RuntimeError, OSError, ValueError) as error:
            return self._broken(error, response)
        finally:
            if response is not None:
                response.close()
        return self._read_answer(response, body)

    def _read(self, response: httpx.Response, deadline: float) -> bytes | None:
        """Return the body, or ``None`` where it is too long or packed."""
        if response.headers.get("content-encoding", "identity") != "identity":
            return None
        body = bytearray()
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return None
            if self._clock() >= deadline:
                raise httpx.ReadTimeout("the deadline has passed")
        return bytes(body)

    def _read_answer(self, response: httpx.Response, body: bytes | None) -> _Completed | Refusal:
        if response.status_code != _OK:
            return self._refusal(response, body or b"")
        if body is None:
            most = MAX_BODY_BYTES // 2**20
            message = f"Pool {self.name} sent an answer that is compressed or above {most} MiB."
            return Refusal(CloudServerError(message))
        reply = read_reply(body)
        if reply is None:
            message = f"Pool {self.name} answered 200 with something that is no chat completion."
            hint = "Check that the pool's base_url leads to an OpenAI-compatible API."
            return Refusal(CloudServerError(message, hint=hint))
        return _Completed(reply, short_name(response.headers.get("x-request-id")) or reply.id)

    def _refusal(self, response: httpx.Response, body: bytes) -> Refusal:
        return refusal(
            self.name,
            response.status_code,
            response.headers,
            body,
            key_env=self.spec.api_key_env,
            now=self._wall(),
        )

    def _broken(self, error: Exception, response: httpx.Response | None) -> Refusal:
        """Return what an exchange that broke off means; a refusal's status is enough."""
        if response is not None and response.status_code != _OK:
            return self._refusal(response, b"")
        if isinstance(error, httpx.TimeoutException):
            return Refusal(self._late(sent=True))
        if self._closed:
            closed = self._was_closed()
            closed.maybe_billed = True
            return Refusal(closed)
        kind = type(error).__name__
        return Refusal(
            CloudServerError(f"Pool {self.name} broke off before a whole answer ({kind}).")
        )

    def _answer(self, call: _Call, done: _Completed, attempts: int) -> CloudAnswer:
        usage = done.reply.usage or call.bound
        return CloudAnswer(
            text=done.reply.text,
            tokens_in=usage.tokens_in,
            tokens_out=usage.tokens_out,
            cost_microusd=cost_microusd(self.spec.price, usage.tokens_in, usage.tokens_out),
            model=done.reply.model or self.spec.model,
            latency_ms=(self._clock() - call.begun) * 1000.0,
            attempts=attempts,
            request_id=done.request_id,
            finish=done.reply.finish,
            usage_reported=done.reply.usage is not None,
        )

    def _late(self, *, sent: bool) -> CloudTimeout:
        when = "before its deadline" if sent else "in time: the deadline passed before it was sent"
        return CloudTimeout(f"Pool {self.name} did not answer {when}.", maybe_billed=sent)

    def _unreachable(self, why: str) -> CloudServerError:
        return CloudServerError(
            f"Pool {self.name} cannot be reached ({why}).",
            hint="Check the connection and the pool's base_url.",
            maybe_billed=False,
        )

    def _was_closed(self) -> CloudError:
        return CloudError(f"Pool {self.name} was closed.", hint="Open the runtime again.")


def _endpoint(name: str, base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url.rstrip("/") + "/chat/completions")
        host = url.host
    except (httpx.InvalidURL, UnicodeError) as error:  # the second from IDNA
        reason = str(error).rstrip(".")
        raise ConfigError(f"The base_url of pool {name} is no address: {reason}.") from error
    if not host:
        raise ConfigError(f"The base_url of pool {name} names no host.")
    # The system's resolver takes a larger one modulo 65536: another server would get the text.
    if url.port is not None and not 0 < url.port <= _LAST_PORT:
        raise ConfigError(f"The base_url of pool {name} names port {url.port}, which cannot be.")
    return url
