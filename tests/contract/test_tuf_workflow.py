"""The client workflow of TUF: what must be taken, and that no case of python-tuf's was passed over.

python-tuf's tests of the update of top-level roles, of its trusted set and of key rotations are the
list to match. A case is an attack of ``attacks.py`` that names it, a test here or in
``test_key_rotations.py`` that bears its name, or stands in ``ELSEWHERE`` with the reason. One
difference runs through all: python-tuf keeps what it verified before a later step failed, while a
bundle is taken as a whole or not at all; ``advance`` takes newer roots alone.
"""

from __future__ import annotations

import pytest
from attacks import ATTACKS
from simulator import DAY, NOW, TOP, Device, HubSimulator, at, signer

from edge.errors import HubDistrusted, PolicyExpired, SignatureInvalid
from edge_sync.trust.trusted import Trusted, TrustState

TOP_LEVEL_UPDATE = [
    "first_time_refresh",
    "trusted_root_missing",
    "trusted_root_expired",
    "trusted_root_unsigned",
    "max_root_rotations",
    "intermediate_root_incorrectly_signed",
    "intermediate_root_expired",
    "final_root_incorrectly_signed",
    "new_root_same_version",
    "new_root_nonconsecutive_version",
    "final_root_expired",
    "new_timestamp_unsigned",
    "expired_timestamp_version_rollback",
    "new_timestamp_version_rollback",
    "new_timestamp_snapshot_rollback",
    "expired_timestamp_snapshot_rollback",
    "new_timestamp_expired",
    "new_timestamp_fast_forward_recovery",
    "new_snapshot_hash_mismatch",
    "new_snapshot_unsigned",
    "new_snapshot_version_mismatch",
    "new_snapshot_version_rollback",
    "new_snapshot_fast_forward_recovery",
    "new_snapshot_expired",
    "new_targets_hash_mismatch",
    "new_targets_unsigned",
    "new_targets_version_mismatch",
    "new_targets_expired",
    "compute_metafile_hashes_length",
    "new_targets_fast_forward_recovery",
    "not_loading_targets_twice",
    "snapshot_rollback_with_local_snapshot_hash_mismatch",
    "load_metadata_from_cache",
    "expired_metadata",
    "max_metadata_lengths",
    "timestamp_eq_versions_check",
]
KEY_ROTATIONS = ["root_rotation", "non_root_rotations"]
TRUSTED_SET = [
    "update",
    "update_metadata_output",
    "out_of_order_ops",
    "root_with_invalid_json",
    "top_level_md_with_invalid_json",
    "update_root_new_root",
    "update_root_new_root_fail_threshold_verification",
    "update_root_new_root_ver_same_as_trusted_root_ver",
    "root_expired_final_root",
    "update_timestamp_new_timestamp_ver_below_trusted_ver",
    "update_timestamp_snapshot_ver_below_current",
    "update_timestamp_expired",
    "update_snapshot_length_or_hash_mismatch",
    "update_snapshot_fail_threshold_verification",
    "update_snapshot_version_diverge_timestamp_snapshot_version",
    "update_snapshot_file_removed_from_meta",
    "update_snapshot_meta_version_decreases",
    "update_snapshot_expired_new_snapshot",
    "update_snapshot_successful_rollback_checks",
    "update_targets_no_meta_in_snapshot",
    "update_targets_hash_diverge_from_snapshot_meta_hash",
    "update_targets_version_diverge_snapshot_meta_version",
    "update_targets_expired_new_target",
]
ELSEWHERE = {
    "trusted_root_missing": "the device's store holds root and policy in one row; it has no file",
    "not_loading_targets_twice": "all roles come in one bundle; there are no delegations to walk",
    "out_of_order_ops": "the order is inside one function; parts in other places are attacks",
    "update_metadata_output": "parts are typed; mypy checks their kinds",
    "root_rotation": "test_key_rotations.py",
    "non_root_rotations": "test_key_rotations.py",
}


