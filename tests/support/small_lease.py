"""One lease of a small world: all that may happen to it next, by the rules of money themselves.

A lease is a value of small numbers, so that equal ones are the same one. What is sent is never lost
from sight: a message may arrive at any time, twice, or never, and a copy of a disk, a clock that is
wrong and a device that is stolen only choose among the same steps. A settled call is kept as what
the lease has redeemed, for nothing can happen to it any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from enum import Enum
from typing import NamedTuple

from edge.errors import InputError, StoreError
from edge_sync.money import account, redeem
from edge_sync.money.account import Report, Right
from edge_sync.money.caps import Purpose
from edge_sync.money.lease import Lease
from edge_sync.money.redeem import Hold, LeaseRefused, Redemption

POOL, OTHER_POOL = "big", "small"
MOST = (1, 2)
"""What a call may cost at most, in units."""


class Bug(Enum):
    """A mistake that the small world can be given; the rules themselves have no such switch."""

    RECLAIM = "an expired lease is taken back without asking the gateway"
    RELEASE = "a hold is released when the answer does not come in time"
    ASYNCHRONOUS = "a closed lease is refunded by the rows that have arrived"
    NO_EPOCH = "a restored hub goes on in the same epoch"
    FLOAT = "money is dollars in floating point"


class Call(NamedTuple):
    """A call whose cost is not on the books.

    Attributes:
        phase: ``held``, ``asked`` of the provider, ``billed`` with the answer on its way; then the
            same, ``lost``, after the gateway gave up: whether the request arrives is open.
        cost: what was billed; 0 before.

    """

    phase: str
    most: int
    cost: int = 0


class Entry(NamedTuple):
    """What the gateway's register has of a lease: see ``Redemption``."""

    amount: int
    epoch: int
    redeemed: int = 0
    held: int = 0
    holds: int = 0
    sealing: bool = False


class Small(NamedTuple):
    """A lease that was granted.

    Attributes:
        owner: 0 or 1, the device.
        books: amount and, once sealed, use in the hub's books; ``None`` where they do not have it.
        backup: the same in the hub's backup.
        entry: what the gateway has of it; ``None`` before it saw the lease.
        told: use and whether it is final, as the gateway told a restored hub.
        calls: in order.
        stray: units billed for calls that the gateway gave back.

    """

    owner: int
    amount: int
    epoch: int
    books: tuple[int, int | None] | None
    backup: tuple[int, int | None] | None = None
    entry: Entry | None = None
    told: tuple[int, bool] | None = None
    calls: tuple[Call, ...] = ()
    stray: int = 0

    @property
    def billed(self) -> int:
        """What the provider took for it, up to what it was asked."""
        redeemed = self.entry.redeemed if self.entry else 0
        return redeemed + sum(call.cost for call in self.calls) + self.stray

    def may_come_to(self, epoch: int) -> int:
        """Return the most that it can still be billed at, under the gateway's epoch."""
        if self.entry is None:
            return self.amount if self.epoch >= epoch else 0
        entry = redemption(self.entry)
        return entry.used_microusd + entry.remaining_microusd + self.stray


def redemption(entry: Entry) -> Redemption:
    """Return an entry as the rules know it."""
    return Redemption("lease", *entry)


def right(small: Small, books: tuple[int, int | None], *, closing: bool = False) -> Right:
    """Return what the hub's books have of a lease as the rules know it."""
    amount, used = books
    made = Right("lease", purpose(small.owner), "total", small.epoch, amount)
    if used is not None:
        return replace(made, state="sealed", used_microusd=used)
    return account.close(made) if closing else made


def purpose(owner: int) -> Purpose:
    """Return what a device spends for."""
    return Purpose("kiosks", f"{owner:032x}", POOL)


def steps(small: Small, epoch: int, bugs: frozenset[Bug]) -> Iterator[tuple[Small, int]]:
    """Yield what a lease may be next, but for what concerns them all.

    Yields:
        The lease, and how many keys of calls that gives back: one for a hold that was released,
        -1 for a new one.

    """
    yield from ((new, -1) for new in _held(small, epoch))
    for at, call in enumerate(small.calls):
        rest = small._replace(calls=small.calls[:at] + small.calls[at + 1 :])
        if at == 0 or call != small.calls[at - 1]:
            yield from ((new, 0) for new in _next(rest, call, bugs))
            yield from ((new, 1) for new in _released(rest, call))
    yield from ((new, 0) for new in _sealed(small))
    yield from ((new, 0) for new in _booked(small, bugs))


