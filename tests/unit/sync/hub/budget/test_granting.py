"""What a sync with wants leads to, on both databases."""

import pytest
from sqlalchemy import event, select, update

from edge_sync.hub.budget import books, leasekey, mirror, outside
from edge_sync.hub.budget.caps import remove_cap, set_cap
from edge_sync.hub.budget.granting import Granting
from edge_sync.hub.home import read_fact
from edge_sync.hub.syncing import Arrival, take
from edge_sync.money import grants, redeem
from edge_sync.money.periods import bounds
from edge_sync.store.schema import audit, devices, gateways, wants
from edge_sync.wire import Have, LeaseUse, Want

from ..conftest import NOW  # noqa: TID252
from .conftest import POOL, add_pool, ask, entries_of, held, look, pots

MONTH = "month:2026-11"
DAY_S = 86_400


@pytest.fixture
def cap(hub):
    """Cap the fleet at two dollars a month."""
    return set_cap(hub, "fleet", "month", 2_000_000, who="ann")


def why(hub):
    return {each.right.lease_id: (each.right.state, each.why_closed) for each in held(hub)}


def test_a_want_becomes_a_lease_that_its_gateway_takes(hub, spender, cap, key):
    device = spender()
    taken = device.want(100_000, have=Have(revision=7))
    (lease,) = device.leases
    lease.verify(key.private.public_key())
    assert (lease.key_id, lease.epoch, lease.policy_version) == (key.key_id, 1, 7)
    assert (lease.device_id, lease.pool_id, lease.scope) == (device.id, POOL, "group:kiosks")
    assert (lease.period, lease.amount_microusd) == (MONTH, 100_000)
    assert lease.not_after == min(int(NOW) + 7 * DAY_S, int(bounds(MONTH)[1]) - 1)
    assert redeem.admit(lease, pool_id=POOL, epoch=1, now=NOW) == 1
    assert taken.granted == 1
    assert pots(hub) == {f"fleet {MONTH}": (2_000_000, 1_900_000, 100_000, 0)}


def test_one_lease_takes_a_part_of_what_is_free(hub, spender, cap):
    device = spender()
    device.want(2_000_000)
    assert device.leases[0].amount_microusd == 250_000


def test_all_open_leases_are_told_each_time_and_no_more_are_granted(hub, spender, cap):
    device = spender()
    device.want()
    first = device.leases
    for _ in range(3):
        device.want()
        assert device.leases == first
    device.sync()
    assert device.leases == first
    assert len(held(hub)) == 1


def test_the_same_request_again_gets_the_same_leases(hub, spender, cap, granting):
    device = spender()
    request = device.request(wants=[Want(pool=POOL, demand_microusd=50_000)])
    first = ask(hub, granting, request)
    again = ask(hub, granting, request)
    both = ask(hub, granting, request, request)
    assert again.again
    assert first.leases == again.leases == both[0].leases == both[1].leases
    assert again.granted == first.granted == 1
    assert len(held(hub)) == 1


def test_a_lease_that_is_done_is_followed_by_the_next_at_once(hub, spender, cap):
    device = spender()
    device.want()
    (first,) = device.leases
    device.want(uses=[device.done(used=95_000)])
    (second,) = device.leases
    assert second.lease_id != first.lease_id
    assert why(hub)[first.lease_id] == ("closing", "done")
    assert pots(hub)[f"fleet {MONTH}"][2] == first.amount_microusd + second.amount_microusd
    assert [each.told_microusd for each in held(hub)].count(95_000) == 1


def test_no_device_ends_the_lease_of_another(hub, spender, cap):
    mine, other = spender(), spender()
    mine.want()
    other.want(uses=[mine.done(used=100_000)])
    assert {state for state, _ in why(hub).values()} == {"open"}
    assert all(each.told_microusd == 0 for each in held(hub))


def got(device):
    return {(each.pool_id, each.scope): each.amount_microusd for each in device.leases}


