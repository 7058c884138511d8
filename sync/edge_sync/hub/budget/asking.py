"""What the hub asks of a gateway, and whether its answers can be true.

Guarantees: httpx's errors end here; an answer that comes back was made by a
gateway of this pool in this interface, names what was asked for, and adds up in itself; anything
else (a page of a proxy, another pool, a negative amount, more used than granted) arrives as an
error and has changed nothing. Every request ends within ``WHOLE_S``. All may be repeated. Knows no
tables; the other side is ``edge_sync.gateway.admin``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from edge.errors import ConfigError, SyncError
from edge_sync.hub.budget.answers import (
    MOST_TEXT,
    Fenced,
    Reconciled,
    Row,
    Rows,
    Said,
    Sealed,
    Standing,
    State,
    Told,
)

PAGE = 1_000
"""The most leases or rows in one answer."""
WHOLE_S = 20.0
MOST_EPOCHS = 1_000_000
"""A gateway that is so far ahead has not been told by a hub; following it would use epochs up."""
_STEP_S = 5.0
_MOST_BYTES = 8_000_000
_MOST_PORT = 65_535
_M = TypeVar("_M", bound=BaseModel)


class GatewayUnreachable(SyncError):  # noqa: N818 - named as the leaves of the error tree
    """A gateway did not answer; what was granted for it stays put aside."""

    retryable = True
    default_hint = "Start it, or correct its URL with `edge-hub gateways add`."


class GatewayRefused(SyncError):  # noqa: N818 - likewise
    """A gateway said no, or something that cannot be true; no money was moved."""

    default_hint = "Look at the gateway's log, and at its URL and secret in `edge-hub gateways`."


class Asking:
    """A line to one gateway; any thread may ask, one at a time.

    Args:
        url: of the gateway, up to what comes before ``/v1``.
        secret: that it expects.
        pool_id: whose gateway it must be.
        transport: what carries the requests; the network where ``None``.

    Raises:
        ConfigError: the URL is none of http or https.

    """

    def __init__(
        self,
        url: str,
        secret: str,
        *,
        pool_id: str,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url = checked_url(url)
        self._pool_id = pool_id
        self._client = httpx.Client(
            transport=transport,
            timeout=httpx.Timeout(_STEP_S),
            headers={"Authorization": f"Bearer {secret}", "Accept-Encoding": "identity"},
        )

    def state(self, *, after: str = "", limit: int = PAGE, totals: bool = False) -> State:
        """Return the epoch, leases behind one id, and totals where asked: they cost it a scan.

        Raises:
            GatewayUnreachable: it did not answer.
            GatewayRefused: it is of another pool, or its answer cannot be true.

        """
        found = self._state(f"after={after}&limit={limit}&totals={totals:d}")
        ids = [after, *(each.lease_id for each in found.leases)]
        if len(ids) - 1 > limit or any(a >= b for a, b in pairwise(ids)):
            raise self._lies("its leases are not in the order of their ids")
        return found

    def revoked(self, *, after: str = "", limit: int = PAGE) -> list[str]:
        """Return devices that it refuses, behind one id; none where its version does not tell.

        Raises:
            GatewayUnreachable: it did not answer.
            GatewayRefused: it is of another pool, or its answer cannot be true.

        """
        found = self._state(f"revoked_after={after}&limit={limit}&totals=0").revoked or []
        ids = [after, *found]
        if len(found) > limit or any(a >= b for a, b in pairwise(ids)):
            raise self._lies("its revoked devices are not in the order of their ids")
        return found

    def seal(self, leases: Sequence[str]) -> list[Standing]:
        """Have leases take no more holds; return how they stand.

        Raises:
            GatewayUnreachable: it did not answer.
            GatewayRefused: it did not seal all of them, or its answer cannot be true.

        """
        found = self._read(Sealed, "POST", "seal", {"leases": list(leases)}).leases
        if sorted(each.lease_id for each in found) != sorted(leases):
            raise self._lies("it answers for other leases than those to seal")
        if not all(each.sealed for each in found):
            raise self._lies("it did not seal what it was to seal")
        return found

    def fence(self, epoch: int) -> int:
        """Have leases of older epochs refused; return the epoch in force, which may be higher.

        Raises:
            GatewayUnreachable: it did not answer.
            GatewayRefused: it has a lower one, or one that no hub can have told.

        """
        found = self._read(Fenced, "POST", "epoch", {"epoch": epoch}).epoch
        if not epoch <= found <= epoch + MOST_EPOCHS:
            raise self._lies(f"it is at epoch {found} after it was told {epoch}")
        return found

    def revoke(self, devices: Sequence[str]) -> None:
        """Have devices refused.

        Raises:
            GatewayUnreachable: it did not answer.
            GatewayRefused: it did not take all of them.

        """
        found = self._read(Told, "POST", "revoke", {"devices": list(devices), "revoked": True})
        if not found.revoked or sorted(found.devices) != sorted(devices):
            raise self._lies("it did not revoke what it was to revoke")

    def rows(self, *, after: int, limit: int = PAGE) -> list[Row]:
        """Return holds by their last change, behind one.

        Raises:
            GatewayUnreachable: it did not answer.
            GatewayRefused: its answer cannot be true.

        """
        found = self._read(Rows, "GET", f"rows?after={after}&limit={limit}").rows
        numbers = [after, *(each.seq for each in found)]
        if len(found) > limit or any(a >= b for a, b in pairwise(numbers)):
            raise self._lies("its rows are not in order")
        return found

    def reconcile(self, hold_id: str, actual_microusd: int) -> tuple[int, int]:
        """Tell what the provider billed; return what was booked, and what was above the hold.

        Raises:
            GatewayUnreachable: it did not answer.
            GatewayRefused: there is no such hold, or it was closed otherwise.

        """
        body = {"hold_id": hold_id, "actual_microusd": actual_microusd}
        found = self._read(Reconciled, "POST", "reconcile", body)
        if found.actual_microusd + found.excess_microusd != actual_microusd:
            raise self._lies("it booked something else than what was billed")
        return found.actual_microusd, found.excess_microusd

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def _state(self, query: str) -> State:
        found = self._read(State, "GET", f"state?{query}")
        if found.pool != self._pool_id:
            raise self._lies(f"it is the gateway of pool {found.pool[:64]!r}")
        return found

    def _read(self, kind: type[_M], method: str, path: str, body: Any = None) -> _M:
        status, text = self._asked(method, path, body)
        if status != httpx.codes.OK:
            raise self._no(status, text)
        try:
            return kind.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(str(part)[:40] for part in first["loc"]) or "its answer"
            raise self._lies(f"{place}: {first['msg'][:MOST_TEXT]}") from error

    def _asked(self, method: str, path: str, body: Any) -> tuple[int, bytes]:
        """Return status and body; what drips in is bounded in time and size."""
        end = time.monotonic() + WHOLE_S
        url = f"{self._url}/v1/register/{path}"
        try:
            with self._client.stream(method, url, json=body) as answer:
                text = bytearray()
                for part in answer.iter_raw():
                    text += part
                    if len(text) > _MOST_BYTES or time.monotonic() > end:
                        raise self._lies("its answer has no end")
                return answer.status_code, bytes(text)
        except httpx.HTTPError as error:
            reason = str(error).rstrip(".") or type(error).__name__
            raise GatewayUnreachable(
                f"The gateway of pool {self._pool_id} at {self._url} does not answer: "
                f"{reason[:MOST_TEXT]}."
            ) from error

    def _no(self, status: int, text: bytes) -> SyncError:
        try:
            said = Said.model_validate_json(text)
        except ValidationError:
            return self._lies(f"status {status} without a reason that a gateway gives")
        if status >= httpx.codes.INTERNAL_SERVER_ERROR or status == httpx.codes.TOO_MANY_REQUESTS:
            return GatewayUnreachable(
                f"The gateway of pool {self._pool_id} is busy: {said.message[:MOST_TEXT]}"
            )
        return GatewayRefused(
            f"The gateway of pool {self._pool_id} says no: {said.message[:MOST_TEXT]}",
            hint=said.hint,
        )

    def _lies(self, what: str) -> GatewayRefused:
        return GatewayRefused(
            f"What {self._url} answers is no true answer of the gateway of pool "
            f"{self._pool_id}: {what}."
        )


def checked_url(url: str) -> str:
    """Return a gateway's URL without a slash at its end.

    Raises:
        ConfigError: it is none of http or https.

    """
    try:
        found = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise _no_url(url) from error
    fits = found.scheme in {"http", "https"} and found.host and (found.port or 1) <= _MOST_PORT
    if not fits or found.userinfo or found.query or found.fragment:
        raise _no_url(url)
    return str(found).rstrip("/")


def _no_url(url: str) -> ConfigError:
    return ConfigError(
        f"{url[:80]!r} is no URL of a gateway.", hint="Write it as https://gateway.example.org."
    )
