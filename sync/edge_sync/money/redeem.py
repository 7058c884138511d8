"""The gateway's register as rules: what of a lease is spent, and which calls hold how much of it.

    lease   redeeming -> sealing -> sealed (no hold is open: the count is final)
    hold    held -> settled | unclear -> settled         held -> released, only where unbilled

Guarantees: redeemed plus held never exceeds a lease's amount; after a seal or a newer epoch there
are no new holds; the count that a seal returned never changes; one idempotency key is one hold.
Whatever happened between a hold and its answer, the hold stays at its maximum until the bill is
known. Each function takes the rows that it changes and returns them; the caller makes them durable
before anything is forwarded or answered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from edge.errors import BudgetExceeded, InputError, StoreError
from edge_sync.money.lease import Lease
from edge_sync.money.periods import bounds

HoldState: TypeAlias = Literal["held", "settled", "unclear", "released"]
RefusalCode: TypeAlias = Literal["foreign", "fenced", "expired", "sealed", "overdrawn"]
_OPEN = frozenset({"held", "unclear"})


class LeaseRefused(BudgetExceeded):
    """A lease does not pay for a call.

    Attributes:
        code: ``foreign`` for another pool, ``fenced`` of an older epoch, ``expired``, ``sealed``,
            or ``overdrawn``.

    """

    default_hint = "Sync with the hub for another lease."

    def __init__(self, code: RefusalCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Redemption:
    """A lease in the register.

    Attributes:
        redeemed_microusd: what settled calls cost.
        held_microusd: maxima of open holds.
        holds: how many are open.
        sealing: the hub asked for the seal, or a newer epoch fenced it.

    """

    lease_id: str
    amount_microusd: int
    epoch: int
    redeemed_microusd: int = 0
    held_microusd: int = 0
    holds: int = 0
    sealing: bool = False

    @property
    def used_microusd(self) -> int:
        """What it has cost or may still cost."""
        return self.redeemed_microusd + self.held_microusd

    @property
    def remaining_microusd(self) -> int:
        """What may still be held."""
        return 0 if self.sealing else self.amount_microusd - self.used_microusd

    @property
    def sealed(self) -> bool:
        """Whether ``used_microusd`` is final."""
        return self.sealing and self.holds == 0


@dataclass(frozen=True, slots=True)
class Hold:
    """Money set aside for one call.

    Attributes:
        hold_id: digest of device and idempotency key; not of the lease, as a call that is repeated
            under another lease is the same call.
        request_hash: of the request; the same key may not pay for another.
        cost_microusd: what it came to; 0 until settled.
        excess_microusd: what the provider billed above the maximum: an alarm, not the lease's.

    """

    hold_id: str
    lease_id: str
    request_hash: str
    max_microusd: int
    state: HoldState = "held"
    cost_microusd: int = 0
    excess_microusd: int = 0


def admit(lease: Lease, *, pool_id: str, epoch: int, now: float) -> int:
    """Check whether a lease is good here and now; its signature is not looked at.

    A wrong clock refuses good leases or takes late ones, and costs no money: what is redeemed
    counts in the lease's own period, and what the hub got back is sealed. A call that the register
    knows is answered from there without asking here: its lease may have ended since.

    Args:
        lease: as it was signed.
        pool_id: of this gateway.
        epoch: newest that it knows.
        now: seconds since the epoch.

    Returns:
        The newest epoch it knows now; where that rose, fence what is older before going on.

    Raises:
        LeaseRefused: it is for another pool, of an older epoch, or past its time or period.

    """
    if lease.pool_id != pool_id:
        raise LeaseRefused("foreign", f"Lease {lease.lease_id} is for pool {lease.pool_id!r}.")
    if lease.epoch < epoch:
        raise LeaseRefused(
            "fenced", f"Lease {lease.lease_id} is of epoch {lease.epoch}; the hub is at {epoch}."
        )
    first, end = bounds(lease.period)
    if now > lease.not_after or not first <= now < end:
        raise LeaseRefused("expired", f"Lease {lease.lease_id} for {lease.period} is not in force.")
    return lease.epoch


def first_seen(lease: Lease) -> Redemption:
    """Return a lease as it enters the register."""
    return Redemption(lease.lease_id, lease.amount_microusd, lease.epoch)


def hold(redemption: Redemption, wanted: Hold, *, found: Hold | None) -> tuple[Redemption, Hold]:
    """Set the most that a call may cost aside, or return the hold it already has.

    Args:
        redemption: of the lease that is to pay.
        wanted: a hold of that lease, in the state ``held``.
        found: the hold of the same id in the register. Unless it was released, nothing changes and
            nothing may be forwarded.

    Raises:
        LeaseRefused: the lease is sealed, or has less left.
        InputError: the idempotency key was used for another request, or the maximum is no amount.

    """
    if found is not None and found.request_hash != wanted.request_hash:
        raise InputError(
            "The idempotency key was used for another request.",
            hint="Use a new key for a new request.",
        )
    if found is not None and found.state != "released":
        return redemption, found
    amount = _checked(wanted.max_microusd, "The most that a call may cost")
    if redemption.sealing:
        raise LeaseRefused("sealed", f"Lease {redemption.lease_id} is sealed.")
    if amount > redemption.remaining_microusd:
        raise LeaseRefused(
            "overdrawn",
            f"The call may cost {amount} micro-dollars; lease {redemption.lease_id} has "
            f"{redemption.remaining_microusd} left.",
        )
    held = redemption.held_microusd + amount
    return replace(redemption, held_microusd=held, holds=redemption.holds + 1), wanted


def settle(redemption: Redemption, call: Hold, *, cost_microusd: int) -> tuple[Redemption, Hold]:
    """Book what a call cost; the same cost again changes nothing.

    A cost above the maximum is booked at the maximum, the rest as excess.

    Raises:
        InputError: the cost is no amount; leave the hold unclear.
        StoreError: the hold was released, or settled at another cost.

    """
    billed = _checked(cost_microusd, "The cost of a call")
    cost = min(billed, call.max_microusd)
    done = replace(call, state="settled", cost_microusd=cost, excess_microusd=billed - cost)
    if call == done:
        return redemption, call
    _must_be_open(call, "settled")
    return _freed(redemption, call, redeemed=cost), done


def leave_unclear(call: Hold) -> Hold:
    """Return a hold of which nobody knows whether it was billed; it stays at its maximum."""
    return replace(call, state="unclear") if call.state == "held" else call


def release(redemption: Redemption, call: Hold) -> tuple[Redemption, Hold]:
    """Free a hold that is certainly unbilled: never forwarded, or refused by the provider.

    Raises:
        StoreError: the hold is unclear or settled; only the bill can tell.

    """
    if call.state == "released":
        return redemption, call
    if call.state != "held":
        raise _contradiction(call, "released")
    return _freed(redemption, call, redeemed=0), replace(call, state="released")


def seal(redemption: Redemption) -> Redemption:
    """Return a lease that takes no new holds; its count is final once ``sealed``."""
    return redemption if redemption.sealing else replace(redemption, sealing=True)


def seal_unseen(lease_id: str, *, epoch: int) -> Redemption:
    """Return the entry of a lease that was sealed before it was seen: it never pays."""
    return Redemption(lease_id, 0, epoch, sealing=True)


def fence(redemption: Redemption, epoch: int) -> Redemption:
    """Return a lease under the hub's epoch: sealed where it is of an older one."""
    return seal(redemption) if redemption.epoch < epoch else redemption


