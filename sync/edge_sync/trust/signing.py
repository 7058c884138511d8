"""How metadata is made: terms of keys and lifetimes, and one piece signed by given keys.

Pure but for the randomness of new keys, which the vault brings. Knows no order of roles.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import DelegatedRole, Delegations, MetaFile, Role

from edge.errors import ConfigError, HubDistrusted
from edge_sync.trust.assignment import PATHS, ROLE, is_target
from edge_sync.trust.metadata import (
    MAX_BYTES,
    AnySigned,
    Metadata,
    Part,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    dump,
    read,
)

_DAY_S = 86_400.0
_MAX_KEYS = 16
_MAX_DAYS = 36_500


@dataclass(frozen=True)
class Terms:
    """How many keys sign, and how long what they sign is valid.

    The counts matter when keys are made; the days whenever something is signed.
    """

    root_keys: int = 1
    root_threshold: int = 1
    targets_keys: int = 1
    targets_threshold: int = 1
    root_days: float = 365.0
    targets_days: float = 365.0
    snapshot_days: float = 30.0
    timestamp_days: float = 2.0
    assignment_days: float = 30.0

    def __post_init__(self) -> None:
        for role in ("root", "targets"):
            keys, threshold = getattr(self, f"{role}_keys"), getattr(self, f"{role}_threshold")
            if not 1 <= threshold <= keys <= _MAX_KEYS:
                raise ConfigError(
                    f"{threshold} of {keys} {role} keys cannot sign.",
                    hint=f"Choose a threshold from 1 to the number of keys, at most {_MAX_KEYS}.",
                )
        for role in ("root", "targets", "snapshot", "timestamp", "assignment"):
            days = getattr(self, f"{role}_days")
            if not (math.isfinite(days) and 0 < days <= _MAX_DAYS):
                raise ConfigError(
                    f"{role} metadata cannot be valid for {days} days.",
                    hint=f"Choose more than 0 and at most {_MAX_DAYS} days.",
                )

    def keys(self, role: str) -> int:
        """How many keys a role starts with."""
        return int(getattr(self, f"{role}_keys", 1))

    def threshold(self, role: str) -> int:
        """How many of them must sign."""
        return int(getattr(self, f"{role}_threshold", 1))

    def lifetime_s(self, role: str) -> float:
        """For how many seconds a role's metadata is valid."""
        return float(getattr(self, f"{role}_days")) * _DAY_S

    def expires(self, role: str, now: float) -> datetime:
        """When metadata of a role that is signed now expires, in whole seconds."""
        return datetime.fromtimestamp(int(now + self.lifetime_s(role)), UTC)

    def is_due(self, part: Part[Any], now: float) -> bool:
        """Whether less than half of the lifetime is left."""
        return part.expires_s - now < self.lifetime_s(part.role) / 2


@dataclass(frozen=True)
class SignedFile:
    """One file of metadata, to keep under its role and version."""

    role: str
    version: int
    body: bytes


def sign(signed: AnySigned, signers: Iterable[CryptoSigner], *, role: str) -> Part[AnySigned]:
    """Return a piece of metadata, signed by all given keys and read back.

    Raises:
        ConfigError: it has grown too long for a device.

    """
    metadata = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    try:
        return read(type(signed), dump(metadata), role=role)
    except HubDistrusted as error:
        raise ConfigError(
            f"No device would take this: {error.message}",
            hint="Withdraw policies and models that no group is assigned.",
        ) from error


def copy_signed(part: Part[AnySigned]) -> AnySigned:
    """Return what a part signs, free to be changed."""
    return copy.deepcopy(part.signed)


def exchange(root: Root, role: str, keys: Iterable[Key]) -> None:
    """Give a role of the root new keys in place of the old ones."""
    for keyid in list(root.roles[role].keyids):
        root.revoke_key(keyid, role)
    for key in keys:
        root.add_key(key, role)


def delegating(targets: Targets, keys: Iterable[Key]) -> Targets:
    """Let these keys alone sign assignments."""
    by_id = {key.keyid: key for key in keys}
    role = DelegatedRole(ROLE, list(by_id), 1, terminating=True, paths=list(PATHS))
    targets.delegations = Delegations(by_id, roles={ROLE: role})
    return targets


def delegated(targets: Targets) -> Role:
    """Return who may sign assignments.

    Raises:
        ConfigError: nobody.

    """
    roles = targets.delegations.roles if targets.delegations else None
    if not roles or ROLE not in roles:
        raise ConfigError(
            "The hub's targets metadata delegates no assignments.",
            hint="Restore the hub's database from a backup.",
        )
    return roles[ROLE]


def target(path: str, data: bytes, held: TargetFile | None) -> TargetFile:
    """Return a target for some content, which must not change under a path.

    Raises:
        ConfigError: the path is of another form, or the content is too long or another than before.

    """
    if not is_target(path):
        raise ConfigError(f"{path} is neither policies/N.json nor models/NAME/DIGEST.json.")
    if len(data) > MAX_BYTES["policy"]:
        raise ConfigError(
            f"{path} is longer than {MAX_BYTES['policy']:,} bytes.", hint="Make it shorter."
        )
    made = TargetFile.from_data(path, data, ["sha256"])
    if held is not None and held != made:
        raise ConfigError(f"{path} was published with other content.", hint="Take a new number.")
    return made


def meta(part: Part[Snapshot] | Part[Targets]) -> MetaFile:
    """Return what a part is named by in the part above it."""
    return MetaFile.from_data(part.version, part.data, ["sha256"])
