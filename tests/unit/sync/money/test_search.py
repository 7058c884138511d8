"""Every way through a small world: two devices, one gateway, a cap of three, a fault."""

import copy
from collections import Counter

import pytest
from budget_bench import Bug, World

from edge_sync.money.caps import Cap, Caps, Scope
from edge_sync.money.grants import Terms

CALLS, SYNCS = 2, 3
FAULTS = ("lose", "copy", "clone", "restore", "expire", "crash")


class Small:
    """A world that can be forked and compared; ids are counted by node, not by time."""

    def __init__(self, bugs, faults):
        self.ids = Counter()
        self.left = Counter(call=CALLS, sync=SYNCS, **dict.fromkeys(faults, 1))
        self.world = World(
            Caps.of([Cap(Scope(), "total", 3)]),
            pools=("big",),
            machines=(("kiosks", "big"), ("kiosks", "big")),
            terms=Terms(parts=1, least_microusd=1),
            bugs=bugs,
        )
        self._bind()

    def _bind(self):
        self.world.hub.fresh = lambda: self._id("hub")
        for device in self.world.devices:
            device.fresh = lambda origin=device.origin: self._id(origin)

    def _id(self, name):
        self.ids[name] += 1
        return f"{name}.{self.ids[name]}"

    def fork(self):
        new = copy.copy(self)
        new.ids, new.left = Counter(self.ids), Counter(self.left)
        world = new.world = shallow(self.world)
        world.provider = shallow(world.provider)
        world.hub = shallow(world.hub)
        world.hub.books = world.hub.books.copy()
        world.gateways = {name: shallow(each) for name, each in world.gateways.items()}
        world.devices = [shallow(each) for each in world.devices]
        for device in world.devices:
            device.disk = device.disk.copy()
        new._bind()
        return new

    def key(self):
        world = self.world
        books, gateway = world.hub.books, world.gateways["big"]
        return (
            frozenset(Counter(world.network).items()),
            frozenset(self.left.items()),
            *(frozenset(each.items()) for each in (books.rights, books.members, books.rows)),
            *(frozenset(each.items()) for each in (gateway.leases, gateway.calls)),
            frozenset(gateway.waiting),
            gateway.epoch,
            world.hub.epoch,
            frozenset(world.hub.awaiting),
            tuple(
                (each.disk.nonce, each.disk.pending, *map(frozenset, disk_items(each.disk)))
                for each in world.devices
            ),
        )


def shallow(node):
    new = copy.copy(node)
    for name, value in vars(node).items():
        if isinstance(value, dict | list | set):
            setattr(new, name, copy.copy(value))
    return new


def disk_items(disk):
    return disk.leases.items(), disk.calls.items(), disk.rows.items()


def moves(small):
    """Yield what can happen next, as (name, argument)."""
    world, left = small.world, small.left
    for device in world.devices:
        if left["call"] and device.disk.leases:
            yield "call", device.origin
        if left["sync"]:
            yield "sync", device.origin
    for message in dict.fromkeys(world.network):
        yield "deliver", message
        if left["lose"]:
            yield "lose", message
        if left["copy"] and type(message).__name__ not in {"Ask", "Billed"}:
            yield "copy", message
    for key in world.gateways["big"].waiting:
        yield "time_out", key
    yield from ((name, None) for name in ("clone", "restore", "expire", "crash") if left[name])


def happen(small, name, what):
    world = small.world
    if name in small.left:
        small.left[name] -= 1
    if name in {"deliver", "lose"}:
        world.network.remove(what)
    if name in {"deliver", "copy"}:
        world.send(world.deliver(what))
    elif name == "call":
        world.send(world.devices[what].call(1, world.now))
    elif name == "sync":
        world.send(world.devices[what].sync(2, world.now))
    elif name == "time_out":
        world.send(world.gateways["big"].time_out(what))
    elif name == "clone":
        world.clone(world.devices[0])
        small._bind()
    elif name == "restore":
        world.send(world.hub.restore(world.backups[0]))
    elif name == "expire":
        world.now += 2 * world.hub.ttl_s
        world.send(world.hub.tick(world.now))
        world.witness()
    elif name == "crash":
        world.gateways["big"].crash()


def search(faults, bugs=frozenset()):
    """Return how many states there are, and the first problem, breadth first."""
    first = Small(bugs, faults)
    seen, now = {first.key()}, [first]
    while now:
        later = []
        for small in now:
            for name, what in moves(small):
                new = small.fork()
                happen(new, name, what)
                found = next(new.world.problems(), None)
                if found:
                    return len(seen), found
                key = new.key()
                if key not in seen:
                    seen.add(key)
                    later.append(new)
        now = later
    return len(seen), None


@pytest.mark.parametrize("fault", FAULTS)
def test_no_way_through_breaks_an_invariant(fault):
    states, found = search((fault,))
    assert found is None
    assert states > 500


@pytest.mark.parametrize(
    ("bug", "faults"),
    [(Bug.RECLAIM, ("expire",)), (Bug.NO_EPOCH, ("restore",)), (Bug.ASYNCHRONOUS, ("expire",))],
)
def test_a_mistake_has_a_way_through_that_breaks_one(bug, faults):
    assert search(faults, frozenset({bug}))[1]
