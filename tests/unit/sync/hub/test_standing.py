"""What people see of the fleet's money: exact figures, on both databases."""

import json

import pytest
from money_rows import (
    MONTH,
    add_device,
    add_gateway,
    add_lease,
    add_redemption,
    add_report,
    add_want,
    set_caps,
)
from sqlalchemy import update

from edge_sync.hub.budget import books, exposure, pace, standing
from edge_sync.hub.home import raise_fact
from edge_sync.store.schema import devices, gateways, redemptions

DAY, WEEK = 86_400.0, 7 * 86_400.0


def look(hub, *, forecast=False):
    now = hub.clock()
    with hub.store.reading() as connection:
        paces = pace.read_paces(connection, now=now, by_device=True) if forecast else None
        return standing.read(connection, now=now, paces=paces)


def caps(hub, **options):
    return {(cap.scope, cap.kind): cap for cap in look(hub, **options).caps}


def parts(cap):
    return {
        name: getattr(cap, f"{name}_microusd")
        for name in ("cap", "spent", "held", "granted", "stranded", "free")
    }


@pytest.fixture
def spent(hub):
    """Return a hub with four devices, three pools and leases in every state."""
    now = hub.clock()
    near, far = add_device(hub, 1, seen_at=now - 60), add_device(hub, 2, seen_at=now - 2 * DAY)
    lab = add_device(hub, 3, group="lab", seen_at=now - 60)
    never = add_device(hub, 4, group="lab", seen_at=None)
    add_gateway(hub, "gpu", seen_at=now - 10)
    add_gateway(hub, "hosted", seen_at=now - 600, error="timed out")
    add_gateway(hub, "phones", grade="escrow")
    add_lease(hub, 1, near, amount=1_000_000, used=300_000)
    add_lease(hub, 2, near, amount=2_000_000, used=1_500_000, state="sealed")
    add_lease(hub, 3, far, amount=400_000, used=100_000, state="closing")
    add_lease(hub, 4, near, pool="hosted", amount=800_000, used=200_000, task="draft")
    add_lease(hub, 5, lab, group="lab", pool="phones", amount=500_000, used=7, told=120_000)
    add_lease(hub, 6, never, group="lab", pool="phones", amount=600_000, told=9_000_000)
    add_lease(hub, 7, near, amount=5_000_000, used=4, period="month:2026-10", state="closing")
    set_caps(
        hub,
        ("fleet", "month", 10_000_000),
        ("fleet", "total", 20_000_000),
        ("group:kiosks", "month", 5_000_000),
        ("group:lab", "month", 5_000_000),
        (f"device:{near};pool:gpu", "month", 4_000_000),
        ("fleet;task:draft", "month", 1_000_000),
    )
    return hub


def test_the_parts_of_every_cap_are_exact(spent):
    near = f"{1:032x}"
    assert {key: parts(cap) for key, cap in caps(spent).items()} == {
        ("fleet", "month"): {
            "cap": 10_000_000,
            "spent": 1_500_000,
            # Where no gateway counts, what the device says, at most its lease.
            "held": 300_000 + 100_000 + 200_000 + 120_000 + 600_000,
            "granted": 700_000 + 380_000,
            "stranded": 300_000 + 600_000,
            "free": 10_000_000 - 3_300_000 - 1_500_000,
        },
        ("fleet", "total"): {
            "cap": 20_000_000,
            "spent": 1_500_000,
            "held": 1_320_000 + 4,
            "granted": 1_080_000 + 4_999_996,
            "stranded": 900_000,
            "free": 20_000_000 - 8_300_000 - 1_500_000,
        },
        ("group:kiosks", "month"): {
            "cap": 5_000_000,
            "spent": 1_500_000,
            "held": 600_000,
            "granted": 700_000,
            "stranded": 900_000,
            "free": 1_300_000,
        },
        ("group:lab", "month"): {
            "cap": 5_000_000,
            "spent": 0,
            "held": 720_000,
            "granted": 380_000,
            "stranded": 0,
            "free": 3_900_000,
        },
        (f"device:{near};pool:gpu", "month"): {
            "cap": 4_000_000,
            "spent": 1_500_000,
            "held": 300_000,
            "granted": 700_000,
            "stranded": 0,
            "free": 1_500_000,
        },
        ("fleet;task:draft", "month"): {
            "cap": 1_000_000,
            "spent": 0,
            "held": 200_000,
            "granted": 0,
            "stranded": 600_000,
            "free": 200_000,
        },
    }


