"""What the hub asks of a gateway. Every request carries ``Authorization: Bearer SECRET``.

    POST /v1/register/seal       {"leases": [ID, …]}
        No new holds on them, for ever, also on those never seen. Answers their standings; the hub
        refunds amount - used of a lease once, and only where ``final`` is true; until then it asks
        again.
    POST /v1/register/epoch      {"epoch": N}
        Leases of older epochs are refused from now on; the answer has the epoch in force, which
        may be higher, and totals. A lease with a newer epoch raises it as well.
    POST /v1/register/revoke     {"devices": [ID, …], "revoked": true}
    POST /v1/register/reconcile  {"hold_id": ID, "actual_microusd": N}
        What the provider billed for a hold whose outcome was unclear.
    POST /v1/register/adjust     {"adjustment_id", "hold_id", "amount_microusd", "reason"}
        What the provider gave back later; never more than the hold cost.
    GET  /v1/register/state?after=ID&limit=N    epoch, totals, and standings by lease id; totals
                                                take a look at all leases, and none with totals=0
    GET  /v1/register/state?revoked_after=ID    epoch and revoked devices by id, and no leases
    GET  /v1/register/rows?after=SEQ&limit=N    holds by their last change; ask from the last seq

Money is in micro-dollars. All of them may be repeated. Refusals are those of ``refusals``.
"""

from __future__ import annotations

import hmac
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar
from urllib.parse import parse_qs

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_sync.gateway import messages
from edge_sync.gateway.book import Book
from edge_sync.gateway.config import Settings
from edge_sync.gateway.messages import Receive, Scope, Send
from edge_sync.gateway.records import Standing
from edge_sync.gateway.refusals import Refused
from edge_sync.gateway.register import Turns
from edge_sync.money.lease import MOST_MICROUSD

