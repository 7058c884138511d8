"""Three designs that count money elsewhere, as simple simulations, to show which faults break them.

A counts in one number that is synced. B grants leases that expire, and takes the rest back by
what was reported. C takes nothing back without a closing count signed by the device. All three
count on the device; only a provider that bills knows the truth. D, redeemed at the gateway, is the
real thing, and runs in ``_budget_fleet``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

from _budget_fleet import (
    AWAY_A_DAY,
    AWAY_DAYS,
    CALLS_A_DAY,
    DEVICES,
    LEAST,
    MEAN_COST,
    MOST,
    POOL_REACHED,
    SYNCS_A_DAY,
    Faults,
)

DAYS, HOURS = 21, 24
TTL_H, PARTS = 72, 8
TIGHTNESS = 4.0


@dataclass(frozen=True)
class Lease:
    """A right counted on the device; ``amount`` stays as granted."""

    number: int
    amount: int
    used: int
    end_h: float


@dataclass(frozen=True)
class Disk:
    """What a device remembers.

    Attributes:
        seen: the fleet's total at its last sync (A).
        unreported: what it spent since (A).
        lease: what it may spend (B, C).

    """

    seen: int = 0
    unreported: int = 0
    lease: Lease | None = None


@dataclass
class Books:
    """The hub: what was granted and not closed, and what was settled."""

    free: int
    total: int = 0
    open: dict[int, tuple[int, int, float]] = field(default_factory=dict)

    def copy(self) -> Books:
        """Return a backup."""
        return Books(self.free, self.total, dict(self.open))


class Toy:
    """One run of A, B or C."""

    def __init__(self, design: str, seed: int, faults: Faults) -> None:
        self.design, self.faults = design, faults
        self.draw = Random(seed)  # noqa: S311 - a simulation
        self.cap = int(DEVICES * DAYS * CALLS_A_DAY * MEAN_COST / TIGHTNESS)
        self.books = Books(self.cap)
        self.backups = [self.books.copy()]
        self.disks = [Disk() for _ in range(DEVICES)]
        self.copies = list(self.disks)
        self.wrong = [0.0] * DEVICES
        self.away = [0.0] * DEVICES
        self.leases = 0
        self.billed = 0

    def run(self) -> tuple[float, float]:
        """Return overspend and use, as shares of the cap."""
        for hour in range(DAYS * HOURS):
            if hour % HOURS == 0:
                self._faults(hour)
            self._expire(hour)
            for at in range(len(self.disks)):
                self._call(at, hour)
                if hour >= self.away[at] and self.draw.random() < SYNCS_A_DAY / HOURS:
                    self._sync(at, hour)
        return max(0, self.billed - self.cap) / self.cap, min(1.0, self.billed / self.cap)

    def _call(self, at: int, hour: int) -> None:
        if self.draw.random() >= POOL_REACHED * CALLS_A_DAY / HOURS:
            return
        disk, most = self.disks[at], self.draw.randint(LEAST, MOST)
        cost = int(most * self.draw.uniform(0.3, 1.0))
        if self.design == "A":
            if disk.seen + disk.unreported + most <= self.cap:
                self.billed += cost
                self.disks[at] = replace(disk, unreported=disk.unreported + cost)
            return
        lease = disk.lease
        if lease and lease.used + most <= lease.amount and hour + self.wrong[at] <= lease.end_h:
            self.billed += cost
            self.disks[at] = replace(disk, lease=replace(lease, used=lease.used + cost))

    def _sync(self, at: int, hour: int) -> None:
        """Report and ask; a lost message leaves both sides as they were."""
        if self.draw.random() < self.faults.lost:
            return
        disk, books = self.disks[at], self.books
        if self.design == "A":
            books.total += disk.unreported
            self.disks[at] = Disk(books.total, 0)
            return
        lease = disk.lease
        if lease is not None:
            over = hour + self.wrong[at] > lease.end_h or lease.used + MOST > lease.amount
            if self.design == "B":
                self._report(lease)
            elif over:
                self._close(lease)
            if not over:
                return
        self.disks[at] = Disk(lease=self._grant(hour))

    def _grant(self, hour: int) -> Lease | None:
        books = self.books
        amount = min(4 * MOST, max(MOST, books.free // PARTS))
        if amount > books.free:
            return None
        books.free -= amount
        self.leases += 1
        lease = Lease(self.leases, amount, 0, hour + TTL_H)
        books.open[lease.number] = amount, 0, lease.end_h
        return lease

    def _report(self, lease: Lease) -> None:
        """B: take over a count; after the lease was taken back, the debit comes late."""
        books = self.books
        known = books.open.get(lease.number)
        if known is None:
            return
        amount, told, end = known
        more = max(0, lease.used - told)
        if end < 0:
            books.free -= more
        books.open[lease.number] = amount, told + more, end

    def _close(self, lease: Lease) -> None:
        """C: the device signs its count; the rest is free."""
        books = self.books
        known = books.open.pop(lease.number, None)
        if known is not None:
            books.free += known[0] - lease.used

    def _expire(self, hour: int) -> None:
        books = self.books
        if self.design != "B":
            return
        for number, (amount, told, end) in tuple(books.open.items()):
            if 0 <= end < hour:
                books.free += amount - told
                books.open[number] = amount, told, -1.0

    def _faults(self, hour: int) -> None:
        draw, faults = self.draw, self.faults
        if draw.random() < faults.restores:
            self.books = draw.choice(self.backups).copy()
        self.backups = [*self.backups, self.books.copy()][-7:]
        for at in range(len(self.disks)):
            if draw.random() < AWAY_A_DAY:
                self.away[at] = hour + draw.uniform(1, AWAY_DAYS) * HOURS
            if draw.random() < faults.rollbacks:
                self.disks[at] = self.copies[at]
            elif draw.random() < 0.3:
                self.copies[at] = self.disks[at]
            self.wrong[at] = draw.choice((-240.0, 240.0)) if draw.random() < faults.clocks else 0.0
            if draw.random() < faults.wipes:
                self.disks[at] = Disk()
            if draw.random() < faults.clones:
                self.disks.append(self.disks[at])
                self.copies.append(self.disks[at])
                self.wrong.append(0.0)
                self.away.append(0.0)
