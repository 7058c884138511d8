"""A client for one OpenAI-compatible endpoint: a deadline, at most one retry, a price.

A request is sent again only after an attempt that certainly was not billed. Every failure says
whether it may have been (``CloudError.maybe_billed``). No prompt, answer or key is ever part of an
error. Proxies and certificates from the environment are not used; TLS is verified.
"""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import httpx

from edge.cloud.breaker import Breaker
from edge.cloud.pricing import cost_microusd, worst_case_microusd
from edge.errors import (
    CloudError,
    CloudRejected,
    CloudServerError,
    CloudTimeout,
    ConfigError,
    RateLimited,
)
from edge.task import PoolSpec

MAX_ANSWER_BYTES = 4_000_000
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
_HINTS = {
    401: "Check the key in the environment variable named by api_key_env.",
    403: "Check the key in the environment variable named by api_key_env.",
    404: "Check base_url and model.",
}


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class CloudAnswer:
    """What a pool answered.

    Attributes:
        cost_microusd: by the pool's prices and the usage it reported; the worst case where it
            reported none (``usage_reported`` is false).
        finish: the pool's own word, for example ``stop`` or ``length``.
        attempts: requests it took, 1 or 2.

    """

    text: str
    model: str
    tokens_in: int
    tokens_out: int
    cost_microusd: int
    usage_reported: bool
    finish: str
    latency_ms: float
    attempts: int


@dataclass(frozen=True, slots=True)
class _Reply:
    """A response read to its end."""

    status: int
    headers: httpx.Headers
    body: bytes


class _TryAgain(Exception):  # noqa: N818 - control flow between two attempts, never leaves here
    """An attempt that was not billed and may be repeated after a pause."""

    def __init__(self, error: CloudError, after_s: float) -> None:
        super().__init__()
        self.error, self.after_s = error, after_s


