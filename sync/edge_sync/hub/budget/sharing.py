"""Pots, and what of them each device may have, while a batch of wants is answered.

Guarantees: what was taken out of a pot earlier in the batch is gone for the others; nothing is
taken that is not free in every pot above it; whatever tasks a device names, all that it may spend
at a pool is at most one part of what is free, or of the least size each, and it has a bounded
number of rights. Pots are read once, opened where their period is new, and written once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from sqlalchemy import Connection

from edge_sync.hub.budget import books
from edge_sync.hub.budget.caps import caps_above
from edge_sync.hub.budget.crowd import Crowd, had_in, read_had
from edge_sync.money import account, grants
from edge_sync.money.account import Pot, Right
from edge_sync.money.caps import Caps, Purpose, Scope
from edge_sync.money.grants import Claim, Terms
from edge_sync.money.periods import period_of
from edge_sync.wire import MAX_LEASES

Key: TypeAlias = tuple[Scope, str]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a lease for a purpose counts.

    Attributes:
        period: the shortest of those above it.
        caps: by scope and period of their pots.

    """

    period: str
    caps: dict[Key, int]


class Sharing:
    """The pots above some purposes.

    Args:
        connection: inside a write.
        purposes: that money is wanted for; without a cap above it, one gets nothing.
        crowd: who else wants money.
        terms: how careful to be.
        now: seconds since the epoch.

    """

    def __init__(
        self,
        connection: Connection,
        purposes: Iterable[Purpose],
        *,
        crowd: Crowd,
        terms: Terms,
        now: float,
    ) -> None:
        above = caps_above(connection, purposes)
        self.places = {
            purpose: _place(found, purpose, now=now)
            for purpose, found in above.items()
            if found.caps
        }
        self._pots = _pots(connection, self.places.values())
        ids = {purpose.device_id for purpose in self.places}
        self._had = read_had(connection, ids, periods={period for _, period in self._pots})
        self._unsealed: dict[str, list[Right]] = defaultdict(list)
        for held in books.of_devices(connection, ids):
            self._unsealed[held.right.purpose.device_id].append(held.right)
        self._fairness = Fairness(crowd, terms, now=now)
        self._least = terms.least_microusd

    def amount(self, purpose: Purpose, demand_microusd: int) -> int:
        """Return what a device is granted now; 0 where nothing useful is."""
        place = self.places.get(purpose)
        out = self._unsealed[purpose.device_id]
        if place is None or len(out) >= MAX_LEASES:
            return 0
        had = self._had[purpose.device_id]
        beside = [
            right
            for right in out
            if right.state == "open" and right.purpose.pool_id == purpose.pool_id
        ]
        amount = min(
            self._fairness.share(
                pot,
                Claim(purpose.device_id, demand_microusd, had_in(pot, had)),
                open_microusd=sum(right.amount_microusd for right in beside if pot.covers(right)),
            )
            for pot in map(self._pots.__getitem__, place.caps)
        )
        return amount if amount >= min(self._least, demand_microusd) else 0

    def take(self, right: Right) -> None:
        """Take a right out of every pot above it.

        Raises:
            BudgetExceeded: it does not fit.

        """
        pots = [self._pots[key] for key in self.places[right.purpose].caps]
        self._pots.update(_by_key(account.grant(pots, right)))
        taken = (right.purpose, right.period, right.amount_microusd)
        self._had[right.purpose.device_id].append(taken)
        self._unsealed[right.purpose.device_id].append(right)

    def write(self, connection: Connection) -> None:
        """Write the pots."""
        books.put_pots(connection, self._pots.values())


class Fairness:
    """What one device may have of a pot, for the length of a batch.

    Args:
        crowd: who else wants money.
        terms: how careful to be.
        now: seconds since the epoch.

    """

    def __init__(self, crowd: Crowd, terms: Terms, *, now: float) -> None:
        self._crowd = crowd
        self._terms = terms
        self._now = now
        self._kept: dict[tuple[Scope, str], dict[str, int]] = {}

    def share(self, pot: Pot, claim: Claim, *, open_microusd: int) -> int:
        """Return the most that a claim may be granted out of a pot; 0 where nothing useful is.

        Args:
            pot: to take it from.
            claim: of the device.
            open_microusd: what it may spend at the same pool by rights that are open.

        """
        budget = pot.free_microusd - self._kept_back(pot, beside=claim.device_id)
        others = self._crowd.others(pot, beside=claim)
        terms = self._terms
        amount = grants.grant_amount(budget, claim, others=others, absent=(), terms=terms, left=1.0)
        least = min(terms.least_microusd, claim.demand_microusd)
        if amount or budget < least:
            part = (budget + open_microusd) // terms.parts - open_microusd
            return min(amount, max(part, least))
        # Each one's part of a large crowd is too little for a call: those who had less go first.
        count = sum(other.weight for other in others)
        had = sum(other.had_microusd for other in others)
        return least if claim.had_microusd * count <= had else 0

    def _kept_back(self, pot: Pot, *, beside: str) -> int:
        key = pot.scope, pot.period
        if key not in self._kept:
            kept = self._crowd.kept_back(pot, terms=self._terms, now=self._now)
            self._kept[key] = {"": sum(kept.values()), **kept}
        return self._kept[key][""] - self._kept[key].get(beside, 0)


def _place(found: Caps, purpose: Purpose, *, now: float) -> Place:
    period = period_of(found.lease_kind(purpose), now)
    keys = account.pot_keys(found, purpose, period=period)
    return Place(period, {(scope, holder): amount for scope, holder, amount in keys})


def _pots(connection: Connection, places: Iterable[Place]) -> dict[Key, Pot]:
    """Read the pots of places; those of a period that is new are opened."""
    caps = {key: amount for place in places for key, amount in place.caps.items()}
    found = books.read_pots(connection, caps)
    for (scope, period), amount in caps.items():
        if (scope, period) not in found:
            found[scope, period] = books.open_pot(connection, scope, period, cap_microusd=amount)
    return found


def _by_key(pots: Iterable[Pot]) -> dict[Key, Pot]:
    return {(pot.scope, pot.period): pot for pot in pots}