def raise_epoch(known: int, told: int) -> int:
    """Return the epoch after the hub told one; it never falls."""
    return max(known, told)


def unbounded(redemption: Redemption, calls: Iterable[Hold]) -> tuple[str, ...]:
    """Return what breaks the bound of a lease (I3), a sentence each; none where it holds."""
    mine = [call for call in calls if call.lease_id == redemption.lease_id]
    open_ = [call for call in mine if call.state in _OPEN]
    told = {
        "redeemed": (redemption.redeemed_microusd, sum(call.cost_microusd for call in mine)),
        "held": (redemption.held_microusd, sum(call.max_microusd for call in open_)),
        "holds": (redemption.holds, len(open_)),
    }
    found = [
        f"lease {redemption.lease_id}: {name} is {had}, its calls come to {real}"
        for name, (had, real) in told.items()
        if had != real
    ]
    if redemption.used_microusd > redemption.amount_microusd:
        found.append(f"lease {redemption.lease_id} is overdrawn")
    return tuple(found)


def _freed(redemption: Redemption, call: Hold, *, redeemed: int) -> Redemption:
    return replace(
        redemption,
        redeemed_microusd=redemption.redeemed_microusd + redeemed,
        held_microusd=redemption.held_microusd - call.max_microusd,
        holds=redemption.holds - 1,
    )


def _must_be_open(call: Hold, wanted: str) -> None:
    if call.state not in _OPEN:
        raise _contradiction(call, wanted)


def _contradiction(call: Hold, wanted: str) -> StoreError:
    return StoreError(
        f"Hold {call.hold_id} is {call.state} and cannot be {wanted}.",
        hint="Nothing was changed; compare with the provider's bill.",
    )


def _checked(value: int, what: str) -> int:
    if type(value) is not int or value < 0:
        raise InputError(f"{what} is {value!r}, no whole number from 0 up.")
    return value