def test_tasks_and_pools_are_leased_apart(hub, spender, cap):
    add_pool(hub, "hosted")
    device = spender()
    asked = [Want(pool=POOL, task="draft", demand_microusd=30_000),
             Want(pool=POOL, task="sort", demand_microusd=20_000),
             Want(pool="hosted", demand_microusd=10_000)]  # fmt: skip
    device.sync(wants=asked)
    assert got(device) == {
        (POOL, "group:kiosks;task:draft"): 30_000,
        (POOL, "group:kiosks;task:sort"): 20_000,
        ("hosted", "group:kiosks"): 10_000,
    }


BOTH = [Want(pool=POOL, task="draft", demand_microusd=30_000),
        Want(pool=POOL, task="sort", demand_microusd=30_000),
        Want(pool=POOL, demand_microusd=60_000)]  # fmt: skip


def asked_for(hub):
    return set(look(hub, lambda c: c.execute(select(wants.c.task)).scalars().all()))


def test_what_is_wanted_for_any_task_stands_for_each_of_them(hub, spender, cap):
    device = spender()
    device.sync(wants=BOTH)
    assert got(device) == {(POOL, "group:kiosks"): 60_000}
    assert asked_for(hub) == {""}


@pytest.mark.parametrize(
    "scope", ["fleet;task:draft", "group:kiosks;pool:gpu;task:draft", "device:ID;task:draft"]
)
def test_a_cap_of_a_task_counts_beside_one_of_all(hub, spender, cap, scope):
    device = spender()
    set_cap(hub, scope.replace("ID", device.id), "month", 20_000, who="ann")
    device.want()
    assert got(device) == {}  # money for any task would not count there
    device.sync(wants=BOTH)
    assert got(device) == {
        (POOL, "group:kiosks;task:draft"): 10_000,
        (POOL, "group:kiosks;task:sort"): 30_000,
    }
    assert asked_for(hub) == {"draft", "sort"}
    drafts = 0
    for _ in range(6):
        mine = [each for each in device.leases if each.scope.endswith("draft")]
        drafts += sum(each.amount_microusd for each in mine)
        ended = [LeaseUse(lease_id=each.lease_id, used_microusd=0, done=True) for each in mine]
        device.sync(wants=BOTH, uses=ended)
    assert drafts == 20_000
    assert got(device) == {(POOL, "group:kiosks;task:sort"): 30_000}
    assert pots(hub)[f"fleet {MONTH}"] == (2_000_000, 1_950_000, 50_000, 0)


@pytest.mark.parametrize(
    "scope", ["group:lab;task:draft", "fleet;pool:hosted;task:draft", "device:ID;task:draft"]
)
def test_a_cap_of_a_task_elsewhere_changes_nothing_here(hub, spender, cap, scope):
    device, other = spender(), spender()
    set_cap(hub, scope.replace("ID", other.id), "month", 20_000, who="ann")
    device.sync(wants=BOTH)
    assert got(device) == {(POOL, "group:kiosks"): 60_000}


def test_a_cap_of_a_task_takes_leases_for_any_task_back_until_it_goes(hub, spender, cap):
    device = spender()
    device.want(60_000)
    set_cap(hub, "group:lab;task:draft", "month", 20_000, who="ann")
    assert set(why(hub).values()) == {("open", "")}
    set_cap(hub, "fleet;task:draft", "month", 20_000, who="ann")
    assert set(why(hub).values()) == {("closing", "cap")}
    device.sync(wants=BOTH)
    assert len(device.leases) == 2
    remove_cap(hub, "fleet;task:draft", "month", who="ann")
    device.sync(wants=BOTH)
    assert (POOL, "group:kiosks") in got(device)
    assert list(why(hub).values()).count(("open", "")) == 3


@pytest.mark.parametrize(
    ("scope", "kind", "amount"),
    [(None, None, 0), ("group:lab", "month", 10**6), ("fleet;pool:other", "month", 10**6),
     ("fleet;task:draft", "month", 10**6), ("fleet", "month", 0), ("fleet", "month", 9_999)],
)  # fmt: skip
def test_without_a_cap_that_covers_it_there_is_no_money(hub, spender, scope, kind, amount):
    if scope:
        set_cap(hub, scope, kind, amount, who="ann")
    device = spender()
    assert not device.want().quarantined
    assert device.leases == ()
    assert held(hub) == []


