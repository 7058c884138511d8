"""What devices ask for: to join, to sync, and for the policy.

Plain ASGI, one method a path. Guarantees: who asks has proved who it is before anything is read of
what it says; a request is answered after its write is committed, or refused whole; an answer to a
sync is signed, and what it grants was noted outside of the database. A replica that is behind
another never offers something older than the device holds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import parse_qs

from sqlalchemy import Connection

from edge.errors import SignatureInvalid
from edge_sync import keys
from edge_sync.hub.budget.granting import Granting
from edge_sync.hub.devices import check_enrolment, enrolling
from edge_sync.hub.home import Hub
from edge_sync.hub.refusals import Refused
from edge_sync.hub.syncing import Arrival, Taken, revoked, take, unknown_device
from edge_sync.hub.tokens_hmac import make_token, read_token
from edge_sync.hub.view import Known, View
from edge_sync.server.current import Current, Waiter
from edge_sync.server.messages import (
    Receive,
    Scope,
    Send,
    header,
    read_body,
    read_message,
    send_empty,
    send_json,
    unpack,
)
from edge_sync.server.metrics import Metrics
from edge_sync.server.queueing import Bridge, Grants, Places
from edge_sync.wire import REPLY_HEADER, EnrolReply, EnrolRequest, Have, SyncReply, SyncRequest

MAX_WAIT_S = 300.0
_ID_DIGITS = 32
_BEARER = "Bearer "
_REPLY = REPLY_HEADER.lower().encode()


class Devices:
    """The three paths of devices.

    Args:
        hub: the hub, open.
        current: the newest view.
        metrics: told of rows and waiting devices.

    """

    def __init__(self, hub: Hub, current: Current, *, metrics: Metrics) -> None:
        self.hub = hub
        self.current = current
        self.metrics = metrics
        self.places = Places(metrics.shed.inc)
        self.bridge = Bridge(hub.store)
        self.grants = Grants(hub.keys)
        self._take = partial(take, granting=Granting(hub))

    async def enrol(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Let a device join; see ``wire.EnrolRequest``."""
        body = await read_body(scope, receive)
        async with self.places.turn(len(body)):
            plain = unpack(body, header(scope, b"content-encoding"))
            request = read_message(EnrolRequest, plain)
            work = enrolling(self.hub, request, device_id=check_enrolment(request))
            reply: EnrolReply = await self.bridge.write(_run, work)
        scope["device"] = reply.device_id
        await send_json(send, 200, reply.model_dump_json().encode())
        return 200

    async def sync(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Take what a device reports and tell it what is new; see ``wire.SyncRequest``."""
        known = await self._known(header(scope, b"edge-device"), scope)
        body = await read_body(scope, receive)
        async with self.places.turn(len(body)):
            signature = header(scope, b"edge-signature")
            _verify(known, body, signature, device_id=scope["device"])
            plain = unpack(body, header(scope, b"content-encoding"))
            request = read_message(SyncRequest, plain, about=scope["device"])
            _check(request, scope["device"])
            arrival = Arrival(request, self.hub.clock())
            taken: Taken = await self.bridge.write(self._take, arrival)
            if not taken.again:
                self.metrics.rows.inc(len(request.rows))
            await self.grants.note(taken.granted)
            reply = await self._reply(self.current.view, known, request, taken)
        signed = self.current.signer.sign_reply(request.request_id, reply)
        await send_json(send, 200, reply, [(_REPLY, signed.encode())])
        return 200

    async def policy(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Answer with newer metadata than the device holds; 304 where there is none in time."""
        device_id = self._bearer(scope)
        known = await self._known(device_id, scope)
        query = scope["query_string"]
        wait_s, root = _asked(query) if query else (0.0, 0)
        held = header(scope, b"if-none-match")
        view = self.current.view
        offers = view.serial(device_id, known.group) and _news(view, device_id, known, held)
        if wait_s > 0 and not self.current.ended and not offers:
            await receive()
            await self._wait(device_id, known, held, wait_s, receive)
            view = self.current.view
            known = await self._known(device_id, scope)
        etag = view.etag(device_id, known.group)
        serial = view.serial(device_id, known.group)
        if not serial or not _news(view, device_id, known, held):
            await send_empty(send, 304, [(b"etag", etag.encode())])
            return 304
        bundle = await self.current.bundle(
            view, root=root, serial=serial, with_policy=_parts(held)[2] != serial
        )
        headers = [(b"etag", etag.encode()), (b"cache-control", b"no-store")]
        await send_json(send, 200, bundle, headers)
        return 200

    async def _wait(
        self, device_id: str, known: Known, held: str, wait_s: float, receive: Receive
    ) -> None:
        """Wait until there is news, the time is over, or the device has gone."""
        loop = asyncio.get_running_loop()
        waiter = Waiter(device_id, known.group, held, loop.create_future())
        gone = loop.create_task(_gone(receive, waiter.woken))
        timer = loop.call_later(wait_s, _let_go, waiter.woken)
        self.current.waiters.add(waiter)
        self.metrics.polls.inc()
        try:
            await waiter.woken
        finally:
            self.metrics.polls.dec()
            self.current.waiters.discard(waiter)
            timer.cancel()
            gone.cancel()

    async def _known(self, device_id: str, scope: Scope) -> Known:
        """Return the device that asks.

        Raises:
            Refused: it never joined, or its key was revoked.

        """
        known = await self.current.device(device_id)
        plain = device_id.isascii() and device_id.isalnum()  # what is told, also to terminals
        scope["device"] = device_id[:_ID_DIGITS] if plain else "of no valid id"
        if known is None:
            raise unknown_device(scope["device"])
        if known.status == "revoked":
            raise revoked(device_id, "")
        return known

    def _bearer(self, scope: Scope) -> str:
        """Return the device id of the request's token.

        Raises:
            Refused: it is missing, forged or too old.

        """
        value = header(scope, b"authorization")
        read = read_token(self.hub.token_key, value[len(_BEARER) :])
        if read is None or not value.startswith(_BEARER) or read[1] <= self.hub.clock():
            raise Refused(
                "expired_token",
                "The token is missing, not of this hub, or older than a week.",
                hint="Sync, and ask with the token of that answer.",
            )
        return read[0]

    async def _reply(self, view: View, known: Known, request: SyncRequest, taken: Taken) -> bytes:
        now = self.hub.clock()
        reply = SyncReply(
            nonce=taken.nonce,
            token=make_token(self.hub.token_key, request.device_id, now=now),
            receipt=taken.receipt,
            watermark=taken.watermark,
            time=self.current.signer.sign_time(request.request_id, now=now),
            epoch=taken.epoch,
            quarantined=taken.quarantined,
            leases=[json.loads(lease) for lease in taken.leases],
            next_sync_s=self.hub.settings.sync_every_s,
        )
        body = reply.model_dump_json(exclude={"bundle"}).encode()
        serial = view.serial(request.device_id, known.group)
        if not serial or not _news(view, request.device_id, known, request.have.etag):
            return body
        bundle = await self.current.bundle(
            view, root=request.have.root, serial=serial, with_policy=request.have.serial != serial
        )
        return body[:-1] + b',"bundle":' + bundle + b"}"


def _run(connection: Connection, works: Sequence[Callable[[Connection], Any]]) -> list[Any]:
    return [work(connection) for work in works]


def _verify(known: Known, body: bytes, signature: str, *, device_id: str) -> None:
    try:
        keys.verify_sync(known.public_key, body, signature=signature)
    except SignatureInvalid as error:
        raise Refused(
            "bad_signature",
            error.message,
            hint=error.hint,
            what="sync.bad_signature",
            about=device_id,
        ) from error


def _check(request: SyncRequest, device_id: str) -> None:
    """Refuse a body of another device.

    Raises:
        Refused: it is.

    """
    if request.device_id != device_id:
        raise Refused(
            "bad_signature",
            f"Device {device_id} signed a request of device {request.device_id}.",
            hint="Was a state folder copied? Enrol the copy with a new code.",
            what="sync.bad_signature",
            about=device_id,
        )


def _asked(query: bytes) -> tuple[float, int]:
    """Return how long to wait, in seconds, and the version of the root that the device holds."""
    try:
        values = parse_qs(query.decode("ascii"), max_num_fields=8)
        wait_s = float(values.get("wait", ["0"])[0])
        root = int(values.get("root", ["0"])[0])
    except ValueError as error:
        raise Refused(
            "bad_request",
            "The query's `wait` and `root` are not both numbers.",
            hint="Write them as `?wait=60&root=1`.",
        ) from error
    return (min(wait_s, MAX_WAIT_S) if wait_s > 0 else 0.0), root


def _parts(etag: str) -> tuple[int, int, int]:
    """Return root, timestamp and serial of a version tag; zeros where it is none."""
    parts = etag.removeprefix("W/").strip('"').split(".")
    if len(parts) != 3 or not all(part.isdecimal() and len(part) < 17 for part in parts):  # noqa: PLR2004
        return 0, 0, 0
    return int(parts[0]), int(parts[1]), int(parts[2])


def _news(view: View, device_id: str, known: Known, held: str) -> bool:
    """Whether the view has something newer than what the device holds.

    Another replica may have given it more than this one has read; that is no news.
    """
    if held == view.etag(device_id, known.group):
        return False
    have: Have = view.have(device_id, known.group)
    return _parts(held) < (have.root, have.timestamp, have.serial)


def _let_go(woken: asyncio.Future[bool]) -> None:
    if not woken.done():
        woken.set_result(False)


async def _gone(receive: Receive, woken: asyncio.Future[bool]) -> None:
    """End a wait whose connection was closed."""
    with suppress(asyncio.CancelledError):
        await receive()
        _let_go(woken)
