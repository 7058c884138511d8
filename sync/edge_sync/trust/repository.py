"""The hub's side of trust: metadata as bytes in, newer metadata as bytes out.

An immutable value over the newest file of each role and the keys at hand. Each step returns the
next repository; ``changes`` lists the files that a caller has to keep, in one transaction, before
anybody sees them. Guarantees that versions rise, and that each step leaves a set that devices take.
Never touches the database; of disks it knows the key folder alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner, SSlibKey

from edge.errors import ConfigError, HubDistrusted, SignatureInvalid
from edge_sync.trust.assignment import (
    ROLE,
    Stopped,
    custom_fields,
    model_path,
    policy_path,
    read_assignment,
)
from edge_sync.trust.clock import time_payload
from edge_sync.trust.metadata import (
    Part,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
    fingerprint,
    read,
    verified,
    verify,
)
from edge_sync.trust.reply import reply_payload
from edge_sync.trust.signing import (
    SignedFile,
    Terms,
    copy_signed,
    delegated,
    delegating,
    exchange,
    meta,
    sign,
    target,
)
from edge_sync.trust.vault import Vault
from edge_sync.wire import Attested

TOP_ROLES = ("root", "targets", "snapshot", "timestamp")
ROLES = (*TOP_ROLES, ROLE)
_KINDS: Mapping[str, Any] = {
    "root": Root,
    "targets": Targets,
    "snapshot": Snapshot,
    "timestamp": Timestamp,
}


@dataclass(frozen=True)
class Repository:
    """The newest metadata of each role, and the keys to sign what follows."""

    vault: Vault
    terms: Terms
    root: Part[Root]
    targets: Part[Targets]
    snapshot: Part[Snapshot]
    timestamp: Part[Timestamp]

    @classmethod
    def create(cls, folder: Path, *, now: float, terms: Terms | None = None) -> Repository:
        """Make keys in a folder without any, and the first metadata.

        Raises:
            ConfigError: the folder holds keys already.
            StoreError: the folder cannot be written.

        """
        terms = terms or Terms()
        vault = Vault.open(folder)
        if vault.signers:
            raise ConfigError(
                f"{folder} holds keys already.",
                hint="Choose another folder; with new keys all devices must enrol anew.",
            )
        keys: dict[str, tuple[SSlibKey, ...]] = {}
        for role in ROLES:
            vault, keys[role] = vault.make(role, terms.keys(role))
        return _first(vault, terms, keys, now=now)

    @classmethod
    def open(
        cls, folder: Path, files: Mapping[str, bytes], *, terms: Terms | None = None
    ) -> Repository:
        """Return the repository over kept files.

        Args:
            folder: with the keys; some may be elsewhere.
            files: the newest body of each of ``TOP_ROLES``.
            terms: days count, the numbers of keys are as they were.

        Raises:
            ConfigError: a file is missing or was changed.

        """
        try:
            parts: dict[str, Any] = {r: read(_KINDS[r], files[r], role=r) for r in TOP_ROLES}
            for part in parts.values():
                verify(part, parts["root"])
        except (KeyError, HubDistrusted, SignatureInvalid) as error:
            raise ConfigError(
                f"The hub's own metadata cannot be used: {error}",
                hint="Restore the hub's database from a backup.",
            ) from error
        return cls(Vault.open(folder), terms or Terms(), **parts)

    @property
    def files(self) -> dict[str, bytes]:
        """The newest body of each role of ``TOP_ROLES``."""
        return {file.role: file.body for file in self.changes(None)}

    @property
    def fingerprint(self) -> str:
        """The sha256 of the newest root, 64 hex digits; a new device is given it by its code."""
        return fingerprint(self.root.data)

    def changes(self, before: Repository | None) -> tuple[SignedFile, ...]:
        """Return the files that are newer than those of an earlier repository; all for ``None``."""
        found = []
        for role in TOP_ROLES:
            part = getattr(self, role)
            if before is None or part.version > getattr(before, role).version:
                found.append(SignedFile(role, part.version, part.data))
        return tuple(found)

    def publish(
        self, targets: Mapping[str, bytes], *, now: float, withdraw: Iterable[str] = ()
    ) -> Repository:
        """Publish policies and models, so that assignments can name them.

        Args:
            targets: content by path, see ``policy_path`` and ``model_path``.
            now: seconds since the epoch.
            withdraw: paths that are published no more; devices that run them go on.

        Raises:
            ConfigError: a path is of another form or was published with other content, there are
                too many, or a key is elsewhere.

        """
        signed = copy_signed(self.targets)
        for path in withdraw:
            signed.targets.pop(path, None)
        for path, data in targets.items():
            signed.targets[path] = target(path, data, signed.targets.get(path))
        return _with_targets(self, signed, now=now)

    def assign(
        self,
        *,
        serial: int,
        now: float,
        group: str | None = None,
        device: str | None = None,
        revision: int = 0,
        models: Mapping[str, str] | None = None,
        stopped: Stopped | None = None,
    ) -> bytes:
        """Return a signed assignment of published policies and models.

        Args:
            serial: higher than that of any assignment before.
            now: seconds since the epoch.
            group: for whom; beside ``device`` the group that it belongs to from now on.
            device: for this one alone.
            revision: of the policy; 0 for the pack's own.
            models: digest by name.
            stopped: what must not run.

        Raises:
            ConfigError: it is for nobody, names what is not published or is no name, or the key is
                elsewhere.

        """
        audience = {k: v for k, v in (("group", group), ("device", device)) if v is not None}
        if not audience or serial < 1:
            raise ConfigError("An assignment needs a serial above 0, and a group or a device.")
        paths = [model_path(name, digest) for name, digest in (models or {}).items()]
        paths += [policy_path(revision)] if revision else []
        signed = Targets(
            version=serial,
            expires=self.terms.expires(ROLE, now),
            targets={path: _published(self.targets.signed, path) for path in sorted(paths)},
            unrecognized_fields=custom_fields(audience, stopped or Stopped()),
        )
        part = sign(signed, self.signers(ROLE), role=ROLE)
        _check_assignment(part)
        return part.data

    def assignment_is_due(self, body: bytes, *, now: float) -> bool:
        """Whether an assignment must be made anew, under a new serial.

        So it is with half of its lifetime gone, or where its key was replaced.
        """
        part = read(Targets, body, role=ROLE)
        return self.terms.is_due(part, now) or not verified(part, self.targets)

    def due(self, *, now: float) -> tuple[str, ...]:
        """Return the roles whose metadata has less than half of its lifetime left."""
        return tuple(role for role in TOP_ROLES if self.terms.is_due(getattr(self, role), now))

    def refresh(self, *, now: float) -> Repository:
        """Sign anew what is due and whose keys are here; the same value where nothing is.

        Roles whose keys are elsewhere stay in ``due``.
        """
        able = [role for role in self.due(now=now) if self.vault.holds(*self.keys(role))]
        result = self
        if "root" in able:
            result = _with_root(result, copy_signed(result.root), now=now)
        for role in ("targets", "snapshot", "timestamp"):
            if role in able:
                return _sign_below(result, role, now=now)
        return result

    def refresh_timestamp(self, *, now: float) -> Repository:
        """Sign a new timestamp over the same snapshot, due or not."""
        signed = Timestamp(
            version=self.timestamp.version + 1,
            expires=self.terms.expires("timestamp", now),
            snapshot_meta=meta(self.snapshot),
        )
        part = sign(signed, self.signers("timestamp"), role="timestamp")
        return replace(self, timestamp=part)

    def rotate(self, role: str, *, now: float) -> Repository:
        """Replace all keys of a role by as many new ones, and sign anew what the old ones signed.

        This is the answer to a stolen key. After ``assignment`` every assignment is void: make each
        anew (``assignment_is_due`` says so). Old key files stay in the folder and count no more.

        Raises:
            ConfigError: no such role, or a key that must sign is elsewhere.

        """
        if role not in ROLES:
            raise ConfigError(f"There is no role {role}.", hint=f"One of {', '.join(ROLES)}.")
        self.signers("targets" if role == ROLE else "root")  # before a key file is written
        vault, keys = self.vault.make(role, len(self.keys(role)[0]))
        fresh = replace(self, vault=vault)
        if role == ROLE:
            return _with_targets(fresh, delegating(copy_signed(self.targets), keys), now=now)
        signed = copy_signed(self.root)
        exchange(signed, role, keys)
        return _sign_below(_with_root(fresh, signed, now=now), role, now=now)

    def sign_time(self, request_id: str, *, now: float) -> Attested:
        """Return the time, signed for one request."""
        time_ms = int(now * 1_000)
        signature = self.signers("timestamp")[0].sign(time_payload(request_id, time_ms))
        return Attested(
            request_id=request_id,
            time_ms=time_ms,
            keyid=signature.keyid,
            signature=signature.signature,
        )

    def sign_reply(self, request_id: str, body: bytes) -> str:
        """Return the header that vouches for an answer, see ``wire.REPLY_HEADER``."""
        signature = self.signers("timestamp")[0].sign(reply_payload(request_id, body))
        return f"{signature.keyid}:{signature.signature}"

    def keys(self, role: str) -> tuple[list[str], int]:
        """Return the ids of the keys that may sign for a role, and how many must."""
        found = delegated(self.targets.signed) if role == ROLE else self.root.signed.roles[role]
        return found.keyids, found.threshold

    def signers(self, role: str) -> list[CryptoSigner]:
        """Return the keys of a role that are here.

        Raises:
            ConfigError: too few of them are.

        """
        keyids, threshold = self.keys(role)
        return self.vault.pick(role, keyids, threshold=threshold)


def _with_root(repository: Repository, signed: Root, *, now: float) -> Repository:
    signed.version = repository.root.version + 1
    signed.expires = repository.terms.expires("root", now)
    role = signed.roles["root"]
    new = repository.vault.pick("root", role.keyids, threshold=role.threshold)
    both = {key.public_key.keyid: key for key in (*repository.signers("root"), *new)}
    return replace(repository, root=sign(signed, both.values(), role="root"))


def _with_targets(repository: Repository, signed: Targets, *, now: float) -> Repository:
    signed.version = repository.targets.version + 1
    signed.expires = repository.terms.expires("targets", now)
    part = sign(signed, repository.signers("targets"), role="targets")
    return _with_snapshot(replace(repository, targets=part), now=now)


def _with_snapshot(repository: Repository, *, now: float) -> Repository:
    signed = Snapshot(
        version=repository.snapshot.version + 1,
        expires=repository.terms.expires("snapshot", now),
        meta={"targets.json": meta(repository.targets)},
    )
    part = sign(signed, repository.signers("snapshot"), role="snapshot")
    return replace(repository, snapshot=part).refresh_timestamp(now=now)


def _sign_below(repository: Repository, role: str, *, now: float) -> Repository:
    """Sign anew from a role downwards, so that its new keys stand under what devices take."""
    if role == "targets":
        return _with_targets(repository, copy_signed(repository.targets), now=now)
    if role == "snapshot":
        return _with_snapshot(repository, now=now)
    return repository.refresh_timestamp(now=now) if role == "timestamp" else repository


def _check_assignment(part: Part[Targets]) -> None:
    try:
        read_assignment(part.signed)
    except HubDistrusted as error:
        raise ConfigError(f"No device would take this: {error.message}") from error


def _published(targets: Targets, path: str) -> TargetFile:
    found = targets.targets.get(path)
    if found is None:
        raise ConfigError(f"{path} is not published.", hint="Publish it first.")
    return found


def _first(
    vault: Vault, terms: Terms, keys: Mapping[str, tuple[SSlibKey, ...]], *, now: float
) -> Repository:
    root = Root(version=1, expires=terms.expires("root", now), consistent_snapshot=False)
    for role in TOP_ROLES:
        exchange(root, role, keys[role])
        root.roles[role].threshold = terms.threshold(role)
    targets = delegating(Targets(version=1, expires=terms.expires("targets", now)), keys[ROLE])
    signers = {
        role: vault.pick(role, [key.keyid for key in keys[role]], threshold=1) for role in TOP_ROLES
    }
    signed_targets = sign(targets, signers["targets"], role="targets")
    snapshot = sign(
        Snapshot(
            version=1,
            expires=terms.expires("snapshot", now),
            meta={"targets.json": meta(signed_targets)},
        ),
        signers["snapshot"],
        role="snapshot",
    )
    timestamp = sign(
        Timestamp(version=1, expires=terms.expires("timestamp", now), snapshot_meta=meta(snapshot)),
        signers["timestamp"],
        role="timestamp",
    )
    signed_root = sign(root, signers["root"], role="root")
    return Repository(vault, terms, signed_root, signed_targets, snapshot, timestamp)