def test_a_pool_whose_money_nobody_counts_gets_none_and_the_want_is_kept(hub, spender, cap):
    device = spender()
    device.want(pool="unknown")
    assert device.leases == ()
    (row,) = look(hub, lambda c: c.execute(select(wants)).mappings().all())
    assert (row["device_id"], row["pool_id"], row["demand_microusd"]) == (
        device.id, "unknown", 100_000
    )  # fmt: skip


def test_what_a_device_wants_no_more_is_forgotten(hub, spender, cap):
    device = spender()
    device.want(task="draft")
    hub.clock.at += 1
    device.want(task="answer")
    assert look(hub, lambda c: c.execute(select(wants.c.task)).scalars().all()) == ["answer"]


def test_a_copy_costs_both_their_leases(hub, spender, cap, granting):
    device = spender()
    old = device.nonce
    device.want()
    (lease,) = device.leases
    device.nonce = old  # the disk was set back
    assert device.want().quarantined
    assert device.leases == ()
    assert why(hub) == {lease.lease_id: ("closing", "quarantine")}
    device.want()
    assert device.leases == ()
    assert pots(hub)[f"fleet {MONTH}"][1:] == (1_900_000, 100_000, 0)


def test_a_lease_ends_with_its_period_and_the_next_counts_in_the_next(hub, spender, cap):
    device = spender()
    hub.clock.at = bounds(MONTH)[1] - DAY_S
    device.want()
    (old,) = device.leases
    assert old.not_after == int(bounds(MONTH)[1]) - 1
    hub.clock.at += DAY_S
    device.want()
    (new,) = device.leases
    assert why(hub)[old.lease_id] == ("closing", "period")
    assert new.period == "month:2026-12"
    assert pots(hub)["fleet month:2026-12"] == (2_000_000, 1_900_000, 100_000, 0)
    seal(hub, old, used=40_000)  # which counts where it was granted
    assert pots(hub)[f"fleet {MONTH}"] == (2_000_000, 1_960_000, 0, 40_000)
    assert pots(hub)["fleet month:2026-12"] == (2_000_000, 1_900_000, 100_000, 0)


def seal(hub, lease, *, used):
    hub.store.write(lambda c: books.seal(c, lease.lease_id, used_microusd=used))


def test_a_lease_ends_with_its_time(hub, spender, cap):
    device = spender()
    hub.clock.at = bounds(MONTH)[0]
    device.want()
    (old,) = device.leases
    hub.clock.at += 8 * DAY_S
    device.sync()
    assert device.leases == ()
    assert why(hub)[old.lease_id] == ("closing", "expired")


def test_a_wrong_clock_of_the_hub_costs_no_money(hub, spender, cap):
    device = spender()
    hub.clock.at += 50 * DAY_S
    device.want()
    (ahead,) = device.leases
    hub.clock.at = NOW
    device.want()
    (right,) = device.leases
    assert (ahead.period, right.period) == ("month:2027-01", MONTH)
    assert why(hub)[ahead.lease_id] == ("closing", "period")


def test_the_shortest_period_of_the_caps_above_is_the_lease_s(hub, spender, cap):
    set_cap(hub, "group:kiosks", "hour", 400_000, who="ann")
    device = spender()
    device.want(1_000_000)
    (lease,) = device.leases
    assert lease.period == "hour:2026-11-18T11"
    assert lease.amount_microusd == 50_000
    assert lease.not_after < bounds(lease.period)[1]
    assert pots(hub) == {
        f"fleet {MONTH}": (2_000_000, 1_950_000, 50_000, 0),
        f"group:kiosks {lease.period}": (400_000, 350_000, 50_000, 0),
    }


def test_who_moves_takes_the_old_group_s_lease_along(hub, spender):
    for group in ("kiosks", "lab"):
        set_cap(hub, f"group:{group}", "month", 1_000_000, who="ann")
    device = spender()
    device.want()
    hub.store.write(lambda c: c.execute(update(devices).values(group_name="lab")))
    device.want()
    (lease,) = device.leases
    assert lease.scope == "group:kiosks"
    device.want(uses=[device.done()])
    assert device.leases[0].scope == "group:lab"
    seal(hub, lease, used=0)
    assert pots(hub)[f"group:kiosks {MONTH}"] == (1_000_000, 1_000_000, 0, 0)
    assert pots(hub)[f"group:lab {MONTH}"][2] == 100_000


