"""The hub and real gateways: what is sealed comes back once, exactly, and nothing else does."""

import shutil
from pathlib import Path

import httpx
import pytest
from inner_gateway import SECRET
from sqlalchemy import select, update

from edge.errors import ConfigError
from edge_sync.gateway.refusals import Refused
from edge_sync.hub import fleet
from edge_sync.hub.budget import gateways, outside
from edge_sync.hub.budget.asking import GatewayRefused, GatewayUnreachable
from edge_sync.store.schema import devices, redemptions

from .conftest import POOL, held, look

URL = f"http://{POOL}"


def test_a_gateway_that_was_added_is_told_the_epoch(gated, gateway):
    assert (gated.row().epoch, gateway.epoch(), gated.fact("epoch")) == (1, 1, 1)
    path = gateways.secret_path(gated.hub.keys, POOL)
    assert path.stat().st_mode & 0o777 == 0o600
    kept = outside.read(gated.hub.keys)
    assert [(gate.pool_id, gate.url) for gate in kept.gateways] == [(POOL, URL)]


def test_no_lease_is_granted_for_a_gateway_that_has_not_confirmed_the_epoch(hub, gated):
    change = update(gateways.gateways).values(epoch=0)
    hub.store.write(lambda connection: connection.execute(change) and None)
    device = gated.join()
    device.want()
    assert device.leases == ()
    gated.step()
    device.want()
    assert len(device.leases) == 1


def test_a_lease_that_is_done_comes_back_once_exactly(gated, gateway):
    device = gated.join()
    device.want(100_000)
    (lease,) = device.leases
    gateway.spend(lease, 30_000)
    device.want(100_000, uses=[device.done(used=30_000)])
    assert gated.money()[2] == 200_000
    gated.step()
    assert gated.money() == (1_000_000, 870_000, 100_000, 30_000)
    assert gated.states()[lease.lease_id] == ("sealed", "done", 30_000)
    for _ in range(3):
        gated.step()
    assert gated.money() == (1_000_000, 870_000, 100_000, 30_000)


def test_what_is_open_at_a_gateway_is_given_back_only_once_it_is_not(gated, gateway):
    device = gated.join()
    device.want(100_000)
    (lease,) = device.leases
    hold = gateway.hold(lease, 40_000)
    device.sync(uses=[device.done(used=40_000, open_=1)])
    gated.step()
    assert gated.money() == (1_000_000, 900_000, 100_000, 0)
    (each,) = held(gated.hub)
    assert (each.right.state, each.seen_microusd) == ("closing", 40_000)
    gateway.settle(hold, 25_000)
    gated.step()
    assert gated.money() == (1_000_000, 975_000, 0, 25_000)


def test_a_gateway_that_does_not_answer_strands_and_never_gives_back(gated, gateway):
    device = gated.join()
    device.want(100_000)
    gateway.spend(device.leases[0], 10_000)
    device.sync(uses=[device.done(used=10_000)])
    gateway.down = True
    for _ in range(3):
        gated.step()
    assert gated.money() == (1_000_000, 900_000, 100_000, 0)
    assert "nobody is there" in gated.row().error
    assert len([line for line in gated.lines if line == "gateway.failed"]) == 1
    gateway.down = False
    gated.step()
    assert gated.money() == (1_000_000, 990_000, 0, 10_000)
    assert gated.row().error == ""


@pytest.mark.parametrize(("change", "why"), [("revoked", "revoked"), ("quarantined", "quarantine")])
def test_who_may_spend_no_more_loses_what_is_open(hub, gated, gateway, change, why):
    device = gated.join()
    device.want(100_000)
    (lease,) = device.leases
    gateway.spend(lease, 5_000)
    if change == "revoked":
        fleet.revoke(hub, fleet.find_device(hub, device.id), who="ann")
    else:
        quarantined = update(devices).where(devices.c.id == device.id).values(status=change)
        hub.store.write(lambda connection: connection.execute(quarantined) and None)
    gated.step()
    assert gated.states() == {lease.lease_id: ("sealed", why, 5_000)}
    assert gateway.revoked() == ({device.id} if change == "revoked" else set())


def test_a_gateway_is_told_of_the_revoked_until_it_has_confirmed(hub, gated, gateway):
    first, second = gated.join(), gated.join()
    gateway.down = True
    fleet.revoke(hub, fleet.find_device(hub, first.id), who="ann")
    gated.step()
    gateway.down = False
    gated.step()
    assert gateway.revoked() == {first.id}
    asked = gateway.asked.count("revoke")
    gated.step()
    assert gateway.asked.count("revoke") == asked
    fleet.revoke(hub, fleet.find_device(hub, second.id), who="ann")
    gated.step()
    assert gateway.revoked() == {first.id, second.id}