def test_the_parts_add_up_to_the_cap(spent):
    for cap in caps(spent).values():
        found = parts(cap)
        assert found.pop("cap") == sum(found.values()), cap.scope
    with spent.store.reading() as connection:
        assert books.unbalanced(connection) == ()


def test_what_strands_is_named_with_its_reason(spent):
    found = caps(spent)["fleet", "month"]
    assert [(each.why, each.pool, each.leases, each.microusd) for each in found.stranded] == [
        ("device", "gpu", 1, 300_000),
        ("device", "phones", 1, 0),
        ("gateway", "hosted", 1, 600_000),
    ]
    with spent.store.reading() as connection:
        away = exposure.read_away(connection, now=spent.clock())
    assert [(each.name, each.leases, each.microusd) for each in away] == [
        ("kiosk-2", 1, 300_000),
        ("kiosk-4", 1, 0),
    ]


def test_pools_say_who_counts_and_who_is_silent(spent):
    told = {pool.pool: pool for pool in look(spent).pools}
    assert {name: (pool.grade, pool.silent) for name, pool in told.items()} == {
        "gpu": ("gateway", False),
        "hosted": ("gateway", True),
        "phones": ("escrow", False),
    }
    gpu = told["gpu"]
    figures = (gpu.leases, gpu.open_microusd, gpu.used_microusd, gpu.largest_microusd)
    assert figures == (3, 6_400_000, 400_004, 5_000_000)
    assert told["hosted"].error == "timed out"
    found = caps(spent)
    assert found["fleet", "month"].escrow == ("phones",)
    assert found[f"device:{1:032x};pool:gpu", "month"].escrow == ()


def test_leases_of_a_pool_that_is_gone_strand(hub):
    device = add_device(hub, 1, seen_at=hub.clock())
    add_lease(hub, 1, device, pool="old", amount=500)
    set_caps(hub, ("fleet", "month", 1_000))
    (cap,) = look(hub).caps
    assert parts(cap)["stranded"] == 500
    assert [(each.why, each.pool) for each in cap.stranded] == [("gateway", "old")]
    assert [pool.grade for pool in look(hub).pools] == ["none"]


def test_pools_that_are_asked_for_in_vain_are_told_with_the_reason(hub):
    now = hub.clock()
    one, two, gone = (add_device(hub, number, seen_at=now) for number in (1, 2, 3))
    add_gateway(hub, "gpu", seen_at=now)
    add_gateway(hub, "new", seen_at=now)
    add_gateway(hub, "phones", grade="escrow")
    hub.store.write(lambda c: c.execute(update(gateways).values(epoch=7)))
    hub.store.write(lambda c: raise_fact(c, "epoch", by=6))
    behind = update(gateways).where(gateways.c.pool_id != "gpu").values(epoch=6)
    hub.store.write(lambda c: c.execute(behind))
    for pool in ("gpu", "new", "phones", "other"):
        for device, at in ((one, now - 60), (two, now - DAY), (gone, now - 60)):
            add_want(hub, device, pool=pool, at=at)
        add_want(hub, one, pool=pool, task="draft", at=now)
    add_want(hub, two, pool="new", task="draft", at=now)
    add_want(hub, two, pool="other", task="draft", at=now, demand=0)
    add_lease(hub, 1, two, pool="new", amount=5)
    out = update(devices).where(devices.c.id == gone).values(status="revoked")
    hub.store.write(lambda c: c.execute(out))
    assert look(hub).unmet == ()  # no cap, no money, and nothing to tell
    set_caps(hub, ("fleet", "month", 1_000))
    assert [(each.pool, each.devices, each.why) for each in look(hub).unmet] == [
        ("new", 1, "epoch"),
        ("other", 1, "unknown"),
    ]


