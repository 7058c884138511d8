"""HTTP in plain ASGI: bodies within their limit, and answers.

Guarantees: no more of a body is kept than the limit. Knows nothing of what is in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias

from edge_sync.gateway.refusals import Refused

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

BODY_WAIT_S = 30.0
COST_HEADER = b"edge-cost-microusd"
JSON = "application/json"


class Gone(Exception):  # noqa: N818 - not a failure of ours
    """The other side closed the connection before its request was whole."""


def header(scope: Scope, name: bytes) -> str:
    """Return a header's value; empty where it is missing."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return ""


async def read_body(scope: Scope, receive: Receive, *, limit: int) -> bytes:
    """Return the body.

    Raises:
        Refused: it is longer than ``limit`` bytes, packed, or did not come in time.
        Gone: the connection was closed before its end.

    """
    told = header(scope, b"content-length")
    if told.isdecimal() and int(told) > limit:
        raise _too_large(limit)
    if header(scope, b"content-encoding") not in {"", "identity"}:
        raise Refused("bad_request", "The body is packed.", hint="Send it plain.")
    try:
        async with asyncio.timeout(BODY_WAIT_S):
            return await _collect(receive, limit)
    except TimeoutError:
        raise Refused(
            "too_slow",
            f"The body did not come within {BODY_WAIT_S:g} s.",
            hint="Send it again over a better connection.",
        ) from None


async def _collect(receive: Receive, limit: int) -> bytes:
    whole: bytes = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Gone
        whole += message.get("body", b"")
        if len(whole) > limit:
            raise _too_large(limit)
        if not message.get("more_body"):
            return whole


def _too_large(limit: int) -> Refused:
    return Refused(
        "too_large", f"The body is longer than {limit} bytes.", hint="Send less at once."
    )


async def begin(send: Send, status: int, kind: str, headers: Headers = ()) -> None:
    """Begin an answer of unknown length."""
    first = (b"content-type", kind.encode("latin-1"))
    await send({"type": "http.response.start", "status": status, "headers": [first, *headers]})


async def more(send: Send, data: bytes) -> None:
    """Pass on a part of an answer."""
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def end(send: Send) -> None:
    """End an answer that was begun."""
    await send({"type": "http.response.body", "body": b""})


async def answer(
    send: Send, status: int, body: bytes, *, kind: str = JSON, headers: Headers = ()
) -> int:
    """Answer at once, and return the status."""
    length = (b"content-length", str(len(body)).encode())
    await begin(send, status, kind, [length, *headers])
    await send({"type": "http.response.body", "body": body})
    return status


async def refuse(send: Send, refused: Refused) -> int:
    """Answer with a refusal, and return the status."""
    later = refused.retry_after_s
    headers = [] if later is None else [(b"retry-after", str(later).encode())]
    if refused.cost_microusd is not None:
        headers.append((COST_HEADER, str(refused.cost_microusd).encode()))
    return await answer(send, refused.status, refused.body(), headers=headers)
