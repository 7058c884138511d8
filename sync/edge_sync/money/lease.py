"""A lease: a signed right of one device to spend an amount at one pool within one period.

Canonical JSON under Ed25519, money in integer micro-dollars. Whoever holds a lease can check it
without asking anybody; what was already spent of it, only the pool's gateway knows. Reads no clock.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from edge.errors import InputError, SignatureInvalid
from edge_sync.money.periods import bounds

MOST_MICROUSD = 10**15
MAX_BYTES = 2_000
_LONGEST = 200
_PREFIX = b"edge-lease-1\n"
_ID = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")


@dataclass(frozen=True, slots=True)
class Lease:
    """A right to spend.

    Attributes:
        lease_id: random, 32 hex digits.
        scope: whose money it is, ``group:kiosks`` or ``group:kiosks;task:draft``; with device and
            pool it tells every cap that it counts in.
        period: ``total``, or kind and start in UTC: ``month:2026-11``, ``hour:2026-11-24T19``.
        device_id: who may spend it.
        pool_id: where; its gateway alone redeems it.
        epoch: of the hub that granted it; an older one than the gateway knows is void.
        amount_microusd: at most so much.
        not_after: seconds since the epoch; for liveness, the gateway refuses it later.
        policy_version: revision in force when it was granted.
        key_id: of the hub's key.
        signature: 128 hex digits; empty before it is signed.

    """

    lease_id: str
    scope: str
    period: str
    device_id: str
    pool_id: str
    epoch: int
    amount_microusd: int
    not_after: int
    policy_version: int
    key_id: str
    signature: str = ""

    @classmethod
    def parse(cls, text: bytes | str) -> Self:
        """Read a lease; its signature is not looked at.

        Raises:
            InputError: it is none; the field that is wrong is named.

        """
        if len(text) > MAX_BYTES:
            raise _wrong("it is too long")
        try:
            body = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _wrong("it is no JSON") from error
        if not isinstance(body, dict) or body.keys() != set(cls.__slots__):
            raise _wrong("its fields are not those of a lease")
        found = cls(**body)
        for name, good in _checks(found).items():
            if not good:
                raise _wrong(f"{name} is {str(getattr(found, name))[:80]!r}")
        return found

    def text(self) -> str:
        """Return it as it is sent: canonical JSON with the signature."""
        return _canonical(asdict(self))

    def signed(self, key: Ed25519PrivateKey) -> Self:
        """Return it under a key's signature."""
        return replace(self, signature=key.sign(self._payload()).hex())

    def verify(self, key: Ed25519PublicKey) -> None:
        """Check the signature.

        Raises:
            SignatureInvalid: it is of another key or another lease.

        """
        try:
            key.verify(bytes.fromhex(self.signature), self._payload())
        except (InvalidSignature, ValueError) as error:
            raise SignatureInvalid(
                f"The signature of lease {self.lease_id} does not verify.",
                hint="Sync with the hub for another lease.",
            ) from error

    def _payload(self) -> bytes:
        body = asdict(self)
        del body["signature"]
        return _PREFIX + _canonical(body).encode()


def _checks(lease: Lease) -> dict[str, bool]:
    return {
        "lease_id": _fits(_ID, lease.lease_id),
        "scope": isinstance(lease.scope, str) and 0 < len(lease.scope) <= _LONGEST,
        "period": _is_period(lease.period),
        "device_id": _fits(_ID, lease.device_id),
        "pool_id": _fits(_NAME, lease.pool_id),
        "epoch": _whole(lease.epoch),
        "amount_microusd": _whole(lease.amount_microusd),
        "not_after": _whole(lease.not_after),
        "policy_version": _whole(lease.policy_version),
        "key_id": isinstance(lease.key_id, str) and 0 < len(lease.key_id) <= _LONGEST,
        "signature": _fits(_SIGNATURE, lease.signature),
    }


def _is_period(value: Any) -> bool:
    try:
        return isinstance(value, str) and bounds(value)[0] < bounds(value)[1]
    except InputError:
        return False


def _fits(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST_MICROUSD


def _canonical(body: dict[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _wrong(what: str) -> InputError:
    return InputError(f"This is no lease: {what}.", hint="Sync with the hub for another.")
