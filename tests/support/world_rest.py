"""What must hold of a world at rest: faults are over, and everybody has done a few rounds.

I6   a bill of the provider is one hold of a gateway, one row of the hub, one row of a device
I9   a few rounds after the faults, nothing waits and all say the same
I10  nothing is stranded: what was closed is sealed and free again
I11  who wants money gets some where there is some
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from money_world import CAPS, World
from world_checks import Witness
from world_device import DeviceSide

from edge_sync.gateway.calls import hold_id
from edge_sync.store.schema import devices, ledger_rows, redemptions
from edge_sync.store.schema import leases as hub_leases

ROUNDS = 3
PLENTY = 100_000_000
_LESS = frozenset({"no_usage", "bad_usage", "over"})
"""Why a hold is booked at its maximum though less was billed."""


def rest(world: World, witness: Witness) -> list[str]:
    """End all faults, let a few rounds go by, and return what does not hold."""
    world.heal()
    world.hub.step()  # a database that was set back is noticed
    found: list[str] = []
    if world.hub.caps() != witness.caps:
        found.append(f"I8: the caps are {world.hub.caps()}, set were {witness.caps}")
    for scope, kind, _ in CAPS:
        world.hub.set_cap(scope, kind, PLENTY)
    witness.recapped()
    for _ in range(ROUNDS):
        world.round()
        world.hub.step()
        found += witness.look()
        left = list(_left(world, witness))
        if found or not left:
            break
    return [*found, *left]


def _left(world: World, witness: Witness) -> Iterator[str]:
    """Yield what a world that is at rest has not come to."""
    yield from _bills_and_holds(world, witness)
    yield from _holds_and_redemptions(world, witness)
    for at, device in enumerate(world.devices):
        yield from _device(world, at, device)
    yield from _nothing_waits(world)
    yield from _everybody_has_some(world)


def _bills_and_holds(world: World, witness: Witness) -> Iterator[str]:
    rows = {row.hold_id: row for each in witness.registers.values() for row in each.rows.values()}
    for key, count in Counter(bill.key for bill in world.provider.bills).items():
        if count > 1:
            yield f"I6: hold {key} was billed {count} times"
    for row in rows.values():
        billed = world.provider.billed(row.hold_id)
        if row.state not in {"settled", "released"}:
            yield f"I9: hold {row.hold_id} is {row.state}"
        elif (row.actual or 0) != billed and not (row.flag in _LESS and row.actual > billed):
            yield f"I6: hold {row.hold_id} is booked at {row.actual}, billed at {billed}"


def _holds_and_redemptions(world: World, witness: Witness) -> Iterator[str]:
    theirs = {
        row.hold_id: (row.lease_id, row.state, row.actual or 0)
        for each in witness.registers.values()
        for row in each.rows.values()
    }
    mine = {
        row["hold_id"]: (row["lease_id"], row["state"], row["cost_microusd"])
        for row in world.hub.rows(redemptions)
    }
    for key in theirs.keys() | mine.keys():
        if theirs.get(key) != mine.get(key):
            yield f"I6: hold {key} is {theirs.get(key)} at its gateway, {mine.get(key)} at the hub"


def _device(world: World, at: int, device: DeviceSide) -> Iterator[str]:
    """Yield what a device's ledger, the hub's rows and the gateway's holds do not agree about."""
    told = {row["row_id"]: row for row in world.hub.rows(ledger_rows)}
    rows = {hold[0]: hold for gate in world.gateways.values()
            for hold in gate.look("SELECT hold_id, state, actual FROM holds")}  # fmt: skip
    synced = _status(world, device.id) != "revoked"
    for hold in device.holds():
        mine = (hold.state, hold.cost_microusd)
        there = rows.pop(hold_id(device.id, hold.id), None)
        if hold.state not in {"settled", "released"}:
            if synced:  # a gateway tells nothing to a device that was shut out
                yield f"I9: device {at} has a hold that is {hold.state}"
        elif hold.cost_microusd != (there[2] or 0 if there else 0):
            yield f"I6: hold {hold.id} of device {at} is {mine}, at its gateway {there}"
        kept = told.get(hold.id)
        if synced and (kept is None or (kept["state"], kept["cost_microusd"]) != mine):
            yield f"I6: hold {hold.id} of device {at} is {mine}, at the hub {_short(kept)}"
    memory = device.agent.memory()
    if synced and (memory.pending is not None or memory.rows.open):
        yield f"I9: device {at} still has something to tell"


def _nothing_waits(world: World) -> Iterator[str]:
    if world.hub.fact("recovering"):
        yield "I9: the hub is still recovering"
    for row in world.hub.rows(hub_leases):
        if row["state"] == "closing":
            yield f"I10: lease {row['lease_id']} ({row['why_closed']}) is not given back"


def _everybody_has_some(world: World) -> Iterator[str]:
    open_ones = {
        (row["device_id"], row["pool_id"])
        for row in world.hub.rows(hub_leases)
        if row["state"] == "open"
    }
    for at, device in enumerate(world.devices):
        if _status(world, device.id) != "active":
            continue
        for pool in world.pack.pools:
            if (device.id, pool) not in open_ones:
                yield f"I11: device {at} wants money for {pool} and has none"
        shown = set(device.shown())
        offered = {row["lease_id"] for row in world.hub.rows(hub_leases)
                   if row["state"] == "open" and row["device_id"] == device.id}  # fmt: skip
        if not shown <= offered:
            yield f"I9: device {at} holds leases that the hub has closed"


def _status(world: World, device_id: str) -> str:
    found = [row["status"] for row in world.hub.rows(devices) if row["id"] == device_id]
    return found[0] if found else "unknown"


def _short(row: dict[str, Any] | None) -> Any:
    return None if row is None else (row["state"], row["cost_microusd"])
