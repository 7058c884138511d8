"""The hub's books: what is free under each cap, and what becomes of each right to spend.

    open -> closing -> sealed        open -> sealed, where the gateway sealed it first

Guarantees, for every pot (one cap in one period): free + amounts of open rights + what sealed ones
used = cap, exactly, after every transition. Money comes back only with the gateway's seal, once.
What a lost hub had granted is rebuilt from the gateways alone, under a new epoch that voids the
rest. A restored hub grants nothing before every gateway has told, so the names of the gateways, the
epoch and the caps must be kept outside of the database too. Pots and rights are never forgotten
while a period can still be granted from. Each function takes the rows that it changes and returns
them. Reads no clock: safety does not rest on time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from edge.errors import BudgetExceeded, InputError, StoreError
from edge_sync.money.caps import Caps, Purpose, Scope
from edge_sync.money.periods import kind_of, within

RightState: TypeAlias = Literal["open", "closing", "sealed"]


@dataclass(frozen=True, slots=True)
class Right:
    """A lease in the hub's books.

    Attributes:
        state: ``closing`` once the gateway was asked to seal it.
        used_microusd: what the gateway redeemed of it; 0 until sealed.

    """

    lease_id: str
    purpose: Purpose
    period: str
    epoch: int
    amount_microusd: int
    state: RightState = "open"
    used_microusd: int = 0


@dataclass(frozen=True, slots=True)
class Pot:
    """One cap within one period.

    Attributes:
        free_microusd: may still be granted; below 0 after a cut.
        open_microusd: amounts of rights that are not sealed.
        settled_microusd: used by those that are.

    """

    scope: Scope
    period: str
    cap_microusd: int
    free_microusd: int
    open_microusd: int = 0
    settled_microusd: int = 0

    def covers(self, right: Right) -> bool:
        """Return whether a right counts here."""
        return within(right.period, kind_of(self.period)) == self.period and self.scope.covers(
            right.purpose
        )


@dataclass(frozen=True, slots=True)
class Report:
    """What a gateway says of one lease after it was fenced.

    Attributes:
        used_microusd: redeemed and held; it can only fall while holds are open.
        final: no hold is open.

    """

    lease_id: str
    purpose: Purpose
    period: str
    epoch: int
    used_microusd: int
    final: bool


def pot_keys(caps: Caps, purpose: Purpose, *, period: str) -> tuple[tuple[Scope, str, int], ...]:
    """Return (scope, period, cap) of every pot that a right for this period counts in.

    Raises:
        InputError: a cap has a shorter period, which the right would cross.

    """
    found = []
    for cap in caps.covering(purpose):
        holder = within(period, cap.kind)
        if holder is None:
            raise InputError(
                f"A lease for {period} would cross periods of the cap of {cap.scope.text()} "
                f"per {cap.kind}.",
                hint="Grant it for the shortest period of the caps above it.",
            )
        found.append((cap.scope, holder, cap.amount_microusd))
    return tuple(found)


def open_pot(scope: Scope, period: str, *, cap_microusd: int, rights: Iterable[Right]) -> Pot:
    """Return the pot of a cap that is new, or whose period is: all rights that count are in it."""
    empty = Pot(scope, period, cap_microusd, cap_microusd)
    counted = [right for right in rights if empty.covers(right)]
    taken = sum(right.amount_microusd for right in counted if right.state != "sealed")
    used = sum(right.used_microusd for right in counted if right.state == "sealed")
    return Pot(scope, period, cap_microusd, cap_microusd - taken - used, taken, used)


def grant(pots: Sequence[Pot], right: Right) -> tuple[Pot, ...]:
    """Take a right out of every pot that it counts in.

    Args:
        pots: all that cover it, at least one.
        right: open and not in the books yet.

    Raises:
        BudgetExceeded: it does not fit one of them, or there is none.

    """
    amount = right.amount_microusd
    if not pots:
        raise BudgetExceeded(f"No cap covers lease {right.lease_id}.")
    for pot in pots:
        if amount > pot.free_microusd:
            raise BudgetExceeded(
                f"A lease over {amount} micro-dollars does not fit the cap of {pot.scope.text()} "
                f"for {pot.period}: {pot.free_microusd} are free."
            )
    return tuple(
        replace(
            pot,
            free_microusd=pot.free_microusd - amount,
            open_microusd=pot.open_microusd + amount,
        )
        for pot in pots
    )


def close(right: Right) -> Right:
    """Return a right whose gateway is asked to seal it; nothing is free yet."""
    return replace(right, state="closing") if right.state == "open" else right


def seal(pots: Sequence[Pot], right: Right, *, used_microusd: int) -> tuple[tuple[Pot, ...], Right]:
    """Book the gateway's final count and give the rest back; the same count again changes nothing.

    Args:
        pots: all that cover the right.
        right: in the books.
        used_microusd: 0 to its amount.

    Raises:
        StoreError: the count is out of range, or the right was sealed with another.

    """
    amount = right.amount_microusd
    known = right.state == "sealed"
    if not 0 <= used_microusd <= amount or (known and right.used_microusd != used_microusd):
        before = f"sealed at {right.used_microusd}" if known else f"granted for {amount}"
        raise StoreError(
            f"A gateway says that {used_microusd} micro-dollars of lease {right.lease_id} were "
            f"used, which is {before}.",
            hint="Nothing was changed; compare the gateway's register with the provider's bill.",
        )
    if known:
        return tuple(pots), right
    booked = tuple(
        replace(
            pot,
            free_microusd=pot.free_microusd + amount - used_microusd,
            open_microusd=pot.open_microusd - amount,
            settled_microusd=pot.settled_microusd + used_microusd,
        )
        for pot in pots
    )
    return booked, replace(right, state="sealed", used_microusd=used_microusd)


def recap(pot: Pot, cap_microusd: int) -> Pot:
    """Return a pot under another cap; a cut may leave free below 0, and nothing is granted then."""
    free = pot.free_microusd + cap_microusd - pot.cap_microusd
    return replace(pot, cap_microusd=cap_microusd, free_microusd=free)


def rebuild(reports: Iterable[Report]) -> tuple[Right, ...]:
    """Return the books of a restored hub: what all gateways hold of older epochs, and no more.

    A lease that no gateway has seen is void, its money free. One with open holds stays closing at
    what it may come to.
    """
    return tuple(
        Right(
            report.lease_id,
            report.purpose,
            report.period,
            report.epoch,
            report.used_microusd,
            "sealed" if report.final else "closing",
            report.used_microusd if report.final else 0,
        )
        for report in reports
    )


def unbalanced(pots: Iterable[Pot], rights: Sequence[Right]) -> tuple[str, ...]:
    """Return what breaks conservation (I1), a sentence each; none where all is exact."""
    found = []
    for pot in pots:
        told = open_pot(pot.scope, pot.period, cap_microusd=pot.cap_microusd, rights=rights)
        if pot.free_microusd + pot.open_microusd + pot.settled_microusd != pot.cap_microusd:
            found.append(f"{pot.scope.text()} {pot.period}: free, open and settled miss the cap")
        if pot != told:
            found.append(f"{pot.scope.text()} {pot.period}: its rights come to something else")
    return tuple(found)
