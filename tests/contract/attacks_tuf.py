"""Attacks on root, timestamp, snapshot and targets: those of python-tuf's tests and a few more."""

from __future__ import annotations

import json

from attack import attack
from simulator import DAY, NOW, TOP, HubSimulator, signer
from tuf.api.metadata import MetaFile

from edge.errors import HubDistrusted, PolicyExpired, SignatureInvalid, VersionRollback
from edge_sync.trust.chain import MAX_ROOTS

# --- root ---------------------------------------------------------------------------------------


@attack(SignatureInvalid, "test_intermediate_root_incorrectly_signed")
def intermediate_root_incorrectly_signed(sim, device):
    keys, sim.signers["root"] = sim.signers["root"], []
    sim.publish_root()
    sim.signers["root"] = keys
    sim.publish_root()


@attack(SignatureInvalid, "test_final_root_incorrectly_signed")
def final_root_incorrectly_signed(sim, device):
    sim.signers["root"] = []
    sim.publish_root()


@attack(
    VersionRollback,
    "test_new_root_same_version",
    "test_update_root_new_root_ver_same_as_trusted_root_ver",
)
def root_of_the_same_version(sim, device):
    sim.publish_root(version=1)


@attack(VersionRollback, "test_new_root_nonconsecutive_version")
def root_that_skips_a_version(sim, device):
    sim.publish_root(version=3)


@attack(
    PolicyExpired,
    "test_final_root_expired",
    "test_trusted_root_expired",
    "test_root_expired_final_root",
)
def final_root_expired(sim, device):
    sim.expire("root")
    sim.publish_root()


@attack(HubDistrusted, "test_max_root_rotations")
def more_roots_than_a_bundle_may_bring(sim, device):
    for _ in range(MAX_ROOTS + 1):
        sim.publish_root()


@attack(SignatureInvalid, "test_update_root_new_root_fail_threshold_verification")
def root_without_keys_of_its_own(sim, device):
    sim.root.roles["root"].keyids = []
    sim.publish_root()


@attack(HubDistrusted, "test_root_with_invalid_json")
def root_that_is_no_json(sim, device):
    return sim.bundle(device, roots=[""])


@attack(SignatureInvalid, "test_root_with_invalid_json")
def root_changed_after_signing(sim, device):
    sim.publish_root()
    tree = json.loads(sim.roots[1])
    tree["signed"]["version"] += 1
    return sim.bundle(device, roots=[json.dumps(tree)])


@attack(HubDistrusted, "test_root_with_invalid_json")
def snapshot_in_place_of_a_root(sim, device):
    return sim.bundle(device, roots=[sim.sign("snapshot").decode()])


@attack(SignatureInvalid)
def root_by_the_timestamp_key(sim, device):
    sim.replace_keys("root", 2)
    sim.publish_root()


@attack(VersionRollback)
def roots_in_the_wrong_order(sim, device):
    sim.publish_root()
    sim.publish_root()
    return sim.bundle(device, roots=[root.decode() for root in sim.roots[:0:-1]])


# --- timestamp ----------------------------------------------------------------------------------


@attack(SignatureInvalid, "test_new_timestamp_unsigned")
def timestamp_unsigned(sim, device):
    sim.signers["timestamp"] = []


@attack(
    VersionRollback,
    "test_new_timestamp_version_rollback",
    "test_update_timestamp_new_timestamp_ver_below_trusted_ver",
)
def timestamp_version_rollback(sim, device):
    sim.timestamp.version = 2
    device.sync(sim)
    sim.timestamp.version = 1


@attack(VersionRollback, "test_expired_timestamp_version_rollback")
def timestamp_version_rollback_after_expiry(sim, device):
    sim.timestamp.version = 2
    device.sync(sim)
    sim.timestamp.version = 1
    _renew(sim)
    device.now = NOW + 31 * DAY


@attack(
    VersionRollback,
    "test_new_timestamp_snapshot_rollback",
    "test_update_timestamp_snapshot_ver_below_current",
)
def timestamp_snapshot_rollback(sim, device):
    sim.update_snapshot()
    device.sync(sim)
    sim.timestamp.snapshot_meta.version = 1
    sim.timestamp.version += 1


@attack(VersionRollback, "test_expired_timestamp_snapshot_rollback")
def timestamp_snapshot_rollback_after_expiry(sim, device):
    sim.update_snapshot()
    sim.update_snapshot()
    device.sync(sim)
    sim.snapshot.version = 1
    sim.timestamp.version += 1
    _renew(sim)
    device.now = NOW + 31 * DAY


@attack(PolicyExpired, "test_new_timestamp_expired", "test_update_timestamp_expired")
def timestamp_expired(sim, device):
    sim.expire("timestamp")
    sim.timestamp.version += 1


@attack(SignatureInvalid, "test_timestamp_eq_versions_check")
def timestamp_of_the_same_version_with_other_content(sim, device):
    device.sync(sim)
    sim.timestamp.snapshot_meta.version = 100


@attack(HubDistrusted, "test_top_level_md_with_invalid_json")
def timestamp_that_is_no_json(sim, device):
    return sim.bundle(device, timestamp="")


@attack(SignatureInvalid, "test_top_level_md_with_invalid_json")
def timestamp_changed_after_signing(sim, device):
    return sim.bundle(device, timestamp=_raised(sim.sign("timestamp")))