@pytest.mark.parametrize("case", [*TOP_LEVEL_UPDATE, *KEY_ROTATIONS, *TRUSTED_SET])
def test_every_case_of_python_tuf_has_its_place(case: str) -> None:
    refused = {name for attack in ATTACKS for name in attack.tuf}
    assert f"test_{case}" in refused or f"test_{case}" in globals() or case in ELSEWHERE


def test_the_list_is_whole() -> None:
    assert (len(TOP_LEVEL_UPDATE), len(TRUSTED_SET)) == (36, 23)
    known = {f"test_{case}" for case in (*TOP_LEVEL_UPDATE, *KEY_ROTATIONS, *TRUSTED_SET)}
    assert {name for attack in ATTACKS for name in attack.tuf} <= known


@pytest.fixture
def sim() -> HubSimulator:
    return HubSimulator()


@pytest.fixture
def device(sim: HubSimulator) -> Device:
    return Device(sim)


def test_first_time_refresh(sim: HubSimulator, device: Device) -> None:
    assert device.state == TrustState(sim.roots[0])
    sim.publish_root()
    accepted = device.sync(sim)
    assert accepted.fresh
    assert accepted.document_bytes == sim.documents[1]
    assert device.state == TrustState(
        sim.roots[1], *(sim.sign(role) for role in (*TOP[1:], "assignment"))
    )
    have = device.trusted.have
    assert (have.root, have.timestamp, have.serial, have.revision) == (2, 1, 1, 1)
    assert have.etag == '"2.1.1"'


def test_update(sim: HubSimulator, device: Device) -> None:
    device.sync(sim)
    sim.assign(3, serial=7)
    sim.update_targets()
    accepted = device.sync(sim)
    assert (accepted.fresh, accepted.document_bytes) == (True, sim.documents[3])
    assert device.trusted.have.revision == 3
    again = device.take(sim.bundle(device, policy=None))
    assert (again.fresh, again.document_bytes) == (False, None)


def test_update_root_new_root(sim: HubSimulator, device: Device) -> None:
    sim.publish_root()
    assert device.trusted.advance([sim.roots[1].decode()]).have.root == 2


def test_trusted_root_expired(sim: HubSimulator, device: Device) -> None:
    sim.expire("root")
    sim.publish_root()
    with pytest.raises(PolicyExpired):
        device.sync(sim)
    device.trusted = device.trusted.advance([sim.roots[1].decode()])
    assert Trusted.load(device.state).have.root == 2
    sim.root.expires = at(NOW + DAY)
    sim.publish_root()
    device.sync(sim)
    assert device.trusted.have.root == 3


def test_trusted_root_unsigned(sim: HubSimulator) -> None:
    sim.signers["root"] = []
    unsigned = sim.sign("root")
    with pytest.raises(SignatureInvalid):
        Trusted.start(unsigned, fingerprint=None)
    with pytest.raises(SignatureInvalid):
        Trusted.load(TrustState(unsigned))


def test_intermediate_root_expired(sim: HubSimulator, device: Device) -> None:
    good = sim.root.expires
    sim.expire("root")
    sim.publish_root()
    sim.root.expires = good
    sim.publish_root()
    device.sync(sim)
    assert device.trusted.have.root == 3


def test_new_timestamp_fast_forward_recovery(sim: HubSimulator, device: Device) -> None:
    sim.timestamp.version = 99_999
    device.sync(sim)
    sim.replace_keys("timestamp", 7)
    sim.publish_root()
    sim.timestamp.version = 1
    device.sync(sim)
    assert device.trusted.have.timestamp == 1


def test_new_snapshot_fast_forward_recovery(sim: HubSimulator, device: Device) -> None:
    sim.snapshot.version = 99_999
    sim.update_snapshot()
    device.sync(sim)
    sim.replace_keys("snapshot", 7)
    sim.publish_root()
    sim.snapshot.version = sim.timestamp.version = 1
    sim.link()
    device.sync(sim)
    assert device.trusted.chain.snapshot.version == 1


