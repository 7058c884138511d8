"""Requests to a hub, one at a time: sent, bounded, and their answers read.

The only module here that knows httpx. Its errors, and answers that no hub gives (a captive portal
says 200 to anything), arrive as ``HubUnreachable``; a hub that says no, as ``HubRefused``. Several
URLs are replicas of one hub and are tried in turn. Trusts nothing that it reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from edge.errors import ConfigError, HubUnreachable, SyncError
from edge_sync.agent.waiting import Ended, unless
from edge_sync.wire import (
    ENROL_PATH,
    MODELS_PATH,
    POLICY_PATH,
    REPLY_HEADER,
    SYNC_PATH,
    Bundle,
    EnrolReply,
    EnrolRequest,
    Failure,
    SyncReply,
)

ANSWER_S = 30.0
"""The longest that one answer may take, beside the time that the hub was asked to wait."""

_MOST_BYTES = 16_000_000
_CONNECT_S = 10.0
_CUT_S = 20.0  # a download without a byte for so long is taken to be cut
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_PAUSE_S = 3_600.0
_T = TypeVar("_T")
_M = TypeVar("_M", bound=BaseModel)


class HubRefused(SyncError):  # noqa: N818 - named as the leaves of the error tree
    """The hub answered, and the answer is no.

    Attributes:
        code: see ``wire.Failure``.

    """

    default_hint = "Ask the fleet admin."

    def __init__(self, message: str, *, code: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class HubBusy(HubUnreachable):
    """The hub asked for a pause.

    Attributes:
        retry_after_s: how long, where it said so.

    """

    def __init__(self, message: str, *, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Offer:
    """Signed metadata newer than what the device holds, and what the hub calls it."""

    bundle: Bundle
    etag: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a hub answered to a report.

    Attributes:
        body: as it came.
        signed: the header that vouches for it, see ``wire.REPLY_HEADER``; empty where none came.

    """

    reply: SyncReply
    body: bytes
    signed: str


