"""What must hold once faults have stopped and a fleet has come to rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from _budget_hub import RECENT_S
from _budget_world import World

from edge_sync.money.caps import Purpose
from edge_sync.money.periods import period_of

ROUNDS = 4


def rest(world: World, *, demand: int) -> list[str]:
    """Let a world heal; return what does not hold then (I6, I9, I10, I11).

    Args:
        world: any; its faults end now.
        demand: what each device asks for at first; with 0 nobody can starve.

    """
    world.crashing.clear()
    world.clocks.clear()
    for device in world.devices:
        device.crashing = False
    found: list[str] = []
    _drain(world)
    world.now += 2 * RECENT_S  # what those asked for who are gone stands no longer
    for _ in range(ROUNDS + len(world.devices) if demand else 2):
        _round(world, demand)
    if demand:
        found += starved(world)
    world.now += 2 * world.hub.ttl_s
    for _ in range(ROUNDS):
        _round(world, 0)
    return [*found, *world.problems(), *unequal(world)]


def starved(world: World) -> Iterator[str]:
    """Yield devices that ask and get nothing though there is enough (I11)."""
    least = world.hub.terms.least_microusd
    for device in world.devices:
        name = device.disk.device_id
        member = world.hub.books.members[name]
        free = _free(world, Purpose(member.group, name, device.pool_id))
        best = device.best(world.now)
        has = 0 if best is None else device.shown(best)
        if not member.quarantined and has < least <= free:
            yield f"I11: device {device.origin} has {has} while {free} are free"


def _free(world: World, of: Purpose) -> int:
    pots = world.hub.books.pots
    found = []
    for cap in world.hub.caps.covering(of):
        pot = pots.get((cap.scope, period_of(cap.kind, world.now)))
        found.append(pot.free_microusd if pot else cap.amount_microusd)
    return min(found)


def unequal(world: World) -> Iterator[str]:
    """Yield where provider, gateways, hub and devices do not agree."""
    if world.hub.books.live:
        yield f"I10: {len(world.hub.books.live)} leases are stranded"
    paid = {row.row_id: row.cost for gateway in world.gateways.values() for row in gateway.log}
    booked = {row.row_id: row.cost for row, _ in world.hub.books.rows.values()}
    if paid != booked:
        yield f"I6: {len(paid)} rows at the gateways, {len(booked)} at the hub"
    if len(paid) != sum(len(gateway.log) for gateway in world.gateways.values()):
        yield "I6: a call was settled twice"
    billed = {key for key, bills in world.provider.bill.items() if bills}
    if not billed <= paid.keys() or any(paid[key] for key in paid.keys() - billed):
        yield "I6: the provider's bill names other calls"
    for key, spent in world.billed.items():
        pot = world.hub.books.pots.get(key)
        if pot is None or pot.settled_microusd != spent or pot.open_microusd:
            yield f"I9: the hub's books of {key[1]} miss the {spent} that were billed"
    yield from _left_behind(world, booked)


def _left_behind(world: World, booked: Mapping[str, int]) -> Iterator[str]:
    for device in world.devices:
        if device.disk.calls:
            yield f"I9: device {device.origin} waits for ever"
        if any(row.cost != booked.get(name) for name, (row, _) in device.disk.rows.items()):
            yield f"I6: rows of device {device.origin} are lost"
        if device.disk.policy != world.hub.policy:
            yield f"I17: device {device.origin} runs policy {device.disk.policy}"


def _round(world: World, demand: int) -> None:
    for device in world.devices:
        for key in tuple(device.disk.calls):
            world.send(device.retry(key))
        world.send(device.sync(demand, world.clock(device.origin)))
    world.send(world.hub.tick(world.clock("hub")))
    world.witness()
    _drain(world)
    for gateway in world.gateways.values():
        for key in tuple(gateway.waiting):
            world.send(gateway.time_out(key))
    world.reconcile()


def _drain(world: World) -> None:
    while world.network:
        world.send(world.deliver(world.network.pop(0)))
