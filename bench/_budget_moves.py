"""What can happen to a simulated fleet, a function each, and a driver that draws at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from _budget_rest import rest
from _budget_wire import Bug
from _budget_world import World

from edge_sync.money.caps import Cap, Caps, Scope
from edge_sync.money.grants import Terms

FLEET, KIOSKS = Scope(), Scope(group="kiosks")
CAP, LEAST = 1_300_000, 100_000
DAY = 86_400.0
Move = Callable[[World, Random], None]


def small_world(
    price: Callable[[int], int], *, bugs: frozenset[Bug] = frozenset(), cap: int = CAP
) -> World:
    """Return three devices in two groups at two pools, under a cap that binds."""
    caps = Caps.of([Cap(FLEET, "month", cap), Cap(KIOSKS, "day", cap)])
    return World(
        caps,
        pools=("big", "small"),
        machines=(("kiosks", "big"), ("kiosks", "small"), ("shops", "big")),
        terms=Terms(parts=2, least_microusd=LEAST),
        ttl_s=DAY,
        price=price,
        bugs=bugs,
    )


def call(world: World, draw: Random) -> None:
    """A device asks its pool."""
    device = draw.choice(world.devices)
    world.send(device.call(draw.choice((30_000, LEAST)), world.clock(device.origin)))


def retry(world: World, draw: Random) -> None:
    """A device asks again."""
    device = draw.choice(world.devices)
    if device.disk.calls:
        world.send(device.retry(draw.choice(sorted(device.disk.calls))))


def sync(world: World, draw: Random) -> None:
    """A device syncs."""
    device = draw.choice(world.devices)
    demand = draw.choice((0, LEAST, 5 * LEAST))
    world.send(device.sync(demand, world.clock(device.origin), least=draw.choice((1, 50_000))))


def tick(world: World, draw: Random) -> None:
    """The hub looks after its leases."""
    del draw
    world.send(world.hub.tick(world.clock("hub")))
    world.witness()


def deliver(world: World, draw: Random) -> None:
    """A message arrives; any may be first, and a copy of it may come much later."""
    if not world.network:
        return
    at = draw.randrange(len(world.network))
    message = world.network[at]
    if draw.random() < 0.9 or type(message).__name__ in {"Ask", "Billed"}:
        del world.network[at]
    world.send(world.deliver(message))


def deliver_all(world: World, draw: Random) -> None:
    """The network is quick for once."""
    for _ in range(30):
        deliver(world, draw)


def lose(world: World, draw: Random) -> None:
    """A message is lost."""
    if world.network:
        del world.network[draw.randrange(len(world.network))]


def time_out(world: World, draw: Random) -> None:
    """A gateway waits no longer."""
    gateway = draw.choice(sorted(world.gateways.items()))[1]
    if gateway.waiting:
        world.send(gateway.time_out(draw.choice(sorted(gateway.waiting))))


def crash(world: World, draw: Random) -> None:
    """A node is to crash before or after the commit of its next message."""
    name = draw.choice(("hub", *world.gateways, *range(len(world.devices))))
    world.crashing[name] = draw.choice(("before", "after"))


def crash_halfway(world: World, draw: Random) -> None:
    """A device is to crash within its next reply."""
    draw.choice(world.devices).crashing = True


def crash_gateway(world: World, draw: Random) -> None:
    """A gateway crashes while nothing arrives."""
    draw.choice(sorted(world.gateways.items()))[1].crash()


def roll_back(world: World, draw: Random) -> None:
    """A disk is restored from a copy, which is then taken anew."""
    device = draw.choice(world.devices)
    kept = world.copies.get(device.origin)
    world.copies[device.origin] = device.disk.copy()
    if kept is not None:
        device.disk = kept


def clone(world: World, draw: Random) -> None:
    """A disk is copied to another machine."""
    if len(world.devices) < 6:
        world.clone(draw.choice(world.devices))


def wipe(world: World, draw: Random) -> None:
    """A device starts anew with another key."""
    world.enrol_again(draw.choice(world.devices), wipe=draw.random() < 0.5)


def pardon(world: World, draw: Random) -> None:
    """An admin ends a quarantine."""
    world.hub.pardon(draw.choice(world.devices).disk.device_id)


def back_up(world: World, draw: Random) -> None:
    """The hub completes a backup."""
    del draw
    world.backups.append(world.hub.back_up())


def restore(world: World, draw: Random) -> None:
    """The hub starts again from some backup."""
    world.send(world.hub.restore(draw.choice(world.backups)))


def reconcile(world: World, draw: Random) -> None:
    """The provider's bill comes."""
    del draw
    world.reconcile()


def wait(world: World, draw: Random) -> None:
    """Time goes by, perhaps into another month."""
    world.now += draw.choice((60.0, DAY / 3, 2 * DAY))


def set_clock(world: World, draw: Random) -> None:
    """A clock is wrong by anything up to ten years."""
    name = draw.choice(("hub", *world.gateways, *range(len(world.devices))))
    world.clocks[name] = draw.choice((0.0, -DAY, DAY, -3650 * DAY, 3650 * DAY))


def set_cap(world: World, draw: Random) -> None:
    """A cap is raised or cut."""
    amount = draw.choice((CAP // 3, CAP, 2 * CAP))
    world.set_cap(draw.choice((Cap(FLEET, "month", amount), Cap(KIOSKS, "day", amount))))


def publish(world: World, draw: Random) -> None:
    """The hub has a newer policy."""
    del draw
    world.hub.policy += 1


USUAL: tuple[Move, ...] = (call, call, call, retry, sync, sync, deliver, deliver, deliver_all, tick)
FAULTS: tuple[Move, ...] = (
    lose, time_out, crash, crash_halfway, crash_gateway, roll_back, clone, wipe, pardon, back_up,
    restore, reconcile, wait, set_clock, set_cap, publish,
)  # fmt: skip


def walk(
    seed: int, steps: int, *, bugs: frozenset[Bug] = frozenset(), faults: Sequence[Move] = FAULTS
) -> list[str]:
    """Let so many things happen at random and come to rest; return what did not hold.

    Raises:
        EdgeError, AssertionError: a rule met what cannot be.

    """
    draw = Random(seed)  # noqa: S311 - a simulation
    world = small_world(lambda most: draw.choice((most, most // 3, 0)), bugs=bugs)
    for _ in range(steps):
        draw.choice(USUAL if draw.random() < 0.8 else faults)(world, draw)
        found = list(world.problems())
        if found:
            return found
    return rest(world, demand=5 * LEAST)
