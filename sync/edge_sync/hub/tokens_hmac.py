"""Tokens with which devices ask about the policy, so that the hub need not verify a signature.

A token names a device and an end, under an HMAC of the hub's secret. It holds for reading only; it
grants nothing that the device's own key would not. Knows no clock and no database.
"""

from __future__ import annotations

import hmac

LIFETIME_S = 7 * 86_400
_MAC_DIGITS = 32


def make_token(secret: bytes, device_id: str, *, now: float) -> str:
    """Return a token that holds for ``LIFETIME_S``."""
    body = f"{device_id}.{int(now) + LIFETIME_S:x}"
    return f"{body}.{_mac(secret, body)}"


def read_token(secret: bytes, token: str) -> tuple[str, int] | None:
    """Return the device id and the end, seconds since the epoch; ``None`` for a forged token."""
    body, _, mac = token.rpartition(".")
    if not token.isascii() or not hmac.compare_digest(mac, _mac(secret, body)):
        return None
    device_id, _, end = body.partition(".")
    return device_id, int(end, 16)


def _mac(secret: bytes, body: str) -> str:
    return hmac.digest(secret, body.encode(), "sha256").hex()[:_MAC_DIGITS]
