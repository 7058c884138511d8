"""What a fair share is measured by; its rules are in tests/unit/sync/money/test_grants.py."""

import pytest
from sqlalchemy import insert, update

from edge_sync.hub.budget import books
from edge_sync.hub.budget.caps import set_cap
from edge_sync.hub.budget.crowd import Crowd, had_in, read_crowd, read_had
from edge_sync.hub.budget.sharing import Fairness
from edge_sync.money.account import Pot
from edge_sync.money.caps import Purpose, Scope
from edge_sync.money.grants import Claim, Terms
from edge_sync.store.schema import devices, wants

from ..conftest import NOW, Device  # noqa: TID252
from .conftest import look

MONTH = "month:2026-11"
ME = "f" * 32


def pot(free, *, scope=Scope(), had=0):  # noqa: B008 - it is frozen
    return Pot(scope, MONTH, free + had, free, had)


@pytest.fixture
def wanting(hub, code):
    """Return a function that lets a device join and want money."""

    def join(demand, *, group="kiosks", at=NOW, status="active"):
        device = Device(hub)
        device.enrol(code)

        def work(connection):
            row = {"device_id": device.id, "pool_id": "gpu", "task": "", "at": at}
            connection.execute(insert(wants).values(**row, demand_microusd=demand))
            change = update(devices).where(devices.c.id == device.id)
            connection.execute(change.values(group_name=group, status=status, last_seen_at=at))

        hub.store.write(work)
        return device

    return join


def read(hub, **values):
    return look(hub, lambda c: read_crowd(c, now=NOW, since=NOW - 900, **values))


def test_wants_are_summed_by_group_and_size(hub, wanting):
    for demand in (10, 20, 300):
        wanting(demand)
    wanting(30, group="lab")
    wanting(0)
    assert read(hub, floor=False).wanting == {
        (Purpose("kiosks", "", "gpu"), 2): (2, 30),
        (Purpose("kiosks", "", "gpu"), 3): (1, 300),
        (Purpose("lab", "", "gpu"), 2): (1, 30),
    }


def test_who_is_away_or_shut_out_wants_nothing(hub, wanting):
    away = wanting(50, at=NOW - 1_000)
    wanting(50, status="quarantined", at=NOW - 1_000)
    wanting(50, status="revoked")
    assert read(hub, floor=False).wanting == {}
    crowd = read(hub, floor=True)
    assert crowd.away == (Purpose("kiosks", away.id, "gpu"),)
    terms = Terms(floor_microusd=1_000)
    assert crowd.kept_back(pot(5_000), terms=terms, now=NOW) == {
        away.id: 417
    }  # of the month's rest
    assert crowd.kept_back(pot(5_000, scope=Scope(group="lab")), terms=terms, now=NOW) == {}


def test_what_was_given_and_kept_is_summed(hub, spender):
    set_cap(hub, "fleet", "day", 2_000_000, who="ann")
    device = spender()
    device.want()
    first = device.leases[0].lease_id
    device.want(uses=[device.done()], demand=30_000)
    hub.store.write(lambda c: books.seal(c, first, used_microusd=40_000))
    had = look(hub, lambda c: read_had(c, [device.id], periods=[MONTH]))
    assert had_in(pot(0), had[device.id]) == 70_000
    assert had_in(pot(0, scope=Scope(group="lab")), had[device.id]) == 0
    assert look(hub, lambda c: read_had(c, [device.id], periods=["month:2026-12"])) == {}
    assert look(hub, lambda c: read_had(c, [device.id], periods=[])) == {}


def crowd_of(count, demand):
    purpose = Purpose("kiosks", "", "gpu")
    return Crowd(NOW, {(purpose, len(str(demand))): (count, count * demand)})


def test_the_others_are_the_crowd_without_the_one_who_asks():
    (others,) = crowd_of(4, 500).others(pot(1_000, had=900), beside=Claim(ME, 500, 300))
    assert (others.weight, others.demand_microusd, others.had_microusd) == (3, 1_500, 600)
    assert crowd_of(1, 500).others(pot(1_000), beside=Claim(ME, 500)) == []
    assert crowd_of(0, 500).others(pot(1_000), beside=Claim(ME, 500)) == []
    assert crowd_of(4, 500).others(pot(1_000, scope=Scope(device=ME)), beside=Claim(ME, 5)) == []


def test_a_large_crowd_is_not_counted_each_time():
    small, large = crowd_of(100, 5), crowd_of(20_100, 5)
    assert not small.stands(NOW)
    assert large.stands(NOW + 1.9)
    assert not large.stands(NOW + 2)
    assert not large.stands(NOW - 1)  # a clock that was set back


@pytest.mark.parametrize(
    ("free", "count", "had", "all_had", "share"),
    [
        (8_000, 1, 0, 0, 1_000),  # alone: a part of what is free
        (800, 1, 0, 0, 400),  # the least that is of use
        (399, 1, 0, 0, 0),
        (8_000, 100, 0, 0, 400),  # 80 for each are of no use: those who had none go first
        (8_000, 100, 400, 40_000, 400),
        (8_000, 100, 400, 20_000, 0),
        (-5, 1, 0, 100, 0),
    ],
)
def test_a_share_is_fair_and_of_use(free, count, had, all_had, share):
    terms = Terms(parts=8, least_microusd=400)
    fairness = Fairness(crowd_of(count, 5_000), terms, now=NOW)
    claim = Claim(ME, 5_000, had)
    assert fairness.share(pot(free, had=all_had), claim, open_microusd=0) == share
