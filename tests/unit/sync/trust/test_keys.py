import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from edge.errors import ConfigError, SignatureInvalid, StoreError
from edge_sync.keys import (
    device_id,
    load_key,
    make_key,
    save_key,
    verify_enrolment,
    verify_sync,
    write_private,
)

posix = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")


def test_the_device_id_is_the_digest_of_the_key() -> None:
    # sha256 of 32 zero bytes, from the FIPS 180-4 algorithm as any tool prints it
    assert device_id("00" * 32) == "66687aadf862bd776c8fc18b8e9f8e20"
    key = make_key()
    assert key.device_id == device_id(key.public_key)
    assert make_key().public_key != key.public_key


@pytest.mark.parametrize("text", ["", "00", "0" * 63, "g" * 64, "A" * 64, "00 " * 32, "é" * 64])
def test_what_is_no_public_key_has_no_id(text: str) -> None:
    with pytest.raises(SignatureInvalid, match="64 lower-case hex"):
        device_id(text)


def test_a_request_is_verified() -> None:
    key, other = make_key(), make_key()
    signature = key.sign_sync(b"body")
    verify_sync(key.public_key, b"body", signature=signature)
    for public, body in ((key.public_key, b"bodY"), (other.public_key, b"body")):
        with pytest.raises(SignatureInvalid, match="request"):
            verify_sync(public, body, signature=signature)


@pytest.mark.parametrize("signature", ["", "AA==", "!", "é", "\ud800", "A" * 1_000])
def test_what_is_no_signature_is_refused(signature: str) -> None:
    with pytest.raises(SignatureInvalid):
        verify_sync(make_key().public_key, b"body", signature=signature)


def test_an_enrolment_is_verified_and_is_no_request() -> None:
    key = make_key()
    signature = key.sign_enrolment("code")
    verify_enrolment(key.public_key, "code", signature=signature)
    with pytest.raises(SignatureInvalid, match="enrolment"):
        verify_enrolment(key.public_key, "cod", signature=signature)
    with pytest.raises(SignatureInvalid):
        verify_sync(key.public_key, b"code", signature=signature)


def test_the_key_of_zero_signs_for_nobody() -> None:
    with pytest.raises(SignatureInvalid):
        verify_sync("00" * 32, b"body", signature=make_key().sign_sync(b"body"))


def test_a_key_is_kept(tmp_path: Path) -> None:
    key, path = make_key(), tmp_path / "new" / "device.pem"
    save_key(key, path)
    assert load_key(path).public_key == key.public_key
    assert [file.name for file in path.parent.iterdir()] == ["device.pem"]
    other = make_key()
    save_key(other, path)
    assert load_key(path).public_key == other.public_key
    assert "PRIVATE" not in repr(key)


@posix
def test_a_key_file_is_its_owner_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "device.pem"
    path.touch(mode=0o644)
    save_key(make_key(), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o601])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "device.pem"
    save_key(make_key(), path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="read by others") as refused:
        load_key(path)
    assert f"chmod 600 {path}" in refused.value.hint


def _pem(kind: str) -> bytes:
    if kind == "other curve":
        key = generate_private_key(SECP256R1())
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    if kind == "password":
        return make_key().private.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
        )
    return {"empty": b"", "text": b"no key", "binary": bytes(range(256))}[kind]


@pytest.mark.parametrize("kind", ["empty", "text", "binary", "other curve", "password"])
def test_a_file_without_a_key_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "device.pem"
    write_private(path, _pem(kind))
    with pytest.raises(ConfigError, match="no Ed25519 private key"):
        load_key(path)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"device\.pem cannot be read"):
        load_key(tmp_path / "device.pem")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        save_key(make_key(), tmp_path / "file" / "device.pem")
