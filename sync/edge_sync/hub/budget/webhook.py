"""Posts JSON to an address that an admin named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

TIMEOUT_S = 10.0
_TAKEN = range(200, 300)


def post(url: str, body: Mapping[str, Any]) -> str:
    """Post a body, following no redirect; return what went wrong, empty where it was taken.

    ``Idempotency-Key`` is the number of the alert: the same one may come twice.
    """
    headers = {"Idempotency-Key": str(body["seq"])}
    try:
        # Its body is not read: it may have no end.
        with httpx.stream(
            "POST", url, json=dict(body), headers=headers, timeout=TIMEOUT_S
        ) as answer:
            status = answer.status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        # Its text may name the address.
        return f"The webhook cannot be reached: {type(error).__name__}."
    if status in _TAKEN:
        return ""
    return f"The webhook answered with {status}."
