"""Wrong clocks: they may tighten, and never brick a device or let an old policy in."""

from __future__ import annotations

import math

import pytest
from simulator import DAY, NOW, TOP, Device, HubSimulator, at, signer

from edge.errors import PolicyExpired, SignatureInvalid
from edge_sync.trust.clock import Clock, time_payload
from edge_sync.wire import Attested

YEAR = 365 * DAY
REQUEST, OTHER = "a" * 32, "b" * 32


def attest(now: float, *, request: str = REQUEST, key: int = 2, told: str = REQUEST) -> Attested:
    time_ms = int(now * 1_000)
    signature = signer(key).sign(time_payload(request, time_ms))
    return Attested(
        request_id=told, time_ms=time_ms, keyid=signature.keyid, signature=signature.signature
    )


@pytest.fixture
def sim() -> HubSimulator:
    return HubSimulator()


@pytest.fixture
def device(sim: HubSimulator) -> Device:
    device = Device(sim)
    device.sync(sim)
    return device


@pytest.mark.parametrize("wrong", [NOW + 10 * YEAR, NOW - 10 * YEAR, 0.0, math.inf, math.nan])
def test_online_the_hub_s_time_counts_whatever_the_own_clock_says(
    sim: HubSimulator, device: Device, wrong: float
) -> None:
    sim.assign(2, serial=2)
    at_hub = device.trusted.time(attest(NOW + DAY), request_id=REQUEST)
    clock = Clock().attest(at_hub, boot_s=50.0)
    accepted = device.take(sim.bundle(device), now=clock.now(wrong, boot_s=51.0))
    assert accepted.assignment.revision == 2


def test_offline_a_clock_ten_years_ahead_tightens_and_keeps_the_policy(
    sim: HubSimulator, device: Device
) -> None:
    clock = Clock.from_dict({"newest_s": NOW})
    ahead = clock.now(NOW + 10 * YEAR, boot_s=1.0)
    assert device.trusted.tightened(ahead)
    assert device.trusted.assignment.revision == 1
    sim.assign(2, serial=2)
    with pytest.raises(PolicyExpired):
        device.take(sim.bundle(device), now=ahead)
    assert device.trusted.assignment.revision == 1
    told = device.trusted.time(attest(NOW + DAY), request_id=REQUEST)
    now = clock.attest(told, boot_s=2.0).now(NOW + 10 * YEAR, boot_s=3.0)
    assert device.take(sim.bundle(device), now=now).assignment.revision == 2
    assert not device.trusted.tightened(now)


def test_offline_a_clock_ten_years_behind_does_not_lengthen_a_policy(device: Device) -> None:
    assert not device.trusted.tightened(NOW)
    kept = Clock().attest(NOW + 31 * DAY, boot_s=9.0).as_dict()
    behind = Clock.from_dict(kept).now(NOW - 10 * YEAR, boot_s=1.0)
    assert device.trusted.tightened(behind)


def test_a_hub_that_said_a_far_future_is_set_right_by_its_next_answer(
    sim: HubSimulator, device: Device
) -> None:
    far = device.trusted.time(attest(9e12), request_id=REQUEST)
    clock = Clock().attest(far, boot_s=1.0)
    assert device.trusted.tightened(clock.now(NOW, boot_s=2.0))
    clock = clock.attest(device.trusted.time(attest(NOW), request_id=REQUEST), boot_s=3.0)
    assert clock.now(NOW + 10 * YEAR, boot_s=4.0) == NOW + 1.0
    device.take(sim.bundle(device), now=clock.now(NOW, boot_s=4.0))


def test_a_device_back_after_its_root_and_policy_expired_takes_the_new_ones(
    sim: HubSimulator, device: Device
) -> None:
    back = NOW + YEAR
    for role in (*TOP, "assignment"):
        getattr(sim, role).expires = at(back + 30 * DAY)
    sim.replace_keys("timestamp", 8)
    sim.publish_root()
    sim.assign(3, serial=2)
    sim.update_targets()
    bundle = sim.bundle(device)
    now = device.trusted.time(attest(back, key=8), request_id=REQUEST, roots=bundle.roots)
    assert device.take(bundle, now=now).assignment.revision == 3


@pytest.mark.parametrize(
    "forged",
    [
        attest(NOW, key=3),
        attest(NOW, key=9),
        attest(NOW, request=OTHER),
        attest(NOW, request=OTHER, told=OTHER),
        attest(NOW).model_copy(update={"time_ms": int(NOW * 1_000) + 1}),
        attest(NOW).model_copy(update={"signature": ""}),
        attest(NOW).model_copy(update={"signature": "zz"}),
        attest(NOW).model_copy(update={"keyid": signer(3).public_key.keyid}),
        attest(NOW).model_copy(update={"keyid": ""}),
        attest(-1.0),
        attest(2.0**53),
    ],
    ids=[
        "snapshot key",
        "stranger's key",
        "signed for another request",
        "replayed answer",
        "time changed",
        "no signature",
        "no hex",
        "other key id",
        "no key id",
        "negative",
        "too large",
    ],
)
def test_a_forged_or_replayed_time_is_refused(device: Device, forged: Attested) -> None:
    with pytest.raises(SignatureInvalid):
        device.trusted.time(forged, request_id=REQUEST)


def test_a_revoked_timestamp_key_tells_no_time(sim: HubSimulator, device: Device) -> None:
    sim.replace_keys("timestamp", 8)
    sim.publish_root()
    roots = [sim.roots[1].decode()]
    with pytest.raises(SignatureInvalid):
        device.trusted.time(attest(NOW, key=2), request_id=REQUEST, roots=roots)


def test_time_passes_with_the_boot_clock_and_a_reboot_falls_back(device: Device) -> None:
    clock = Clock().attest(NOW, boot_s=100.0)
    assert clock.now(0.0, boot_s=160.0) == NOW + 60.0
    assert clock.now(NOW + 5.0, boot_s=1.0) == NOW + 5.0
    assert clock.now(NOW - 5.0, boot_s=1.0) == NOW
    assert Clock().now(5.0, boot_s=1.0) == 5.0


@pytest.mark.parametrize("kept", [{}, {"newest_s": "x"}, {"newest_s": math.nan}, {"newest_s": -1}])
def test_a_damaged_clock_is_none(kept: dict[str, object]) -> None:
    assert Clock.from_dict(kept) == Clock()


@pytest.mark.parametrize("now", [NOW + 30 * DAY, math.inf, math.nan, 1e300])
def test_any_time_that_is_not_before_the_expiry_counts_as_after(
    sim: HubSimulator, device: Device, now: float
) -> None:
    with pytest.raises(PolicyExpired):
        device.take(sim.bundle(device), now=now)
    assert device.trusted.tightened(now)