def backed_up(small: Small) -> Small:
    """Return a lease after the hub took a backup."""
    return small._replace(backup=small.books)


def restored(small: Small) -> Small:
    """Return a lease after the hub came back from its backup."""
    return small._replace(books=small.backup)


def restored_last(small: Small) -> Small:
    """Return a lease after a restore that no other will follow: the backup matters no more."""
    return small._replace(books=small.backup, backup=None)


def fenced(small: Small, epoch: int) -> Small:
    """Return a lease after the gateway learnt of an epoch."""
    if small.entry is None:
        return small
    return _entered(small, redeem.fence(redemption(small.entry), epoch))


def reported(small: Small, epoch: int) -> Small:
    """Return a lease after the gateway told a restored hub what it has."""
    if small.entry is None or small.entry.epoch >= epoch:
        return small._replace(told=None)
    entry = redemption(small.entry)
    return small._replace(told=(entry.used_microusd, entry.sealed))


def rebuilt(small: Small) -> Small:
    """Return a lease in the books that a restored hub makes of all that was told."""
    if small.told is None:
        return small._replace(books=None)
    used, final = small.told
    report = Report("lease", purpose(small.owner), "total", small.epoch, used, final)
    (found,) = account.rebuild([report])
    sealed = found.used_microusd if found.state == "sealed" else None
    return small._replace(books=(found.amount_microusd, sealed), told=None)


def lease_of(small: Small, *, pool_id: str = POOL) -> Lease:
    """Return a lease as it is signed."""
    return Lease(
        "lease", purpose(small.owner).scope, "total", purpose(small.owner).device_id, pool_id,
        small.epoch, small.amount, 2, 1, "k1",
    )  # fmt: skip


def problems(small: Small, epoch: int) -> Iterator[str]:
    """Yield each invariant that a lease breaks by itself."""
    if _refusal(lease_of(small, pool_id=OTHER_POOL), epoch) != "foreign":
        yield "I4: it pays at another pool"
    if small.entry is None:
        return
    entry = redemption(small.entry)
    calls = [Hold("c", "lease", "h", call.most) for call in small.calls]
    done = Hold("c", "lease", "h", entry.redeemed_microusd, "settled", entry.redeemed_microusd)
    yield from (f"I3: {each}" for each in redeem.unbounded(entry, [*calls, done]))
    if small.books and small.books[1] is not None:
        if not entry.sealed or entry.used_microusd != small.books[1]:
            yield "I3: refunded before the seal"
    elif small.books and entry.used_microusd > small.books[0]:
        yield "I3: the books have less than was used"
    if small.epoch < epoch:
        if not entry.sealing:
            yield "I5: an older epoch is not fenced"
        if _refusal(lease_of(small), epoch) != "fenced":
            yield "I5: an older epoch is admitted"


def moved_wrongly(before: Small, after: Small) -> Iterator[str]:
    """Yield each invariant that a step breaks."""
    was, now = before.entry, after.entry
    if was is None or now is None:
        if was is not None:
            yield "I8: the gateway forgot a lease"
        return
    if now.redeemed < was.redeemed or now.epoch != was.epoch or now.sealing < was.sealing:
        yield "I8: the gateway's count, epoch or seal fell"
    if was.sealing and now.redeemed + now.held > was.redeemed + was.held:
        yield "I3: a hold after the seal"
    if redemption(was).sealed and now != was:
        yield "I3: a final count changed"


def _held(small: Small, epoch: int) -> Iterator[Small]:
    if _refusal(lease_of(small), epoch):
        return
    known = redemption(small.entry) if small.entry else redeem.first_seen(lease_of(small))
    for most in MOST:
        wanted = Hold("new", "lease", "h", most)
        # A key whose hold was given back is as good as a new one.
        released = replace(wanted, state="released")
        outcomes = {_hold(known, wanted, found) for found in (None, released)}
        assert len(outcomes) == 1
        entry = outcomes.pop()
        if entry is not None:
            yield _entered(small, entry, Call("held", most))


def _hold(known: Redemption, wanted: Hold, found: Hold | None) -> Redemption | None:
    try:
        return redeem.hold(known, wanted, found=found)[0]
    except LeaseRefused:
        return None


