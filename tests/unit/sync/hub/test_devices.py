import json

import pytest
from sqlalchemy import select, update

from edge_sync.hub.devices import check_enrolment
from edge_sync.hub.enrolment import make_code
from edge_sync.hub.refusals import Refused
from edge_sync.store.schema import codes, devices
from edge_sync.wire import EnrolRequest

from .conftest import Device, entries


def refusal(work, *arguments):
    with pytest.raises(Refused) as caught:
        work(*arguments)
    assert caught.value.hint
    return caught.value.code


def test_a_device_joins_the_group_of_its_code(hub, code):
    device = Device(hub)
    reply = device.enrol(code)
    assert (reply.device_id, reply.group, reply.incarnation) == (device.id, "kiosks", 1)
    assert json.loads(reply.root)["signed"]["_type"] == "root"
    (entry,) = entries(hub, "device.enrol")
    assert (entry["who"], entry["about"]) == ("kiosk 7", device.id)
    assert code not in entry["detail"]


def test_a_lost_answer_is_given_again_without_another_use(hub, code):
    device = Device(hub)
    first, again = device.enrol(code), device.enrol(code)
    assert again.nonce != first.nonce
    assert not device.sync().quarantined
    with hub.store.reading() as connection:
        assert connection.execute(select(codes.c.uses_left)).scalar_one() == 4


def test_a_key_that_has_synced_is_a_duplicate(hub, code, device):
    device.sync()
    assert refusal(Device(hub, device.key).enrol, code) == "duplicate_device"


def test_a_known_key_with_another_code_is_a_duplicate(hub, device):
    other = make_code(hub, group="lab", uses=1, expires_s=60, who="test").text
    assert refusal(Device(hub, device.key).enrol, other) == "duplicate_device"
    with hub.store.reading() as connection:
        left = select(codes.c.uses_left).where(codes.c.group_name == "lab")
        assert connection.execute(left).scalar_one() == 1


def test_a_revoked_key_does_not_come_back(hub, code, device):
    hub.store.write(lambda c: c.execute(update(devices).values(status="revoked")))
    assert refusal(Device(hub, device.key).enrol, code) == "revoked"


def test_a_code_is_used_up(hub):
    once = make_code(hub, group="lab", uses=1, expires_s=60, who="test").text
    Device(hub).enrol(once)
    assert refusal(Device(hub).enrol, once) == "bad_code"


def test_an_expired_code_says_so(hub, code):
    hub.clock.at += 3_601
    assert refusal(Device(hub).enrol, code) == "expired_code"


def test_who_does_not_hold_the_key_is_refused(hub, code):
    one, other = Device(hub), Device(hub)
    request = EnrolRequest(
        code=code,
        public_key=one.key.public_key,
        signature=other.key.sign_enrolment(code),
    )
    assert refusal(check_enrolment, request) == "bad_signature"


@pytest.mark.parametrize(("given", "shown"), [("till\x1b[31m 3\n", "till[31m 3"), ("  ", None)])
def test_names_can_be_shown(hub, code, given, shown):
    device = Device(hub)
    device.enrol(code, name=given)
    with hub.store.reading() as connection:
        assert connection.execute(select(devices.c.name)).scalar_one() == (shown or device.id)
