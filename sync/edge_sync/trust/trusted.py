"""What a device trusts. Verifies; never touches disk, network or clock.

An immutable value: ``accept`` returns the next one or raises, and nothing changes. Guarantees that
only what the chain from the first root signed is followed, that versions, serials and revisions
never fall, that all parts belong together and are for this device, and that nothing expired is
taken in. Does not know whether a policy loads, nor what time it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from edge.errors import HubDistrusted, PolicyExpired, SignatureInvalid, VersionRollback
from edge_sync.trust import chain as chains
from edge_sync.trust import clock, metadata
from edge_sync.trust.assignment import Assignment, ModelTarget, policy_path, read_assignment
from edge_sync.trust.chain import Chain
from edge_sync.trust.metadata import Part, Targets
from edge_sync.trust.reply import verify_reply
from edge_sync.wire import Attested, Bundle, Have

MIN_FINGERPRINT = 32
"""Hex digits of the first root's sha256 that an enrolment code must hold at least."""

REFUSALS = (SignatureInvalid, VersionRollback, PolicyExpired, HubDistrusted)
"""What ``accept`` raises."""


@dataclass(frozen=True)
class TrustState:
    """The bytes to keep; empty where nothing was accepted yet."""

    root: bytes
    timestamp: bytes = b""
    snapshot: bytes = b""
    targets: bytes = b""
    assignment: bytes = b""

    def as_dict(self) -> dict[str, bytes]:
        """Return the parts by name, for a store."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    @classmethod
    def from_dict(cls, parts: Mapping[str, bytes]) -> TrustState:
        """Return the state from a store; names it does not know are passed over."""
        names = {part.name for part in fields(cls)}
        return cls(**{name: data for name, data in parts.items() if name in names})


@dataclass(frozen=True)
class Accepted:
    """A bundle that verifies.

    Attributes:
        trusted: to go on with.
        assignment: what to run.
        document_bytes: the policy, where the bundle brought one.
        fresh: whether the assignment is newer than the one held before.

    """

    trusted: Trusted
    assignment: Assignment
    document_bytes: bytes | None
    fresh: bool

    @property
    def models(self) -> Mapping[str, ModelTarget]:
        """The models to run, by name."""
        return self.assignment.models


@dataclass(frozen=True)
class Trusted:
    """Verified metadata; made by ``start`` or ``load``.

    Attributes:
        chain: the parts.
        assignment: what the last one says; ``None`` before the first bundle.

    """

    chain: Chain
    assignment: Assignment | None = None

    @classmethod
    def start(cls, root: bytes, *, fingerprint: str | None) -> Trusted:
        """Return the trust of a new device.

        Args:
            root: the first root metadata, as the hub sent it.
            fingerprint: its sha256 in hex, or at least the first 32 digits, from the enrolment
                code; ``None`` trusts what came.

        Raises:
            HubDistrusted: the root is malformed or not the one that the code names.
            SignatureInvalid: it is not signed by its own keys.

        """
        if fingerprint is not None and not _is_root(root, fingerprint):
            raise HubDistrusted(
                "The hub's root metadata is not the one that the enrolment code names.",
                hint="Check the hub's address, or ask the fleet admin for a new code.",
            )
        return cls(chains.start(root))

    @classmethod
    def load(cls, state: TrustState) -> Trusted:
        """Return the trust from what was kept.

        Kept parts that do not verify any more are dropped, so that damage cannot lock a device
        out.

        Raises:
            HubDistrusted, SignatureInvalid: the root itself does not verify.

        """
        chain = chains.restore(state.root, state.as_dict())
        try:
            assigned = chain.assigned
            return cls(chain, read_assignment(assigned.signed) if assigned else None)
        except HubDistrusted:
            return cls(replace(chain, assigned=None))

    @property
    def state(self) -> TrustState:
        """The bytes to keep."""
        held = self.chain
        parts = (held.root, held.timestamp, held.snapshot, held.targets, held.assigned)
        return TrustState(*(part.data if part else b"" for part in parts))

    @property
    def have(self) -> Have:
        """The versions held; ``revision`` is the assigned one."""
        return Have(
            root=self.chain.root.version,
            timestamp=self.chain.timestamp.version if self.chain.timestamp else 0,
            serial=self.assignment.serial if self.assignment else 0,
            revision=self.assignment.revision if self.assignment else 0,
        )

    @property
    def expires_s(self) -> float | None:
        """Until when the policy is in force in full, seconds since the epoch; ``None``: no policy.

        The earliest expiry of assignment, targets and root. Timestamp and snapshot say how old a
        bundle may be when it is taken in, not how long a device may stay away.
        """
        if self.chain.targets is None or self.chain.assigned is None:
            return None
        parts = (self.chain.root, self.chain.targets, self.chain.assigned)
        return min(part.expires_s for part in parts)

    def tightened(self, now: float) -> bool:
        """Whether the policy in force has expired, so that nothing may leave the device."""
        return self.expires_s is not None and not now < self.expires_s

    def time(self, attested: Attested, *, request_id: str, roots: Sequence[str] = ()) -> float:
        """Return the hub's time, seconds since the epoch.

        Args:
            attested: from the reply.
            request_id: of the request that it answers.
            roots: those of the reply's bundle, since the timestamp key may be new.

        Raises:
            SignatureInvalid: the time was forged or is of another reply.
            VersionRollback, HubDistrusted: the roots do not follow.

        """
        root = chains.advance(self.chain, roots).root.signed
        return clock.verify_time(root, attested, request_id=request_id)

    def verify_reply(
        self, header: str, *, request_id: str, body: bytes, roots: Sequence[str] = ()
    ) -> None:
        """Check the signature of a whole answer.

        Args:
            header: see ``wire.REPLY_HEADER``.
            request_id: of the request that it answers.
            body: as it came.
            roots: see ``time``.

        Raises:
            SignatureInvalid: the answer was forged, changed or is to another request.
            VersionRollback, HubDistrusted: the roots do not follow.

        """
        root = chains.advance(self.chain, roots).root.signed
        verify_reply(root, header, request_id=request_id, body=body)

    def advance(self, roots: Sequence[str]) -> Trusted:
        """Return the trust after newer roots alone, each signed by the one before and by itself.

        Raises:
            SignatureInvalid, VersionRollback, HubDistrusted: a root does not follow.

        """
        return replace(self, chain=chains.advance(self.chain, roots))

    def accept(
        self,
        bundle: Bundle,
        *,
        device_id: str,
        group: str,
        now: float,
        document: bytes | None = None,
    ) -> Accepted:
        """Verify a bundle.

        Args:
            bundle: as it came.
            device_id: of this device.
            group: of this device.
            now: the time to judge expiry by, seconds since the epoch.
            document: the policy that the device has; it stands in where the bundle brings none.

        Raises:
            SignatureInvalid: a part was changed, swapped, or signed by the wrong keys.
            VersionRollback: a part is older than what was accepted before.
            PolicyExpired: a part has expired at ``now``.
            HubDistrusted: a part is malformed, too long, missing, or for another device.

        """
        chain = chains.extend(self.chain, bundle, now=now)
        _check_published(chain.assigned, chain.targets)
        assignment = read_assignment(chain.assigned.signed)
        _check_audience(assignment, device_id, group)
        held = self.assignment
        if held is not None:
            _check_revision(assignment, held)
        if bundle.policy is not None:
            brought: bytes | None = _brought(bundle.policy, assignment, chain.assigned)
        else:
            brought = None
            _check_has(assignment, held, document)
        fresh = held is None or assignment.serial > held.serial
        return Accepted(Trusted(chain, assignment), assignment, brought, fresh)


def _is_root(root: bytes, wanted: str) -> bool:
    return len(wanted) >= MIN_FINGERPRINT and metadata.fingerprint(root).startswith(wanted)


def _check_published(assigned: Part[Targets], targets: Part[Targets]) -> None:
    """Check that each target of an assignment was published exactly as it names it."""
    published = targets.signed.targets
    for path, meta in assigned.signed.targets.items():
        if published.get(path) != meta:
            raise SignatureInvalid(
                f"Assignment {assigned.version} and the targets metadata differ on {path}."
            )


def _check_audience(assignment: Assignment, device_id: str, group: str) -> None:
    if not assignment.is_for(device_id, group):
        whom = f"device {assignment.device}" if assignment.device else f"group {assignment.group}"
        raise HubDistrusted(f"Assignment {assignment.serial} is for {whom}, not for this device.")


def _check_revision(new: Assignment, held: Assignment) -> None:
    if new.revision < held.revision:
        raise VersionRollback(
            f"Assignment {new.serial} leads to policy {new.revision}, held is {held.revision}."
        )
    if new.revision == held.revision and new.policy_sha256 != held.policy_sha256:
        raise VersionRollback(f"Policy {held.revision} was replaced under its own number.")


def _brought(policy: str, assignment: Assignment, assigned: Part[Targets]) -> bytes:
    """Return the policy that a bundle brings, which must be the assigned one."""
    if assignment.revision == 0:
        raise HubDistrusted("The bundle brings a policy that its assignment does not name.")
    document = metadata.encode(policy, "policy")
    meta = assigned.signed.targets[policy_path(assignment.revision)]
    metadata.check_file(meta, document, what=f"policy {assignment.revision}")
    return document


def _check_has(assignment: Assignment, held: Assignment | None, document: bytes | None) -> None:
    """Check that a device has the assigned policy already, since the bundle brings none."""
    if assignment.revision == (held.revision if held else 0):
        return
    if document is None or metadata.fingerprint(document) != assignment.policy_sha256:
        raise HubDistrusted(f"The bundle lacks policy {assignment.revision}.", hint="Sync again.")