def test_no_lease_while_more_is_granted_than_the_cap(hub, spender, cap):
    one, other = spender(), spender()
    one.want(200_000)
    set_cap(hub, "fleet", "month", 150_000, who="ann")
    other.want()
    assert other.leases == ()
    assert one.leases[0].amount_microusd == 200_000
    assert pots(hub)[f"fleet {MONTH}"] == (150_000, -50_000, 200_000, 0)
    seal(hub, one.leases[0], used=60_000)
    other.want()
    assert other.leases[0].amount_microusd == 11_250


def test_the_word_of_a_device_counts_where_no_gateway_does(hub, spender, cap):
    add_pool(hub, "own", grade="escrow")
    device = spender()
    device.want(pool="own")
    device.sync(uses=[device.done(used=60_000, open_=1)])
    assert pots(hub)[f"fleet {MONTH}"] == (2_000_000, 1_900_000, 100_000, 0)
    (lease_id,) = why(hub)
    final = LeaseUse(lease_id=lease_id, used_microusd=42_000, done=True)
    device.sync(uses=[final])
    device.sync(uses=[final])
    assert why(hub)[lease_id] == ("sealed", "done")
    assert pots(hub)[f"fleet {MONTH}"] == (2_000_000, 1_958_000, 0, 42_000)


def test_a_count_above_the_lease_is_the_whole_lease(hub, spender, cap):
    add_pool(hub, "own", grade="escrow")
    device = spender()
    device.want(pool="own")
    device.sync(uses=[device.done(used=10**9)])
    assert pots(hub)[f"fleet {MONTH}"] == (2_000_000, 1_900_000, 0, 100_000)


def test_a_copy_s_word_gives_nothing_back(hub, spender, cap):
    add_pool(hub, "own", grade="escrow")
    device = spender()
    device.want(pool="own")
    device.nonce = "another"
    device.sync(uses=[device.done(used=0)])
    assert pots(hub)[f"fleet {MONTH}"] == (2_000_000, 1_900_000, 100_000, 0)


def test_a_database_that_was_set_back_grants_nothing(hub, spender, cap):
    device = spender()
    outside.raise_granted(hub.keys, 5)
    for _ in range(2):
        device.want()
        assert device.leases == ()
    (told,) = entries_of(hub, audit, "budget.paused")  # once
    assert "set back" in told["reason"]


def test_nothing_is_granted_while_it_is_recovered(hub, spender, cap):
    device, other = spender(), spender()
    other.want()
    hub.store.write(lambda c: mirror.set_facts(c, [("recovering", 1), ("epoch", 2)]))
    device.want()
    other.want()
    assert device.leases == other.leases == ()
    assert set(why(hub).values()) == {("closing", "restore")}
    hub.store.write(lambda c: mirror.set_facts(c, [("recovering", 0)]))
    device.want()
    assert device.leases == ()  # its gateway has not confirmed the epoch
    hub.store.write(lambda c: c.execute(update(gateways).values(epoch=2)))
    device.want()
    assert device.leases[0].epoch == 2


@pytest.mark.parametrize("content", [None, "other", "no key"])
def test_nothing_is_granted_without_the_hub_s_own_key(hub, spender, cap, content):
    (hub.keys / leasekey.NAME).unlink()
    if content == "other":
        leasekey.make(hub.keys)
    elif content:
        (hub.keys / leasekey.NAME).write_text(content)
        (hub.keys / leasekey.NAME).chmod(0o600)
    device = spender()
    device.want()
    assert device.leases == ()
    (told,) = entries_of(hub, audit, "budget.paused")
    assert "key" in told["reason"]


def test_a_fleet_without_money_costs_no_query_of_leases(hub, device, granting):
    request = device.request()
    assert ask(hub, granting, request).leases == ()
    assert look(hub, lambda c: read_fact(c, "granted")) == 0


