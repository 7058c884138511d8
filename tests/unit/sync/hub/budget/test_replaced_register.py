"""A gateway whose register was lost and replaced, and what comes after."""

import pytest
from inner_gateway import SECRET

from edge_sync.hub.budget import gateways, recovery

from .conftest import POOL


@pytest.fixture
def replaced(hub, gated, gateway, memory_path):
    """Return a device; a lease of it was sealed before the gateway's register was replaced."""
    device = gated.join()
    device.want(100_000)
    gateway.spend(device.leases[0], 60_000)
    gated.step()
    device.sync(uses=[device.done(used=60_000)])
    gated.step()
    assert gated.money() == (1_000_000, 940_000, 0, 60_000)
    gateway.shut()
    gateway.open(memory_path / "fresh.db")
    hub.clock.at += 60
    gateways.remove(hub, POOL, who="ann", strand=True)
    carry = gateway.transport()
    gateways.add(hub, POOL, url=f"http://{POOL}", secret=SECRET, who="ann", transport=carry)
    gated.step()
    return device


def test_what_the_lost_register_counted_stays_spent_and_a_restore_is_not_kept_from_granting(
    hub, gated, gateway, replaced
):
    replaced.want(50_000)
    gateway.spend(replaced.leases[0], 20_000)
    gated.step()
    recovery.begin(hub, why="a test")
    for _ in range(3):
        gated.step()
    assert (gated.fact("recovering"), gated.row().error) == (0, "")
    assert gated.money() == (1_000_000, 920_000, 0, 80_000)
    replaced.want(50_000)
    assert len(replaced.leases) == 1
