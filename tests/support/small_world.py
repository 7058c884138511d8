"""A small world, searched whole: two devices, one gateway, a hub that may be restored.

A state is a handful of small integers: what is left to happen, and a number for each lease (see
``small_lease``). What a lease may do next is worked out once for each, by the rules; two devices
that change places, and leases in another order, are the same state. Every way through is followed
to the end, and what must hold is checked in each state and over each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, TypeAlias

from small_books import Books, Numbers
from small_lease import (
    Bug,
    Small,
    backed_up,
    fenced,
    moved_wrongly,
    problems,
    rebuilt,
    reported,
    restored,
    restored_last,
    steps,
)


class Bounds(NamedTuple):
    """How large the world is.

    Attributes:
        cap: of the fleet, in units; ``device_cap`` of each device.
        leases: at most so many are granted, ``calls`` made, ``backups`` taken, ``restores`` done.

    """

    cap: int = 3
    device_cap: int = 2
    leases: int = 3
    calls: int = 2
    backups: int = 1
    restores: int = 1


class Shared(NamedTuple):
    """What concerns every lease.

    Attributes:
        epoch: of the hub; the gateway has it too unless it is ``untold``.
        stage: ``running``, or after a restore ``untold``, ``told``, and ``answered`` once what the
            gateway told is on its way.

    """

    epoch: int
    stage: str
    calls: int
    backups: int
    restores: int

    @property
    def gateway_epoch(self) -> int:
        """The epoch that the gateway knows."""
        return self.epoch - (self.stage == "untold")


State: TypeAlias = tuple[int, ...]
"""The number of what is shared, then those of the leases, sorted."""


@dataclass
class Found:
    """What a search came to; ``problem`` is empty where all holds."""

    states: int = 0
    transitions: int = 0
    leases: int = 0
    depth: int = 0
    problem: str = ""


class World:
    """The world, and every lease that was met in it.

    Args:
        bounds: how large it is.
        bugs: mistakes it is given.
        only_bill: look at nothing but what the provider billed.

    """

    def __init__(self, bounds: Bounds, *bugs: Bug, only_bill: bool = False) -> None:
        self.bounds, self.bugs, self.only_bill = bounds, frozenset(bugs), only_bill
        self._shared: Numbers[Shared] = Numbers()
        self._smalls: Numbers[Small] = Numbers()
        self._twins: list[int] = []  # by number: the same lease of the other device
        self._books = Books(bounds.cap, bounds.device_cap, self.bugs)
        self._in_books: list[int] = []  # by number: what the hub's books have of it
        self._bounded: set[int] = set()
        # Worked out once: the steps of each lease, and what it adds to what must stay bounded.
        self._steps = cache(self._steps_of)
        self._sums = cache(self._sums_of)
        self._faults = cache(self._faults_of)

    def search(self) -> Found:
        """Visit every state, those that take fewer steps first; stop at the first problem."""
        found = Found()
        bounds = self.bounds
        first = Shared(1, "running", bounds.calls, bounds.backups, bounds.restores)
        seen: set[State] = {(self._shared.number(first),)}
        now = list(seen)
        try:
            while now:
                later = []
                for state in now:
                    self._check(state)
                    for new in self._after(state):
                        found.transitions += 1
                        if new not in seen:
                            seen.add(new)
                            later.append(new)
                now = later
                found.depth += bool(now)
        except AssertionError as problem:
            found.problem = str(problem)
        found.states, found.leases = len(seen), len(self._smalls.values)
        return found

    def _check(self, state: State) -> None:
        """Check what must hold in a state (I1, I2; the rest holds for each lease by itself)."""
        shared, *numbers = state
        epoch = self._shared.values[shared].gateway_epoch
        # Six sums in one number, a byte each: billed and still possible, for fleet and devices.
        sums = sum(self._sums(number, epoch) for number in numbers)
        if sums not in self._bounded:
            most = (self.bounds.cap, self.bounds.device_cap, self.bounds.device_cap)
            for at, cap in enumerate(most):
                billed, may = (sums >> 16 * at) & 255, (sums >> 16 * at + 8) & 255
                assert billed <= cap, f"I2: {billed} billed under a cap of {cap}"
                assert may <= cap or self.only_bill, f"I2: leases of {may} under a cap of {cap}"
            self._bounded.add(sums)
        self._books.check(self._in_all_books(numbers))

    def _after(self, state: State) -> Iterator[State]:
        """Yield every state that may come next."""
        number, *numbers = state
        shared = self._shared.values[number]
        for at, lease in enumerate(numbers):
            rest = [*numbers[:at], *numbers[at + 1 :]]
            for new, left, refund in self._steps(lease, number):
                if refund:
                    before, after = self._in_books[lease], self._in_books[new]
                    self._books.check_refund(self._in_all_books(rest), before, after)
                yield self._state(left, [*rest, new])
        if shared.stage == "running" and len(numbers) < self.bounds.leases:
            yield from self._granted(number, numbers)
        for changed, change in self._faults(number):
            yield self._state(changed, [change(lease) for lease in numbers])

    def _granted(self, number: int, numbers: list[int]) -> Iterator[State]:
        """Grant as little or as much as the caps leave; who asks for what is not the rules'."""
        epoch = self._shared.values[number].epoch
        known = self._in_all_books(numbers)
        for owner in (0, 1):
            for amount in range(1, self.bounds.device_cap + 1):
                new = self._number(Small(owner, amount, epoch, (amount, None)))
                if self._books.granted(known, self._in_books[new]):
                    yield self._state(number, [*numbers, new])

    def _steps_of(self, number: int, shared: int) -> tuple[tuple[int, int, bool], ...]:
        small, around = self._smalls.values[number], self._shared.values[shared]
        found = []
        for new, keys in steps(small, around.gateway_epoch, self.bugs):
            for problem in moved_wrongly(small, new):
                assert self.only_bill, problem
            left = around.calls + keys
            if left >= 0:
                changed = self._shared.number(around._replace(calls=left))
                found.append((self._number(new), changed, new.books != small.books))
        return tuple(dict.fromkeys(found))

    def _faults_of(self, shared: int) -> list[tuple[int, Callable[[int], int]]]:
        values = self._smalls.values

        def numbered(change: Callable[[Small], Small]) -> Callable[[int], int]:
            return cache(lambda lease: self._number(change(values[lease])))

        return [
            (self._shared.number(changed), numbered(change))
            for changed, change in happened(self._shared.values[shared], self.bugs)
        ]

    def _sums_of(self, number: int, epoch: int) -> int:
        small = self._smalls.values[number]
        for problem in problems(small, epoch):
            assert self.only_bill, problem
        one = small.billed + (small.may_come_to(epoch) << 8)
        return one + (one << 16 * (1 + small.owner))

    def _in_all_books(self, numbers: Iterable[int]) -> tuple[int, ...]:
        return tuple(sorted(self._in_books[number] for number in numbers))

    def _number(self, small: Small) -> int:
        found = self._smalls.number(small)
        if found == len(self._twins):
            twin = small._replace(owner=1 - small.owner)
            self._smalls.number(twin)
            self._twins += [found + 1, found]
            self._in_books += [self._books.number(small), self._books.number(twin)]
        return found

    def _state(self, shared: int, numbers: list[int]) -> State:
        numbers.sort()
        other = sorted(self._twins[number] for number in numbers)
        return (shared, *min(numbers, other))


def happened(
    shared: Shared, bugs: frozenset[Bug]
) -> Iterator[tuple[Shared, Callable[[Small], Small]]]:
    """Yield what may happen to hub and gateway as a whole, and what it does to each lease.

    A restored hub learns step by step; what the gateway told may be old when it arrives.
    """
    epoch = shared.epoch
    if shared.stage == "running" and shared.restores:
        if shared.backups:
            yield shared._replace(backups=shared.backups - 1), backed_up
        new = shared._replace(restores=shared.restores - 1)
        if Bug.NO_EPOCH not in bugs:
            new = new._replace(epoch=epoch + 1, stage="untold")
        yield new, restored if new.restores else restored_last
    if shared.stage == "untold":
        yield shared._replace(stage="told"), lambda small: fenced(small, epoch)
    if shared.stage in {"told", "answered"}:
        yield shared._replace(stage="answered"), lambda small: reported(small, epoch)
    if shared.stage == "answered":
        yield shared._replace(stage="running"), rebuilt