def _next(rest: Small, call: Call, bugs: frozenset[Bug]) -> Iterator[Small]:
    """Yield what may become of one call; ``rest`` is the lease without it."""
    assert rest.entry is not None
    entry = redemption(rest.entry)
    hold = Hold("c", "lease", "h", call.most)
    _same_again(entry, hold)
    phase, lost = call.phase.removesuffix(" lost"), call.phase.endswith(" lost")
    if lost:
        hold = redeem.leave_unclear(hold)
        _no_release(entry, hold)
    if phase == "asked":
        for cost in range(call.most + 1):
            yield _with(rest, call._replace(phase=call.phase.replace("asked", "billed"), cost=cost))
    if phase == "asked" and lost:
        yield _with(rest, Call("billed lost", call.most))  # it never arrives
    # The provider's closed bill settles what is unclear, the answer what is not.
    if phase == "billed":
        settled, done = redeem.settle(entry, hold, cost_microusd=call.cost)
        assert done.cost_microusd == call.cost
        if call.cost == call.most:  # one that lies is booked at the most
            over, told = redeem.settle(entry, hold, cost_microusd=call.cost + 1)
            assert (over, told.excess_microusd) == (settled, 1)
        yield _entered(rest, settled)
    if lost:
        return
    if phase == "held":
        yield _with(rest, call._replace(phase="asked"))
        yield _with(rest, Call("billed lost", call.most))  # a crash before it was sent
    if phase != "held":
        yield from _timed_out(rest, call, entry, hold, bugs)


def _released(rest: Small, call: Call) -> Iterator[Small]:
    """Yield the lease where a call was not sent yet, or was refused by the provider."""
    if call.phase in {"held", "asked"}:
        assert rest.entry is not None
        hold = Hold("c", "lease", "h", call.most)
        yield _entered(rest, redeem.release(redemption(rest.entry), hold)[0])


def _timed_out(
    rest: Small, call: Call, entry: Redemption, hold: Hold, bugs: frozenset[Bug]
) -> Iterator[Small]:
    if Bug.RELEASE not in bugs:
        yield _with(rest, call._replace(phase=f"{call.phase} lost"))
        return
    freed = _entered(rest, redeem.release(entry, hold)[0])
    costs = (call.cost,) if call.phase == "billed" else range(call.most + 1)
    yield from (freed._replace(stray=rest.stray + cost) for cost in costs)


def _sealed(small: Small) -> Iterator[Small]:
    """Yield a lease that the hub asked to seal; to ask for more of them than it does is safe."""
    if small.entry is None:
        unseen = redeem.seal_unseen("lease", epoch=small.epoch)
        yield _entered(small, unseen)
    elif not small.entry.sealing:
        yield _entered(small, redeem.seal(redemption(small.entry)))


def _booked(small: Small, bugs: frozenset[Bug]) -> Iterator[Small]:
    """Yield a lease whose final count reached the hub."""
    if small.books is None or small.books[1] is not None:
        return
    sealed = small.entry is not None and redemption(small.entry).sealed
    redeemed = small.entry.redeemed if small.entry else 0
    if sealed and Bug.ASYNCHRONOUS not in bugs:
        yield small._replace(books=(small.books[0], redeemed))
    if Bug.RECLAIM in bugs or (sealed and Bug.ASYNCHRONOUS in bugs):
        # Any part of the rows may have arrived.
        yield from (small._replace(books=(small.books[0], used)) for used in range(redeemed + 1))


def _same_again(entry: Redemption, call: Hold) -> None:
    """Check that one key is one hold, whatever state it is in."""
    for found in (call, redeem.leave_unclear(call)):
        assert redeem.hold(entry, replace(call, state="held"), found=found) == (entry, found)
        try:
            redeem.hold(entry, replace(call, request_hash="other"), found=found)
        except InputError:
            continue
        raise AssertionError("A key paid for two requests.")


def _no_release(entry: Redemption, call: Hold) -> None:
    try:
        redeem.release(entry, call)
    except StoreError:
        return
    raise AssertionError("An unclear hold was released.")


def _refusal(lease: Lease, epoch: int) -> str:
    try:
        redeem.admit(lease, pool_id=POOL, epoch=epoch, now=1.0)
    except LeaseRefused as refusal:
        return refusal.code
    return ""


def _with(rest: Small, call: Call) -> Small:
    return rest._replace(calls=tuple(sorted((*rest.calls, call))))


def _entered(small: Small, entry: Redemption, *calls: Call) -> Small:
    new = Entry(
        entry.amount_microusd, entry.epoch, entry.redeemed_microusd, entry.held_microusd,
        entry.holds, entry.sealing,
    )  # fmt: skip
    return small._replace(entry=new, calls=tuple(sorted((*small.calls, *calls))))