def test_new_targets_fast_forward_recovery(sim: HubSimulator, device: Device) -> None:
    sim.targets.version = 99_999
    sim.update_snapshot()
    device.sync(sim)
    sim.replace_keys("snapshot", 7)
    sim.publish_root()
    sim.targets.version = 1
    sim.update_snapshot()
    device.sync(sim)
    assert device.trusted.chain.targets.version == 1


def test_assignment_fast_forward_recovery(sim: HubSimulator, device: Device) -> None:
    sim.assign(2, serial=99_999)
    device.sync(sim)
    sim.delegate([signer(7).public_key])
    sim.signers["assignment"] = [signer(7)]
    sim.update_targets()
    sim.assign(2, serial=2)
    device.sync(sim)
    assert device.trusted.have.serial == 2


def test_a_replaced_assignment_key_does_not_open_the_way_back(
    sim: HubSimulator, device: Device
) -> None:
    sim.assign(2, serial=5)
    device.sync(sim)
    sim.delegate([signer(7).public_key])
    sim.signers["assignment"] = [signer(7)]
    sim.update_targets()
    sim.assign(1, serial=6)
    bundle, before = sim.bundle(device), device.state
    with pytest.raises(Exception, match="leads to policy 1, held is 2"):
        device.take(bundle)
    assert device.state == before


def test_expired_metadata(sim: HubSimulator, device: Device) -> None:
    device.sync(sim)
    device.now = NOW + 40 * DAY
    for role in (*TOP, "assignment"):
        getattr(sim, role).expires = at(NOW + 50 * DAY)
    sim.publish_root()
    sim.assign(2, serial=2)
    sim.update_targets()
    device.sync(sim)
    assert device.trusted.have.revision == 2


def test_load_metadata_from_cache(sim: HubSimulator, device: Device) -> None:
    device.sync(sim)
    loaded = Trusted.load(TrustState.from_dict({**device.state.as_dict(), "later": b"x"}))
    assert loaded.state == device.state
    assert loaded.have == device.trusted.have
    assert loaded.assignment == device.trusted.assignment


def test_update_snapshot_successful_rollback_checks(sim: HubSimulator, device: Device) -> None:
    device.sync(sim)
    sim.update_snapshot()
    device.sync(sim)
    assert device.trusted.chain.snapshot.version == 2


@pytest.mark.parametrize("part", ["timestamp", "snapshot", "targets", "assignment"])
def test_a_damaged_part_of_the_store_locks_nobody_out(
    sim: HubSimulator, device: Device, part: str
) -> None:
    device.sync(sim)
    kept = {**device.state.as_dict(), part: b"\x00damaged"}
    device.trusted = Trusted.load(TrustState.from_dict(kept))
    assert getattr(device.state, part) == b""
    device.sync(sim)
    assert device.trusted.have.revision == 1


def test_a_device_s_own_assignment_is_taken(sim: HubSimulator, device: Device) -> None:
    sim.assign(2, serial=3, device=device.id)
    assert device.sync(sim).assignment.device == device.id


def test_a_pack_s_own_policy_can_be_assigned(sim: HubSimulator, device: Device) -> None:
    sim.assign(0)
    accepted = device.sync(sim)
    assert (accepted.assignment.revision, accepted.document_bytes) == (0, None)
    assert accepted.assignment.policy_sha256 == ""


def test_a_device_that_has_the_policy_needs_no_second_copy(
    sim: HubSimulator, device: Device
) -> None:
    device.sync(sim)
    kept = {**device.state.as_dict(), "assignment": b"damaged"}
    damaged = Trusted.load(TrustState.from_dict(kept))
    bundle = sim.bundle(device, policy=None)
    for document in (None, sim.documents[2]):
        with pytest.raises(HubDistrusted, match="lacks policy 1"):
            damaged.accept(
                bundle, device_id=device.id, group=device.group, now=NOW, document=document
            )
    accepted = damaged.accept(
        bundle, device_id=device.id, group=device.group, now=NOW, document=sim.documents[1]
    )
    assert (accepted.document_bytes, accepted.assignment.revision) == (None, 1)
