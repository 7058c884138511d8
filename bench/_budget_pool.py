"""A simulated pool: the gateway with its durable register, and a provider that only bills.

Every decision about money is taken by the rules of ``edge_sync.money.redeem``; a gateway only keeps
the rows, and forgets its connections when it crashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from _budget_wire import (
    Answer,
    Ask,
    Billed,
    Bug,
    Call,
    Fence,
    Fenced,
    Message,
    Pull,
    Pulled,
    Row,
    SealAsk,
    Sealed,
)

from edge_sync.money import redeem
from edge_sync.money.account import Report
from edge_sync.money.caps import Purpose
from edge_sync.money.lease import Lease
from edge_sync.money.redeem import Hold, LeaseRefused, Redemption


class Provider:
    """Bills every request it gets.

    Attributes:
        bill: key -> what each request under it was billed at.

    """

    def __init__(self, price: Callable[[int], int]) -> None:
        self.price = price
        self.bill: dict[str, tuple[int, ...]] = {}

    def handle(self, asked: Ask) -> list[Message]:
        """Answer a request, and bill it."""
        cost = self.price(asked.most)
        self.bill[asked.key] = (*self.bill.get(asked.key, ()), cost)
        return [Billed(asked.pool_id, asked.key, cost)]


class Gateway:
    """One gateway; all but ``waiting`` survives a crash.

    Attributes:
        log: rows of settled calls, appended only.
        versions: how often each lease's entry changed.
        told: what a lease had left at each version; kept where ``remembers``.

    """

    def __init__(self, pool_id: str, bugs: frozenset[Bug], *, remembers: bool = True) -> None:
        self.pool_id, self.bugs, self.remembers = pool_id, bugs, remembers
        self.epoch = 1
        self.leases: dict[str, Redemption] = {}
        self.signed: dict[str, Lease] = {}
        self.calls: dict[str, Hold] = {}
        self.made: dict[str, tuple[str, int]] = {}
        self.open: set[str] = set()
        self.log: list[Row] = []
        self.versions: dict[str, int] = {}
        self.told: dict[tuple[str, int], int] = {}
        self.waiting: dict[str, int] = {}

    def handle(self, message: Message, now: float) -> list[Message]:
        """Return what is sent in answer."""
        if isinstance(message, Call):
            return self._call(message, now)
        if isinstance(message, Billed):
            return self._billed(message)
        if isinstance(message, SealAsk):
            return self._seal(message)
        if isinstance(message, Fence):
            return self._fence(message)
        assert isinstance(message, Pull)  # noqa: S101 - nothing else is sent here
        return [Pulled(self.pool_id, message.position, tuple(self.log[message.position :]))]

    def crash(self) -> None:
        """Forget what was in memory; at the start every open hold becomes unclear."""
        self.waiting.clear()
        for key in self.open:
            self.calls[key] = redeem.leave_unclear(self.calls[key])

    def time_out(self, key: str) -> list[Message]:
        """Give up waiting for the provider."""
        origin = self.waiting.pop(key)
        call = self.calls[key]
        if Bug.RELEASE in self.bugs:
            self._keep(*redeem.release(self.leases[call.lease_id], call))
        else:
            self.calls[key] = redeem.leave_unclear(call)
        return [self._answer(origin, key)]

    def reconcile(self, bill: Mapping[str, tuple[int, ...]], pending: Iterable[str]) -> int:
        """Settle unclear holds by the provider's closed bill; return how many."""
        under_way = set(pending)
        keys = [key for key in sorted(self.open - under_way) if self.calls[key].state == "unclear"]
        for key in keys:
            self._settle(key, sum(bill.get(key, ())))
        return len(keys)

    def _call(self, asked: Call, now: float) -> list[Message]:
        found, lease = self.calls.get(asked.key), asked.lease
        wanted = Hold(asked.key, lease.lease_id, asked.request_hash, asked.most)
        known = self.leases.get(lease.lease_id) or redeem.first_seen(lease)
        try:
            if found is None or found.state == "released":
                self._learn(redeem.admit(lease, pool_id=self.pool_id, epoch=self.epoch, now=now))
            entry, call = redeem.hold(known, wanted, found=found)
        except LeaseRefused as refusal:
            left = known.remaining_microusd if refusal.code == "overdrawn" else 0
            version = self.versions.get(lease.lease_id, 0)
            return [Answer(asked.origin, asked.key, refusal.code, 0, lease.lease_id, left, version)]
        if call is found:
            return [self._answer(asked.origin, asked.key)]
        self.signed[lease.lease_id] = lease
        self.made[asked.key] = (lease.device_id, asked.seq)
        self._keep(entry, call)
        self.waiting[asked.key] = asked.origin
        return [Ask(self.pool_id, asked.key, asked.most)]

    def _billed(self, billed: Billed) -> list[Message]:
        if billed.key not in self.waiting:
            return []  # its connection is gone
        origin = self.waiting.pop(billed.key)
        self._settle(billed.key, billed.cost)
        return [self._answer(origin, billed.key)]

    def _seal(self, asked: SealAsk) -> list[Message]:
        known = self.leases.get(asked.lease_id)
        entry = redeem.seal(known or redeem.seal_unseen(asked.lease_id, epoch=asked.epoch))
        if entry is not known:
            self._keep(entry)
        return [Sealed(entry.lease_id, entry.used_microusd)] if entry.sealed else []

    def _fence(self, told: Fence) -> list[Message]:
        self._learn(told.epoch)
        if told.epoch != self.epoch:
            return []
        reports = tuple(
            Report(
                entry.lease_id,
                purpose(self.signed[entry.lease_id]),
                self.signed[entry.lease_id].period,
                entry.epoch,
                entry.used_microusd,
                entry.sealed,
            )
            for entry in self.leases.values()
            if entry.epoch < self.epoch and entry.lease_id in self.signed
        )
        return [Fenced(self.pool_id, self.epoch, reports)]

    def _learn(self, epoch: int) -> None:
        if epoch <= self.epoch:
            return
        self.epoch = redeem.raise_epoch(self.epoch, epoch)
        for entry in tuple(self.leases.values()):
            fenced = redeem.fence(entry, self.epoch)
            if fenced is not entry:
                self._keep(fenced)

    def _settle(self, key: str, cost: int) -> None:
        call = self.calls[key]
        entry, done = redeem.settle(self.leases[call.lease_id], call, cost_microusd=cost)
        self._keep(entry, done)
        device_id, seq = self.made[key]
        self.log.append(Row(key, device_id, seq, call.lease_id, done.cost_microusd))

    def _keep(self, entry: Redemption, call: Hold | None = None) -> None:
        self.leases[entry.lease_id] = entry
        version = self.versions[entry.lease_id] = self.versions.get(entry.lease_id, 0) + 1
        if self.remembers:
            self.told[entry.lease_id, version] = entry.remaining_microusd
        if call is None:
            return
        self.calls[call.hold_id] = call
        change: Any = self.open.add if call.state in {"held", "unclear"} else self.open.discard
        change(call.hold_id)

    def _answer(self, origin: int, key: str) -> Answer:
        call = self.calls[key]
        entry, version = self.leases[call.lease_id], self.versions[call.lease_id]
        left = entry.remaining_microusd
        return Answer(origin, key, call.state, call.cost_microusd, call.lease_id, left, version)


def purpose(lease: Lease) -> Purpose:
    """Return what a lease is for."""
    return Purpose.of_lease(lease.scope, device_id=lease.device_id, pool_id=lease.pool_id)