@pytest.mark.parametrize(("days", "why"), [(8, "expired"), (40, "period")])
def test_what_is_past_its_time_is_sealed(hub, gated, gateway, days, why):
    device = gated.join()
    device.want(100_000)
    (lease,) = device.leases
    gateway.spend(lease, 5_000)
    hub.clock.at += days * 86_400
    if why == "expired":
        hub.clock.at = lease.not_after + 1
        assert hub.clock.at < 1_796_083_200  # the end of the month
    gated.step()
    assert gated.states() == {lease.lease_id: ("sealed", why, 5_000)}


def test_rows_are_pulled_and_seen(hub, gated, gateway):
    device = gated.join()
    device.want(100_000)
    (lease,) = device.leases
    gateway.spend(lease, 5_000)
    gateway.hold(lease, 7_000)
    gated.step()
    query = select(redemptions.c.device_id, redemptions.c.state, redemptions.c.held_microusd,
                   redemptions.c.cost_microusd).order_by(redemptions.c.seq)  # fmt: skip
    assert look(hub, lambda connection: [tuple(row) for row in connection.execute(query)]) == [
        (device.id, "settled", 0, 5_000),
        (device.id, "held", 7_000, 0),
    ]
    (each,) = held(hub)
    assert each.seen_microusd == 12_000


def test_a_hold_that_another_lease_paid_in_the_end_is_seen_there(hub, gated, gateway):
    device = gated.join()
    device.want(100_000)
    first = device.leases[0]
    hold = gateway.hold(first, 7_000)
    gated.step()
    device.want(100_000, uses=[device.done(used=0)])
    second = device.leases[0]
    gateway.register.write(lambda book: book.release(hold, now=hub.clock()))
    gateway.hold(second, 6_000, hold=hold)
    gated.step()
    seen = {each.right.lease_id: each.seen_microusd for each in held(hub)}
    assert seen == {first.lease_id: 0, second.lease_id: 6_000}


def changed(**values):
    def change(answer):
        body = answer.json()
        body["leases"][0].update(values)
        return body

    return change


