"""Attacks on assignments and policies, and on bundles whose parts come from two."""

from __future__ import annotations

from attack import Prepare, attack
from simulator import Device, HubSimulator, document, signer
from tuf.api.metadata import TargetFile

from edge.errors import HubDistrusted, PolicyExpired, SignatureInvalid, VersionRollback
from edge_sync.wire import Bundle

# --- assignment and policy ----------------------------------------------------------------------


@attack(HubDistrusted)
def assignment_of_another_group(sim, device):
    sim.assign(1, group="desktops")


@attack(HubDistrusted)
def assignment_of_another_device(sim, device):
    sim.assign(1, device="e" * 32)


@attack(HubDistrusted)
def assignment_for_nobody(sim, device):
    sim.assignment.unrecognized_fields["x-edge"]["for"] = {}


@attack(HubDistrusted)
def assignment_for_another_device_of_the_group(sim, device):
    sim.assign(1, group=device.group, device="0" * 32)


@attack(HubDistrusted)
def assignment_without_custom_fields(sim, device):
    sim.assignment.unrecognized_fields.clear()


@attack(SignatureInvalid)
def assignment_unsigned(sim, device):
    sim.signers["assignment"] = []


@attack(SignatureInvalid)
def assignment_by_the_timestamp_key(sim, device):
    sim.signers["assignment"] = sim.signers["timestamp"]


@attack(SignatureInvalid)
def assignment_by_a_revoked_key(sim, device):
    device.sync(sim)
    sim.delegate([signer(9).public_key])
    sim.update_targets()
    sim.assign(2, serial=2)


@attack(SignatureInvalid)
def assignment_below_its_threshold(sim, device):
    sim.delegate([signer(5).public_key, signer(6).public_key], threshold=2)
    sim.link()


@attack(SignatureInvalid)
def assignment_signed_twice_by_one_key_of_two(sim, device):
    sim.delegate([signer(5).public_key, signer(6).public_key], threshold=2)
    sim.signers["assignment"] *= 2
    sim.link()


@attack(SignatureInvalid)
def targets_that_delegate_to_nobody(sim, device):
    sim.targets.delegations = None
    sim.link()


@attack(SignatureInvalid)
def targets_in_place_of_the_assignment(sim, device):
    return sim.bundle(device, assignment=sim.sign("targets").decode())


@attack(SignatureInvalid)
def assignment_in_place_of_the_targets(sim, device):
    return sim.bundle(device, targets=sim.sign("assignment").decode())


@attack(PolicyExpired)
def assignment_expired(sim, device):
    sim.expire("assignment")


@attack(VersionRollback)
def assignment_replayed(sim, device):
    old = sim.sign("assignment").decode()
    sim.assign(1, serial=2)
    device.sync(sim)
    return sim.bundle(device, assignment=old)


@attack(VersionRollback)
def assignment_replayed_with_its_policy(sim, device):
    old = sim.sign("assignment").decode()
    sim.assign(2, serial=2)
    device.sync(sim)
    return sim.bundle(device, assignment=old, policy=document(1).decode())


@attack(VersionRollback)
def whole_bundle_replayed(sim, device):
    old = sim.bundle(device)
    sim.assign(2, serial=2)
    sim.update_targets()
    device.sync(sim)
    return old


@attack(SignatureInvalid)
def two_assignments_of_one_serial(sim, device):
    device.sync(sim)
    sim.assign(2)


@attack(VersionRollback)
def older_policy_by_a_newer_assignment(sim, device):
    sim.assign(2)
    device.sync(sim)
    sim.assign(1, serial=2)


@attack(VersionRollback)
def no_policy_by_a_newer_assignment(sim, device):
    device.sync(sim)
    sim.assign(0, serial=2)


@attack(VersionRollback)
def policy_replaced_under_its_number(sim, device):
    device.sync(sim)
    sim.documents[1] = b'{"other":true}'
    path = "policies/1.json"
    sim.targets.targets[path] = TargetFile.from_data(path, sim.documents[1], ["sha256"])
    sim.update_targets()
    sim.assign(1, serial=2)


@attack(SignatureInvalid)
def policy_that_the_targets_do_not_name(sim, device):
    sim.documents[4] = document(4)
    sim.assignment.targets = {
        "policies/4.json": TargetFile.from_data("policies/4.json", document(4), ["sha256"])
    }


@attack(SignatureInvalid)
def policy_that_assignment_and_targets_name_differently(sim, device):
    sim.documents[1] = b'{"other":true}'
    path = "policies/1.json"
    sim.assignment.targets = {path: TargetFile.from_data(path, sim.documents[1], ["sha256"])}


@attack(HubDistrusted)
def assignment_of_two_policies(sim, device):
    sim.assignment.targets = {
        path: sim.targets.targets[path] for path in ("policies/1.json", "policies/2.json")
    }


@attack(HubDistrusted)
def assignment_of_a_stray_file(sim, device):
    path = "../policies/1.json"
    stray = TargetFile.from_data(path, document(1), ["sha256"])
    sim.targets.targets[path] = stray
    sim.assignment.targets = {path: stray}
    sim.link()


@attack(SignatureInvalid)
def policy_of_another_revision(sim, device):
    return sim.bundle(device, policy=document(2).decode())


@attack(SignatureInvalid)
def policy_with_a_space_more(sim, device):
    return sim.bundle(device, policy=document(1).decode() + " ")


@attack(HubDistrusted)
def policy_missing(sim, device):
    return sim.bundle(device, policy=None)


@attack(HubDistrusted)
def policy_that_nothing_names(sim, device):
    sim.assign(0)
    return sim.bundle(device, policy=document(1).decode())


@attack(HubDistrusted)
def policy_with_half_a_character(sim, device):
    return sim.bundle(device, policy="\ud800")


@attack(HubDistrusted)
def stopped_that_is_no_list(sim, device):
    sim.assignment.unrecognized_fields["x-edge"]["stopped"] = {"models": "all"}


# --- parts of two valid bundles -----------------------------------------------------------------


def _swap(part: str) -> Prepare:
    def prepare(sim: HubSimulator, device: Device) -> Bundle:
        old = sim.bundle(device)
        sim.targets.expires = sim.targets.expires.replace(hour=2)
        sim.update_targets()
        sim.assign(2, serial=2)
        new = sim.bundle(device)
        return new.model_copy(update={part: getattr(old, part)})

    prepare.__name__ = f"{part}_of_an_older_bundle"
    return prepare


# An older assignment under newer metadata is in order for a device that has seen no newer one:
# that is how a wave of a rollout stays behind.
for _part in ("timestamp", "snapshot", "targets", "policy"):
    attack(SignatureInvalid)(_swap(_part))
