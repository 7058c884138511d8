"""Bad input to the whole chain: the device has an answer or a reason, and the money is exact.

What a gateway does with each by itself stands in ``tests/e2e/test_gateway.py``; here the device's
side is looked at, and that at the end provider, gateway, hub and device say the same.
"""

import json
import shutil
from dataclasses import replace

import pytest
from money_world import new_world
from world_checks import Witness
from world_net import Fault
from world_provider import Way
from world_rest import rest

from edge.types import Reason
from edge_sync.money.lease import Lease

YEARS = 3_660 * 86_400.0
TASK = "big10"


@pytest.fixture
def world():
    made = new_world()
    for device in made.devices:
        device.sync()
    yield made
    made.close()
    shutil.rmtree(made.folder)


@pytest.fixture
def witness(world):
    seen = Witness(world)
    assert seen.look() == []
    return seen


def states(world):
    """Return how the last call stands: at the device, at its gateway, and what was billed."""
    rows = world.gateways["big"].look("SELECT state, actual FROM holds ORDER BY seq DESC LIMIT 1")
    hold = world.devices[0].holds()[-1]
    there = tuple(rows[0]) if rows else None
    return (hold.state, hold.cost_microusd), there, world.provider.billed_microusd


DONE, NOT = Reason.ESCALATED, Reason.CLOUD_FAILED
PRICED, MOST, NOTHING = 5_005, 10_029, ("released", 0)
ANSWERS = {
    Way.FINE: (DONE, ("settled", PRICED), ("settled", PRICED), PRICED),
    Way.NO_USAGE: (DONE, ("settled", MOST), ("settled", MOST), PRICED),
    Way.NEGATIVE: (DONE, ("settled", MOST), ("settled", MOST), PRICED),
    Way.OVER: (DONE, ("settled", MOST), ("settled", MOST), PRICED),
    Way.HTML: (NOT, ("unclear", 0), ("unclear", None), PRICED),
    Way.CUT: (NOT, ("unclear", 0), ("unclear", None), PRICED),
    Way.HANG: (Reason.CLOUD_TIMEOUT, ("unclear", 0), ("unclear", None), PRICED),
    Way.DEAF: (Reason.CLOUD_TIMEOUT, ("unclear", 0), ("unclear", None), 0),
    Way.REFUSED: (Reason.CLOUD_REJECTED, NOTHING, ("settled", 0), 0),
    Way.BUSY: (NOT, NOTHING, ("settled", 0), 0),
    Way.NOBODY: (NOT, NOTHING, NOTHING, 0),
    Way.GATEWAY_DIES_BEFORE: (NOT, ("unclear", 0), ("unclear", None), 0),
    Way.GATEWAY_DIES_AFTER: (NOT, ("unclear", 0), ("unclear", None), PRICED),
}


@pytest.mark.parametrize("way", Way, ids=lambda way: way.name.lower())
def test_whatever_the_provider_does(world, witness, way):
    outcome = world.ask(0, TASK, way, 0.5)
    assert (outcome.reason, *states(world)) == ANSWERS[way]
    assert outcome.draft is not None or outcome.error
    assert witness.look() == []
    assert rest(world, witness) == []


LEASES = {
    "forged": {"signature": "0" * 128},
    "of a key nobody knows": {"key_id": "lease-none"},
    "expired": {"not_after": 1},
    "of another device": {"device_id": "e" * 32},
    "of another pool": {"pool_id": "small"},
    "of another amount": {"amount_microusd": 10**9},
    "of an earlier epoch": {"epoch": 0},
}


@pytest.mark.parametrize("what", LEASES)
def test_a_lease_that_is_none_pays_for_nothing(world, witness, what):
    device = world.devices[0]
    with device.book._file.transaction() as connection:
        sql = "SELECT lease_id, text FROM leases WHERE pool = 'big'"
        ((lease_id, text),) = connection.execute(sql).fetchall()
        wrong = replace(Lease(**json.loads(text)), **LEASES[what]).text()
        change = "UPDATE leases SET text = ? WHERE lease_id = ?"
        connection.execute(change, (wrong, lease_id))
    outcome = world.ask(0, TASK, Way.FINE, 0.5)
    assert (outcome.reason, outcome.draft) == (Reason.BUDGET_EXCEEDED, None)
    assert outcome.error
    assert states(world) == (NOTHING, None, 0)
    assert witness.look() == []


