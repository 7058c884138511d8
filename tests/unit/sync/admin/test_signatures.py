import pytest

from edge.errors import ConfigError
from edge_sync.hub import signatures
from edge_sync.trust.repository import ROLES

POLICY = "routing: {keep_above: 0.8}\n"


def test_every_role_has_its_keys_here_at_first(hub):
    found = signatures.list_keys(hub)
    assert {keys.role for keys in found} == set(ROLES)
    assert all(keys.signs for keys in found)


@pytest.mark.parametrize("role", ROLES)
def test_devices_follow_new_keys(hub, publish, fetched, role):
    publish(POLICY, at_once=["lab"])
    old = next(keys for keys in signatures.list_keys(hub) if keys.role == role)
    new = signatures.rotate(hub, role, who="ann")
    assert not set(old.keyids) & set(new.keyids)
    assert fetched("0" * 32, "lab").assignment.revision == 1
    publish(POLICY, at_once=["lab"])
    assert fetched("0" * 32, "lab").assignment.revision == 2


def test_offline_keys_are_told_and_needed_where_they_sign(hub, publish, dump):
    away = hub.home / "away"
    away.mkdir()
    publish(POLICY, at_once=["lab"])
    for path in hub.keys.glob("targets-*.pem"):
        path.rename(away / path.name)
    found = {keys.role: keys.signs for keys in signatures.list_keys(hub)}
    assert [role for role, signs in found.items() if not signs] == ["targets"]
    before = dump()
    with pytest.raises(ConfigError, match="keys that targets needs"):
        publish(POLICY)
    assert dump() == before
    for path in away.glob("targets-*.pem"):
        path.rename(hub.keys / path.name)
    assert publish(POLICY).revision == 2


def test_a_role_that_is_none(hub, dump):
    before = dump()
    with pytest.raises(ConfigError, match="no role mirror"):
        signatures.rotate(hub, "mirror", who="ann")
    assert dump() == before
