"""A device that asks for more than its part, on both databases."""

import pytest

from edge_sync.hub.budget.caps import set_cap
from edge_sync.store.schema import wants
from edge_sync.wire import MAX_LEASES, MAX_WANTS, LeaseUse, Want

from .conftest import POOL, add_pool, held, look, pots

MOST = 10**15
PART = 2_000_000 // 8
LEAST = 10_000


@pytest.fixture
def cap(hub):
    return set_cap(hub, "fleet", "month", 2_000_000, who="ann")


def invented(turn, pool=POOL):
    return [Want(pool=pool, task=f"t{turn}-{at}", demand_microusd=MOST) for at in range(MAX_WANTS)]


def total(device):
    return sum(lease.amount_microusd for lease in device.leases)


def test_invented_tasks_get_a_device_no_more_than_one_part_and_the_least_each(hub, spender, cap):
    greedy, other = spender(), spender()
    for turn in range(MAX_WANTS):
        hub.clock.at += 1
        greedy.want(MOST, task=f"t{turn}")
    assert total(greedy) == PART + (MAX_WANTS - 1) * LEAST
    other.want(MOST)
    assert total(other) >= 150_000


def test_a_device_has_a_bounded_number_of_rights(hub, spender, cap):
    greedy = spender()
    for turn in range(MAX_LEASES + 5):
        hub.clock.at += 1
        greedy.want(1, task=f"t{turn}")
    assert len(greedy.leases) == len(held(hub)) == MAX_LEASES
    # What is given up counts until it is sealed, so that it cannot be asked for without end.
    uses = [LeaseUse(lease_id=lease.lease_id, used_microusd=0, done=True)
            for lease in greedy.leases]  # fmt: skip
    greedy.want(1, uses=uses)
    assert greedy.leases == ()
    assert len(held(hub)) == MAX_LEASES


def test_a_second_pool_is_no_part_of_the_first(hub, spender, cap):
    add_pool(hub, "api", grade="escrow")
    device = spender()
    device.sync(wants=[Want(pool=pool, demand_microusd=MOST) for pool in (POOL, "api")])
    assert [lease.amount_microusd for lease in device.leases] == [PART, (2_000_000 - PART) // 8]


def test_wants_are_bounded_by_device_whatever_pools_it_names(hub, spender, cap):
    device = spender()
    for turn in range(5):
        hub.clock.at += 1
        device.sync(wants=invented(turn, pool=f"no-such-{turn}"))
    assert len(look(hub, lambda c: c.execute(wants.select()).all())) <= MAX_WANTS
    assert device.leases == ()


def test_what_is_said_of_other_leases_than_ones_own_changes_nothing(hub, spender, cap):
    victim, liar = spender(), spender()
    victim.want()
    (lease,) = victim.leases
    foreign = [
        LeaseUse(lease_id=lease.lease_id, used_microusd=MOST, done=True),
        LeaseUse(lease_id="0" * 32, used_microusd=MOST, done=True),
    ]
    before = pots(hub)
    liar.sync(uses=foreign)
    assert pots(hub) == before
    assert [(each.right.state, each.told_microusd) for each in held(hub)] == [("open", 0)]


@pytest.mark.parametrize("used", [0, MOST])
def test_what_a_device_says_of_its_own_lease_gives_nothing_back(hub, spender, cap, used):
    device = spender()
    device.want()
    device.sync(uses=[device.done(used=used)])
    ((state, why),) = [(each.right.state, each.why_closed) for each in held(hub)]
    assert (state, why) == ("closing", "done")
    (money,) = pots(hub).values()
    assert money[2:] == (100_000, 0)
