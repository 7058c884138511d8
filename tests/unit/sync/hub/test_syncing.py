import itertools
import json
import secrets

import pytest
from pydantic import ValidationError
from sqlalchemy import func, select, update

from edge_sync.hub.home import read_fact
from edge_sync.hub.refusals import Refused
from edge_sync.hub.syncing import REMEMBERED, Arrival, Taken, take
from edge_sync.store.schema import devices, health, ledger_rows, syncs
from edge_sync.wire import Have, Health, LedgerRow, Refusal

from .conftest import NOW, Device, entries, send


def row(row_id=None, **values):
    given = {"task": "intent", "pool": "default", "state": "reserved", "at": NOW - 60}
    return LedgerRow(row_id=row_id or secrets.token_hex(16), **{**given, **values})


def stored(hub, table=ledger_rows):
    with hub.store.reading() as connection:
        return connection.execute(select(table)).mappings().all()


def of(hub, device):
    with hub.store.reading() as connection:
        query = select(devices).where(devices.c.id == device.id)
        return connection.execute(query).mappings().one()


def test_a_sync_says_what_the_device_is(hub, device):
    taken = device.sync(
        runtime="0.1.0",
        pack="kiosk",
        have=Have(root=1, timestamp=2, serial=3, revision=4),
        waiting=5,
        models={"spam": "ab"},
        refused=[Refusal(revision=6, reason="no such model")],
    )
    assert isinstance(taken, Taken)
    found = of(hub, device)
    assert (found["runtime"], found["pack"], found["waiting"]) == ("0.1.0", "kiosk", 5)
    assert (found["revision"], found["serial"]) == (4, 3)
    assert (found["last_seen_at"], found["revision_since"]) == (NOW, NOW)
    assert json.loads(found["models"]) == {"spam": "ab"}
    assert json.loads(found["refused"])["reason"] == "no such model"


def test_revision_since_moves_with_the_revision_alone(hub, device):
    device.sync(have=Have(revision=1))
    hub.clock.at += 100
    device.sync(have=Have(revision=1))
    assert of(hub, device)["revision_since"] == NOW
    device.sync(have=Have(revision=2))
    assert of(hub, device)["revision_since"] == NOW + 100


def test_a_refusal_is_shown_until_something_newer_runs(hub, device):
    device.sync(have=Have(revision=1), refused=[Refusal(revision=2, reason="bad")])
    device.sync(have=Have(revision=1))
    assert json.loads(of(hub, device)["refused"])["revision"] == 2
    device.sync(have=Have(revision=3))
    assert of(hub, device)["refused"] == "{}"


def test_receipts_rise_and_the_watermark_is_told(hub, device):
    first, second = device.sync(), device.sync()
    assert second.receipt > first.receipt
    with hub.store.reading() as connection:
        assert first.watermark == read_fact(connection, "watermark") == 0


def test_the_same_request_again_gets_the_same_answer_and_changes_nothing(hub, device):
    request = device.request(
        rows=[row(cost_microusd=7)], health=[Health(revision=0, hour=5, tasks=3, latency=[1, 2])]
    )
    first = send(hub, request)
    again = send(hub, request)
    assert (again.nonce, again.receipt, again.again) == (first.nonce, first.receipt, True)
    assert len(stored(hub)) == 1
    assert stored(hub, health)[0]["tasks"] == 3


def test_the_same_request_twice_in_one_transaction(hub, device):
    request = device.request(health=[Health(revision=0, hour=5, tasks=3)])
    first, again = send(hub, request, request)
    assert (again.nonce, again.receipt) == (first.nonce, first.receipt)
    assert stored(hub, health)[0]["tasks"] == 3


def test_an_older_request_is_a_replay(hub, device):
    old = device.request(rows=[row()])
    device.nonce = send(hub, old).nonce
    device.sync()
    refused = send(hub, old)
    assert isinstance(refused, Refused)
    assert refused.code == "replayed"
    assert of(hub, device)["status"] == "active"
    assert isinstance(device.sync(), Taken)


def test_another_nonce_means_two_of_one_device(hub, device):
    clone = Device(hub, device.key, device.nonce)
    assert not device.sync().quarantined
    forked = clone.sync(rows=[row()])
    assert forked.quarantined
    assert of(hub, device)["status"] == "quarantined"
    assert len(stored(hub)) == 1  # what it did is not lost
    assert device.sync().quarantined
    assert len(entries(hub, "device.forked")) == 1  # told once, not at every sync


def test_another_incarnation_means_so_too(hub, device):
    assert device.sync(incarnation=2).quarantined


@pytest.mark.parametrize(("status", "expected"), [("revoked", "revoked"), (None, "unknown_device")])
def test_who_is_not_of_the_hub_is_refused(hub, device, status, expected):
    if status:
        hub.store.write(lambda c: c.execute(update(devices).values(status=status)))
        refused = device.sync(rows=[row()])
    else:
        refused = Device(hub).sync(rows=[row()])
    assert isinstance(refused, Refused)
    assert (refused.code, refused.hint != "") == (expected, True)
    assert stored(hub) == []


def test_one_bad_device_does_not_hurt_the_others(hub, device):
    stranger = Device(hub)
    bad, good = send(hub, stranger.request(), device.request(rows=[row()]))
    assert isinstance(bad, Refused)
    assert isinstance(good, Taken)
    assert len(stored(hub)) == 1