def test_who_is_refused_gets_no_lease(hub, spender, cap, granting):
    device, bad = spender(), spender()
    hub.store.write(
        lambda c: c.execute(update(devices).where(devices.c.id == bad.id).values(status="revoked"))
    )
    asked = [Want(pool=POOL, demand_microusd=50_000)]
    requests = [each.request(wants=asked) for each in (bad, device)]
    refused, taken = ask(hub, granting, *requests)
    assert refused.code == "revoked"
    assert len(taken.leases) == 1
    assert {each.right.purpose.device_id for each in held(hub)} == {device.id}


def test_many_at_once_get_no_more_than_there_is(hub, spender, granting):
    set_cap(hub, "fleet", "month", 100_000, who="ann")
    many = [spender() for _ in range(5)] * 4
    asked = [Want(pool=POOL, demand_microusd=90_000)]
    requests = [device.request(wants=asked) for device in many[:5]]
    ask(hub, granting, *requests)
    total = sum(each.right.amount_microusd for each in held(hub))
    assert 50_000 <= total <= 100_000
    assert pots(hub)[f"fleet {MONTH}"] == (100_000, 100_000 - total, total, 0)


def test_equal_demands_end_up_with_equal_money(hub, spender):
    set_cap(hub, "fleet", "month", 1_000_000, who="ann")
    many = [spender() for _ in range(5)]
    got = dict.fromkeys((device.id for device in many), 0)
    for turn in range(40):
        for device in many if turn % 2 else many[::-1]:
            device.want(500_000, uses=[device.done(used=500_000)] if device.leases else [])
            if device.leases:
                got[device.id] += device.leases[0].amount_microusd
    assert sum(got.values()) >= 950_000
    assert grants.jain(list(got.values())) > 0.95


def test_nobody_starves_in_a_crowd_whose_shares_are_too_small(hub, spender):
    set_cap(hub, "fleet", "month", 40_000, who="ann")
    many = [spender() for _ in range(5)]
    got = set()
    for _ in range(4):
        for device in many:
            device.want(500_000, uses=[device.done()] if device.leases else [])
            got.update(each.lease_id for each in device.leases)
            for lease in device.leases:
                seal(hub, lease, used=10_000)
    assert len(got) == 4
    assert len({each.right.purpose.device_id for each in held(hub)}) == 4


def test_a_floor_is_kept_for_who_is_away(hub, spender):
    set_cap(hub, "fleet", "total", 100_000, who="ann")
    terms = hub.settings.money.model_copy(update={"floor_microusd": 60_000, "parts": 1})
    settings = hub.settings.model_copy(update={"money": terms})
    granting = Granting(type(hub)(**{**vars(hub), "settings": settings}))
    away, here = spender(), spender()
    away.granting = here.granting = granting
    hub.store.write(lambda c: mirror.set_facts(c, [("recovering", 1)]))
    away.want(60_000)  # it gets nothing, and is not heard of for a day
    hub.store.write(lambda c: mirror.set_facts(c, [("recovering", 0)]))
    hub.clock.at += DAY_S
    here.want(100_000)
    assert here.leases[0].amount_microusd == 40_000
    here.want(0)
    away.want(60_000)
    assert away.leases[0].amount_microusd == 60_000


def test_more_devices_cost_no_more_queries(hub, spender, cap, granting):
    one, *many = (spender() for _ in range(5))
    counted = []

    def queries(*requests):
        counted.clear()
        arrivals = [Arrival(request, hub.clock()) for request in requests]
        nonces = iter(f"{at:032x}"[::-1] for at in range(1, 9))  # none of them draws the lot
        taken = hub.store.write(
            lambda c: take(c, arrivals, nonces=nonces.__next__, granting=granting)
        )
        assert all(each.leases for each in taken)
        return len(counted)

    event.listen(hub.store.engine, "before_cursor_execute", lambda *_: counted.append(1))
    asked = [Want(pool=POOL, demand_microusd=20_000)]
    alone = queries(one.request(wants=asked))
    assert queries(*(each.request(wants=asked) for each in many)) == alone < 40
