"""The hub's attested time, and which time a device judges expiry by.

The hub signs its time together with the random id of one request, so that an answer can be neither
forged nor kept for later. A device's own clock counts only while no attested time is known, and
then never before the newest one seen: a wrong clock can tighten, and the next sync sets it right.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from securesystemslib.exceptions import Error as SecuresystemslibError
from securesystemslib.signer import Signature

from edge.errors import SignatureInvalid
from edge_sync.trust.metadata import MAX_INT, Root
from edge_sync.wire import Attested

_CONTEXT = "edge-time-1"


@dataclass(frozen=True)
class Clock:
    """What a device knows of the time; seconds since the epoch.

    Attributes:
        newest_s: the last attested time; 0 for none.
        boot_s: the reading of ``boot_s()`` then; ``None`` where it was in another process.

    """

    newest_s: float = 0.0
    boot_s: float | None = None

    def attest(self, time_s: float, *, boot_s: float) -> Clock:
        """Return the clock after an attested time, at a reading of the time since boot.

        The new time stands though it be before the old one: it is signed for a fresh request.
        """
        return Clock(time_s, boot_s)

    def now(self, own_s: float, *, boot_s: float) -> float:
        """Return the time to judge expiry by.

        Args:
            own_s: the device's own clock.
            boot_s: the time since boot, now.

        """
        if self.boot_s is not None and boot_s >= self.boot_s:
            return self.newest_s + (boot_s - self.boot_s)
        return max(own_s, self.newest_s) if math.isfinite(own_s) else self.newest_s

    def as_dict(self) -> dict[str, float]:
        """Return what is worth keeping over a restart."""
        return {"newest_s": self.newest_s}

    @classmethod
    def from_dict(cls, kept: Mapping[str, object]) -> Clock:
        """Return the clock from what was kept; what is no time counts as none."""
        newest = kept.get("newest_s")
        if isinstance(newest, int | float) and math.isfinite(newest) and newest > 0:
            return cls(float(newest))
        return cls()


def boot_s() -> float:
    """Return the seconds since boot, time in suspension included where the system tells."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def time_payload(request_id: str, time_ms: int) -> bytes:
    """Return the bytes that the hub signs."""
    return f"{_CONTEXT}\n{request_id}\n{time_ms}".encode("utf-8", "replace")


def verify_time(root: Root, attested: Attested, *, request_id: str) -> float:
    """Return the hub's time, seconds since the epoch.

    Args:
        root: trusted; its timestamp keys may sign time.
        attested: from the reply.
        request_id: of the request that it must answer.

    Raises:
        SignatureInvalid: it answers another request, or no timestamp key signed it.

    """
    if attested.request_id != request_id:
        raise SignatureInvalid("The hub's time was signed for another request.", hint=_HINT)
    if not 0 <= attested.time_ms < MAX_INT:
        raise SignatureInvalid("The hub's time is no time.", hint=_HINT)
    payload = time_payload(request_id, attested.time_ms)
    verify_now(root, payload, keyid=attested.keyid, signature=attested.signature, what="time")
    return attested.time_ms / 1_000


def verify_now(root: Root, payload: bytes, *, keyid: str, signature: str, what: str) -> None:
    """Check what the hub signed just now, for one request.

    Args:
        root: trusted; its timestamp keys may sign such things.
        payload: the bytes that were signed.
        keyid: of the key.
        signature: in hex.
        what: it is, for messages.

    Raises:
        SignatureInvalid: no timestamp key signed it.

    """
    key = root.keys.get(keyid)
    if key is None or keyid not in root.roles["timestamp"].keyids:
        raise SignatureInvalid(f"The hub's {what} is not signed by a timestamp key.", hint=_HINT)
    try:
        key.verify_signature(Signature(keyid, signature), payload)
    except (SecuresystemslibError, ValueError, TypeError) as error:
        raise SignatureInvalid(
            f"The signature of the hub's {what} is wrong.", hint=_HINT
        ) from error


_HINT = "Sync again; if it stays, ask the fleet admin whether somebody stands between."
