"""The key that the hub signs leases with: one file beside its other keys, ``lease.key``.

Its name is ``lease-`` and the first 16 hex digits of the sha256 of the public key. Gateways are
given the public half by hand; all replicas of a hub have the same file. Knows no tables.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sync.keys import load_private, private_pem, write_private

NAME = "lease.key"
FACT = "lease_key"
"""The fact that says its name, so that a replica with another key grants nothing."""
_DIGITS = 16


@dataclass(frozen=True, repr=False)
class LeaseKey:
    """The private key of a hub's leases."""

    private: Ed25519PrivateKey

    @property
    def public_key(self) -> str:
        """The public key, 64 hex digits."""
        return self.private.public_key().public_bytes_raw().hex()

    @property
    def key_id(self) -> str:
        """Its name, as leases and the settings of gateways have it."""
        digest = hashlib.sha256(self.private.public_key().public_bytes_raw()).hexdigest()
        return f"lease-{digest[:_DIGITS]}"


def make(keys: Path) -> LeaseKey:
    """Write a new key into a hub's keys folder.

    Raises:
        StoreError: the folder cannot be written.

    """
    made = LeaseKey(Ed25519PrivateKey.generate())
    write_private(keys / NAME, private_pem(made.private))
    return made


def find(keys: Path) -> LeaseKey | None:
    """Return the key of a hub's keys folder; ``None`` where there is none.

    Raises:
        ConfigError: others can read the file, or it holds no key.

    """
    path = keys / NAME
    return LeaseKey(load_private(path)) if path.exists() else None