def test_a_cut_leaves_less_than_nothing_free(hub):
    device = add_device(hub, 1, seen_at=hub.clock())
    add_gateway(hub, "gpu", seen_at=hub.clock())
    add_lease(hub, 1, device, amount=900)
    set_caps(hub, ("fleet", "month", 1_000), ("fleet", "month", 400))
    (cap,) = look(hub).caps
    assert (cap.cap_microusd, cap.granted_microusd, cap.free_microusd) == (400, 900, -500)


def test_a_new_period_is_all_free_before_its_first_lease(spent):
    spent.clock.at += 31 * DAY
    cap = caps(spent)["fleet", "month"]
    assert cap.period == "month:2026-12"
    assert parts(cap) | {"cap": 0} == dict.fromkeys(parts(cap), 0) | {"free": 10_000_000}


def test_a_hub_without_money_has_nothing_to_show(hub):
    found = look(hub, forecast=True)
    assert (found.caps, found.pools, found.recovering) == ((), (), False)


def test_recovery_is_told(hub):
    before = look(hub)
    for name in ("recovering", "epoch"):
        hub.store.write(lambda connection, name=name: raise_fact(connection, name))
    after = look(hub)
    assert (before.recovering, after.recovering) == (False, True)
    assert after.epoch == before.epoch + 1


def test_it_is_plain_json(spent):
    told = json.loads(json.dumps(look(spent, forecast=True).as_dict(), allow_nan=False))
    assert told["caps"][0]["scope"] == "fleet"


def test_a_device_sees_its_leases_the_open_ones_first(spent):
    with spent.store.reading() as connection:
        found = exposure.read_leases(connection, f"{1:032x}")
        escrow = exposure.read_leases(connection, f"{4:032x}")
    shown = [(each.state, each.amount_microusd, each.used_microusd) for each in found]
    assert shown == [
        ("closing", 5_000_000, 4),
        ("open", 800_000, 200_000),
        ("closing", 1_000_000, 300_000),  # for any task, and one has a cap of its own
        ("sealed", 2_000_000, 1_500_000),
    ]
    assert [(each.used_microusd, each.escrow) for each in escrow] == [(600_000, True)]
    assert not any(each.escrow for each in found)


@pytest.fixture
def calls(hub):
    """Return a function that lets a fleet spend evenly: so many calls, one every two hours."""
    device = add_device(hub, 1, seen_at=hub.clock())
    add_gateway(hub, "gpu", seen_at=hub.clock())
    add_gateway(hub, "phones", grade="escrow")
    lease = add_lease(hub, 1, device, amount=4_000_000, used=1_000_000)

    def spend(number, *, every_s=7_200.0, cost=50_000, **options):
        for at in range(number):
            add_redemption(
                hub,
                at + 1,
                at=hub.clock() - (at + 1) * every_s,
                cost=cost,
                lease_id=lease,
                device_id=device,
                **options,
            )

    return spend


def test_a_forecast_goes_on_at_the_pace_of_the_week(hub, calls):
    set_caps(hub, ("fleet", "month", 10_000_000))
    calls(100)
    found = caps(hub, forecast=True)["fleet", "month"].forecast
    # 83 calls of the 100 are within the week before now.
    end = 1_796_083_200.0  # 2026-12-01
    assert found.microusd == 1_000_000 + 83 * 50_000 * int(end - hub.clock()) // int(WEEK)
    assert (found.reaches_at, found.why) == (None, "")


def test_a_cap_that_will_not_last_says_until_when(hub, calls):
    set_caps(hub, ("fleet", "month", 2_000_000), ("fleet", "total", 8_000_000))
    calls(100)
    found = caps(hub, forecast=True)
    month, total = found["fleet", "month"].forecast, found["fleet", "total"].forecast
    assert month.microusd > 2_000_000
    assert month.reaches_at == hub.clock() + 1_000_000 * int(WEEK) / (83 * 50_000)
    assert (total.microusd, total.why) == (None, "no end")
    assert total.reaches_at == hub.clock() + 7_000_000 * int(WEEK) / (83 * 50_000)