@attack(HubDistrusted, "test_top_level_md_with_invalid_json")
def root_in_place_of_the_timestamp(sim, device):
    return sim.bundle(device, timestamp=sim.roots[0].decode())


@attack(SignatureInvalid)
def timestamp_by_a_revoked_key(sim, device):
    device.sync(sim)
    sim.replace_keys("timestamp", 9)
    sim.publish_root()
    sim.signers["timestamp"] = [signer(2)]
    sim.timestamp.version += 1


@attack(HubDistrusted)
def snapshot_in_place_of_the_timestamp_by_the_timestamp_key(sim, device):
    sim.signers["snapshot"] = sim.signers["timestamp"]
    return sim.bundle(device, timestamp=sim.sign("snapshot").decode())


# --- snapshot -----------------------------------------------------------------------------------


@attack(SignatureInvalid, "test_new_snapshot_hash_mismatch")
def snapshot_hash_mismatch(sim, device):
    device.sync(sim)
    sim.snapshot.version += 1
    sim.timestamp.snapshot_meta.version += 1
    sim.timestamp.version += 1


@attack(SignatureInvalid, "test_update_snapshot_length_or_hash_mismatch")
def snapshot_length_mismatch(sim, device):
    sim.timestamp.snapshot_meta.length = 1


@attack(
    SignatureInvalid,
    "test_new_snapshot_unsigned",
    "test_update_snapshot_fail_threshold_verification",
)
def snapshot_unsigned(sim, device):
    sim.signers["snapshot"] = []
    sim.link()


@attack(
    SignatureInvalid,
    "test_new_snapshot_version_mismatch",
    "test_update_snapshot_version_diverge_timestamp_snapshot_version",
)
def snapshot_version_mismatch(sim, device):
    sim.timestamp.snapshot_meta.version = 2


@attack(VersionRollback, "test_new_snapshot_version_rollback")
def snapshot_version_rollback(sim, device):
    sim.update_snapshot()
    device.sync(sim)
    sim.snapshot.version = 1
    sim.timestamp.version += 1
    sim.link()


@attack(PolicyExpired, "test_new_snapshot_expired", "test_update_snapshot_expired_new_snapshot")
def snapshot_expired(sim, device):
    sim.expire("snapshot")
    sim.update_snapshot()


@attack(
    VersionRollback,
    "test_snapshot_rollback_with_local_snapshot_hash_mismatch",
    "test_update_snapshot_meta_version_decreases",
)
def targets_rollback_by_a_newer_snapshot(sim, device):
    sim.update_targets()
    device.sync(sim)
    sim.targets.version = 1
    sim.update_snapshot()


@attack(VersionRollback, "test_update_snapshot_file_removed_from_meta")
def snapshot_that_lost_a_file(sim, device):
    device.sync(sim)
    sim.snapshot.meta.clear()
    sim.snapshot.version += 1
    sim.timestamp.version += 1
    sim.link(upwards_from="snapshot")


@attack(HubDistrusted, "test_update_targets_no_meta_in_snapshot")
def snapshot_that_names_no_targets(sim, device):
    sim.snapshot.meta.clear()
    sim.link(upwards_from="snapshot")


@attack(SignatureInvalid, "test_compute_metafile_hashes_length")
def timestamp_without_a_hash_of_the_snapshot(sim, device):
    sim.timestamp.snapshot_meta = MetaFile(sim.snapshot.version)


@attack(SignatureInvalid, "test_compute_metafile_hashes_length")
def snapshot_without_a_hash_of_the_targets(sim, device):
    sim.snapshot.meta["targets.json"] = MetaFile(sim.targets.version)
    sim.link(upwards_from="snapshot")


# --- targets ------------------------------------------------------------------------------------


@attack(
    SignatureInvalid,
    "test_new_targets_hash_mismatch",
    "test_update_targets_hash_diverge_from_snapshot_meta_hash",
)
def targets_hash_mismatch(sim, device):
    device.sync(sim)
    sim.update_targets()
    sim.targets.expires = sim.targets.expires.replace(hour=1)


@attack(SignatureInvalid, "test_new_targets_unsigned")
def targets_unsigned(sim, device):
    sim.signers["targets"] = []
    sim.link()


@attack(
    SignatureInvalid,
    "test_new_targets_version_mismatch",
    "test_update_targets_version_diverge_snapshot_meta_version",
)
def targets_version_mismatch(sim, device):
    sim.snapshot.meta["targets.json"].version = 2
    sim.link(upwards_from="snapshot")


@attack(PolicyExpired, "test_new_targets_expired", "test_update_targets_expired_new_target")
def targets_expired(sim, device):
    sim.expire("targets")
    sim.update_targets()


@attack(SignatureInvalid)
def targets_by_the_assignment_key(sim, device):
    sim.signers["targets"] = sim.signers["assignment"]
    sim.link()


def _raised(data: bytes) -> str:
    tree = json.loads(data)
    tree["signed"]["version"] += 1
    return json.dumps(tree)


def _renew(sim: HubSimulator) -> None:
    for role in (*TOP, "assignment"):
        signed = getattr(sim, role)
        signed.expires = signed.expires.replace(year=signed.expires.year + 1)
    sim.publish_root()
    sim.link()
