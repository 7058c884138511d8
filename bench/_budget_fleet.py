"""A simulated fleet over two months: devices that come and go, and every fault at its own rate."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from random import Random

import numpy as np
from _budget_rest import rest
from _budget_wire import Answer, Ask, Billed, Bug, Call, Fence, Message, Pull, Reply, SealAsk, Sync
from _budget_world import START, World

from edge_sync.money.account import unbalanced
from edge_sync.money.caps import Cap, Caps, Scope
from edge_sync.money.grants import Terms, jain
from edge_sync.money.periods import period_of

DAY, STEPS = 86_400.0, 8
STEP_S = DAY / STEPS
DEVICES, DAYS = 40, 61  # November and December
SYNCS_A_DAY, POOL_REACHED = 3.0, 0.75
AWAY_A_DAY, AWAY_DAYS = 0.05, 10.0
"""How often a device loses the hub, and for how long at most; its pool it still reaches."""
CALLS_A_DAY, LEAST, MOST = 2.0, 10_000, 50_000
MEAN_COST = 0.65 * (LEAST + MOST) / 2
WRONG_S = (-3650 * DAY, -DAY, -3600.0, 3600.0, DAY, 10 * DAY, 3650 * DAY)


@dataclass(frozen=True)
class Faults:
    """How often each goes wrong.

    Attributes:
        lost, late, doubled: share of messages; a late one or a copy may come up to 14 or 30 days
            later.
        clocks: of a node, each day; by up to ten years.
        crashes, rollbacks, clones, wipes: of a device, each day.
        hub_crashes, gateway_crashes, cuts, restores: each day; a cut parts hub and gateway.
        cap_changes: each day.
        overbilled: share of answers billed at more than was asked.

    """

    lost: float = 0.0
    late: float = 0.0
    doubled: float = 0.0
    clocks: float = 0.0
    crashes: float = 0.0
    rollbacks: float = 0.0
    clones: float = 0.0
    wipes: float = 0.0
    hub_crashes: float = 0.0
    gateway_crashes: float = 0.0
    cuts: float = 0.0
    restores: float = 0.0
    cap_changes: float = 0.0
    overbilled: float = 0.0


ALL = Faults(
    lost=0.02, late=0.01, doubled=0.02, clocks=0.01, crashes=0.05, rollbacks=0.003, clones=0.001,
    wipes=0.001, hub_crashes=0.3, gateway_crashes=0.3, cuts=0.05, restores=0.03, cap_changes=0.01,
    overbilled=0.001,
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of a fleet.

    Attributes:
        overspend: above what each cap allowed, by the provider's count.
        used, cap: of the caps of both months, and of the whole fleet.
        rows: how many, and how many of them are lost or counted twice.
        broken: invariants that did not hold.

    """

    device_days: int
    overspend: int
    used: int
    cap: int
    rows: int
    wrong_rows: int
    refunds_before_seal: int
    fairness: float
    broken: tuple[str, ...]