LIES = {
    "html": httpx.Response(200, html="<html>Sign in</html>"),
    "negative": changed(used_microusd=-1, redeemed_microusd=-1),
    "over": changed(amount_microusd=900_000, used_microusd=900_000, redeemed_microusd=900_000),
    "under": changed(used_microusd=4_999, redeemed_microusd=4_999),
    "forgotten": changed(amount_microusd=0, used_microusd=0, redeemed_microusd=0),
    "final": changed(open=1, held_microusd=0),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_seal_that_cannot_be_true_moves_no_money_and_is_shown(hub, gated, gateway, lie):
    device = gated.join()
    device.want(100_000)
    gateway.spend(device.leases[0], 5_000)
    device.sync(uses=[device.done(used=5_000)])
    gateway.answer["seal"] = LIES[lie]
    for _ in range(2):
        gated.step()
        assert gated.money() == (1_000_000, 900_000, 100_000, 0)
        assert gated.row().error
    del gateway.answer["seal"]
    gated.step()
    assert gated.money() == (1_000_000, 995_000, 0, 5_000)
    assert gated.row().error == ""


def test_one_bad_seal_keeps_the_others_from_nothing(hub, gated, gateway):
    first, second = gated.join(), gated.join()
    for device in (first, second):
        device.want(50_000)
        gateway.spend(device.leases[0], 5_000)
        device.sync(uses=[device.done(used=5_000)])

    def lie(answer):
        body = answer.json()
        for each in body["leases"]:
            if each["device_id"] == first.id:
                each.update(used_microusd=1, redeemed_microusd=1)
        return body

    gateway.answer["seal"] = lie
    gated.step()
    assert gated.money() == (1_000_000, 945_000, 50_000, 5_000)
    assert "settled by its own rows" in gated.row().error


def test_a_lost_register_gives_nothing_back(hub, gated, gateway, memory_path):
    device = gated.join()
    device.want(100_000)
    gateway.spend(device.leases[0], 60_000)
    device.sync(uses=[device.done(used=60_000)])
    gateway.shut()
    gateway.open(memory_path / "fresh.db")
    gated.step()
    assert gated.money() == (1_000_000, 900_000, 100_000, 0)
    assert "lost or set back" in gated.row().error
    gateways.secret_path(hub.keys, POOL).write_text("what it was before")
    with pytest.raises(ConfigError, match="lost or set back"):
        gateways.add(hub, POOL, url=URL, secret=SECRET, who="ann", transport=gateway.transport())
    assert gateways.read_secret(hub.keys, POOL) == "what it was before"
    with pytest.raises(ConfigError, match=r"1 leases over \$0\.10"):
        gateways.remove(hub, POOL, who="ann")
    assert gateways.remove(hub, POOL, who="ann", strand=True) == 100_000
    assert gated.money() == (1_000_000, 900_000, 0, 100_000)
    gateways.add(hub, POOL, url=URL, secret=SECRET, who="ann", transport=gateway.transport())
    gated.step()
    assert (gated.row().epoch, gated.row().error) == (1, "")
    assert gated.money() == (1_000_000, 900_000, 0, 100_000)


def test_a_lost_register_takes_no_call_and_is_shown_at_once(gated, gateway, memory_path):
    device = gated.join()
    device.want(100_000)
    (lease,) = device.leases
    gateway.spend(lease, 60_000)
    gated.step()
    gateway.shut()
    gateway.open(memory_path / "fresh.db")
    with pytest.raises(Refused, match="No hub has told"):
        gateway.hold(lease, 60_000)
    gated.step()
    assert "lost or set back" in gated.row().error
    with pytest.raises(Refused, match="No hub has told"):
        gateway.hold(lease, 60_000)


def test_a_register_that_was_set_back_within_an_epoch_is_shown(gated, gateway, memory_path):
    device = gated.join()
    device.want(100_000)
    (lease,) = device.leases
    gateway.spend(lease, 10_000)
    gateway.shut()
    path = memory_path / f"{POOL}.db"
    copy = Path(shutil.copy(path, memory_path / "copy.db"))
    gateway.open(path)
    gateway.spend(lease, 60_000)
    gated.step()
    gateway.shut()
    gateway.open(copy)
    gated.step()
    assert "has no row from 4 on" in gated.row().error
    assert gated.money() == (1_000_000, 900_000, 100_000, 0)


def test_the_gateway_of_another_pool_at_the_same_place_is_not_believed(gated, new_gateway, gateway):
    device = gated.join()
    device.want(100_000)
    gateway.spend(device.leases[0], 60_000)
    device.sync(uses=[device.done(used=60_000)])
    gateway.carry = new_gateway("other").carry
    gated.step()
    assert gated.money() == (1_000_000, 900_000, 100_000, 0)
    assert "pool 'other'" in gated.row().error


def test_a_pool_without_leases_out_is_taken_away(hub, gated):
    assert gateways.remove(hub, POOL, who="ann") == 0
    assert not gateways.secret_path(hub.keys, POOL).exists()
    assert outside.read(hub.keys).gateways == ()
    with pytest.raises(ConfigError, match="no gateway"):
        gateways.remove(hub, POOL, who="ann")


def test_an_epoch_that_no_hub_told_is_not_followed(hub, gated, gateway):
    gateway.register.write(lambda book: book.fence("hub", 10**12))
    hub.clock.at += 31
    gated.step()
    assert (gated.fact("epoch"), bool(gated.fact("recovering"))) == (1, False)
    assert "no hub told it that" in gated.row().error


def test_totals_are_asked_for_now_and_then_and_shown(hub, gated, gateway):
    device = gated.join()
    device.want(100_000)
    gateway.spend(device.leases[0], 5_000)
    gated.step()
    assert gated.row().totals["redeemed_microusd"] == 0
    hub.clock.at += 31
    gated.step()
    row = gated.row()
    assert (row.totals["redeemed_microusd"], row.seen_at) == (5_000, hub.clock())
    asked = gateway.asked.count("state")
    gated.step()
    assert gateway.asked.count("state") == asked


def test_a_replica_without_the_secret_says_so(hub, gated):
    gateways.secret_path(hub.keys, POOL).unlink()
    gated.step()
    assert "secret" in gated.row().error


@pytest.mark.parametrize(
    ("pool", "url", "secret"),
    [("../x", URL, SECRET), ("", URL, SECRET), (POOL, "ftp://x", SECRET), (POOL, URL, "short"),
     (POOL, URL, "é" * 20)],
)  # fmt: skip
def test_what_is_no_gateway_is_not_added(hub, pool, url, secret):
    with pytest.raises(ConfigError):
        gateways.add(hub, pool, url=url, secret=secret, who="ann")
    assert look(hub, gateways.read_all) == []


def test_a_gateway_that_does_not_answer_or_refuses_is_not_added(hub, gateway):
    gateway.down = True
    with pytest.raises(GatewayUnreachable):
        gateways.add(hub, POOL, url=URL, secret=SECRET, who="a", transport=gateway.transport())
    gateway.down = False
    with pytest.raises(GatewayRefused):
        gateways.add(hub, POOL, url=URL, secret="x" * 20, who="a", transport=gateway.transport())
    assert look(hub, gateways.read_all) == []


def test_a_pool_is_either_counted_or_escrow(hub, gated):
    with pytest.raises(ConfigError, match="grade gateway"):
        gateways.add_escrow(hub, POOL, who="ann")
    made = gateways.add_escrow(hub, "other", who="ann")
    assert (made.grade, made.url) == ("escrow", "")
    gated.step()
    device = gated.join()
    device.want(50_000, pool="other")
    assert [lease.pool_id for lease in device.leases] == ["other"]
