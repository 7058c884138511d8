"""A hub in memory that signs whatever it is told to, also what no hub should sign.

Holds every role's content and signers as plain values to be changed; a bundle is signed at the
moment it is asked for. Beside it a device that syncs, and checks that a refusal changed nothing.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from edge_sync.trust.trusted import Accepted, Trusted, TrustState
from edge_sync.wire import Bundle

NOW = 1_800_000_000.0
DAY = 86_400.0
DEVICE, GROUP = "d" * 32, "kiosks"
TOP = ("root", "timestamp", "snapshot", "targets")
PARTS = ("timestamp", "snapshot", "targets", "assignment", "policy")


@cache
def signer(number: int) -> CryptoSigner:
    """Return the signer of this number; always the same."""
    private = Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))
    return CryptoSigner(private, SSlibKey.from_crypto(private.public_key()))


def at(now: float) -> datetime:
    return datetime.fromtimestamp(now, UTC).replace(microsecond=0)


def document(revision: int) -> bytes:
    return json.dumps({"format": "edge-policy-1", "revision": revision}).encode()


class HubSimulator:
    """Keys 1 to 5 sign root, timestamp, snapshot, targets and assignment."""

    def __init__(self) -> None:
        later = at(NOW + 30 * DAY)
        self.signers = {
            role: [signer(number)] for number, role in enumerate((*TOP, "assignment"), start=1)
        }
        self.root = Root(version=1, expires=later, consistent_snapshot=False)
        for role in TOP:
            self.root.add_key(self.signers[role][0].public_key, role)
        self.documents = {revision: document(revision) for revision in (1, 2, 3)}
        self.targets = Targets(version=1, expires=later)
        self.delegate([self.signers["assignment"][0].public_key])
        for revision, data in self.documents.items():
            path = f"policies/{revision}.json"
            self.targets.targets[path] = TargetFile.from_data(path, data, ["sha256"])
        self.assignment = Targets(version=1, expires=later)
        self.assign(1)
        self.snapshot = Snapshot(version=1, expires=later)
        self.timestamp = Timestamp(version=1, expires=later)
        self.roots: list[bytes] = []
        self.publish_root(version=1)
        self.link()

    def delegate(self, keys: list[SSlibKey], threshold: int = 1) -> None:
        """Name who may sign assignments."""
        by_id = {key.keyid: key for key in keys}
        role = DelegatedRole(
            "assignment", list(by_id), threshold, terminating=True, paths=["policies/*"]
        )
        self.targets.delegations = Delegations(dict(by_id), roles={"assignment": role})

    def assign(self, revision: int, serial: int | None = None, **audience: str) -> None:
        """Make the assignment lead to a policy."""
        path = f"policies/{revision}.json"
        self.assignment.version = serial or self.assignment.version
        self.assignment.targets = {path: self.targets.targets[path]} if revision else {}
        self.assignment.unrecognized_fields["x-edge"] = {
            "for": audience or {"group": GROUP},
            "stopped": {"models": [], "tools": [], "tasks": []},
        }

    def replace_keys(self, role: str, *numbers: int) -> None:
        """Give a role of the root other keys; the next ``publish_root`` tells."""
        for keyid in list(self.root.roles[role].keyids):
            self.root.revoke_key(keyid, role)
        for number in numbers:
            self.root.add_key(signer(number).public_key, role)
        self.signers[role] = [signer(number) for number in numbers]

    def publish_root(self, *, version: int | None = None) -> None:
        """Publish the root as it is now, one version up."""
        self.root.version = self.root.version + 1 if version is None else version
        self.roots.append(self.sign("root"))

    def sign(self, role: str) -> bytes:
        metadata: Metadata = Metadata(getattr(self, role))
        for key in self.signers[role]:
            metadata.sign(key, append=True)
        return metadata.to_bytes(JSONSerializer(compact=True))

    def link(self, *, upwards_from: str = "targets") -> None:
        """Let snapshot and timestamp name what stands below them, without a change of version."""
        if upwards_from == "targets":
            data = self.sign("targets")
            self.snapshot.meta["targets.json"] = MetaFile.from_data(
                self.targets.version, data, ["sha256"]
            )
        data = self.sign("snapshot")
        self.timestamp.snapshot_meta = MetaFile.from_data(self.snapshot.version, data, ["sha256"])

    def update_targets(self) -> None:
        """Publish targets, snapshot and timestamp, one version up each."""
        self.targets.version += 1
        self.update_snapshot()

    def update_snapshot(self) -> None:
        self.snapshot.version += 1
        self.timestamp.version += 1
        self.link()

    def expire(self, role: str) -> None:
        getattr(self, role).expires = at(NOW - DAY)

    def revision(self) -> int:
        for path in self.assignment.targets:
            return int("".join(filter(str.isdigit, path)) or 0)
        return 0

    def bundle(self, device: Device, **parts: str | list[str] | None) -> Bundle:
        """Return what a device would get now; ``parts`` stand in for the true ones."""
        held = device.trusted.have.root
        policy = self.documents.get(self.revision())
        true: dict[str, object] = {
            "roots": [root.decode() for root in self.roots[held:]],
            **{role: self.sign(role).decode() for role in (*TOP[1:], "assignment")},
            "policy": None if policy is None else policy.decode(),
        }
        return Bundle.model_validate({**true, **parts})


class Device:
    """A device with its trust, its clock set by the hub."""

    def __init__(self, sim: HubSimulator, device_id: str = DEVICE, *, group: str = GROUP) -> None:
        self.trusted = Trusted.start(sim.roots[0], fingerprint=None)
        self.id, self.group, self.now = device_id, group, NOW

    @property
    def state(self) -> TrustState:
        return self.trusted.state

    def take(self, bundle: Bundle, *, now: float | None = None) -> Accepted:
        """Accept a bundle as a device does: anew from what it keeps, then keep what follows."""
        trusted = Trusted.load(self.state)
        accepted = trusted.accept(
            bundle, device_id=self.id, group=self.group, now=self.now if now is None else now
        )
        self.trusted = accepted.trusted
        return accepted

    def sync(self, sim: HubSimulator) -> Accepted:
        return self.take(sim.bundle(self))
