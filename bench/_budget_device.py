"""A simulated device: its disk can be copied, rolled back and wiped, and it may crash anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

from _budget_wire import Answer, Bug, Call, Message, Replayed, Reply, Row, Sync

from edge_sync.money.lease import Lease

_OVER = frozenset({"foreign", "fenced", "expired", "sealed"})


class View(NamedTuple):
    """What a device knows of a lease: what it had left at a version of the gateway's entry."""

    lease: Lease
    remaining: int
    version: int


class Open(NamedTuple):
    """A call whose outcome the device does not know."""

    lease: Lease
    most: int
    seq: int


@dataclass
class Disk:
    """What is durable.

    Attributes:
        pending: the sync that was sent and not answered; it is sent again as it is.
        calls: holds of its own view; their sum is taken off what it shows.
        rows: kept until the hub has them in a backup; with their receipts, once there are any.

    """

    device_id: str
    nonce: str
    pending: Sync | None = None
    leases: dict[str, View] = field(default_factory=dict)
    calls: dict[str, Open] = field(default_factory=dict)
    rows: dict[str, tuple[Row, int]] = field(default_factory=dict)
    seq: int = 0
    epoch: int = 1
    etag: int = 0
    policy: int = 0

    def copy(self) -> Self:
        """Return a copy; every value is immutable."""
        return replace(self, leases=dict(self.leases), calls=dict(self.calls), rows=dict(self.rows))


class Device:
    """One machine; several may hold copies of one disk.

    Attributes:
        origin: where answers reach it, also when its disk is another's.
        crashing: the next reply meets a crash half-way.

    """

    def __init__(
        self,
        origin: int,
        disk: Disk,
        *,
        pool_id: str,
        fresh: Callable[[], str],
        bugs: frozenset[Bug],
    ) -> None:
        self.origin, self.disk, self.pool_id = origin, disk, pool_id
        self.fresh, self.bugs = fresh, bugs
        self.crashing = False

    def shown(self, lease_id: str) -> int:
        """Return what a lease has left, as far as is known; never more."""
        view = self.disk.leases[lease_id]
        held = sum(
            call.most for call in self.disk.calls.values() if call.lease.lease_id == lease_id
        )
        return max(0, view.remaining - held)

    def best(self, now: float) -> str | None:
        """Return the lease with most left that is in force by the device's clock."""
        good = [name for name, view in self.disk.leases.items() if now <= view.lease.not_after]
        return max(good, key=self.shown, default=None)

    def call(self, most: int, now: float) -> list[Message]:
        """Ask the pool, where a lease pays for it; the hold is durable before it is sent."""
        name = self.best(now)
        if name is None or self.shown(name) < most:
            return []
        key = self.fresh()
        self.disk.seq += 1
        self.disk.calls[key] = Open(self.disk.leases[name].lease, most, self.disk.seq)
        return [self._request(key)]

    def retry(self, key: str) -> list[Message]:
        """Ask again under the same key."""
        return [self._request(key)]

    def sync(self, demand: int, now: float, *, least: int = 1) -> list[Message]:
        """Sync with the hub; leases that are over, or too small for a call, are given back."""
        if self.disk.pending is None:
            over = tuple(
                name
                for name, view in self.disk.leases.items()
                if now > view.lease.not_after or view.remaining < least
            )
            for name in over:
                del self.disk.leases[name]
            left = sum(map(self.shown, self.disk.leases))
            rows = tuple(row for row, receipt in self.disk.rows.values() if receipt == 0)
            self.disk.pending = Sync(
                self.origin,
                self.disk.device_id,
                self.fresh(),
                self.disk.nonce,
                max(0, demand - left),
                self.pool_id,
                over,
                rows,
                self.disk.etag,
            )
        return [self.disk.pending._replace(origin=self.origin)]

    def handle(self, message: Message, now: float) -> list[Message]:
        """Take an answer; a device sends nothing by itself then."""
        del now
        if isinstance(message, Reply):
            self._reply(message)
        elif isinstance(message, Replayed):
            if self.disk.pending and self.disk.pending.request_id == message.request_id:
                self.disk.pending = None
        elif isinstance(message, Answer):
            self._answer(message)
        return []

    def crash(self) -> None:
        """Stop and start: all that matters is on the disk."""

    def _request(self, key: str) -> Call:
        call = self.disk.calls[key]
        return Call(self.origin, call.lease, key, f"request {key}", call.most, call.seq)

    def _reply(self, reply: Reply) -> None:
        disk = self.disk
        if disk.pending is None or disk.pending.request_id != reply.request_id:
            return
        crashing, self.crashing = self.crashing, False
        if crashing:
            if Bug.ETAG in self.bugs:
                disk.etag = reply.etag
            return
        disk.pending, disk.nonce, disk.etag = None, reply.nonce, reply.etag
        disk.policy = max(disk.policy, reply.policy or 0)
        for lease in reply.leases:
            disk.leases[lease.lease_id] = View(lease, lease.amount_microusd, 0)
        if reply.epoch != disk.epoch:  # receipts of a lost database say nothing
            disk.epoch = reply.epoch
            disk.rows = {name: (row, 0) for name, (row, _) in disk.rows.items()}
        for name, receipt in reply.receipts:
            if name in disk.rows:
                disk.rows[name] = disk.rows[name][0], receipt
        safe = [name for name, (_, at) in disk.rows.items() if 0 < at <= reply.watermark]
        for name in safe:
            del disk.rows[name]

    def _answer(self, answer: Answer) -> None:
        disk = self.disk
        view = disk.leases.get(answer.lease_id)
        if view is not None and answer.version > view.version:
            disk.leases[answer.lease_id] = view._replace(
                remaining=answer.remaining, version=answer.version
            )
        call = disk.calls.get(answer.key)
        if call is None or answer.state in {"held", "unclear"}:
            return
        del disk.calls[answer.key]
        if answer.state == "settled":
            row = Row(answer.key, disk.device_id, call.seq, answer.lease_id, answer.cost)
            disk.rows[answer.key] = row, 0
        if answer.state in _OVER:
            disk.leases.pop(answer.lease_id, None)
