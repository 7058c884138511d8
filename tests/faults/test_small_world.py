"""Every way through a small world: two devices, one gateway, caps of 3 and 2, a hub restored once.

The messages of these steps may be lost, come twice, late or in another order; disks may be cloned
and clocks wrong: each only chooses among the same steps, and all of them are followed to the end.
``EDGE_SEARCH=long`` searches larger worlds, for minutes.
"""

import os

import pytest
from small_world import Bounds, Bug, World

# bounds of a world -> (states, transitions, distinct leases), so that no search shrinks unseen
WORLDS = {
    Bounds(leases=3, calls=1): (303_792, 1_018_499, 742),
    Bounds(leases=2, calls=3): (170_218, 775_585, 1_470),
}
LONG_WORLDS = {
    Bounds(leases=3, calls=2): (1_258_944, 5_444_984, 1_470),
    Bounds(leases=2, calls=2, backups=2, restores=2): (582_887, 2_400_146, 2_986),
    Bounds(leases=4, calls=1): (2_718_500, 9_685_086, 742),
}


def told(bounds, found):
    return f"{bounds}: {found.states} states, {found.transitions} steps, depth {found.depth}"


@pytest.mark.parametrize("bounds", WORLDS, ids=str)
def test_no_way_through_breaks_an_invariant(bounds):
    found = World(bounds).search()
    print(told(bounds, found))  # noqa: T201
    assert found.problem == ""
    assert (found.states, found.transitions, found.leases) == WORLDS[bounds], told(bounds, found)


@pytest.mark.skipif(os.environ.get("EDGE_SEARCH") != "long", reason="EDGE_SEARCH=long runs it")
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("bounds", LONG_WORLDS, ids=str)
def test_no_way_through_a_larger_world_breaks_one(bounds):
    found = World(bounds).search()
    print(told(bounds, found))  # noqa: T201
    assert found.problem == ""
    assert (found.states, found.transitions, found.leases) == LONG_WORLDS[bounds]


CAUSES = {
    Bug.RECLAIM: "I3: refunded before the seal",
    Bug.RELEASE: "I2: leases of 3 under a cap of 2",
    Bug.ASYNCHRONOUS: "I3: refunded before the seal",
    Bug.NO_EPOCH: "I2: leases of 3 under a cap of 2",
    Bug.FLOAT: "I1: a grant",
}


@pytest.mark.parametrize("bug", Bug, ids=lambda bug: bug.name.lower())
def test_a_mistake_has_a_way_through_that_breaks_one(bug):
    assert World(Bounds(leases=2, calls=2), bug).search().problem == CAUSES[bug]


@pytest.mark.parametrize(
    "bug", [bug for bug in Bug if bug is not Bug.FLOAT], ids=lambda bug: bug.name.lower()
)
def test_a_mistake_is_billed_in_the_end(bug):
    """No book need be opened to see it: the provider's own count passes a cap."""
    found = World(Bounds(leases=2, calls=2), bug, only_bill=True).search()
    assert found.problem in {"I2: 3 billed under a cap of 2", "I2: 4 billed under a cap of 3"}
