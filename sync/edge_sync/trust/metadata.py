"""Signed metadata: read strictly, checked against who delegates to it, written in one form.

The single room that meets python-tuf's errors. Guarantees that what it returns was no longer than
its cap, was JSON without doubled keys, fractions or huge integers, and is of the wanted kind. Knows
no order of roles and no clock.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

from securesystemslib.exceptions import Error as SecuresystemslibError
from securesystemslib.formats import encode_canonical
from tuf.api.exceptions import LengthOrHashMismatchError, RepositoryError
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import SerializationError
from tuf.api.serialization.json import JSONSerializer

from edge.errors import HubDistrusted, SignatureInvalid

MAX_BYTES = {
    "root": 65_536,
    "timestamp": 16_384,
    "snapshot": 65_536,
    "targets": 1_000_000,
    "assignment": 65_536,
    "policy": 1_000_000,
}
"""How long each part may be, in bytes."""

MAX_INT = 2**53
"""Versions, lengths and serials stay below."""

MAX_DEPTH = 16
"""How deep metadata may be nested."""

AnySigned = TypeVar("AnySigned", Root, Timestamp, Snapshot, Targets)
_MALFORMED = (
    AttributeError,
    KeyError,
    OverflowError,
    RecursionError,
    RepositoryError,
    SecuresystemslibError,
    SerializationError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Part(Generic[AnySigned]):
    """One piece of metadata whose form is in order.

    Attributes:
        data: as it came.
        signed: what the signatures are about.
        payload: the canonical bytes that are signed.

    """

    role: str
    data: bytes
    signed: AnySigned
    payload: bytes
    metadata: Metadata[AnySigned]

    @property
    def version(self) -> int:
        """The version; rises by at least one with every change."""
        return self.signed.version

    @property
    def expires_s(self) -> float:
        """When it expires, seconds since the epoch."""
        return self.signed.expires.timestamp()

    def expired(self, now: float) -> bool:
        """Whether it has expired; a time that is no number counts as after the end."""
        return not now < self.expires_s


def read(kind: type[AnySigned], data: bytes, *, role: str) -> Part[AnySigned]:
    """Return one piece of metadata; its signatures are not checked yet.

    Args:
        kind: what it must be.
        data: as it came.
        role: its name, which sets the cap on the length.

    Raises:
        HubDistrusted: it is too long, no strict JSON, or of another kind.

    """
    check_length(data, role)
    try:
        tree = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_bounded,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
        if not isinstance(tree, dict):
            _malformed(role, "it is no object")
        _check_depth(tree)
        if set(tree) != {"signed", "signatures"}:
            _malformed(role, "it has other keys than signed and signatures")
        payload = _canonical(tree["signed"], plain=b"\\" not in data)
        metadata = Metadata[AnySigned].from_dict(tree)
        signed = metadata.signed
        if not isinstance(signed, kind):
            _malformed(role, f"it is of the kind {signed.type}")
    except _MALFORMED as error:
        raise HubDistrusted(f"The {role} metadata is malformed: {_reason(error)}.") from error
    return Part(role, data, signed, payload, metadata)


def verify(part: Part[AnySigned], delegator: Part[Root] | Part[Targets]) -> None:
    """Check that enough of the keys that the delegator names have signed.

    Raises:
        SignatureInvalid: fewer valid signatures than the threshold asks for.

    """
    try:
        delegator.signed.verify_delegate(part.role, part.payload, part.metadata.signatures)
    except _MALFORMED as error:
        raise SignatureInvalid(
            f"The {part.role} metadata (version {part.version}) is not signed by enough of the"
            f" keys that {delegator.role} (version {delegator.version}) names."
        ) from error


def verified(part: Part[AnySigned], delegator: Part[Root] | Part[Targets]) -> bool:
    """Whether enough of the keys that the delegator names have signed."""
    try:
        verify(part, delegator)
    except SignatureInvalid:
        return False
    return True


def check_file(meta: MetaFile | TargetFile, data: bytes, *, what: str) -> None:
    """Check bytes against the length and the sha256 that signed metadata gives for them.

    Raises:
        SignatureInvalid: they differ, or none are given.

    """
    try:
        if meta.length is None or "sha256" not in (meta.hashes or {}):
            raise LengthOrHashMismatchError("no length or sha256 given")
        meta.verify_length_and_hashes(data)
    except _MALFORMED as error:
        raise SignatureInvalid(
            f"The {what} is not the one that the signed metadata names: {_reason(error)}."
        ) from error


def check_length(data: bytes | str, role: str) -> None:
    """Check that a part is within its cap.

    Raises:
        HubDistrusted: it is longer.

    """
    if len(data) > MAX_BYTES[role]:
        raise HubDistrusted(
            f"The {role} is longer than {MAX_BYTES[role]:,} bytes.",
            hint="Withdraw policies that no device needs; the old policy stays in force.",
        )


def encode(text: str, role: str) -> bytes:
    """Return a part of a bundle as bytes.

    Raises:
        HubDistrusted: it is too long or holds what is no text.

    """
    check_length(text, role)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise HubDistrusted(f"The {role} holds half of a character.") from error


def dump(metadata: Metadata[AnySigned]) -> bytes:
    """Return metadata as it is stored and sent: JSON, sorted, without spaces."""
    return JSONSerializer(compact=True).serialize(metadata)


def fingerprint(data: bytes) -> str:
    """Return the sha256 of root metadata, or of a policy, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def _canonical(tree: Any, *, plain: bool) -> bytes:
    """Return the bytes that are signed (OLPC canonical JSON).

    In plain text, without any escape, the compiled encoder of JSON gives the same bytes as
    securesystemslib's, some ten times as fast.
    """
    if plain:
        text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    else:
        text = encode_canonical(tree) or ""
    return text.encode("utf-8")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        raise ValueError("a key appears twice")
    return tree


def _check_depth(tree: dict[str, Any]) -> None:
    level: list[Any] = [tree]
    for _ in range(MAX_DEPTH):
        branches = [b for t in level for b in (t.values() if isinstance(t, dict) else t)]
        level = [branch for branch in branches if isinstance(branch, (dict, list))]
        if not level:
            return
    raise ValueError("it is nested too deep")


def _bounded(digits: str) -> int:
    if len(digits) > len(str(MAX_INT)) or not 0 <= int(digits) < MAX_INT:
        raise ValueError("an integer is negative or too large")
    return int(digits)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is no integer")


def _malformed(role: str, reason: str) -> NoReturn:
    raise HubDistrusted(f"The {role} metadata is malformed: {reason}.")


def _reason(error: Exception) -> str:
    return str(error)[:200].rstrip(".") or type(error).__name__


__all__ = [
    "MAX_BYTES",
    "MAX_INT",
    "Metadata",
    "Part",
    "Root",
    "Signed",
    "Snapshot",
    "TargetFile",
    "Targets",
    "Timestamp",
    "check_file",
    "check_length",
    "dump",
    "encode",
    "fingerprint",
    "read",
    "verified",
    "verify",
]
