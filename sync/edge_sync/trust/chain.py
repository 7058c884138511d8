"""The chain of verified metadata: root, timestamp, snapshot, targets, assignment, in this order.

Pure functions over an immutable value. Each step verifies one part against those before it and
against what is held, and raises or returns the part. The order is the TUF specification's client
workflow (1.0, part 5) without its downloads. Does not know whose device it is, what an assignment
says, nor what time it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edge.errors import HubDistrusted, PolicyExpired, SignatureInvalid, VersionRollback
from edge_sync.trust.assignment import ROLE
from edge_sync.trust.metadata import (
    AnySigned,
    Part,
    Root,
    Snapshot,
    Targets,
    Timestamp,
    check_file,
    encode,
    read,
    verified,
    verify,
)
from edge_sync.wire import Bundle

MAX_ROOTS = 64
"""How many roots one bundle may bring."""


@dataclass(frozen=True)
class Chain:
    """Metadata that was verified, each part by those before it; ``None`` where nothing is held."""

    root: Part[Root]
    timestamp: Part[Timestamp] | None = None
    snapshot: Part[Snapshot] | None = None
    targets: Part[Targets] | None = None
    assigned: Part[Targets] | None = None


@dataclass(frozen=True)
class WholeChain(Chain):
    """A chain that lacks nothing."""

    timestamp: Part[Timestamp]
    snapshot: Part[Snapshot]
    targets: Part[Targets]
    assigned: Part[Targets]


def start(root: bytes) -> Chain:
    """Return the chain that begins with a trusted root.

    Raises:
        HubDistrusted: it is malformed.
        SignatureInvalid: it is not signed by its own keys.

    """
    part = read(Root, root, role="root")
    verify(part, part)
    return Chain(part)


def restore(root: bytes, kept: Mapping[str, bytes]) -> Chain:
    """Return the chain from kept bytes by role.

    A part that does not verify any more is dropped, so that damage cannot lock a device out; an
    expired one still guards against older ones.

    Raises:
        HubDistrusted, SignatureInvalid: the root itself does not verify.

    """
    chain = start(root)
    targets = _kept(Targets, kept["targets"], chain.root, role="targets")
    return Chain(
        chain.root,
        _kept(Timestamp, kept["timestamp"], chain.root, role="timestamp"),
        _kept(Snapshot, kept["snapshot"], chain.root, role="snapshot"),
        targets,
        targets and _kept(Targets, kept[ROLE], targets, role=ROLE),
    )


def advance(chain: Chain, roots: Sequence[str]) -> Chain:
    """Return the chain after newer roots, each signed by the one before and by itself.

    Whether a root has expired does not matter here. Timestamp and snapshot are dropped where the
    keys of either were replaced (TUF 5.3.11): so a fleet recovers from a stolen key that signed far
    too high versions.

    Raises:
        SignatureInvalid: a root is not signed by the one before or by itself.
        VersionRollback: a root is not the next version.
        HubDistrusted: a root is malformed, or there are too many.

    """
    if len(roots) > MAX_ROOTS:
        raise HubDistrusted(f"The bundle brings more than {MAX_ROOTS} roots.")
    root = chain.root
    for text in roots:
        root = _next_root(root, encode(text, "root"))
    if root is chain.root or (_stands(chain.timestamp, root) and _stands(chain.snapshot, root)):
        return replace(chain, root=root)
    return replace(chain, root=root, timestamp=None, snapshot=None)


def extend(chain: Chain, bundle: Bundle, *, now: float) -> WholeChain:
    """Return the chain that a bundle leads to.

    Args:
        chain: what is held.
        bundle: as it came; its policy is not looked at.
        now: the time to judge expiry by, seconds since the epoch.

    Raises:
        SignatureInvalid: a part was changed, swapped, or signed by the wrong keys.
        VersionRollback: a part is older than the one held.
        PolicyExpired: a part has expired at ``now``.
        HubDistrusted: a part is malformed or too long.

    """
    base = advance(chain, bundle.roots)
    root = _unexpired(base.root, now)
    timestamp = _unexpired(_timestamp(base, encode(bundle.timestamp, "timestamp")), now)
    snapshot = _unexpired(_snapshot(base, encode(bundle.snapshot, "snapshot"), timestamp), now)
    targets = _unexpired(_targets(root, encode(bundle.targets, "targets"), snapshot), now)
    assigned = _unexpired(_assigned(base, encode(bundle.assignment, ROLE), targets), now)
    return WholeChain(root, timestamp, snapshot, targets, assigned)


def _stands(part: Part[AnySigned] | None, root: Part[Root]) -> bool:
    return part is None or verified(part, root)


def _next_root(root: Part[Root], data: bytes) -> Part[Root]:
    part = read(Root, data, role="root")
    verify(part, root)
    if part.version != root.version + 1:
        raise VersionRollback(
            f"Root version {part.version} does not follow on version {root.version}.",
            hint="Sync again.",
        )
    verify(part, part)
    return part


def _timestamp(chain: Chain, data: bytes) -> Part[Timestamp]:
    part = read(Timestamp, data, role="timestamp")
    verify(part, chain.root)
    held = chain.timestamp
    if held is None:
        return part
    _not_older(part, held)
    old, new = held.signed.snapshot_meta.version, part.signed.snapshot_meta.version
    if new < old:
        raise VersionRollback(f"The timestamp leads to snapshot version {new}, held is {old}.")
    return part


def _snapshot(chain: Chain, data: bytes, timestamp: Part[Timestamp]) -> Part[Snapshot]:
    meta = timestamp.signed.snapshot_meta
    check_file(meta, data, what="snapshot metadata")
    part = read(Snapshot, data, role="snapshot")
    verify(part, chain.root)
    _is_version(part, meta.version)
    if chain.snapshot is not None:
        _no_file_older(part.signed, chain.snapshot.signed)
    return part


def _targets(root: Part[Root], data: bytes, snapshot: Part[Snapshot]) -> Part[Targets]:
    meta = snapshot.signed.meta.get("targets.json")
    if meta is None:
        raise HubDistrusted("The snapshot metadata does not name the targets metadata.")
    check_file(meta, data, what="targets metadata")
    part = read(Targets, data, role="targets")
    verify(part, root)
    _is_version(part, meta.version)
    return part


def _assigned(chain: Chain, data: bytes, targets: Part[Targets]) -> Part[Targets]:
    part = read(Targets, data, role=ROLE)
    verify(part, targets)
    if chain.assigned is not None and verified(chain.assigned, targets):
        _not_older(part, chain.assigned)
    return part


def _kept(
    kind: type[AnySigned], data: bytes, delegator: Part[Root] | Part[Targets], *, role: str
) -> Part[AnySigned] | None:
    if not data:
        return None
    try:
        part = read(kind, data, role=role)
        verify(part, delegator)
    except (HubDistrusted, SignatureInvalid):
        return None
    return part


def _unexpired(part: Part[AnySigned], now: float) -> Part[AnySigned]:
    if part.expired(now):
        raise PolicyExpired(
            f"The {part.role} metadata (version {part.version}) expired on"
            f" {part.signed.expires:%Y-%m-%d %H:%M} UTC.",
            hint="Sync with the hub; if it stays, the fleet admin must refresh the hub's metadata.",
        )
    return part


def _is_version(part: Part[AnySigned], wanted: int) -> None:
    if part.version != wanted:
        raise SignatureInvalid(
            f"The {part.role} metadata has version {part.version}, not {wanted} as was signed."
        )


def _not_older(part: Part[AnySigned], held: Part[AnySigned]) -> None:
    if part.version < held.version:
        raise VersionRollback(
            f"The {part.role} metadata has version {part.version}, held is {held.version}."
        )
    if part.version == held.version and part.payload != held.payload:
        raise SignatureInvalid(
            f"There are two {part.role} metadata of version {part.version}.",
            hint="Ask the fleet admin whether the hub was restored, or its key stolen.",
        )


def _no_file_older(new: Snapshot, held: Snapshot) -> None:
    for name, meta in held.meta.items():
        found = new.meta.get(name)
        if found is None:
            raise VersionRollback(f"The snapshot lacks {name}, which was there before.")
        if found.version < meta.version:
            raise VersionRollback(
                f"The snapshot leads to {name} version {found.version}, held is {meta.version}."
            )