class Pool:
    """One pool; thread-safe. Opens its connection with the first call.

    Args:
        name: its name in the pack.
        spec: address, model, prices, limits.
        env: where the key is looked up, under ``spec.api_key_env``.
        transport: replaces the network, for tests.
        clock: seconds, monotonic.
        sleep: waits between two attempts.

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
    ) -> None:
        self._name, self._spec, self._clock, self._sleep = name, spec, clock, sleep
        self._breaker = Breaker(
            name,
            failures=spec.breaker_failures,
            cooldown_s=spec.breaker_cooldown_s,
            clock=clock,
        )
        self._client = httpx.Client(
            transport=transport,
            trust_env=False,
            follow_redirects=False,
            headers=self._headers(env),
        )

    def _headers(self, env: Mapping[str, str]) -> dict[str, str]:
        variable = self._spec.api_key_env
        if variable is None:
            return {}
        key = env.get(variable, "")
        if not key:
            raise ConfigError(
                f"Pool {self._name} takes its key from {variable}, which is not set.",
                hint=f"Set {variable}.",
            )
        if not key.isascii() or not key.isprintable():
            raise ConfigError(f"The key in {variable} holds characters that no header can carry.")
        return {"Authorization": f"Bearer {key}"}

    def worst_case_microusd(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        response_schema: dict[str, Any] | None = None,
    ) -> int:
        """Return the most that ``complete`` can cost for these messages."""
        return worst_case_microusd(
            self._spec.price,
            [message.content for message in messages],
            max_tokens=max_tokens,
            response_schema=response_schema,
        )

    def complete(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        idempotency_key: str,
        temperature: float = 0.0,
        response_schema: dict[str, Any] | None = None,
        on_send: Callable[[], None] = lambda: None,
    ) -> CloudAnswer:
        """Ask for a chat completion.

        Args:
            messages: the conversation.
            max_tokens: the limit on the answer.
            idempotency_key: the same for both attempts, in the header ``Idempotency-Key``.
            temperature: 0 is greedy.
            response_schema: JSON Schema for structured output.
            on_send: called once, before the first byte may leave.

        Raises:
            CircuitOpen: the pool is being left alone; nothing was sent.
            CloudError: no answer; ``maybe_billed`` says whether it may have cost something.

        """
        self._breaker.before()
        started = self._clock()
        deadline = started + self._spec.timeout_s
        body = self._body(messages, max_tokens, temperature, response_schema)
        try:
            on_send()
            reply, attempts = self._with_retry(body, idempotency_key, deadline)
            worst = self.worst_case_microusd(
                messages, max_tokens=max_tokens, response_schema=response_schema
            )
            answer = self._read(reply, worst, attempts, started)
        except CloudRejected:
            self._breaker.success()  # it answers; the request was wrong
            raise
        except BaseException:
            self._breaker.failure()
            raise
        self._breaker.success()
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _body(
        self,
        messages: Sequence[Message],
        max_tokens: int,
        temperature: float,
        response_schema: dict[str, Any] | None,
    ) -> bytes:
        body: dict[str, Any] = {
            "model": self._spec.model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        if response_schema is not None:
            schema = {"name": "answer", "schema": response_schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return json.dumps(body).encode()

    def _with_retry(self, body: bytes, key: str, deadline: float) -> tuple[_Reply, int]:
        try:
            return self._attempt(body, key, deadline), 1
        except _TryAgain as first:
            if self._spec.retries == 0 or self._clock() + first.after_s >= deadline:
                raise first.error from None
            self._sleep(first.after_s)
        try:
            return self._attempt(body, key, deadline), 2
        except _TryAgain as second:
            raise second.error from None

    def _attempt(self, body: bytes, key: str, deadline: float) -> _Reply:
        """Send once; an attempt that may be repeated raises ``_TryAgain``."""
        left = deadline - self._clock()
        if left <= 0:
            raise CloudTimeout(self._late(), maybe_billed=False)
        request = self._client.build_request(
            "POST",
            self._spec.base_url.rstrip("/") + "/chat/completions",
            content=body,
            headers={"Content-Type": "application/json", "Idempotency-Key": key},
            timeout=left,
        )
        try:
            reply = self._receive(request, deadline)
        except httpx.ConnectTimeout:
            raise CloudTimeout(self._late(), maybe_billed=False) from None
        except _NOT_SENT as error:
            reason = type(error).__name__
            message = f"Pool {self._name} cannot be reached ({reason})."
            raise _TryAgain(CloudServerError(message, maybe_billed=False), 0.2) from error
        except httpx.TimeoutException:
            raise CloudTimeout(self._late()) from None
        except (httpx.HTTPError, RuntimeError) as error:
            reason = type(error).__name__
            message = f"Pool {self._name} broke off before its answer was whole ({reason})."
            raise CloudServerError(message) from error
        if reply.status != httpx.codes.OK:
            self._refuse(reply)
        return reply

    def _receive(self, request: httpx.Request, deadline: float) -> _Reply:
        """Read a response within the deadline and the size limit."""
        response = self._client.send(request, stream=True)
        try:
            body = bytearray()
            for chunk in response.iter_bytes():
                body += chunk
                if self._clock() > deadline:
                    raise CloudTimeout(self._late())
                if len(body) > MAX_ANSWER_BYTES:
                    raise CloudServerError(
                        f"Pool {self._name} sent more than {MAX_ANSWER_BYTES} bytes."
                    )
        finally:
            response.close()
        return _Reply(response.status_code, response.headers, bytes(body))

    def _refuse(self, reply: _Reply) -> NoReturn:
        """Translate a status that is not 200."""
        status = reply.status
        message = f"Pool {self._name} answered with status {status}."
        if status == httpx.codes.TOO_MANY_REQUESTS:
            raise _TryAgain(RateLimited(message), _retry_after_s(reply.headers) or 1.0)
        if status == httpx.codes.SERVICE_UNAVAILABLE:
            after = _retry_after_s(reply.headers)
            if after is not None:
                raise _TryAgain(CloudServerError(message, maybe_billed=False), after)
        if status >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise CloudServerError(message)
        raise CloudRejected(message, hint=_HINTS.get(status))

    def _read(self, reply: _Reply, worst: int, attempts: int, started: float) -> CloudAnswer:
        """Return the answer in a 200; without usage it counts as the worst case."""
        try:
            body = json.loads(reply.body)
            choice = body["choices"][0]
            text = choice["message"]["content"] or ""
            model = str(body.get("model") or self._spec.model)
            finish = str(choice.get("finish_reason") or "")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            message = f"Pool {self._name} sent something that is no chat completion."
            raise CloudServerError(message) from error
        tokens = _usage(body)
        price = self._spec.price
        cost = (
            worst
            if tokens is None
            else cost_microusd(price, tokens_in=tokens[0], tokens_out=tokens[1])
        )
        return CloudAnswer(
            text=str(text),
            model=model,
            tokens_in=tokens[0] if tokens else 0,
            tokens_out=tokens[1] if tokens else 0,
            cost_microusd=cost,
            usage_reported=tokens is not None,
            finish=finish,
            latency_ms=(self._clock() - started) * 1e3,
            attempts=attempts,
        )

    def _late(self) -> str:
        return f"Pool {self._name} did not answer within {self._spec.timeout_s:g} s."


def _usage(body: dict[str, Any]) -> tuple[int, int] | None:
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    found = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    if all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in found):
        return found  # type: ignore[return-value]
    return None


def _retry_after_s(headers: httpx.Headers) -> float | None:
    """Return the seconds of ``Retry-After`` (RFC 9110, 10.2.3: a number or a date)."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
