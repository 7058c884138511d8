import json
from dataclasses import asdict

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge.errors import InputError, SignatureInvalid
from edge_sync.money.lease import MAX_BYTES, Lease

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
LEASE = Lease(
    lease_id="1" * 32,
    scope="group:kiosks;task:draft",
    period="day:2026-11-24",
    device_id="a" * 32,
    pool_id="big",
    epoch=1,
    amount_microusd=100,
    not_after=1_795_550_000,
    policy_version=3,
    key_id="k1",
).signed(KEY)


def test_a_lease_goes_over_the_wire_and_verifies():
    found = Lease.parse(LEASE.text())
    assert found == LEASE
    found.verify(KEY.public_key())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lease_id", "2" * 32),
        ("device_id", "b" * 32),
        ("pool_id", "small"),
        ("amount_microusd", 101),
        ("epoch", 2),
        ("period", "day:2026-11-25"),
        ("not_after", 2_000_000_000),
        ("scope", "group:shops"),
    ],
)
def test_a_changed_lease_does_not_verify(name, value):
    changed = Lease.parse(json.dumps({**asdict(LEASE), name: value}))
    with pytest.raises(SignatureInvalid, match="does not verify"):
        changed.verify(KEY.public_key())


def test_a_lease_of_another_key_does_not_verify():
    other = Ed25519PrivateKey.from_private_bytes(b"1" * 32).public_key()
    with pytest.raises(SignatureInvalid):
        LEASE.verify(other)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lease_id", "1"),
        ("period", "month:2026-11-24"),
        ("period", "day:2026-02-30"),
        ("period", 7),
        ("amount_microusd", -1),
        ("amount_microusd", 1.0),
        ("amount_microusd", True),
        ("amount_microusd", 10**16),
        ("signature", ""),
        ("scope", ""),
        ("pool_id", "a/b"),
    ],
)
def test_a_field_that_is_wrong_is_named(name, value):
    with pytest.raises(InputError, match=name):
        Lease.parse(json.dumps({**asdict(LEASE), name: value}))


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 1_500, "x" * (MAX_BYTES + 1)])
def test_what_is_no_lease_is_refused(text):
    with pytest.raises(InputError, match="no lease"):
        Lease.parse(text)
