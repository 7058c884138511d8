import json

import pytest
from sqlalchemy import insert

from edge_sync.hub import view as views
from edge_sync.hub.assigning import assign_device, assign_group
from edge_sync.hub.view import View, build_bundle, read_view
from edge_sync.rollout.waves import Wave, place
from edge_sync.store.schema import rollouts
from edge_sync.trust.trusted import Trusted
from edge_sync.wire import Bundle

from .conftest import NOW

IDS = [f"{number:032x}" for number in range(200)]


def make(**values):
    given = {
        "generation": 1,
        "groups": {"kiosks": 10, "lab": 11},
        "own": {},
        "rollouts": (),
        "roots": ("root 1", "root 2"),
        "metadata": {},
        "timestamp": 7,
        "devices": {},
    }
    return View(**{**given, **values})


def staged(wave=0, new=20):
    return views.Staged(3, wave, (Wave(percent=25.0), Wave(percent=100.0)), {"kiosks": new})


def test_without_a_rollout_the_group_counts():
    view = make()
    assert view.serial(IDS[0], "kiosks") == 10
    assert view.serial(IDS[0], "elsewhere") == 0
    assert view.etag(IDS[0], "lab") == '"2.7.11"'


def test_a_wave_reaches_its_share_and_only_grows():
    early, late = make(rollouts=(staged(0),)), make(rollouts=(staged(1),))
    inside = {name for name in IDS if early.serial(name, "kiosks") == 20}
    assert inside == {name for name in IDS if place(3, name) < 0.25}
    assert all(late.serial(name, "kiosks") == 20 for name in IDS)
    assert all(late.serial(name, "lab") == 11 for name in IDS)


def test_a_wave_of_a_group():
    waves = (Wave(groups=("lab",)), Wave(percent=100.0))
    rollout = views.Staged(3, 0, waves, {"lab": 21, "kiosks": 20})
    view = make(rollouts=(rollout,))
    assert view.serial(IDS[0], "lab") == 21
    assert view.serial(IDS[0], "kiosks") == 10


def test_an_own_assignment_wins_until_the_group_has_a_newer_one():
    view = make(own={IDS[0]: 15, IDS[1]: 9}, rollouts=(staged(1),))
    assert view.serial(IDS[0], "kiosks") == 15
    assert view.serial(IDS[1], "kiosks") == 20


def test_what_was_brought_back_after_a_halt_wins():
    assert make(groups={"kiosks": 30}, rollouts=(staged(1),)).serial(IDS[0], "kiosks") == 30


@pytest.fixture
def assigned(hub):
    def work(connection):
        signer = hub.signing(connection)
        first = assign_group(hub, connection, signer, group="kiosks", revision=0)
        new = assign_group(hub, connection, signer, group="kiosks", revision=0, common=False)
        connection.execute(
            insert(rollouts).values(
                id=1,
                revision=0,
                previous=0,
                groups='["kiosks"]',
                waves='[{"percent": 100}]',
                terms="{}",
                state="running",
                wave=0,
                wave_since=NOW,
                reason="",
                progress="{}",
                serials=json.dumps({"kiosks": {"old": first, "new": new}}),
                created_by="test",
                created_at=NOW,
            )
        )
        return first, new

    return hub.change("test", "assign", about="kiosks", detail={}, work=work)


def test_the_database_is_read_whole(hub, device, assigned):
    with hub.store.reading() as connection:
        view = read_view(connection)
    assert view.serial(device.id, "kiosks") == assigned[1]
    assert view.devices[device.id].group == "kiosks"
    assert (len(view.roots), view.timestamp) == (1, 1)


def test_an_own_assignment_is_read(hub, device, assigned):
    serial = hub.change(
        "test",
        "assign",
        about=device.id,
        detail={},
        work=lambda c: assign_device(hub, c, hub.signing(c), device_id=device.id, revision=0),
    )
    with hub.store.reading() as connection:
        assert read_view(connection).serial(device.id, "kiosks") == serial > assigned[1]


def test_a_device_takes_the_bundle(hub, device, assigned):
    with hub.store.reading() as connection:
        view = read_view(connection)
        text = build_bundle(connection, view, root=0, serial=assigned[1], with_policy=True)
        again = build_bundle(connection, view, root=-5, serial=assigned[1], with_policy=True)
        held = build_bundle(connection, view, root=1, serial=assigned[1], with_policy=False)
    assert again is text
    assert Bundle.model_validate_json(held).roots == []
    bundle = Bundle.model_validate_json(text)
    trusted = Trusted.start(bundle.roots[0].encode(), fingerprint=None)
    later = Bundle.model_validate_json(held)
    accepted = trusted.accept(later, device_id=device.id, group="kiosks", now=NOW)
    assert accepted.assignment.serial == assigned[1]
    assert accepted.trusted.have.etag == view.etag(device.id, "kiosks")
