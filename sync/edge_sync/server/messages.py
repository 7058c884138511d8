"""HTTP in plain ASGI for the paths that thousands of devices take: headers, bodies, answers.

Guarantees: no more of a body is kept than the limit, packed or unpacked; every refusal is a
``Failure`` as JSON. Knows nothing of devices.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

from edge_sync.hub.refusals import Refused
from edge_sync.wire import MAX_BODY_BYTES

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Headers: TypeAlias = Iterable[tuple[bytes, bytes]]
M = TypeVar("M", bound=BaseModel)
B = TypeVar("B", bytes, bytearray)

BODY_WAIT_S = 30.0
STATUSES = {
    "bad_request": 400,
    "bad_signature": 401,
    "expired_token": 401,
    "unknown_device": 403,
    "revoked": 403,
    "bad_code": 403,
    "expired_code": 403,
    "not_found": 404,
    "too_slow": 408,
    "replayed": 409,
    "forked": 409,
    "duplicate_device": 409,
    "too_large": 413,
    "too_many": 429,
    "unavailable": 503,
}
_GZIP = 16 + zlib.MAX_WBITS
_JSON = (b"content-type", b"application/json")


class Gone(Exception):  # noqa: N818 - not a failure of ours
    """The other side closed the connection before its request was whole."""


def header(scope: Scope, name: bytes) -> str:
    """Return a header's value; empty where it is missing."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found.decode("latin-1")
    return ""


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """Return the body as it was sent.

    Raises:
        Refused: it is too large, or did not come within ``BODY_WAIT_S``.
        Gone: the connection was closed before its end.

    """
    told = header(scope, b"content-length")
    if told.isdecimal() and int(told) > MAX_BODY_BYTES:
        raise _too_large("The body")
    message = await receive()
    if not message.get("more_body") and message["type"] == "http.request":
        body: bytes = message.get("body", b"")
        return _within(body)
    try:
        async with asyncio.timeout(BODY_WAIT_S):
            return await _collect(message, receive)
    except TimeoutError:
        raise Refused(
            "too_slow",
            f"The body did not come within {BODY_WAIT_S:g} s.",
            hint="Send it again over a better connection.",
        ) from None


async def _collect(message: Message, receive: Receive) -> bytes:
    whole = bytearray()
    while True:
        if message["type"] != "http.request":
            raise Gone
        whole += message.get("body", b"")
        if not message.get("more_body"):
            return _within(bytes(whole))
        _within(whole)
        message = await receive()


def _within(body: B) -> B:
    if len(body) > MAX_BODY_BYTES:
        raise _too_large("The body")
    return body


def unpack(body: bytes, encoding: str) -> bytes:
    """Return a body unpacked, never more than the limit.

    Raises:
        Refused: it is not what its ``Content-Encoding`` says, or unpacks to too much.

    """
    if encoding in {"", "identity"}:
        return body
    if encoding != "gzip":
        raise Refused(
            "bad_request",
            f"The body is packed as {encoding[:20]!r}, which the hub does not read.",
            hint="Send it plain or as gzip.",
        )
    inflater = zlib.decompressobj(_GZIP)
    try:
        whole = inflater.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error as error:
        raise _cut("is not gzip, or was damaged on its way") from error
    if len(whole) > MAX_BODY_BYTES:
        raise _too_large("The unpacked body")
    if not inflater.eof or inflater.unused_data:
        raise _cut("ends in the middle" if not inflater.eof else "has more behind its end")
    return whole


def _cut(reason: str) -> Refused:
    return Refused(
        "bad_request",
        f"The packed body {reason}.",
        hint="Send the request again.",
        what="request.bad",
    )


def _too_large(what: str) -> Refused:
    return Refused(
        "too_large",
        f"{what} is larger than {MAX_BODY_BYTES} bytes.",
        hint="Send fewer rows at once.",
        what="request.bad",
    )


def read_message(kind: type[M], body: bytes, *, about: str = "") -> M:
    """Return a message of the wire, which a device sent where ``about`` names it.

    Raises:
        Refused: it is no JSON, too deep, or breaks a bound; the message names the place.

    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part)[:40] for part in first["loc"]) or "the body"
        raise Refused(
            "bad_request",
            f"The request is not well-formed: {place}: {first['msg'][:200]}.",
            hint="Is the device's edge-runtime of a version that this hub knows?",
            what="request.bad",
            about=about,
        ) from error


async def send_json(send: Send, status: int, body: bytes, headers: Headers = ()) -> None:
    """Answer with JSON."""
    length = (b"content-length", str(len(body)).encode())
    await send(
        {"type": "http.response.start", "status": status, "headers": [_JSON, length, *headers]}
    )
    await send({"type": "http.response.body", "body": body})


async def send_empty(send: Send, status: int, headers: Headers = ()) -> None:
    """Answer without a body."""
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": b""})


async def send_refusal(send: Send, refused: Refused) -> int:
    """Answer with a failure and return the status."""
    status = STATUSES[refused.code]
    later = refused.retry_after_s
    headers = [] if later is None else [(b"retry-after", str(later).encode())]
    await send_json(send, status, refused.failure.model_dump_json().encode(), headers)
    return status
