"""What is forgotten after long, and that no sum changes by it, on both databases."""

import pytest

from edge_sync.hub.budget import caps, forgetting, recovery
from edge_sync.store.schema import redemptions

from .conftest import held, look, pots

DAY_S = 86_400


def rows(hub):
    return look(hub, lambda c: c.execute(redemptions.select()).all())


def spend(gated, gateway, device, cost):
    """Have a lease granted, spend some of it, and have it sealed."""
    device.want(100_000)
    if cost:
        gateway.spend(device.leases[0], cost)
    gated.step()
    device.sync(uses=[device.done(used=cost)])
    gated.step()


@pytest.fixture
def old(hub, gated, gateway):
    """Return a device that spent money long ago."""
    caps.set_cap(hub, "fleet", "total", 2_000_000, who="ann")
    device = gated.join()
    for cost in (30_000, 0):
        spend(gated, gateway, device, cost)
    hub.clock.at += forgetting.KEEP_S + 40 * DAY_S
    return device


def test_what_no_sum_needs_is_forgotten_and_every_sum_stays(hub, gated, gateway, old):
    assert (len(held(hub)), len(rows(hub)), len(pots(hub))) == (2, 1, 2)
    assert forgetting.forget(hub) == 3
    assert [(each.right.state, each.right.used_microusd) for each in held(hub)] == [
        ("sealed", 30_000)
    ]
    assert rows(hub) == []
    assert pots(hub) == {"fleet total": (2_000_000, 1_970_000, 0, 30_000)}
    assert forgetting.forget(hub) == 0


def test_a_pot_that_is_opened_anew_has_the_same_sums(hub, gated, gateway, old):
    now = hub.clock.at
    forgetting.forget(hub)
    caps.remove_cap(hub, "fleet", "total", who="ann")
    caps.set_cap(hub, "fleet", "total", 2_000_000, who="ann")
    assert pots(hub)["fleet total"] == (2_000_000, 1_970_000, 0, 30_000)
    hub.clock.at = now - forgetting.KEEP_S - 40 * DAY_S  # the clock had been wrong
    old.want(1)
    (month,) = [money for name, money in pots(hub).items() if "month" in name]
    assert month == (1_000_000, 969_999, 1, 30_000)


def test_a_recovery_after_it_counts_nothing_twice(hub, gated, gateway, old):
    forgetting.forget(hub)
    recovery.begin(hub, why="a test")
    for _ in range(3):
        gated.step()
    assert gated.fact("recovering") == 0
    assert pots(hub)["fleet total"] == (2_000_000, 1_970_000, 0, 30_000)


def test_what_is_not_sealed_or_not_old_is_kept(hub, gated, gateway):
    device = gated.join()
    device.want(100_000)
    hold = gateway.hold(device.leases[0], 40_000)
    gateway.spend(device.leases[0], 10_000)
    gateway.leave_unclear(hold)
    gated.step()
    assert forgetting.forget(hub) == 0
    hub.clock.at += forgetting.KEEP_S + 40 * DAY_S
    gated.step()
    assert forgetting.forget(hub) == 0
    assert len(rows(hub)) == 2
    assert [each.right.state for each in held(hub)] == ["closing"]
