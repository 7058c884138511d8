"""What must hold of a world after each step, by the registers and the provider's bill.

``Witness.look`` returns a line for each invariant that does not hold, which begins with its name:

    I1   free + open + settled = cap, in every pot of the hub
    I2   what the provider billed, and all that leases may still come to, is within each cap
    I3   a lease is never above its amount, and the hub's count of one is the gateway's final one
    I4   a lease is known to one gateway
    I5   an older epoch takes nothing more
    I8   epochs, counts, seals, revisions never fall
    I12  what is above a cut cap was out at the cut
    I13  a lease lies within one period of every cap above it
    I14  adjustments are of a hold and come to no more than it cost
    I16  a device shows no more than its gateway would give it, but for what a gateway whose disk
         is full could not write yet: the answer came, and with it the cost
    I17  a device holds the etag of a policy only once that is in force

The hub's books are not asked what may be spent: every lease that the hub ever signed is remembered
here, through backups and restores. I2 and I12 need no period of grace: a lease counts in full until
its gateway has sealed or fenced it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from money_world import World
from world_device import DeviceSide
from world_gateway import HOLDS, LEASES

from edge_sync.gateway.calls import hold_id
from edge_sync.hub.budget.gateways import WRITTEN_OFF
from edge_sync.money.caps import Purpose, Scope
from edge_sync.money.lease import Lease
from edge_sync.money.periods import bounds, within
from edge_sync.store.schema import leases as hub_leases

Key = tuple[Scope, str]


class Entry(NamedTuple):
    """A lease at its gateway."""

    lease_id: str
    device_id: str
    epoch: int
    amount: int
    held: int
    redeemed: int
    open: int
    sealed: int

    @property
    def used(self) -> int:
        return self.held + self.redeemed


class Row(NamedTuple):
    """A hold at its gateway."""

    hold_id: str
    lease_id: str
    state: str
    most: int
    actual: int | None
    reported: int | None
    flag: str


class Register(NamedTuple):
    """All that one gateway knows."""

    epoch: int
    leases: dict[str, Entry]
    rows: dict[str, Row]


class Witness:
    """Remembers what a world was like, and says what is wrong with what it has become.

    Attributes:
        issued: every lease that the hub ever signed.
        registers: of the gateways, as they are.
        caps: as a person set them last, by scope and kind.

    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.issued: dict[str, Lease] = {}
        self.registers: dict[str, Register] = {}
        self._allowed: dict[Key, int] = {}
        self.caps = world.hub.caps()
        self._epoch = self._granted = 0
        self._revisions: dict[int, int] = {}
        self._followed: dict[int, tuple[str, int]] = {}

    def look(self) -> list[str]:
        """Return what does not hold."""
        before = self.registers
        self.registers = {name: _read(gate) for name, gate in self._world.gateways.items()}
        hub_rows = self._world.hub.rows(hub_leases)
        new = [Lease.parse(row["text"]) for row in hub_rows
               if row["text"] and row["lease_id"] not in self.issued]  # fmt: skip
        self.issued.update((lease.lease_id, lease) for lease in new)
        return [
            *(f"I1: {told}" for told in self._world.hub.unbalanced()),
            *self._within_caps(),
            *self._leases_bound(),
            *self._books_true(hub_rows),
            *self._moved_well(before),
            *self._within_periods(new),
            *self._adjusted_well(),
            *(told for at, device in enumerate(self._world.devices)
              for told in (*self._shows_no_more(device), *self._follows(at, device))),
        ]  # fmt: skip

    def recapped(self) -> None:
        """Take the caps that are in force now; what is out already may still be spent."""
        self.caps = self._world.hub.caps()
        out = self._exposure()
        self._allowed = {key: max(cap, out[key]) for key, cap in self._known(out)}

    def devices_forget(self, at: int) -> None:
        """A device's disk is another one now."""
        self._revisions.pop(at, None)
        self._followed.pop(at, None)

    def may_come_to(self, lease: Lease) -> int:
        """Return the most that a lease can still be billed at."""
        register = self.registers[lease.pool_id]
        entry = register.leases.get(lease.lease_id)
        if entry is None:
            return lease.amount_microusd if lease.epoch >= register.epoch else 0
        over = entry.sealed or lease.epoch < register.epoch
        return entry.used if over else lease.amount_microusd

    def _known(self, found: Counter[Key]) -> Iterator[tuple[Key, int]]:
        """Yield each pot that there is or was, with its cap."""
        for (scope, kind), cap in self.caps.items():
            for at, period in {*found, *self._allowed}:
                if at == scope and within(period, kind) == period:
                    yield (scope, period), cap

    def _exposure(self) -> Counter[Key]:
        """Return what all leases may come to, by cap and period."""
        found: Counter[Key] = Counter()
        for lease in self.issued.values():
            purpose = _purpose(lease)
            for scope, kind in self.caps:
                period = within(lease.period, kind)
                if period is not None and scope.covers(purpose):
                    found[scope, period] += self.may_come_to(lease)
        return found

    def _within_caps(self) -> Iterator[str]:
        found, billed = self._exposure(), self._billed()
        for key, cap in list(self._known(found)):
            may = self._allowed.get(key, cap)
            what = f"{key[0].text()} {key[1]}"
            if billed[key] > may:
                yield f"I2: {billed[key]} was billed of {what}, where {may} may be"
            if found[key] > may:
                name = "I2" if may == cap else "I12"
                yield f"{name}: leases of {what} may come to {found[key]}, where {may} may be"
            self._allowed[key] = max(cap, min(may, found[key]))

    def _billed(self) -> Counter[Key]:
        found: Counter[Key] = Counter()
        for bill in self._world.provider.bills:
            lease = self.issued.get(self._lease_of(bill.key))
            for scope, kind in self.caps if lease else ():
                period = within(lease.period, kind)
                if period is not None and scope.covers(_purpose(lease)):
                    found[scope, period] += bill.microusd
        return found

    def _lease_of(self, hold_id: str) -> str:
        for register in self.registers.values():
            if hold_id in register.rows:
                return register.rows[hold_id].lease_id
        return ""

    def _leases_bound(self) -> Iterator[str]:
        seen: set[str] = set()
        billed: Counter[str] = Counter()
        for bill in self._world.provider.bills:
            billed[self._lease_of(bill.key)] += bill.microusd
        if billed[""]:
            yield f"I6: {billed['']} was billed for no hold of any gateway"
        for pool, register in self.registers.items():
            for entry in register.leases.values():
                lease = self.issued.get(entry.lease_id)
                if entry.amount and (lease is None or lease.pool_id != pool):
                    yield f"I4: the gateway of {pool} knows lease {entry.lease_id}"
                elif entry.amount and entry.lease_id in seen:
                    yield f"I4: two gateways know lease {entry.lease_id}"
                elif lease and entry.used > lease.amount_microusd:
                    yield f"I3: lease {entry.lease_id} came to {entry.used}"
                if billed[entry.lease_id] > entry.used:
                    yield (f"I3: {billed[entry.lease_id]} was billed of lease {entry.lease_id}, "
                           f"which counts {entry.used}")  # fmt: skip
                seen |= {entry.lease_id} if entry.amount else set()

    def _books_true(self, rows: list[dict[str, Any]]) -> Iterator[str]:
        """Look whether the hub gave back only what a gateway had sealed for good."""
        for row in rows:
            if row["state"] != "sealed" or row["why_closed"] == WRITTEN_OFF:
                continue
            register, lease_id = self.registers[row["pool_id"]], row["lease_id"]
            entry = register.leases.get(lease_id)
            fenced = row["epoch"] < register.epoch
            count = entry.used if entry else 0
            final = fenced or (entry is not None and entry.sealed)
            if not final or (entry and entry.open) or count != row["used_microusd"]:
                yield (f"I3: lease {lease_id} is sealed at {row['used_microusd']}, its gateway has "
                       f"{count}{'' if final else ' and goes on'}")  # fmt: skip

    def _moved_well(self, before: dict[str, Register]) -> Iterator[str]:
        kept = self._world.hub.outside()
        if kept.epoch < self._epoch or kept.granted < self._granted:
            yield f"I8: the keys folder fell to epoch {kept.epoch} and {kept.granted} leases"
        self._epoch, self._granted = kept.epoch, kept.granted
        for name, was in before.items():
            now = self.registers[name]
            if now.epoch < was.epoch:
                yield f"I5: the gateway of {name} fell from epoch {was.epoch} to {now.epoch}"
            for old in was.leases.values():
                new = now.leases.get(old.lease_id)
                if new is None or new.redeemed < old.redeemed or new.sealed < old.sealed:
                    yield f"I8: the count or seal of lease {old.lease_id} fell"
                    continue
                if new.used > old.used and old.sealed:
                    yield f"I3: lease {old.lease_id} was held after its seal"
                if new.used > old.used and old.epoch < was.epoch:
                    yield f"I5: lease {old.lease_id} of epoch {old.epoch} was held at {was.epoch}"

    def _within_periods(self, new: list[Lease]) -> Iterator[str]:
        for lease in new:
            if lease.not_after >= bounds(lease.period)[1]:
                yield f"I13: lease {lease.lease_id} goes on after its period"
            for scope, kind in self.caps:
                if scope.covers(_purpose(lease)) and within(lease.period, kind) is None:
                    yield f"I13: lease {lease.lease_id} crosses periods of {scope.text()}"

    def _adjusted_well(self) -> Iterator[str]:
        sql = "SELECT hold_id, sum(amount) FROM adjustments GROUP BY hold_id"
        for name, gateway in self._world.gateways.items():
            for key, total in gateway.look(sql):
                row = self.registers[name].rows.get(key)
                if row is None or row.state != "settled" or total > (row.actual or 0):
                    yield f"I14: {total} of hold {key} was given back"

    def _shows_no_more(self, device: DeviceSide) -> Iterator[str]:
        if not device.whole:
            return
        for lease_id, left in device.shown().items():
            lease = self.issued[lease_id]
            register = self.registers[lease.pool_id]
            entry = register.leases.get(lease_id)
            there = lease.amount_microusd - (entry.used if entry and entry.amount else 0)
            there += _unwritten(device, lease_id, register)
            if left > there:
                yield f"I16: {left} is shown of lease {lease_id}, {there} is there"

    def _follows(self, at: int, device: DeviceSide) -> Iterator[str]:
        revision = device.policies.switches().revision
        if revision < self._revisions.get(at, 0):
            yield f"I8: device {at} fell back to revision {revision}"
        self._revisions[at] = revision
        held = (device.policies.etag(), revision)
        if held == self._followed.get(at) or not device.policies.trust():
            return
        self._followed[at] = held
        assigned = device.agent._activation.trusted().assignment
        if assigned is not None and assigned.revision not in {0, revision}:
            yield f"I17: device {at} has the etag of {assigned.revision} and runs {revision}"


def _unwritten(device: DeviceSide, lease_id: str, register: Register) -> int:
    """Return what a gateway whose disk was full still holds of calls that it has answered."""
    found = 0
    for hold in device.holds():
        row = register.rows.get(hold_id(device.id, hold.id))
        if hold.lease_id == lease_id and hold.state == "settled" and row and row.actual is None:
            found += row.most - hold.cost_microusd
    return found


def _read(gateway: Any) -> Register:
    entries = [Entry(*row) for row in gateway.look(LEASES)]
    rows = [Row(*row) for row in gateway.look(HOLDS)]
    return Register(
        gateway.epoch(),
        {each.lease_id: each for each in entries},
        {row.hold_id: row for row in rows},
    )


def _purpose(lease: Lease) -> Purpose:
    return Purpose.of_lease(lease.scope, device_id=lease.device_id, pool_id=lease.pool_id)
