"""Requests that the gateway refuses: a stable code, a status, a sentence and a remedy.

The body serves two readers: ``error`` is what clients of OpenAI's interface look for, the rest is
the fleet's own ``Failure``. Knows nothing of why.
"""

from __future__ import annotations

import json

from edge.errors import EdgeError

STATUSES = {
    "bad_request": 400,
    "unbounded": 400,
    "bad_lease": 401,
    "bad_signature": 401,
    "unauthorized": 401,
    "exhausted": 402,
    "expired_lease": 403,
    "fenced": 403,
    "foreign_lease": 403,
    "revoked": 403,
    "sealed": 403,
    "not_found": 404,
    "too_slow": 408,
    "answered": 409,
    "conflict": 409,
    "in_progress": 409,
    "unclear": 409,
    "too_large": 413,
    "too_many": 429,
    "upstream_failed": 502,
    "unavailable": 503,
    "upstream_late": 504,
}


class Refused(EdgeError):  # noqa: N818 - the root of the tree names its leaves so
    """A request is refused.

    Attributes:
        code: one of ``STATUSES``.
        retry_after_s: when to come back; ``None`` where coming back does not help.
        status: of HTTP, where it is not the code's own.
        cost_microusd: what the request was billed before; ``None`` where it was not.

    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        hint: str,
        retry_after_s: int | None = None,
        status: int | None = None,
        cost_microusd: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.retry_after_s = retry_after_s
        self.status = STATUSES[code] if status is None else status
        self.cost_microusd = cost_microusd

    def body(self) -> bytes:
        """Return what is sent."""
        plain = {"code": self.code, "message": self.message, "hint": self.hint}
        error = {"type": "edge_gateway", "code": self.code, "message": str(self)}
        return json.dumps({"error": error, **plain}).encode()
