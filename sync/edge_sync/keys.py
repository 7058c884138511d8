"""Keys of devices: made, kept in a file of its owner alone, and what is signed with them.

A device is its Ed25519 key: the device id is the first 32 hex digits of the sha256 of the public
key. Guarantees that a key file is written whole or not at all, and that one which others can read
is refused. Knows nothing of messages, sockets and tables.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from edge.errors import ConfigError, SignatureInvalid, StoreError

SYNC_CONTEXT, ENROL_CONTEXT = b"edge-sync-1\n", b"edge-enrol-1\n"
CALL_CONTEXT = b"edge-call-1\n"
_MAX_FILE_BYTES = 10_000


@dataclass(frozen=True, repr=False)
class DeviceKey:
    """The private key of one device."""

    private: Ed25519PrivateKey

    @property
    def public_key(self) -> str:
        """The public key, 64 hex digits."""
        return self.private.public_key().public_bytes_raw().hex()

    @property
    def device_id(self) -> str:
        """The device id, 32 hex digits."""
        return device_id(self.public_key)

    def sign_sync(self, body: bytes) -> str:
        """Return the signature of a request's body, as it is sent, in base64."""
        return _text(self.private.sign(_sync_payload(body)))

    def sign_enrolment(self, code: str) -> str:
        """Return the proof that who knows the code holds the key, in base64."""
        return _text(self.private.sign(ENROL_CONTEXT + code.encode()))

    def sign_call(self, body: bytes, *, lease_id: str, idempotency_key: str) -> str:
        """Return the signature of a call to a pool's gateway, in base64."""
        payload = call_payload(body, lease_id=lease_id, idempotency_key=idempotency_key)
        return _text(self.private.sign(payload))


def call_payload(body: bytes, *, lease_id: str, idempotency_key: str) -> bytes:
    """Return what a device signs for a call to a pool's gateway, its body as it is sent."""
    text = (lease_id + idempotency_key).encode()
    return CALL_CONTEXT + hashlib.sha256(body).digest() + text


def make_key() -> DeviceKey:
    """Return a new key from the system's randomness."""
    return DeviceKey(Ed25519PrivateKey.generate())


def save_key(key: DeviceKey, path: Path) -> None:
    """Write a key as PEM (PKCS 8) with mode 0600; an older file gives way at once or not at all.

    Raises:
        StoreError: the folder cannot be written.

    """
    write_private(path, private_pem(key.private))


def load_key(path: Path) -> DeviceKey:
    """Read a key.

    Raises:
        ConfigError: there is no such file, others can read it, or it holds no Ed25519 key.

    """
    return DeviceKey(load_private(path))


def device_id(public_key: str) -> str:
    """Return the device id of a public key given as 64 hex digits.

    Raises:
        SignatureInvalid: the text is no public key.

    """
    return hashlib.sha256(_public_bytes(public_key)).hexdigest()[:32]


def verify_sync(public_key: str, body: bytes, *, signature: str) -> None:
    """Check the signature of a request.

    Args:
        public_key: of the device, 64 hex digits.
        body: as it was sent, still compressed.
        signature: base64.

    Raises:
        SignatureInvalid: it was not made by this key over this body.

    """
    _verify(public_key, _sync_payload(body), signature, "request")


def verify_enrolment(public_key: str, code: str, *, signature: str) -> None:
    """Check that who enrols holds the key.

    Raises:
        SignatureInvalid: the signature was not made by this key over this code.

    """
    _verify(public_key, ENROL_CONTEXT + code.encode("utf-8", "replace"), signature, "enrolment")


def private_pem(private: Ed25519PrivateKey) -> bytes:
    """Return a private key as PEM (PKCS 8), not encrypted."""
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_private(path: Path) -> Ed25519PrivateKey:
    """Read an Ed25519 key from a PEM file that is its owner's alone.

    Raises:
        ConfigError: there is no such file, others can read it, or it holds no Ed25519 key.

    """
    data = read_private(path)
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(path) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path)
    return key


def write_private(path: Path, data: bytes) -> None:
    """Write a file that its owner alone can read, whole or not at all, and durably.

    Raises:
        StoreError: the folder cannot be written.

    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            _write_new(beside, data)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise StoreError(
            f"The key file {path} cannot be written: {error.strerror}.",
            hint="Make its folder writable for the user that runs edge.",
        ) from error


def _write_new(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_private(path: Path) -> bytes:
    """Read a file that its owner alone may read.

    Raises:
        ConfigError: it is not there, or others can read it.

    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if os.name == "posix" and mode & 0o077:
                raise ConfigError(
                    f"The key file {path} can be read by others (mode {mode:04o}).",
                    hint=f"Run `chmod 600 {path}`, and make a new key if others may have read it.",
                )
            return file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigError(
            f"The key file {path} cannot be read: {error.strerror}.",
            hint="Restore it, or make a new key by enrolling again.",
        ) from error


def _no_key(path: Path) -> ConfigError:
    return ConfigError(
        f"The key file {path} holds no Ed25519 private key in PEM without a password.",
        hint="Restore it, or make a new key by enrolling again.",
    )


def _sync_payload(body: bytes) -> bytes:
    return SYNC_CONTEXT + hashlib.sha256(body).digest()


def _verify(public_key: str, payload: bytes, signature: str, what: str) -> None:
    raw = _public_bytes(public_key)
    try:
        Ed25519PublicKey.from_public_bytes(raw).verify(
            base64.b64decode(signature.encode("ascii"), validate=True), payload
        )
    except (InvalidSignature, binascii.Error, ValueError) as error:
        raise SignatureInvalid(
            f"The signature of the {what} was not made by the device's key.",
            hint="Enrol the device again if its key was lost.",
        ) from error


def _public_bytes(public_key: str) -> bytes:
    try:
        raw = bytes.fromhex(public_key)
    except ValueError:
        raw = b""
    if len(raw) != hashlib.sha256().digest_size or raw.hex() != public_key:
        raise SignatureInvalid(
            "The public key is not 64 lower-case hex digits.", hint="Enrol the device again."
        )
    return raw


def _text(signature: bytes) -> str:
    return base64.b64encode(signature).decode("ascii")