@pytest.mark.parametrize(
    ("number", "every_s", "why"),
    [
        (0, 1.0, "too early: 0 of 20 calls"),
        (19, 7_200.0, "too early: 19 of 20 calls"),
        (30, 600.0, "too early: 5 of 24 h"),
    ],
)
def test_little_data_gives_no_forecast(hub, calls, number, every_s, why):
    set_caps(hub, ("fleet", "month", 10_000_000))
    calls(number, every_s=every_s)
    found = caps(hub, forecast=True)["fleet", "month"].forecast
    assert (found.microusd, found.reaches_at, found.why) == (None, None, why)


def test_a_pace_counts_holds_and_not_what_was_released(hub, calls):
    set_caps(hub, ("fleet", "month", 10_000_000))
    calls(30)
    add_redemption(hub, 900, at=hub.clock() - 5, cost=70_000, state="unclear")
    add_redemption(hub, 901, at=hub.clock() - 5, cost=90_000, state="released")
    with hub.store.reading() as connection:
        paces = pace.read_paces(connection, now=hub.clock(), by_device=False)
    assert sum(each.calls for each in paces.spends) == 31
    assert sum(each.microusd for each in paces.spends) == 30 * 50_000 + 70_000


def test_a_pace_takes_reports_of_devices_only_where_no_gateway_counts(hub, calls):
    calls(25)
    device = f"{1:032x}"
    add_report(hub, 1, device, at=hub.clock() - 9, cost=1_000, pool="phones")
    add_report(hub, 2, device, at=hub.clock() - 9, cost=1_000, pool="gpu")
    with hub.store.reading() as connection:
        paces = pace.read_paces(connection, now=hub.clock(), by_device=True)
    found = {(each.purpose.group, each.purpose.pool_id): each.microusd for each in paces.spends}
    assert found == {("kiosks", "gpu"): 25 * 50_000, ("kiosks", "phones"): 1_000}


def test_a_fleet_that_was_idle_is_not_taken_for_a_fast_one(hub, calls):
    """Half a day of spending in a week makes the pace of the week, not of the half day."""
    set_caps(hub, ("fleet", "month", 10_000_000))
    add_redemption(hub, 500, at=hub.clock() - 30 * DAY, cost=1)
    calls(24, every_s=1_800.0)
    with hub.store.reading() as connection:
        assert pace.read_paces(connection, now=hub.clock(), by_device=False).window_s == WEEK


def test_caps_of_other_scopes_have_their_own_pace(hub, calls):
    set_caps(hub, ("group:lab", "month", 1_000), ("group:kiosks", "month", 9_000_000))
    calls(50)
    found = caps(hub, forecast=True)
    assert found["group:lab", "month"].forecast.why == "too early: 0 of 20 calls"
    assert found["group:kiosks", "month"].forecast.microusd > 1_000_000
    assert found["group:kiosks", "month"].period == MONTH


def test_of_many_calls_a_sample_is_enough(hub, calls, monkeypatch):
    """Ids are random, so those that begin with 0 are a sixteenth of all calls."""
    calls(64)
    for number in range(64):
        first = format(number % 16, "x")
        hub.store.write(
            lambda connection, number=number, first=first: connection.execute(
                update(redemptions)
                .where(redemptions.c.hold_id == f"{number + 1:032x}")
                .values(hold_id=f"{first}{number:031x}")
            )
        )
    monkeypatch.setattr(pace, "_MOST_ROWS", 10)
    with hub.store.reading() as connection:
        (found,) = pace.read_paces(connection, now=hub.clock(), by_device=False).spends
    assert (found.calls, found.microusd) == (4, 64 * 50_000)


@pytest.mark.parametrize(
    ("total", "digits"), [(0, 0), (50_000, 0), (50_001, 1), (800_000, 1), (800_001, 2)]
)
def test_a_sample_is_as_small_as_it_should_be(total, digits):
    assert pace._digits(total) == digits