class Exchange:
    """Talks to one hub. Only one thread may ask; ``stop`` may be called from any.

    Args:
        urls: of the hub's replicas.
        transport: what carries the requests; the network where ``None``.

    Raises:
        ConfigError: a URL is none of http or https.

    """

    def __init__(
        self, urls: Sequence[str], *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.urls = tuple(_checked(url) for url in urls)
        if not self.urls:
            raise ConfigError("No hub is named.", hint="Pass the URL of the hub.")
        self._at = 0
        self._client = httpx.AsyncClient(
            transport=transport,
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            headers={"Accept-Encoding": "identity"},
        )
        self._runner = asyncio.Runner()
        self._task: asyncio.Task[Any] | None = None
        self._stopped = False
        self._closed = False

    def enrol(self, request: EnrolRequest) -> EnrolReply:
        """Join the fleet.

        Raises:
            HubUnreachable: no replica answered.
            HubRefused: the code is wrong, used or expired, or the device is known already.

        """
        body = request.model_dump_json().encode()
        answer = self._asked("POST", ENROL_PATH, {}, body)
        return _read(EnrolReply, answer.content)

    def sync(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send a signed report; the same bytes may be sent again.

        Raises:
            HubUnreachable: no replica answered.
            HubRefused: the hub did not take it.

        """
        came = self._asked("POST", SYNC_PATH, headers, body)
        reply = _read(SyncReply, came.content)
        return Answer(reply, came.content, came.headers.get(REPLY_HEADER, ""))

    def policy(
        self,
        token: str,
        *,
        etag: str,
        root: int,
        wait_s: int,
        until: Callable[[], bool] | None = None,
    ) -> Offer | None:
        """Ask for metadata other than ``etag``, and let the hub wait for some.

        Args:
            token: from the last sync.
            etag: what the device holds; empty for nothing.
            root: version of the root metadata that it holds.
            wait_s: the longest that the hub may wait, in whole seconds.
            until: looked at again and again; where it is true the request is ended, without an
                offer.

        Raises:
            HubUnreachable: no replica answered.
            HubRefused: the token has expired, or the device is revoked.

        """
        headers = {"Authorization": f"Bearer {token}"}
        if etag:
            headers["If-None-Match"] = etag
        path = f"{POLICY_PATH}?wait={wait_s}&root={root}"
        try:
            answer = self._asked("GET", path, headers, limit_s=wait_s + ANSWER_S, until=until)
        except Ended:
            return None
        if answer.status_code == httpx.codes.NOT_MODIFIED:
            return None
        return Offer(_read(Bundle, answer.content), answer.headers.get("ETag", ""))

    def index(self, name: str, digest: str, token: str) -> bytes:
        """Fetch the index of a model, unchecked; raises as ``policy``."""
        path = f"{MODELS_PATH}/{name}/{digest}/index.json"
        return self._asked("GET", path, {"Authorization": f"Bearer {token}"}).content

    def file(
        self,
        path: str,
        *,
        start: int,
        take: Callable[[bytes], None],
        token: str = "",
        mirror: str | None = None,
    ) -> None:
        """Fetch a model's file from a byte on and hand its bytes on as they come, unchecked.

        Args:
            path: ``<name>/<digest>/<file>``.
            start: offset of the first byte.
            take: gets the bytes; what it raises ends the download.
            token: for the hub; a mirror gets none.
            mirror: a URL to ask in place of the hub.

        Raises:
            HubUnreachable: the download did not begin, or was cut.
            HubRefused: there is no such file.

        """
        headers = {"Range": f"bytes={start}-"} if start else {}
        if mirror is not None:
            url = f"{_checked(mirror)}/{path}"
            self._run(self._download(url, headers, start, take))
            return
        headers["Authorization"] = f"Bearer {token}"
        url = f"{self.urls[self._at]}{MODELS_PATH}/{path}"
        self._run(self._download(url, headers, start, take))

    def stop(self) -> None:
        """End the request that runs, and refuse others; from any thread."""
        self._stopped = True
        task = self._task
        if task is not None:
            with suppress(RuntimeError):  # the loop has ended in between
                task.get_loop().call_soon_threadsafe(task.cancel)

    def close(self) -> None:
        """Close the connections; in the thread that asked. Calling twice is harmless."""
        self._stopped = True
        if self._closed:
            return
        self._closed = True
        with suppress(httpx.HTTPError):
            self._runner.run(self._client.aclose())
        self._runner.close()

    def _asked(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        limit_s: float = ANSWER_S,
        until: Callable[[], bool] | None = None,
    ) -> httpx.Response:
        """Ask each replica in turn, the one that answered last first."""
        for left in reversed(range(len(self.urls))):
            url = self.urls[self._at]
            work = self._answer(method, url + path, headers, body, limit_s)
            try:
                return self._run(work if until is None else unless(work, until))
            except HubUnreachable:
                self._at = (self._at + 1) % len(self.urls)
                if not left or self._stopped:
                    raise
        raise AssertionError  # pragma: no cover - there is at least one URL

    async def _answer(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        limit_s: float,
    ) -> httpx.Response:
        async with _in_time(url, limit_s), self._opened(method, url, headers, body) as response:
            whole = bytearray()
            async for piece in response.aiter_bytes():
                whole += piece
                if len(whole) > _MOST_BYTES:
                    raise HubUnreachable(f"{_host(url)} sent more than {_MOST_BYTES} bytes.")
            answer = httpx.Response(
                response.status_code, headers=response.headers, content=bytes(whole)
            )
        _check_status(url, answer)
        return answer

    async def _download(
        self, url: str, headers: Mapping[str, str], start: int, take: Callable[[bytes], None]
    ) -> None:
        async with self._opened("GET", url, headers, None, read_s=_CUT_S) as response:
            if response.status_code >= httpx.codes.BAD_REQUEST:
                _check_status(url, response, content=await response.aread())
            skip = start if response.status_code == httpx.codes.OK else 0
            async for piece in response.aiter_bytes():
                take(piece[skip:])
                skip = max(0, skip - len(piece))

    @asynccontextmanager
    async def _opened(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        read_s: float | None = None,
    ) -> AsyncIterator[httpx.Response]:
        timeout = httpx.Timeout(read_s, connect=_CONNECT_S)
        try:
            async with self._client.stream(
                method, url, headers=dict(headers), content=body, timeout=timeout
            ) as response:
                yield response
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            reason = str(error).rstrip(".") or type(error).__name__
            raise HubUnreachable(f"{_host(url)} did not answer: {reason}.") from error

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        try:
            return self._runner.run(self._watched(work))
        except asyncio.CancelledError:
            raise HubUnreachable("The request was ended: the agent is closing.") from None
        finally:
            self._task = None

    async def _watched(self, work: Awaitable[_T]) -> _T:
        self._task = asyncio.current_task()
        if self._stopped and self._task is not None:
            self._task.cancel()
        return await work


@asynccontextmanager
async def _in_time(url: str, limit_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(limit_s):
            yield
    except TimeoutError:
        raise HubUnreachable(f"{_host(url)} did not answer within {limit_s:g} s.") from None


def _check_status(url: str, answer: httpx.Response, *, content: bytes | None = None) -> None:
    """Raise what a status stands for."""
    status = answer.status_code
    if status in {httpx.codes.OK, httpx.codes.NOT_MODIFIED, httpx.codes.PARTIAL_CONTENT}:
        return
    failure = _failure(answer.content if content is None else content)
    told = failure.message if failure else f"{_host(url)} answered with status {status}."
    if status in _LATER:
        raise HubBusy(told, retry_after_s=_pause(answer.headers.get("Retry-After", "")))
    if failure is None:
        raise HubUnreachable(f"{_host(url)} is no hub: it answered with status {status}.")
    raise HubRefused(told, code=failure.code, hint=failure.hint or None)


def _failure(body: bytes) -> Failure | None:
    try:
        return Failure.model_validate_json(body)
    except ValidationError:
        return None


def _pause(told: str) -> float | None:
    """Return the seconds of a ``Retry-After``; a date is passed over, our clock may be off."""
    return min(float(told), _LONGEST_PAUSE_S) if told.strip().isdecimal() else None


def _read(kind: type[_M], body: bytes) -> _M:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise HubUnreachable(
            f"What answered is no hub: {place or 'its answer'}: {first['msg']}.",
            hint="Check the URL, and whether a login page stands in front of the network.",
        ) from error


def _checked(url: str) -> str:
    try:
        parsed = httpx.URL(url.strip())
    except httpx.InvalidURL as error:
        raise ConfigError(f"The hub's URL {url!r} is not one: {error}.") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ConfigError(f"The hub's URL {url!r} must begin with https:// or http://.")
    return url.strip().rstrip("/")


def _host(url: str) -> str:
    parsed = httpx.URL(url)
    return f"{parsed.scheme}://{parsed.netloc.decode()}"
