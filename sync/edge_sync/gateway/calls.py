"""Who calls, and what pays: the headers of a device's request, checked.

A device sends a request of OpenAI's interface with these headers besides:

    Edge-Device       its id
    Edge-Key          its public key, 64 hex digits, whose digest is the id
    Edge-Lease        the lease's JSON in base64
    Idempotency-Key   8 to 128 visible ASCII characters, the same when it asks again
    Edge-Signature    base64 of Ed25519 over ``call_payload``
    Edge-Deadline     seconds that are left for the answer; may be missing

Guarantees: a call that passes was signed, with this key and lease, by the device that the lease
names, and the lease by a hub of the settings for this pool. So no list of devices is needed. Reads
no clock and no register: whether the lease is still good for anything, the register says.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge.errors import InputError, SignatureInvalid
from edge_sync.gateway.refusals import Refused
from edge_sync.keys import call_payload, device_id
from edge_sync.money.lease import Lease
from edge_sync.wire import (
    DEADLINE_HEADER,
    DEVICE_HEADER,
    KEY_HEADER,
    LEASE_HEADER,
    SIGNATURE_HEADER,
)

__all__ = ["DEADLINE_HEADER", "IDEMPOTENCY_HEADER", "Call", "Doorkeeper", "call_payload", "hold_id"]

IDEMPOTENCY_HEADER = "Idempotency-Key"
_WANTED = frozenset(
    name.lower().encode()
    for name in (DEVICE_HEADER, KEY_HEADER, LEASE_HEADER, SIGNATURE_HEADER, IDEMPOTENCY_HEADER,
                 DEADLINE_HEADER)
)  # fmt: skip
_IDEMPOTENCY = re.compile(r"[\x21-\x7e]{8,128}")
_CACHED = 4_096


@dataclass(frozen=True, slots=True)
class Call:
    """A request whose sender is known.

    Attributes:
        lease: what pays.
        hold_id: of device and idempotency key, 32 hex digits.
        request_hash: of path and body.
        within_s: what is left for the answer, as the device says; ``None`` where it does not.

    """

    lease: Lease
    hold_id: str
    request_hash: str
    within_s: float | None


def hold_id(device: str, idempotency_key: str) -> str:
    """Return the id of the hold for a device's idempotency key."""
    return hashlib.sha256(f"{device}\n{idempotency_key}".encode()).hexdigest()[:32]


class Doorkeeper:
    """Checks calls for one pool.

    Args:
        pool_id: leases for another pool are refused.
        keys: public keys of the hub by key id, 64 hex digits each.

    """

    def __init__(self, pool_id: str, keys: Mapping[str, str]) -> None:
        self._pool_id = pool_id
        self._keys = {
            name: Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
            for name, key in keys.items()
        }
        # A lease comes with every call of its device; its signature is checked once.
        self._lease: Callable[[str], Lease] = lru_cache(_CACHED)(self._checked)
        self._device: Callable[[str], tuple[str, Ed25519PublicKey]] = lru_cache(_CACHED)(_public)

    def admit(self, path: str, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> Call:
        """Return who calls and what pays.

        Raises:
            Refused: ``bad_request``, ``bad_lease``, ``foreign_lease`` or ``bad_signature``.

        """
        found = {name: value.decode("latin-1") for name, value in headers if name in _WANTED}
        key = _needed(found, IDEMPOTENCY_HEADER)
        if _IDEMPOTENCY.fullmatch(key) is None:
            raise _bad(f"{IDEMPOTENCY_HEADER} is not 8 to 128 visible characters of ASCII")
        lease = self._lease(_needed(found, LEASE_HEADER))
        device = _needed(found, DEVICE_HEADER)
        owner, public = self._device(_needed(found, KEY_HEADER))
        if not device == owner == lease.device_id:
            raise Refused(
                "foreign_lease",
                f"The lease is of device {lease.device_id}, the key of {owner}.",
                hint="Send the device's own lease and key.",
            )
        payload = call_payload(body, lease_id=lease.lease_id, idempotency_key=key)
        _verify(public, _needed(found, SIGNATURE_HEADER), payload)
        digest = hashlib.sha256(path.encode() + b"\n" + body).hexdigest()
        within = found.get(b"edge-deadline")
        return Call(lease, hold_id(device, key), digest, None if within is None else _s(within))

    def _checked(self, text: str) -> Lease:
        try:
            lease = Lease.parse(base64.b64decode(text, validate=True))
        except (binascii.Error, InputError, ValueError) as error:
            raise _bad_lease("it cannot be read") from error
        key = self._keys.get(lease.key_id)
        if key is None:
            raise _bad_lease(f"its key {lease.key_id[:40]!r} is not known here")
        try:
            lease.verify(key)
        except SignatureInvalid as error:
            raise _bad_lease("its signature does not verify") from error
        if lease.pool_id != self._pool_id:
            raise Refused(
                "foreign_lease",
                f"The lease is for pool {lease.pool_id}, not {self._pool_id}.",
                hint="Send it to the gateway of its pool.",
            )
        return lease


def _public(key: str) -> tuple[str, Ed25519PublicKey]:
    try:
        return device_id(key), Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
    except (SignatureInvalid, ValueError) as error:
        raise _bad(f"{KEY_HEADER} is no public key of 64 hex digits") from error


def _verify(public: Ed25519PublicKey, signature: str, payload: bytes) -> None:
    try:
        public.verify(base64.b64decode(signature, validate=True), payload)
    except (InvalidSignature, binascii.Error, ValueError) as error:
        raise Refused(
            "bad_signature",
            "The request was not signed by the device's key.",
            hint="Sign the body as it is sent, with the lease's id and the idempotency key.",
        ) from error


def _needed(found: Mapping[bytes, str], name: str) -> str:
    value = found.get(name.lower().encode())
    if not value:
        raise _bad(f"the header {name} is missing")
    return value


def _s(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise _bad(f"{DEADLINE_HEADER} is no number of seconds")
    return value


def _bad(what: str) -> Refused:
    return Refused("bad_request", f"The call cannot be taken: {what}.", hint="See docs/pools.md.")


def _bad_lease(what: str) -> Refused:
    return Refused(
        "bad_lease", f"The lease does not count: {what}.", hint="Sync with the hub for another."
    )