STATES = [
    {"state": "reserved", "held_microusd": 900},
    {"state": "sent", "held_microusd": 900},
    {"state": "unclear", "held_microusd": 900},
    {"state": "released"},
    {"state": "settled", "cost_microusd": 400},
    {"state": "settled", "cost_microusd": 500},
]


@pytest.mark.parametrize("together", [True, False])
def test_the_later_state_wins_in_any_order(hub, device, together):
    orders = list(itertools.permutations(range(len(STATES))))[::90]
    for order in orders:
        row_id = secrets.token_hex(16)
        rows = [row(row_id, **STATES[at]) for at in order]
        batches = [rows] if together else [[one] for one in rows]
        for batch in batches:
            device.sync(rows=batch)
    found = stored(hub)
    assert len(found) == len(orders)
    assert {(one["state"], one["cost_microusd"]) for one in found} == {("settled", 500)}


def test_a_row_belongs_to_who_sent_it_first(hub, code, device):
    mine = row(state="reserved")
    device.sync(rows=[mine])
    thief = Device(hub)
    thief.enrol(code)
    thief.sync(rows=[row(mine.row_id, state="released")])
    (found,) = stored(hub)
    assert (found["state"], found["device_id"]) == ("reserved", device.id)
    first, second = row(state="sent"), row(state="sent")
    send(
        hub,
        device.request(rows=[first]),
        thief.request(rows=[row(first.row_id, state="settled"), second]),
    )
    by_id = {one["row_id"]: one for one in stored(hub)}
    assert by_id[first.row_id]["state"] == "sent"
    assert by_id[second.row_id]["device_id"] == thief.id


def test_counts_are_added_by_policy_and_hour(hub, device):
    one = {"revision": 1, "hour": 5, "tasks": 2, "errors": 1, "cost_microusd": 10}
    device.sync(health=[Health(**one, latency=[1]), Health(**one, latency=[0, 1])])
    device.sync(health=[Health(**one, latency=[1, 1, 1]), Health(revision=2, hour=5, tasks=9)])
    by_revision = {each["revision"]: each for each in stored(hub, health)}
    assert by_revision[1]["tasks"] == 6
    assert by_revision[1]["cost_microusd"] == 30
    assert json.loads(by_revision[1]["latency"]) == [2, 2, 1]
    assert by_revision[2]["tasks"] == 9


def test_a_clock_ten_years_off_is_told_once_and_set_right(hub, device):
    ahead = 10 * 365 * 86_400.0
    hour = int((NOW + ahead) / 3_600)
    for _ in range(2):
        taken = device.sync(
            at=NOW + ahead,
            rows=[row(at=NOW + ahead - 60)],
            health=[Health(revision=0, hour=hour, tasks=1)],
        )
        assert isinstance(taken, Taken)
        assert not taken.quarantined
    assert of(hub, device)["clock_skew_s"] == ahead
    assert {one["at"] for one in stored(hub)} == {NOW - 60}
    (counts,) = stored(hub, health)
    assert (counts["hour"], counts["tasks"]) == (int(NOW / 3_600), 2)
    (entry,) = entries(hub, "device.clock")
    assert json.loads(entry["detail"])["skew_days"] == "3650.0"


def test_old_requests_are_forgotten_and_the_newest_kept(hub, device):
    """Also those of a device that picks its ids."""
    requests = [f"f{number:031x}" for number in range(REMEMBERED + 20)]
    for number in requests:
        device.sync(request_id=number)
    arrival = Arrival(device.request(request_id="f" * 32), NOW)
    hub.store.write(lambda connection: take(connection, [arrival], nonces=lambda: "0" * 32))
    with hub.store.reading() as connection:
        assert connection.execute(select(func.count()).select_from(syncs)).scalar() == REMEMBERED
        newest = select(syncs.c.request_id).order_by(syncs.c.receipt.desc()).limit(1)
        assert connection.execute(newest).scalar() == "f" * 32


def test_what_a_refusal_says_cannot_steer_a_terminal(hub, device):
    device.sync(refused=[Refusal(revision=6, reason="no\x1b[2J\x9bmodel\nhere\x00")])
    assert json.loads(of(hub, device)["refused"])["reason"] == "no [2J model here "


def test_counts_beyond_what_a_database_holds_are_cut(hub, device):
    device.sync(health=[Health(revision=1, hour=5, tasks=2**53 - 1)] * 600)
    device.sync(health=[Health(revision=1, hour=5, tasks=2**53 - 1)] * 600)
    (counts,) = stored(hub, health)
    assert counts["tasks"] == 2**62


@pytest.mark.parametrize(
    "values",
    [
        {"have": {"revision": 2**63}},
        {"have": {"serial": 2**63}},
        {"waiting": 2**31},
        {"at": 1e300},
        {"at": float("nan")},
        {"runtime": "\x00"},
        {"pack": "\x1b[2J"},
        {"models": {"spam": "\x00"}},
        {"health": [{"revision": 2**63, "hour": 1}]},
        {"rows": [row().model_dump() | {"revision": 2**63}]},
        {"rows": [row().model_dump() | {"at": -1e300}]},
        {"refused": [{"revision": 2**63, "reason": "x"}]},
    ],
)
def test_what_a_database_cannot_hold_is_no_message(device, values):
    with pytest.raises(ValidationError):
        device.request(**values)