class Fleet:
    """One run."""

    def __init__(
        self,
        seed: int,
        faults: Faults,
        *,
        days: int = DAYS,
        tightness: float = 3.0,
        bugs: frozenset[Bug] = frozenset(),
    ) -> None:
        self.draw = Random(seed)  # noqa: S311 - a simulation
        self.numpy = np.random.default_rng(seed)
        self.faults, self.days = faults, days
        month = int(DEVICES * min(days, 30) * CALLS_A_DAY * MEAN_COST / tightness)
        self.month = month
        caps = [
            Cap(Scope(), "month", month),
            Cap(Scope(group="kiosks"), "month", int(0.7 * month)),
            Cap(Scope(group="shops"), "month", int(0.7 * month)),
        ]
        machines = [(("kiosks", "shops")[at % 2], ("big", "small")[at // 2 % 2])
                    for at in range(DEVICES)]  # fmt: skip
        self.world = World(
            Caps.of(caps), pools=("big", "small"), machines=machines,
            terms=Terms(parts=16, least_microusd=MOST, floor_microusd=2 * MOST), ttl_s=2 * DAY,
            price=self._price, bugs=bugs, remembers=False,
        )  # fmt: skip
        self.later: list[tuple[float, int, Message]] = []
        self.sent = 0
        self.cut: set[str] = set()
        self.names = [[device.disk.device_id] for device in self.world.devices]
        self.copies: dict[int, tuple[float, int]] = {}
        self.away = [0.0] * DEVICES
        self.broken: list[str] = []

    def run(self) -> Outcome:
        """Run it and let it come to rest."""
        for day in range(self.days):
            self._day()
            if day % 10 == 9:
                self._check()
        self.world.network += [message for _, _, message in self.later]
        self.later = []
        self.broken += rest_of(self.world)
        return self._outcome()

    def _day(self) -> None:
        world, faults, draw = self.world, self.faults, self.draw
        self._wrong_clocks()
        self._daily_hub()
        syncs = self.numpy.random((STEPS, DEVICES)) < SYNCS_A_DAY / STEPS
        pool = self.numpy.random((STEPS, DEVICES)) < POOL_REACHED
        calls = self.numpy.poisson(CALLS_A_DAY / STEPS, (STEPS, DEVICES))
        for at in range(DEVICES):
            if draw.random() < AWAY_A_DAY:
                self.away[at] = world.now + draw.uniform(1, AWAY_DAYS) * DAY
            self._daily_device(at)
        for step in range(STEPS):
            world.now += STEP_S
            self._arrivals()
            if draw.random() < faults.gateway_crashes / STEPS:
                self._gateway_crash()
            for at in range(DEVICES):
                self._step(
                    at,
                    int(calls[step, at]),
                    syncs=syncs[step, at] and self.away[at] < world.now,
                    pool=bool(pool[step, at]),
                )
            self._copies()
            world.send(world.hub.tick(world.clock("hub")))
            world.witness()
            self._flow()
            self._time_outs()
            self.broken += world.overspent()

    def _step(self, at: int, calls: int, *, syncs: bool, pool: bool) -> None:
        device, world = self.world.devices[at], self.world
        now = world.clock(at)
        if pool:
            for key in tuple(device.disk.calls)[:1]:
                world.send(device.retry(key))
            for _ in range(calls):
                world.send(device.call(self.draw.randint(LEAST, MOST), now))
                self._flow()
        if syncs:
            world.send(device.sync(4 * MOST, now, least=LEAST))
            self._flow()

    def _copies(self) -> None:
        """Let the copies of disks live as the devices do, for some days."""
        world = self.world
        for origin, (end, at) in tuple(self.copies.items()):
            if world.now > end:
                del self.copies[origin]
                continue
            device = world.devices[origin]
            world.send(device.call(self.draw.randint(LEAST, MOST), world.clock(at)))
            if self.draw.random() < 0.5:
                world.send(device.sync(4 * MOST, world.clock(at), least=LEAST))
            self._flow()

    def _flow(self) -> None:
        """Let the network do what it does until it is empty."""
        world, draw, faults = self.world, self.draw, self.faults
        lost, late = faults.lost, faults.lost + faults.late
        doubled = late + faults.doubled
        while world.network:
            message = world.network.pop()
            fate = draw.random()
            if fate < lost:
                continue
            if fate < late:
                self._postpone(message, 14 * DAY)
                continue
            if fate < doubled and not isinstance(message, Ask | Billed):
                self._postpone(message, 30 * DAY)
            if not self._parted(message):
                world.send(world.deliver(message))

    def _parted(self, message: Message) -> bool:
        if isinstance(message, SealAsk | Fence | Pull):
            return message.pool_id in self.cut
        return bool(self.cut) and not isinstance(
            message, Sync | Reply | Call | Answer | Ask | Billed
        )

    def _postpone(self, message: Message, most: float) -> None:
        self.sent += 1
        # Most delays are short: an answer that takes a fortnight is rare.
        after = most * self.draw.random() ** 4
        heapq.heappush(self.later, (self.world.now + after, self.sent, message))

    def _arrivals(self) -> None:
        while self.later and self.later[0][0] <= self.world.now:
            message = heapq.heappop(self.later)[2]
            if not self._parted(message):
                self.world.send(self.world.deliver(message))
        self._flow()

    def _time_outs(self) -> None:
        for gateway in self.world.gateways.values():
            for key in tuple(gateway.waiting):
                self.world.send(gateway.time_out(key))
        self._flow()

    def _daily_hub(self) -> None:
        world, draw, faults = self.world, self.draw, self.faults
        world.backups = [*world.backups, world.hub.back_up()][-7:]
        if draw.random() < faults.restores:
            world.send(world.hub.restore(draw.choice(world.backups)))
            self._flow()
        if draw.random() < faults.hub_crashes:
            world.crashing["hub"] = draw.choice(("before", "after"))
        self.cut = {pool for pool in world.gateways if draw.random() < faults.cuts}
        if draw.random() < faults.cap_changes:
            world.set_cap(Cap(Scope(), "month", int(draw.uniform(0.6, 1.2) * self.month)))
        if draw.random() < 0.1:
            world.hub.policy += 1
        asked = [message.key for _, _, message in self.later if isinstance(message, Ask)]
        for gateway in world.gateways.values():
            gateway.reconcile(world.provider.bill, asked)

    def _daily_device(self, at: int) -> None:
        world, draw, faults = self.world, self.draw, self.faults
        device = world.devices[at]
        member = world.hub.books.members.get(device.disk.device_id)
        chance = draw.random()
        if chance < faults.wipes or (member is not None and member.quarantined):
            world.enrol_again(device, wipe=chance < faults.wipes)
            self.names[at].append(device.disk.device_id)
        if draw.random() < faults.crashes:
            world.crashing[at] = draw.choice(("before", "after"))
        device.crashing = draw.random() < faults.crashes
        if draw.random() < faults.rollbacks and at in world.copies:
            device.disk = world.copies.pop(at)
        elif draw.random() < 0.1:
            world.copies[at] = device.disk.copy()
        if draw.random() < faults.clones:
            for _ in range(draw.choice((1, 1, 9))):
                copy = world.clone(device)
                self.copies[copy.origin] = world.now + draw.uniform(0, 5) * DAY, at

    def _wrong_clocks(self) -> None:
        world, draw = self.world, self.draw
        for name in tuple(world.clocks):
            if draw.random() < 0.5:
                del world.clocks[name]
        for name in ("hub", *world.gateways, *range(DEVICES)):
            if draw.random() < self.faults.clocks:
                world.clocks[name] = draw.choice(WRONG_S)

    def _gateway_crash(self) -> None:
        pool = self.draw.choice(sorted(self.world.gateways))
        if self.draw.random() < 0.3:
            self.world.gateways[pool].crash()
        else:
            self.world.crashing[pool] = self.draw.choice(("before", "after"))

    def _price(self, most: int) -> int:
        if self.draw.random() < self.faults.overbilled:
            return 2 * most
        return int(most * self.draw.uniform(0.3, 1.0))

    def _check(self) -> None:
        books = self.world.hub.books
        self.broken += unbalanced(books.pots.values(), tuple(books.rights.values()))

    def _outcome(self) -> Outcome:
        world = self.world
        over = sum(max(0, spent - world.allowed[key]) for key, spent in world.billed.items())
        lived = {period_of("month", START + day * DAY) for day in range(self.days)}
        months = [key for key in world.allowed if key[0] == Scope() and key[1] in lived]
        log = [row for gateway in world.gateways.values() for row in gateway.log]
        paid = {row.row_id: row.cost for row in log}
        booked = {row.row_id: row.cost for row, _ in world.hub.books.rows.values()}
        wrong = len(log) - len(paid) + len(paid.items() ^ booked.items())
        by_device: dict[str, int] = {}
        for row in log:
            by_device[row.device_id] = by_device.get(row.device_id, 0) + row.cost
        spent = [float(sum(by_device.get(name, 0) for name in names)) for names in self.names]
        return Outcome(
            device_days=DEVICES * self.days,
            overspend=over,
            used=sum(world.billed[key] for key in months),
            cap=sum(world.allowed[key] for key in months),
            rows=len(log),
            wrong_rows=wrong,
            refunds_before_seal=world.refunds_before_seal,
            fairness=jain(spent),
            broken=tuple(self.broken),
        )


def rest_of(world: World) -> list[str]:
    """Let a world come to rest; return what did not hold."""
    return rest(world, demand=0)
