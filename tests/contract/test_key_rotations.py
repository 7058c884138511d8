"""Rotation of keys; the tables have the cases of python-tuf's ``test_updater_key_rotations.py``.

Each version of the root names keys, a threshold and who signs; the last one is taken or refused.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
from simulator import Device, HubSimulator, signer
from tuf.api.metadata import Root

from edge.errors import SignatureInvalid
from edge_sync.trust.trusted import Trusted


class Version(NamedTuple):
    keys: str
    threshold: int
    signers: str


ROOTS = {
    "1-of-1": ([Version("1", 1, "1"), Version("2", 1, "21"), Version("2", 1, "2")], True),
    "1-of-1, unused signatures": (
        [Version("1", 1, "314"), Version("2", 1, "3214"), Version("2", 1, "324")],
        True,
    ),
    "1-of-1, not signed with the old key": ([Version("1", 1, "1"), Version("2", 1, "234")], False),
    "1-of-1, not signed with the new key": ([Version("1", 1, "1"), Version("2", 1, "134")], False),
    "3-of-5, signed by different keys": (
        [Version("01234", 3, by) for by in ("024", "041", "013", "013")],
        True,
    ),
    "3-of-5, one key replaced": ([Version("01234", 3, "024"), Version("01345", 3, "041")], True),
    "3-of-5, not signed with 3 new keys": (
        [Version("01234", 3, "024"), Version("01345", 3, "024")],
        False,
    ),
    "3-of-5, not signed with 3 old keys": (
        [Version("01234", 3, "024"), Version("01345", 3, "045")],
        False,
    ),
    "3-of-5, one key replaced in two steps": (
        [Version("01234", 3, "024"), Version("01345", 3, "0245"), Version("01345", 3, "045")],
        True,
    ),
    "3-of-5, all keys replaced in two steps": (
        [Version("01234", 3, "024"), Version("56789", 3, "024567"), Version("56789", 3, "567")],
        True,
    ),
    "1-of-3 to 2-of-3": ([Version("123", 1, "1"), Version("123", 2, "12")], True),
    "1-of-3 to 2-of-3, new threshold not met": (
        [Version("123", 1, "1"), Version("123", 2, "2")],
        False,
    ),
    "2-of-3 to 1-of-3": (
        [Version("123", 2, "12"), Version("123", 1, "12"), Version("123", 1, "1")],
        True,
    ),
    "2-of-3 to 1-of-3, old threshold not met": (
        [Version("123", 2, "12"), Version("123", 1, "1")],
        False,
    ),
    "1-of-1 to 2-of-2": ([Version("1", 1, "1"), Version("12", 2, "12")], True),
}
OTHERS = {
    "1-of-1": (Version("2", 1, "2"), True),
    "1-of-1, unused signatures": (Version("1", 1, "314"), True),
    "1-of-1, not signed with the new key": (Version("2", 1, "134"), False),
    "3-of-5, one of the wrong key": (Version("01345", 3, "024"), False),
    "3-of-5, one missing": (Version("01345", 3, "04"), False),
    "3-of-5, one key twice": (Version("01345", 3, "044"), False),
    **{f"3-of-5, by {by}": (Version("01234", 3, by), True) for by in ("024", "041", "013", "123")},
    "3-of-5, by 234": (Version("01234", 3, "234"), True),
}


def _keys(numbers: str) -> list[int]:
    return [20 + int(number) for number in numbers]


def _apply(sim: HubSimulator, role: str, version: Version) -> None:
    root: Root = sim.root
    sim.replace_keys(role, *_keys(version.keys))
    root.roles[role].threshold = version.threshold
    sim.signers[role] = [signer(number) for number in _keys(version.signers)]


def _takes(trusted: Trusted, roots: list[bytes]) -> bool:
    try:
        return trusted.advance([root.decode() for root in roots]).state.root == roots[-1]
    except SignatureInvalid:
        return False


@pytest.mark.parametrize("case", ROOTS)
def test_root_rotation(case: str) -> None:
    versions, good = ROOTS[case]
    sim = HubSimulator()
    sim.roots.clear()
    for number, version in enumerate(versions, start=1):
        _apply(sim, "root", version)
        sim.publish_root(version=number)
    trusted = Trusted.start(sim.roots[0], fingerprint=None)
    assert _takes(trusted, sim.roots[1:]) is good
    assert len(sim.roots) <= 2 or _takes(trusted, sim.roots[1:-1])


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
@pytest.mark.parametrize("case", OTHERS)
def test_non_root_rotations(case: str, role: str) -> None:
    version, good = OTHERS[case]
    sim = HubSimulator()
    device = Device(sim)
    _apply(sim, role, version)
    sim.publish_root()
    sim.link()
    _check(sim, device, good)


@pytest.mark.parametrize("case", OTHERS)
def test_assignment_rotations(case: str) -> None:
    version, good = OTHERS[case]
    sim = HubSimulator()
    device = Device(sim)
    sim.delegate([signer(n).public_key for n in _keys(version.keys)], version.threshold)
    sim.signers["assignment"] = [signer(number) for number in _keys(version.signers)]
    sim.link()
    _check(sim, device, good)


def _check(sim: HubSimulator, device: Device, good: bool) -> None:
    before = device.state
    if good:
        assert device.sync(sim).document_bytes == sim.documents[1]
    else:
        with pytest.raises(SignatureInvalid):
            device.sync(sim)
        assert device.state == before
