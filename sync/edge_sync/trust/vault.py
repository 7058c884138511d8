"""The hub's private keys: one PEM file (PKCS 8, mode 0600) each, in one folder.

A file is named by the role the key was made for and its key id; which keys count is said by signed
metadata, never by the folder. Keys of root and targets can be kept elsewhere and brought back for
the day they are needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, SSlibKey

from edge.errors import ConfigError
from edge_sync.keys import load_private, private_pem, write_private


@dataclass(frozen=True)
class Vault:
    """The keys of one folder, by key id; immutable, as it was read.

    Attributes:
        folder: where new keys are written.
        signers: by key id.

    """

    folder: Path
    signers: Mapping[str, CryptoSigner]

    @classmethod
    def open(cls, folder: Path) -> Vault:
        """Read all keys of a folder; one that is not there holds none.

        Raises:
            ConfigError: a file can be read by others or holds no Ed25519 key.

        """
        found = [_signer(load_private(path)) for path in sorted(folder.glob("*.pem"))]
        return cls(folder, MappingProxyType({key.public_key.keyid: key for key in found}))

    def make(self, role: str, count: int) -> tuple[Vault, tuple[SSlibKey, ...]]:
        """Make keys for a role; return the vault that holds them, and their public halves.

        Raises:
            StoreError: the folder cannot be written.

        """
        made = {}
        for _ in range(count):
            private = Ed25519PrivateKey.generate()
            signer = _signer(private)
            keyid = signer.public_key.keyid
            write_private(self.folder / f"{role}-{keyid[:16]}.pem", private_pem(private))
            made[keyid] = signer
        vault = Vault(self.folder, MappingProxyType({**self.signers, **made}))
        return vault, tuple(signer.public_key for signer in made.values())

    def holds(self, keyids: Sequence[str], threshold: int) -> bool:
        """Whether enough of these keys are here."""
        return sum(keyid in self.signers for keyid in keyids) >= threshold

    def pick(self, role: str, keyids: Sequence[str], *, threshold: int) -> list[CryptoSigner]:
        """Return those of a role's keys that are here.

        Raises:
            ConfigError: they are fewer than the threshold.

        """
        found = [self.signers[keyid] for keyid in keyids if keyid in self.signers]
        if len(found) < threshold:
            missing = ", ".join(keyid[:16] for keyid in keyids if keyid not in self.signers)
            raise ConfigError(
                f"{self.folder} holds {len(found)} of the {threshold} keys that {role} needs;"
                f" not there: {missing}.",
                hint="Put the key files back for this command, then take them away again.",
            )
        return found


def _signer(private: Ed25519PrivateKey) -> CryptoSigner:
    return CryptoSigner(private, SSlibKey.from_crypto(private.public_key()))
