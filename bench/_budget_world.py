"""A simulated fleet: hub, gateways, provider and devices with a network and clocks of any kind.

Drivers (a state machine, an exhaustive search, a bench) decide what happens next; the rules of
money take every decision. ``problems`` says which invariant does not hold, by the count of a
provider that knows nothing of leases and by the leases that were ever issued, not by the hub's own
books.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from _budget_device import Device, Disk
from _budget_hub import Books, Hub
from _budget_pool import Gateway, Provider, purpose
from _budget_wire import (
    Answer,
    Ask,
    Bug,
    Call,
    Fenced,
    Message,
    Pulled,
    Replayed,
    Reply,
    Sealed,
    Sync,
)

from edge_sync.money import account, redeem
from edge_sync.money.caps import Cap, Caps, Scope
from edge_sync.money.grants import Terms
from edge_sync.money.lease import Lease
from edge_sync.money.periods import kind_of, within

START = 1_793_491_200.0  # 2026-11-01
PotKey = tuple[Scope, str]


class World:
    """One fleet.

    Attributes:
        now: true time; a node's clock adds what ``clocks`` says.
        network: what is under way, in no order.
        crashing: nodes that meet a crash at their next message, ``before`` or ``after`` the commit.
        allowed: the most that may be spent under each cap in each period.
        billed: what the provider billed for it, up to what was asked; ``excess`` is the rest.

    """

    def __init__(
        self,
        caps: Caps,
        *,
        pools: Sequence[str],
        machines: Sequence[tuple[str, str]],
        terms: Terms,
        ttl_s: float = 86_400.0,
        price: Callable[[int], int] = lambda most: most,
        bugs: frozenset[Bug] = frozenset(),
        remembers: bool = True,
    ) -> None:
        self.now, self.bugs, self._ids = START, bugs, 0
        self.network: list[Message] = []
        self.clocks: dict[object, float] = {}
        self.crashing: dict[object, str] = {}
        self.provider = Provider(price)
        self.gateways = {pool: Gateway(pool, bugs, remembers=remembers) for pool in pools}
        self.hub = Hub(caps, pools, fresh=self.fresh, terms=terms, ttl_s=ttl_s, bugs=bugs)
        self.devices: list[Device] = []
        for group, pool in machines:
            self.add(group, pool)
        self.backups: list[Books] = [self.hub.back_up()]
        self.copies: dict[int, Disk] = {}
        self.issued: dict[str, Lease] = {}
        self.paying: dict[str, Lease] = {}
        self.allowed: dict[PotKey, int] = {}
        self.billed: Counter[PotKey] = Counter()
        self.excess = 0
        self.refunds_before_seal = 0
        self._sealed: dict[str, int] = {}
        self._epochs: Counter[str] = Counter()

    def fresh(self) -> str:
        """Return an id that was never used."""
        self._ids += 1
        return f"{self._ids:032x}"

    def clock(self, name: object) -> float:
        """Return what a node takes for the time."""
        return self.now + self.clocks.get(name, 0.0)

    def add(self, group: str, pool: str) -> Device:
        """Enrol a new machine."""
        device_id = self.fresh()
        disk = Disk(device_id, self.hub.enrol(device_id, group), epoch=self.hub.epoch)
        device = Device(len(self.devices), disk, pool_id=pool, fresh=self.fresh, bugs=self.bugs)
        self.devices.append(device)
        return device

    def clone(self, device: Device) -> Device:
        """Copy a machine with its disk."""
        copy = Device(
            len(self.devices), device.disk.copy(), pool_id=device.pool_id, fresh=self.fresh,
            bugs=self.bugs,
        )  # fmt: skip
        self.devices.append(copy)
        return copy

    def enrol_again(self, device: Device, *, wipe: bool) -> None:
        """Give a machine a new identity; without ``wipe`` it keeps its rows."""
        group = self.hub.groups[device.disk.device_id]
        device_id = self.fresh()
        rows = {} if wipe else {name: (row, 0) for name, (row, _) in device.disk.rows.items()}
        nonce = self.hub.enrol(device_id, group)
        device.disk = Disk(device_id, nonce, rows=rows, epoch=self.hub.epoch)

    def set_cap(self, cap: Cap) -> None:
        """Change a cap; what was committed before may still be spent."""
        for scope, period in self.allowed:
            if scope == cap.scope and within(period, cap.kind) == period:
                old, key = self.allowed[scope, period], (scope, period)
                self.allowed[key] = max(cap.amount_microusd, min(old, self.committed(key)))
        self.hub.set_cap(cap)

    def send(self, messages: Sequence[Message]) -> None:
        """Put messages on the way."""
        for message in messages:
            if isinstance(message, Call):
                self.paying.setdefault(message.key, message.lease)
        self.network.extend(messages)

    def deliver(self, message: Message) -> list[Message]:
        """Let a message arrive; return what is sent for it, which is not on the way yet."""
        if isinstance(message, Ask):
            answers = self.provider.handle(message)
            self._bill(message)
            return answers
        name, node = self.receiver(message)
        mode = self.crashing.pop(name, None)
        if mode == "before":
            node.crash()
            return []
        sent = node.handle(message, self.clock(name))
        self.witness()
        if mode == "after":
            node.crash()
            return []
        return sent

    def receiver(self, message: Message) -> tuple[object, Hub | Gateway | Device]:
        """Return the node that a message is for, and its name."""
        if isinstance(message, Sync | Sealed | Fenced | Pulled):
            return "hub", self.hub
        if isinstance(message, Reply | Replayed | Answer):
            return message.origin, self.devices[message.origin]
        pool = message.lease.pool_id if isinstance(message, Call) else message.pool_id
        return pool, self.gateways[pool]

    def reconcile(self) -> None:
        """Let every gateway compare its unclear calls with the provider's closed bill."""
        under_way = [each.key for each in self.network if isinstance(each, Ask)]
        for gateway in self.gateways.values():
            gateway.reconcile(self.provider.bill, under_way)

    def committed(self, key: PotKey) -> int:
        """Return what leases ever issued may come to under a cap in a period."""
        scope, period = key
        kind = kind_of(period)
        return sum(
            self._may_come_to(lease)
            for lease in self.issued.values()
            if within(lease.period, kind) == period and scope.covers(purpose(lease))
        )

    def problems(self) -> Iterator[str]:
        """Yield each invariant that does not hold now."""
        yield from self.overspent()
        for each in account.unbalanced(
            self.hub.books.pots.values(), tuple(self.hub.books.rights.values())
        ):
            yield f"I1: {each}"
        for key, most in self.allowed.items():
            if self.committed(key) > most:
                yield f"I2: leases of {self.committed(key)} under a cap of {most}"
        yield from self._register_problems()
        for device in self.devices:
            yield from self._view_problems(device)

    def overspent(self) -> Iterator[str]:
        """Yield what the provider or the witnesses of grants and seals object to."""
        for key, spent in self.billed.items():
            if spent > self.allowed[key]:
                yield f"I2: {spent} billed under a cap of {self.allowed[key]}"
        if self.refunds_before_seal:
            yield f"I3: {self.refunds_before_seal} refunds without the gateway's seal"

    def _register_problems(self) -> Iterator[str]:
        for pool, gateway in self.gateways.items():
            if gateway.epoch < self._epochs[pool]:
                yield f"I5: the epoch of {pool} fell"
            self._epochs[pool] = gateway.epoch
            for entry in gateway.leases.values():
                calls = tuple(gateway.calls.values())
                yield from (f"I3: {each}" for each in redeem.unbounded(entry, calls))
                lease = gateway.signed.get(entry.lease_id)
                if lease is not None and lease.pool_id != pool:
                    yield f"I4: {pool} redeems a lease of {lease.pool_id}"
                if entry.sealing:
                    if entry.used_microusd > self._sealed.get(entry.lease_id, 10**18):
                        yield "I5: a sealed or fenced lease was spent from"
                    self._sealed[entry.lease_id] = entry.used_microusd
        yield from (
            "I6: a key was billed twice" for bills in self.provider.bill.values() if len(bills) > 1
        )

    def _view_problems(self, device: Device) -> Iterator[str]:
        for name, view in device.disk.leases.items():
            gateway = self.gateways[view.lease.pool_id]
            real = gateway.told.get((name, view.version), view.lease.amount_microusd)
            if device.shown(name) > real:
                yield f"I16: {device.shown(name)} shown of {real}"

    def _may_come_to(self, lease: Lease) -> int:
        gateway = self.gateways[lease.pool_id]
        entry = gateway.leases.get(lease.lease_id)
        if entry is None:
            return 0 if lease.epoch < gateway.epoch else lease.amount_microusd
        return entry.used_microusd if entry.sealing else lease.amount_microusd

    def witness(self) -> None:
        """Look at what the hub granted and refunded since it was last looked at."""
        for lease, free in self.hub.granted:
            self.issued[lease.lease_id] = lease
            for scope, period, cap in account.pot_keys(
                self.hub.caps, purpose(lease), period=lease.period
            ):
                self.allowed.setdefault((scope, period), cap)
            if lease.amount_microusd > free:
                raise AssertionError("I12: a grant over what was free")
        self.hub.granted.clear()
        for lease_id, used in self.hub.booked:
            of = self.hub.books.rights[lease_id].purpose
            entry = self.gateways[of.pool_id].leases.get(lease_id)
            if entry is None or not entry.sealed or entry.used_microusd != used:
                self.refunds_before_seal += 1
        self.hub.booked.clear()

    def _bill(self, asked: Ask) -> None:
        cost = self.provider.bill[asked.key][-1]
        self.excess += max(0, cost - asked.most)
        lease = self.paying[asked.key]
        for scope, period, _ in account.pot_keys(
            self.hub.caps, purpose(lease), period=lease.period
        ):
            self.billed[scope, period] += min(cost, asked.most)