def test_a_lease_that_was_sealed_pays_no_more_and_the_next_does(world, witness):
    ((lease_id, _),) = [each for each in device_leases(world) if each[1] == "big"]
    world.gateways["big"].admin("seal", leases=[lease_id])
    assert world.ask(0, TASK, Way.FINE, 0.5).reason is Reason.BUDGET_EXCEEDED
    assert world.devices[0].shown().keys().isdisjoint({lease_id})
    for work in (world.devices[0].sync, world.hub.step, world.devices[0].sync):
        work()
    assert world.ask(0, TASK, Way.FINE, 0.5).reason is DONE
    assert witness.look() == []
    assert rest(world, witness) == []


def test_a_disk_that_was_set_back_draws_no_lease_twice(world, witness):
    world.copy_disk(0)
    for _ in range(9):
        world.ask(0, TASK, Way.FINE, 1.0)
    spent = world.provider.billed_microusd
    world.set_back(0)
    witness.devices_forget(0)
    outcome = world.ask(0, TASK, Way.FINE, 1.0)
    assert (outcome.reason, outcome.draft) == (Reason.BUDGET_EXCEEDED, None)
    assert "exhausted" in outcome.error
    assert world.provider.billed_microusd == spent
    assert witness.look() == []
    assert rest(world, witness) == []


@pytest.mark.parametrize("party", ["hub", "big", "device0"])
@pytest.mark.parametrize("seconds", [YEARS, -YEARS])
def test_clocks_that_are_years_apart(world, witness, party, seconds):
    world.jump(party, seconds)
    for _ in range(3):
        outcome = world.ask(0, TASK, Way.FINE, 0.5)
        assert outcome.draft is not None or outcome.error
        world.hub.step()
        world.devices[0].sync()
        assert witness.look() == []
    assert rest(world, witness) == []


def test_a_full_disk_at_the_gateway_forwards_nothing(world, witness):
    gateway = world.gateways["big"]
    gateway.fill(full=True)
    for _ in range(40):  # until the last free page is used
        billed = world.provider.billed_microusd
        outcome = world.ask(0, TASK, Way.FINE, 0.0)
        assert witness.look() == []
        if outcome.draft is None:
            break
    # What could not be settled stays held, so that the lease may be at its end before the disk is.
    assert "(unavailable)" in outcome.error or "(exhausted)" in outcome.error
    assert (states(world)[0], world.provider.billed_microusd) == (NOTHING, billed)
    gateway.fill(full=False)
    assert world.ask(1, TASK, Way.FINE, 0.5).reason is DONE
    assert world.provider.billed_microusd == billed + PRICED
    assert rest(world, witness) == []


@pytest.mark.parametrize("fault", [each for each in Fault if each is not Fault.OLD],
                         ids=lambda fault: fault.name.lower())  # fmt: skip
def test_whatever_the_network_does_to_a_call(world, witness, fault):
    world.network.plan["big"] = fault
    outcome = world.ask(0, TASK, Way.FINE, 0.5)
    assert outcome.draft is not None or outcome.error
    assert witness.look() == []
    assert rest(world, witness) == []


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.name.lower())
def test_whatever_the_network_does_to_a_sync(world, witness, fault):
    world.ask(0, TASK, Way.FINE, 0.5)
    world.network.plan["hub"] = fault
    world.devices[0].sync()
    assert witness.look() == []
    assert rest(world, witness) == []


def device_leases(world):
    with world.devices[0].book._file.db.reading() as connection:
        return connection.execute("SELECT lease_id, pool FROM leases").fetchall()
