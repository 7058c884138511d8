"""One exchange with a pool: a request sent once, and its answer read or its failure told.

Guarantees: it ends at the deadline, whatever the server does; every failure says whether the
attempt may have been billed; no error holds text of a prompt, an answer or the key, not even as its
context. Knows no second attempt, no breaker and no price.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import httpx

from edge.cloud import gateway
from edge.cloud.chat import Reply, read_reply, short_name
from edge.cloud.refusals import Refusal, refusal
from edge.cloud.wire import DEADLINE
from edge.errors import CloudError, CloudServerError, CloudTimeout, ConfigError
from edge.types import Usage

MAX_BODY_BYTES = 4 * 2**20
"""The longest answer that is read."""

_OK = 200
_LAST_PORT = 65_535
_UNSENT = (httpx.ConnectError, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)


@dataclass(frozen=True, slots=True)
class Call:
    """What is sent, and until when.

    Attributes:
        body: JSON.
        headers: the key among them.
        begun, deadline: monotonic seconds.
        bound: the most tokens it can take.
        gateway: who answers is a gateway of the fleet.

    """

    body: bytes
    headers: dict[str, str]
    begun: float
    deadline: float
    bound: Usage
    gateway: bool = False


@dataclass(frozen=True, slots=True)
class Completed:
    """A whole answer.

    Attributes:
        request_id: the server's name for the request, maybe empty.
        cost_microusd: what it cost as the pool's gateway says; ``None`` without one.

    """

    reply: Reply
    request_id: str
    cost_microusd: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """How one pool is asked.

    Attributes:
        name: the pool's name, for errors.
        url: where requests go, see ``endpoint``.
        key_env: the variable that holds its key, for errors.
        closed: whether the pool was closed meanwhile.
        clock: monotonic seconds.
        wall: Unix seconds, for a ``Retry-After`` date where the answer has no ``Date``.

    """

    name: str
    url: httpx.URL
    key_env: str | None
    closed: Callable[[], bool]
    clock: Callable[[], float]
    wall: Callable[[], float]

    def send(self, client: httpx.Client, call: Call) -> Completed | Refusal:
        """Send once and read the answer.

        Foreign errors end here: their context would hold text.
        """
        left_s = call.deadline - self.clock()
        if left_s <= 0:
            return Refusal(late(self.name, sent=False))
        response: httpx.Response | None = None
        try:
            request = client.build_request(
                "POST",
                self.url,
                content=call.body,
                headers=_headers(call, left_s),
                timeout=left_s,
                extensions={DEADLINE: call.deadline},
            )
            response = client.send(request, stream=True)
            body = self._read(response, call.deadline)
        except httpx.ConnectTimeout:
            return Refusal(late(self.name, sent=False))
        except _UNSENT as error:
            # Nothing was sent, so what the error says is about the connection alone.
            return Refusal(self._unreachable(str(error)), again=True)
        except (httpx.HTTPError, httpx.StreamError, RuntimeError, OSError, ValueError) as error:
            return self._broken(call, error, response)
        finally:
            if response is not None:
                response.close()
        return self._read_answer(call, response, body)

    def _read(self, response: httpx.Response, deadline: float) -> bytes | None:
        """Return the body, or ``None`` where it is too long or packed."""
        if response.headers.get("content-encoding", "identity") != "identity":
            return None
        body = bytearray()
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return None
            if self.clock() >= deadline:
                raise httpx.ReadTimeout("the deadline has passed")
        return bytes(body)

    def _read_answer(
        self, call: Call, response: httpx.Response, body: bytes | None
    ) -> Completed | Refusal:
        if response.status_code != _OK:
            return self._refusal(call, response, body or b"")
        if body is None:
            most = MAX_BODY_BYTES // 2**20
            message = f"Pool {self.name} sent an answer that is compressed or above {most} MiB."
            return Refusal(CloudServerError(message))
        reply = read_reply(body)
        if reply is None:
            message = f"Pool {self.name} answered 200 with something that is no chat completion."
            hint = "Check that the pool's base_url leads to an OpenAI-compatible API."
            return Refusal(CloudServerError(message, hint=hint))
        cost = gateway.told_cost(response.headers) if call.gateway else None
        name = short_name(response.headers.get("x-request-id")) or reply.id
        return Completed(reply, name, cost)

    def _refusal(self, call: Call, response: httpx.Response, body: bytes) -> Refusal:
        """Return what a refusal means; a gateway has tried again itself where that was right."""
        if call.gateway:
            told = gateway.refusal(self.name, response.headers, body)
            if told is not None:
                return Refusal(told)
        return refusal(
            self.name,
            response.status_code,
            response.headers,
            body,
            key_env=self.key_env,
            now=self.wall(),
        )

    def _broken(self, call: Call, error: Exception, response: httpx.Response | None) -> Refusal:
        """Return what an exchange that broke off means; a refusal's status is enough."""
        if response is not None and response.status_code != _OK:
            return self._refusal(call, response, b"")
        if isinstance(error, httpx.TimeoutException):
            return Refusal(late(self.name, sent=True))
        if self.closed():
            closed = was_closed(self.name)
            closed.maybe_billed = True
            return Refusal(closed)
        kind = type(error).__name__
        return Refusal(
            CloudServerError(f"Pool {self.name} broke off before a whole answer ({kind}).")
        )

    def _unreachable(self, why: str) -> CloudServerError:
        return CloudServerError(
            f"Pool {self.name} cannot be reached ({why}).",
            hint="Check the connection and the pool's base_url.",
            maybe_billed=False,
        )


def _headers(call: Call, left_s: float) -> dict[str, str]:
    if not call.gateway:
        return call.headers
    return call.headers | {gateway.DEADLINE_HEADER: gateway.within(left_s)}


def late(pool: str, *, sent: bool) -> CloudTimeout:
    """Return the error of a deadline that passed."""
    when = "before its deadline" if sent else "in time: the deadline passed before it was sent"
    return CloudTimeout(f"Pool {pool} did not answer {when}.", maybe_billed=sent)


def was_closed(pool: str) -> CloudError:
    """Return the error of a pool that was closed."""
    return CloudError(f"Pool {pool} was closed.", hint="Open the runtime again.")


def endpoint(name: str, base_url: str) -> httpx.URL:
    """Return the address that a pool's requests go to.

    Raises:
        ConfigError: ``base_url`` is no address.

    """
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