PREFIX = "/v1/register/"
MOST_ROWS = 1_000
_ID = r"^[0-9a-f]{32}$"
_WHOLE = re.compile(r"\d{1,18}", re.ASCII)
M = TypeVar("M", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Seal(_Strict):
    """Leases to seal."""

    leases: list[str] = Field(min_length=1, max_length=MOST_ROWS)


class Epoch(_Strict):
    """The epoch from which on leases count."""

    epoch: int = Field(ge=0, le=MOST_MICROUSD)


class Revoke(_Strict):
    """Devices to refuse, or to take back."""

    devices: list[str] = Field(min_length=1, max_length=MOST_ROWS)
    revoked: bool = True


class Reconcile(_Strict):
    """What an unclear hold came to."""

    hold_id: str = Field(pattern=_ID)
    actual_microusd: int = Field(ge=0, le=MOST_MICROUSD)


class Adjust(_Strict):
    """What a provider gave back."""

    adjustment_id: str = Field(min_length=8, max_length=64)
    hold_id: str = Field(pattern=_ID)
    amount_microusd: int = Field(gt=0, le=MOST_MICROUSD)
    reason: str = Field(max_length=500)


class Admin:
    """Answers the hub.

    Args:
        settings: of the gateway.
        turns: to the register.
        secret: that the hub's requests carry.
        clock: seconds since the epoch.

    """

    def __init__(
        self,
        settings: Settings,
        turns: Turns,
        secret: str,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._turns = turns
        self._expected = f"Bearer {secret}".encode()
        self._clock = clock
        self._steps: Mapping[tuple[str, str], Callable[[bytes, str], Callable[[Book], Any]]] = {
            ("POST", "seal"): self._seal,
            ("POST", "epoch"): self._epoch,
            ("POST", "revoke"): self._revoke,
            ("POST", "reconcile"): self._reconcile,
            ("POST", "adjust"): self._adjust,
            ("GET", "state"): self._state,
            ("GET", "rows"): self._rows,
        }

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Serve a request below ``PREFIX`` and return its status.

        Raises:
            Refused: it is not the hub's, is malformed, or the rules say no.

        """
        given = messages.header(scope, b"authorization").encode("latin-1")
        if not hmac.compare_digest(given, self._expected):
            raise Refused(
                "unauthorized", "The secret is missing or wrong.", hint="Send the gateway's secret."
            )
        step = self._steps.get((scope["method"], scope["path"].removeprefix(PREFIX)))
        if step is None:
            raise Refused("not_found", "There is no such path.", hint="See docs/pools.md.")
        body = await messages.read_body(scope, receive, limit=self._settings.limits.body_bytes)
        work = step(body, scope["query_string"].decode("latin-1"))
        found = await self._turns.write(work)
        return await messages.answer(send, 200, json.dumps(found).encode())

    def _seal(self, body: bytes, _query: str) -> Callable[[Book], Any]:
        leases, now = _ids(_read(Seal, body).leases), self._clock()
        return lambda book: {"leases": [_told(book.seal(each, now=now)) for each in leases]}

    def _epoch(self, body: bytes, _query: str) -> Callable[[Book], Any]:
        epoch, hub = _read(Epoch, body).epoch, self._settings.hub.name
        return lambda book: {"epoch": book.fence(hub, epoch), "totals": book.totals()}

    def _revoke(self, body: bytes, _query: str) -> Callable[[Book], Any]:
        asked, now = _read(Revoke, body), self._clock()
        devices = _ids(asked.devices)

        def work(book: Book) -> dict[str, Any]:
            for device in devices:
                book.revoke(device, revoked=asked.revoked, now=now)
            return {"devices": devices, "revoked": asked.revoked}

        return work

    def _reconcile(self, body: bytes, _query: str) -> Callable[[Book], Any]:
        asked, now = _read(Reconcile, body), self._clock()
        return lambda book: asdict(book.reconcile(asked.hold_id, asked.actual_microusd, now=now))

    def _adjust(self, body: bytes, _query: str) -> Callable[[Book], Any]:
        asked, now = _read(Adjust, body), self._clock()

        def work(book: Book) -> dict[str, Any]:
            book.adjust(
                asked.adjustment_id,
                asked.hold_id,
                amount_microusd=asked.amount_microusd,
                reason=asked.reason,
                now=now,
            )
            return asked.model_dump()

        return work

    def _state(self, _body: bytes, query: str) -> Callable[[Book], Any]:
        after, limit = _page(query)
        pool, hub = self._settings.pool, self._settings.hub.name
        values = parse_qs(query, keep_blank_values=True)
        counted, behind = values.get("totals") != ["0"], values.get("revoked_after")

        def work(book: Book) -> dict[str, Any]:
            found = {
                "pool": pool,
                "epoch": book.epoch(hub),
                "totals": book.totals() if counted else None,
            }
            if behind:
                return found | {
                    "leases": [],
                    "revoked": book.revoked(after=behind[-1], limit=limit),
                }
            standings = book.standings(after=after, limit=limit)
            return found | {"leases": [_told(each) for each in standings]}

        return work

    def _rows(self, _body: bytes, query: str) -> Callable[[Book], Any]:
        after, limit = _page(query)
        if after and _WHOLE.fullmatch(after) is None:
            raise _bad("after is no number")
        return lambda book: {"rows": book.rows(after=int(after or 0), limit=limit)}


def _told(standing: Standing) -> dict[str, Any]:
    return {
        **asdict(standing),
        "used_microusd": standing.used_microusd,
        "final": standing.final,
    }


def _read(kind: type[M], body: bytes) -> M:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part)[:40] for part in first["loc"]) or "the body"
        raise _bad(f"{place}: {first['msg'][:200]}") from error


def _ids(given: list[str]) -> list[str]:
    for each in given:
        if re.fullmatch(r"[0-9a-f]{32}", each) is None:
            raise _bad(f"{each[:40]!r} is no id of 32 hex digits")
    return given


def _page(query: str) -> tuple[str, int]:
    values = parse_qs(query)
    limit = values.get("limit", [str(MOST_ROWS)])[-1]
    if _WHOLE.fullmatch(limit) is None or not 0 < int(limit) <= MOST_ROWS:
        raise _bad(f"limit is not 1 to {MOST_ROWS}")
    return values.get("after", [""])[-1], int(limit)


def _bad(what: str) -> Refused:
    return Refused("bad_request", f"The request is wrong: {what}.", hint="Correct it.")
