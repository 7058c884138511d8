import pytest

from edge.errors import ConfigError, InputError
from edge_sync.hub import fleet
from edge_sync.server.upkeep import renew

POLICY = "routing: {keep_above: 0.8}\n"


def test_devices_are_found_by_name_id_and_its_beginning(hub, device):
    first = device(0xABCDEF << 104)
    device(2)
    found = fleet.find_device(hub, first)
    assert found.id == first
    for named in (found.name, first[:4], first[:12]):
        assert fleet.find_device(hub, named) == found


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("nobody", "no device 'nobody'"),
        ("00", "no device '00'"),
        ("0000", "several devices: kiosk-1 0000"),
        ("twin", "several devices"),
    ],
)
def test_what_names_no_device_or_several(hub, device, named, words):
    device(1)
    device(2, name="twin")
    device(3, name="twin")
    with pytest.raises(ConfigError, match=words):
        fleet.find_device(hub, named)


def test_online_is_who_was_heard_of_lately(hub, device, clock):
    device(1, last_seen_at=clock.at - 899)
    device(2, last_seen_at=clock.at - 900)
    device(3)
    assert [d.online(clock.at) for d in fleet.list_devices(hub)] == [True, False, False]


def test_a_revoked_device_stays_revoked(hub, device, dump):
    device(1)
    fleet.revoke(hub, fleet.find_device(hub, "kiosk-1"), who="ann")
    found = fleet.find_device(hub, "kiosk-1")
    assert found.status == "revoked"
    before = dump()
    with pytest.raises(ConfigError, match="revoked already"):
        fleet.revoke(hub, found, who="ann")
    with pytest.raises(ConfigError, match="is revoked"):
        fleet.move(hub, found, group="lab", who="ann")
    assert dump() == before
    assert fleet.list_groups(hub)[0].devices == 0


def test_a_device_that_moves_gets_what_its_new_group_runs(hub, device, publish, fetched):
    publish(POLICY, at_once=["lab"])
    id_ = device(1)
    assert fleet.move(hub, fleet.find_device(hub, id_), group="lab", who="ann") == 1
    got = fetched(id_, "lab").assignment
    assert (got.device, got.revision) == (id_, 1)
    assert [each.name for each in fleet.list_devices(hub, group="lab")] == ["kiosk-1"]


def test_versions_never_fall_when_a_device_moves(hub, device, publish, fetched):
    publish(POLICY, at_once=["lab"])
    publish(POLICY.replace("0.8", "0.9"), at_once=["kiosks"])
    id_ = device(1, revision=2)
    assert fleet.move(hub, fleet.find_device(hub, id_), group="lab", who="ann") == 3
    got = fetched(id_, "lab")
    assert (got.assignment.revision, got.sections["routing"]["keep_above"]) == (3, 0.8)


def test_a_device_may_have_more_by_now_than_it_has_reported(hub, device, publish, fetched):
    publish(POLICY, at_once=["lab"])
    publish(POLICY.replace("0.8", "0.9"), at_once=["kiosks"])
    id_ = device(1, revision=0)
    assert fleet.move(hub, fleet.find_device(hub, id_), group="lab", who="ann") == 3
    got = fetched(id_, "lab")
    assert (got.assignment.revision, got.sections["routing"]["keep_above"]) == (3, 0.8)


@pytest.mark.parametrize("held", [0, 1])
def test_a_device_learns_of_a_new_group_that_runs_nothing_yet(hub, device, publish, fetched, held):
    if held:
        publish(POLICY, at_once=["kiosks"])
    id_ = device(1)
    assert fleet.move(hub, fleet.find_device(hub, id_), group="lab", who="ann") == 0
    got = fetched(id_, "kiosks").assignment
    assert (got.device, got.group, got.revision) == (id_, "lab", held)


def test_an_assignment_of_a_group_that_runs_nothing_is_renewed(hub, device, clock, fetched):
    id_ = device(1)
    fleet.move(hub, fleet.find_device(hub, id_), group="lab", who="ann")
    before = fetched(id_, "lab").assignment
    clock.at = before.expires_s - 1
    assert renew(hub)
    after = fetched(id_, "lab").assignment
    assert after.expires_s > clock.at + 86_400
    assert (after.device, after.group) == (id_, "lab")


def test_a_name_hides_no_device_behind_it(hub, device):
    victim = device(0xABCDEF << 104)
    device(2, name=victim)
    assert fleet.find_device(hub, victim).id == victim


@pytest.mark.parametrize(
    ("group", "words"), [("kiosks", "is in kiosks already"), ("nowhere", "no group 'nowhere'")]
)
def test_where_a_device_cannot_move(hub, device, dump, group, words):
    device(1)
    before = dump()
    with pytest.raises(ConfigError, match=words):
        fleet.move(hub, fleet.find_device(hub, "kiosk-1"), group=group, who="ann")
    assert dump() == before


@pytest.mark.parametrize("name", ["", "a b", "-x", "x" * 65, "é"])
def test_what_is_no_group(hub, dump, name):
    before = dump()
    with pytest.raises(InputError, match="cannot be a group's name"):
        fleet.add_group(hub, name, who="ann")
    with pytest.raises(ConfigError, match="There is a group lab already"):
        fleet.add_group(hub, "lab", who="ann")
    assert dump() == before
