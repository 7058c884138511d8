"""Signs a device's calls to the gateways of its fleet's pools: the entry point ``edge.signers``.

The key is the one that the device joined with; it is read when first needed, so that a device may
join while its app runs. Knows nothing of what a lease is good for.
"""

from __future__ import annotations

import base64
from pathlib import Path

from edge.errors import ConfigError
from edge_sync.agent.device import KEY_FILE
from edge_sync.keys import DeviceKey, load_key
from edge_sync.wire import DEVICE_HEADER, KEY_HEADER, LEASE_HEADER, SIGNATURE_HEADER


class Signing:
    """Signs for the device of one state folder; safe to use from several threads.

    Args:
        state: the state folder.

    """

    def __init__(self, state: Path) -> None:
        self._path = state / KEY_FILE
        self._key: DeviceKey | None = None

    def check(self) -> None:
        """Make sure that there is a key.

        Raises:
            ConfigError: the device has not joined a fleet, or its key is damaged.

        """
        self._loaded()

    def headers(self, body: bytes, *, lease_id: str, lease: str, key: str) -> dict[str, str]:
        """Return what a call carries beside its body; see ``edge.cloud.gateway.Signer``.

        Raises:
            ConfigError: as ``check``.

        """
        device = self._loaded()
        return {
            DEVICE_HEADER: device.device_id,
            KEY_HEADER: device.public_key,
            LEASE_HEADER: base64.b64encode(lease.encode()).decode("ascii"),
            SIGNATURE_HEADER: device.sign_call(body, lease_id=lease_id, idempotency_key=key),
        }

    def _loaded(self) -> DeviceKey:
        if self._key is None:
            if not self._path.exists():
                raise ConfigError(
                    "This device has not joined a fleet, so it can sign no call to a gateway.",
                    hint="Join it with the enrolment code that the fleet's admin gave you.",
                )
            self._key = load_key(self._path)
        return self._key
