import pytest

from edge.errors import ConfigError, InputError
from edge_sync.hub import assigning, fleet, policies, rollouts, stops

DEVICE = "0" * 32
POLICY = "routing: {keep_above: 0.8}\n"


def stopped(device):
    return device.assignment.stopped.as_dict()


def test_a_stop_reaches_devices_with_and_without_a_policy(hub, publish, fetched):
    publish(POLICY, at_once=["kiosks"])
    change = stops.stop(hub, "task", "spam", who="ann")
    assert change.groups == ("kiosks", "lab")
    for group, revision in (("kiosks", 1), ("lab", 0)):
        device = fetched(DEVICE, group)
        assert stopped(device) == {"models": [], "tools": [], "tasks": ["spam"]}
        assert device.assignment.revision == revision


def test_a_stop_outlives_new_policies_until_it_is_lifted(hub, publish, fetched):
    stops.stop(hub, "tool", "refund", who="ann", only=["lab"])
    publish(POLICY, at_once=["kiosks", "lab"])
    assert stopped(fetched(DEVICE, "lab"))["tools"] == ["refund"]
    assert stopped(fetched(DEVICE, "kiosks"))["tools"] == []
    assert set(stops.list_stopped(hub)) == {"lab"}
    serial = fetched(DEVICE, "lab").assignment.serial
    stops.unstop(hub, "tool", "refund", who="ann")
    device = fetched(DEVICE, "lab")
    assert stopped(device)["tools"] == []
    assert (device.assignment.serial > serial, device.assignment.revision) == (True, 1)
    assert stops.list_stopped(hub) == {}


def test_a_group_that_is_added_later_stops_what_is_stopped_everywhere(hub, fetched):
    stops.stop(hub, "task", "spam", who="ann")
    stops.stop(hub, "tool", "refund", who="ann", only=["lab"])
    fleet.add_group(hub, "shops", who="ann")
    assert stopped(fetched(DEVICE, "shops")) == {"models": [], "tools": [], "tasks": ["spam"]}


def test_a_stop_keeps_a_rollout_and_a_device_of_its_own_as_they_are(hub, publish, fetched, device):
    own, other = device(1), device(2)
    publish(POLICY, at_once=["kiosks"])
    publish(POLICY)
    policies.restore(hub, 1, who="ann")

    def give(connection):
        repository = hub.signing(connection)
        assigning.assign_device(hub, connection, repository, device_id=own, revision=3)

    rollouts.start(hub, 2, who="ann", names=["kiosks"], waves="100")
    hub.change("ann", "test", about=own, detail={}, work=give)
    held = {id_: fetched(id_, "kiosks").assignment for id_ in (own, other)}
    stops.stop(hub, "model", "spam-head", who="ann")
    for id_, before in held.items():
        after = fetched(id_, "kiosks").assignment
        assert after.revision == before.revision
        assert after.serial > before.serial
        assert after.stopped.models == ("spam-head",)
    assert {assignment.revision for assignment in held.values()} >= {2}


@pytest.mark.parametrize(
    ("kind", "name", "only", "words"),
    [
        ("pool", "gpu", None, "cannot be stopped"),
        ("task", "", None, "cannot be the name"),
        ("task", "a b", None, "cannot be the name"),
        ("task", "spam", ["nowhere"], "no group 'nowhere'"),
        ("task", "ham", None, "stopped there already"),
    ],
)
def test_what_cannot_be_stopped(hub, dump, kind, name, only, words):
    stops.stop(hub, "task", "ham", who="ann")
    before = dump()
    with pytest.raises((InputError, ConfigError), match=words):
        stops.stop(hub, kind, name, who="ann", only=only)
    assert dump() == before


def test_what_is_not_stopped_cannot_be_let_run(hub, dump):
    before = dump()
    with pytest.raises(ConfigError, match="is not stopped there"):
        stops.unstop(hub, "task", "spam", who="ann")
    assert dump() == before
